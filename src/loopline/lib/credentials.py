"""Secrets of the environment, and the header that carries a token."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from loopline.errors import LooplineError

SERVER = "LOOPLINE_TOKEN"  # what a server wants from its clients


def secret(name: str) -> str | None:
    """Return the variable `name`, or the file that NAME_FILE names, without the white space around it.

    A secret made with `echo` ends in a newline, which no header can carry. None where neither is set, or the variable is empty.
    Raises LooplineError for a blank secret, for one with other control characters, for a token that is not ASCII (RFC 6750), and for
    a file that cannot be read.
    """
    value, source = os.environ.get(name), name
    if not value and (path := os.environ.get(f"{name}_FILE", "").strip()):
        source = f"{name}_FILE: {path}"
        try:
            value = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LooplineError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    elif not value:
        return None
    value = value.strip()
    if not value:
        problem = "is blank"
    elif not value.isprintable():
        problem = "holds control characters"
    elif name.endswith("TOKEN") and not value.isascii():  # passwords and keys of an HMAC go into no header
        problem = "holds characters that are not ASCII"
    else:
        return value
    raise LooplineError(f"{source} {problem}: set a secret of one line, as `openssl rand -hex 32` makes it")


def bearer(header: bytes, token: bytes) -> bool:
    """Tell whether the header Authorization carries the token, in constant time. The scheme's case does not matter."""
    scheme, _, given = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token)


def authorization(token: str | None) -> dict[str, str]:
    """Return the header that sends the token; none without one."""
    return {"Authorization": f"Bearer {token}"} if token else {}
