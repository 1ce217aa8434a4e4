"""One file over HTTP: https only, resumed, retried, no longer than announced, and named only once its sha256 is right.

A transfer that was cut off stays as `<file>.partial` and goes on from there (HTTP Range, RFC 9110 section 14).
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
TRIES = 5  # without a new byte
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth another try


class _AgainError(Exception):
    """Something that may pass."""


class _AllowedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that would be allowed in the first place."""

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
    """What all transfers of one fetch share.

    progress takes the number of bytes that arrived, negative where some were thrown away. timeout: seconds without a
    byte. backoff: seconds before the second try, twice as long before each one after. stop: set it to end them early.
    """

    progress: Callable[[int], Any]
    timeout: float = 30.0
    backoff: float = 0.5
    stop: threading.Event = field(default_factory=threading.Event)


def download(url: str, target: Path, file: File, line: TransferOptions) -> None:
    """Fetch `url` to `target`. Raises LooplineError if it cannot be had, is too long or has the wrong hash."""
    check_address(url)
    partial = partial_of(target)
    left_over = _size(partial)  # by an earlier run
    line.progress(left_over)
    _complete(url, partial, file, line)
    if left_over and not line.stop.is_set() and not has_content(partial, file):
        # The left-over may be to blame, not the server: once more from the start.
        line.progress(-_size(partial))
        partial.unlink()
        _complete(url, partial, file, line)
    if not line.stop.is_set():
        accept(partial, target, file, url)


def _complete(url: str, partial: Path, file: File, line: TransferOptions) -> None:
    """Make `partial` as long as the file, over as many tries as it takes."""
    tries = 0
    while not line.stop.is_set() and not (partial.exists() and _size(partial) == file.bytes):
        have = _size(partial)
        try:
            _receive(url, partial, file, line)
        except (_AgainError, OSError, http.client.HTTPException) as error:
            tries = 1 if _size(partial) > have else tries + 1
            if tries == TRIES:
                raise LooplineError(
                    f"{url}: {error or type(error).__name__}. Gave up after {TRIES} tries. The same command goes on "
                    "where this one stopped; or set LOOPLINE_MIRROR to a folder that holds the files"
                ) from error
            line.stop.wait(line.backoff * 2 ** (tries - 1))


def _receive(url: str, partial: Path, file: File, line: TransferOptions) -> None:
    """Append what `partial` lacks, or all if the server takes no ranges. Raises _AgainError where it may pass."""
    have = _size(partial)
    headers = {"User-Agent": "loopline", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - check_address saw it
    try:
        response = _OPENER.open(request, timeout=line.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is longer than what there is
            line.progress(-have)
            partial.unlink(missing_ok=True)
        if error.code == 416 or error.code in TEMPORARY:
            raise _AgainError(f"HTTP {error.code} {error.reason}") from error
        raise LooplineError(
            f"{url}: HTTP {error.code} {error.reason}. If it has moved, set LOOPLINE_MIRROR to a folder that has it"
        ) from error
    with response, partial.open("ab") as out:
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            line.progress(-have)
            have = 0
            out.truncate(0)
        while chunk := response.read(CHUNK):
            have += len(chunk)
            if have > file.bytes:
                out.truncate(0)
                raise LooplineError(
                    f"{url} is longer than the catalogue's {file.bytes:,} bytes: not that file, refused"
                )
            out.write(chunk)
            line.progress(len(chunk))
            if line.stop.is_set():
                return
    if have < file.bytes:
        raise _AgainError(f"the connection ended after {have:,} of {file.bytes:,} bytes")


def accept(partial: Path, target: Path, file: File, source: str) -> None:
    """Give the file its name, or remove it. Raises LooplineError on a wrong hash."""
    found = _sha256(partial)
    if found != file.sha256:
        partial.unlink()
        raise LooplineError(
            f"{source} has sha256 {found}, the catalogue says {file.sha256}. It was removed: it is not the file "
            "that was checked when the catalogue was written. If the new one is right, correct data/catalog.yaml"
        )
    partial.replace(target)


def has_content(path: Path, file: File) -> bool:
    """Whether the file at `path` has the catalogue's bytes."""
    return path.is_file() and _size(path) == file.bytes and _sha256(path) == file.sha256


def partial_of(target: Path) -> Path:
    """Where a file is kept while it is not complete."""
    return target.with_name(target.name + ".partial")


def check_address(url: str) -> None:
    """Refuse all but https, and http on this very machine. Raises LooplineError."""
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
