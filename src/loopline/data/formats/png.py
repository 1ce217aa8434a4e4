"""Encode pixels as PNG with the same bytes on every machine, since sample ids are hashes of these bytes.

Versions of zlib compress differently, so the pixels are stored uncompressed: stored blocks (RFC 1951, section 3.2.4) in a
zlib stream (RFC 1950). The manifest compresses them.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = {1: 0, 3: 2}  # channels -> grey, RGB
_BLOCK = 65535  # most bytes in a stored block


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """PNG bytes of uint8 pixels, shape (height, width) or (height, width, 1 or 3)."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _stored(rows.tobytes())), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _stored(data: bytes) -> bytes:
    pieces = [b"\x78\x01"]
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        last = start + _BLOCK >= len(data)
        pieces.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    return b"".join(pieces) + struct.pack(">I", zlib.adler32(data))
