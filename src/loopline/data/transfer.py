"""Fetch one file over https: resume, retry, limit the length, and rename the file only after its sha256 is verified.

An interrupted transfer stays as `<file>.partial` and resumes from there (HTTP Range, RFC 9110 section 14).
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopline.data.catalog import File
from loopline.errors import LooplineError

CHUNK = 1 << 18
TRIES = 5  # in a row without a new byte
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth another try


class _AgainError(Exception):
    """A temporary failure that is worth another try."""


class _AllowedRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to an address that `check_address` allows."""

    def redirect_request(self, *arguments: Any) -> Any:
        _, response, *_, address = arguments
        try:
            check_address(address)
        except LooplineError:
            response.close()
            raise
        return super().redirect_request(*arguments)


_OPENER = urllib.request.build_opener(_AllowedRedirects)


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """The options that all transfers of one fetch share.

    progress: called with the number of bytes that arrived, negative for bytes thrown away. timeout: seconds without a
    byte. backoff: seconds before the second try, doubled before each later try. stop: an event that ends all transfers.
    """

    progress: Callable[[int], Any]
    timeout: float = 30.0
    backoff: float = 0.5
    stop: threading.Event = field(default_factory=threading.Event)


def download(url: str, target: Path, file: File, options: TransferOptions) -> None:
    """Fetch `url` to `target`. Raises LooplineError if it is unavailable, too long or has the wrong hash."""
    check_address(url)
    partial = partial_of(target)
    left_over = _size(partial)  # bytes from an earlier run
    options.progress(left_over)
    _complete(url, partial, file, options)
    if left_over and not options.stop.is_set() and not has_content(partial, file):
        # The old bytes may be wrong rather than the server, so fetch once more from the start.
        options.progress(-_size(partial))
        partial.unlink()
        _complete(url, partial, file, options)
    if not options.stop.is_set():
        accept(partial, target, file, url)


def _complete(url: str, partial: Path, file: File, options: TransferOptions) -> None:
    """Bring `partial` to the file's length. Raises LooplineError after TRIES tries in a row without a new byte."""
    tries = 0
    while not options.stop.is_set() and not (partial.exists() and _size(partial) == file.bytes):
        have = _size(partial)
        try:
            _receive(url, partial, file, options)
        except (_AgainError, OSError, http.client.HTTPException) as error:
            tries = 1 if _size(partial) > have else tries + 1
            if tries == TRIES:
                raise LooplineError(
                    f"{url}: {error or type(error).__name__}. Gave up after {TRIES} tries. Run the same command again to "
                    "resume, or set LOOPLINE_MIRROR to a folder that holds the files"
                ) from error
            options.stop.wait(options.backoff * 2 ** (tries - 1))


def _receive(url: str, partial: Path, file: File, options: TransferOptions) -> None:
    """Append the missing bytes, or start over if the server ignores ranges. Raises _AgainError if a retry may help."""
    have = _size(partial)
    headers = {"User-Agent": "loopline", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - check_address allowed it
    try:
        response = _OPENER.open(request, timeout=options.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the partial file is longer than the server's
            options.progress(-have)
            partial.unlink(missing_ok=True)
        if error.code == 416 or error.code in TEMPORARY:
            raise _AgainError(f"HTTP {error.code} {error.reason}") from error
        raise LooplineError(
            f"{url}: HTTP {error.code} {error.reason}. If it has moved, set LOOPLINE_MIRROR to a folder that has it"
        ) from error
    with response, partial.open("ab") as out:
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            options.progress(-have)
            have = 0
            out.truncate(0)
        while chunk := response.read(CHUNK):
            have += len(chunk)
            if have > file.bytes:
                out.truncate(0)
                raise LooplineError(
                    f"{url} is longer than the catalogue's {file.bytes:,} bytes, so it is another file and was refused"
                )
            out.write(chunk)
            options.progress(len(chunk))
            if options.stop.is_set():
                return
    if have < file.bytes:
        raise _AgainError(f"the connection ended after {have:,} of {file.bytes:,} bytes")


def accept(partial: Path, target: Path, file: File, source: str) -> None:
    """Rename the complete file, or remove it and raise LooplineError if its hash is wrong."""
    digest = _sha256(partial)
    if digest != file.sha256:
        partial.unlink()
        raise LooplineError(
            f"{source} has sha256 {digest}, but the catalogue says {file.sha256}. It was removed, since it is not the "
            "file that was checked for the catalogue. If the new file is right, correct data/catalog.yaml"
        )
    partial.replace(target)


def has_content(path: Path, file: File) -> bool:
    """Whether the file at `path` has the size and the hash in the catalogue."""
    return path.is_file() and _size(path) == file.bytes and _sha256(path) == file.sha256


def partial_of(target: Path) -> Path:
    """The path of a file while it is incomplete."""
    return target.with_name(target.name + ".partial")


def check_address(url: str) -> None:
    """Raise LooplineError for any address but https, or http on this machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        raise LooplineError(f"{url}: only https addresses are fetched")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
