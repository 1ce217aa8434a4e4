"""The limits that a server keeps to."""

from __future__ import annotations

from dataclasses import dataclass

from loopline.lib.options import option

ROWS_A_SECOND = 50  # takes under 1 % of a core for images of 128 x 128


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the server. body_bytes, rows: most in one request. cache_bytes: size of the cache of answers; 0 for no cache."""

    body_bytes: int = 16 * 1024 * 1024
    rows: int = 1024
    timeout_ms: int = option(1000, "milliseconds to answer a request that sends no X-Request-Timeout-Ms")
    cache_bytes: int = 0
    signals: int = option(
        ROWS_A_SECOND, "number of samples a second and model whose drift signals are counted; 0: none"
    )
