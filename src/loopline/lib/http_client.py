"""One HTTP request, with one exception for every way in which it can fail."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from loopline.errors import LooplineError

LARGEST = 64 << 20  # largest answer, in bytes
LARGEST_REFUSAL = 64 << 10  # bytes of an error's content that are kept


class FetchError(OSError):
    """A request failed. status: that of the answer, or None without an answer. content: the start of a refusal's body."""

    def __init__(self, words: str, *, status: int | None = None, content: bytes = b"") -> None:
        super().__init__(words)
        self.status, self.content = status, content


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Removes the token from a request that is redirected to another host, since the token is not meant for that host."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        request = super().redirect_request(*arguments)
        if (
            request
            and urllib.parse.urlsplit(arguments[0].full_url).netloc != urllib.parse.urlsplit(request.full_url).netloc
        ):
            request.remove_header("Authorization")
        return request


def fetch(
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float,
    most: int = LARGEST,
) -> bytes:
    """Return the content that `url` answers with a status of 200 to 299. Redirects are followed. With a body the method is POST.

    timeout: longest wait for the next byte, in seconds. most: largest answer, in bytes. Raises FetchError, whose cause is the
    original exception, and LooplineError if `url` does not begin with http:// or https://.
    """
    if not url.startswith(("http://", "https://")):
        raise LooplineError(f"{url} is no address of a server: it starts with http:// or https://")
    try:
        request = urllib.request.Request(url, body, dict(headers or {}))  # noqa: S310 - see above
        with urllib.request.build_opener(_Redirects).open(request, timeout=timeout) as answer:
            content: bytes = answer.read(most + 1)
            if (
                answer.length and len(content) <= most
            ):  # the answer ended early, which `read` with a number does not report
                raise http.client.IncompleteRead(content, answer.length)
    except urllib.error.HTTPError as error:
        with error:
            try:
                refusal = error.read(LARGEST_REFUSAL)
            except (OSError, http.client.HTTPException):
                refusal = b""
        raise FetchError(f"{error.code} {error.reason}", status=error.code, content=refusal) from error
    except TimeoutError as error:
        raise FetchError(f"no answer within {timeout:g} s") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        # If no process listens on a local port yet, a connection can connect to itself. Then its own request comes back.
        raise FetchError(str(getattr(error, "reason", error)) or repr(error)) from error
    if len(content) > most:
        raise FetchError(f"more than {most >> 20} MB")
    return content


def answers(url: str, timeout: float = 1) -> bool:
    """Tell whether `url` answers with a status of 200 to 299 within `timeout` seconds."""
    try:
        fetch(url, timeout=timeout)
    except FetchError:
        return False
    return True
