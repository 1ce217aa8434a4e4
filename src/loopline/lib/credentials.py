"""Secrets from the environment, and the HTTP header that carries a token."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from loopline.errors import LooplineError

SERVER = "LOOPLINE_TOKEN"  # variable with the token that a server demands of its clients


def secret(name: str) -> str | None:
    """Return the value of the variable `name`, or the content of the file that NAME_FILE names, without white space around it.

    White space is removed because a secret made with `echo` ends in a newline, which no header can carry. None if both variables
    are unset or empty. Raises LooplineError for a blank secret, for one with other control characters, for a token that is not
    ASCII (RFC 6750), and for a file that cannot be read.
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
    elif name.endswith("TOKEN") and not value.isascii():  # unlike passwords and HMAC keys, a token is sent in a header
        problem = "holds characters that are not ASCII"
    else:
        return value
    raise LooplineError(f"{source} {problem}: set a secret of one line, as `openssl rand -hex 32` makes it")


def bearer(header: bytes, token: bytes) -> bool:
    """Tell, in constant time, whether the header Authorization carries the token. The scheme's case does not matter."""
    scheme, _, credential = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(credential.strip(), token)


def authorization(token: str | None) -> dict[str, str]:
    """Return the headers that send the token; empty if there is no token."""
    return {"Authorization": f"Bearer {token}"} if token else {}
