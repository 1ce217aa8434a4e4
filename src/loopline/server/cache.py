"""A cache of answers by the input's content, for repeated requests. It is bounded in bytes and drops the least recently used."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import numpy as np

from loopline.server.model import Encoded, Tensors

ENTRY_BYTES = 200  # memory of an entry without its answer
VALUE_BYTES = 80  # memory of a number or a short string in Python


def key(model: str, payload: Tensors | Encoded) -> bytes:
    """The cache's key: 128 bits of BLAKE2b over the model's name and the content, including types and shapes."""
    digest = blake2b(model.encode(), digest_size=16)
    if isinstance(payload, Tensors):
        for name, array in sorted(payload.arrays.items()):
            digest.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
    else:
        for item in payload.items:
            content = item if isinstance(item, bytes) else item.encode("utf-8", "surrogatepass")
            digest.update(b"\0%d\0" % len(content))
            digest.update(content)
    return digest.digest()


class Cache:
    """Answers of at most `limit` bytes in all. Not safe for several threads."""

    def __init__(self, limit: int) -> None:
        """limit: most bytes that the entries may take."""
        self.limit, self.bytes = limit, 0
        self.entries: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()

    def get(self, key: bytes) -> Any | None:
        """The answer under `key`, or None."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        self.entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, answer: Any) -> None:
        """Keep `answer` unless it is over the limit. Arrays are copied, because they are views of a whole batch."""
        if isinstance(answer, dict):
            answer = {name: array.copy() for name, array in answer.items()}
        size = ENTRY_BYTES + _size(answer)
        if size > self.limit:
            return
        if key in self.entries:
            self.bytes -= self.entries.pop(key)[1]
        self.entries[key] = answer, size
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= self.entries.popitem(last=False)[1][1]


def _size(answer: Any) -> int:
    if isinstance(answer, np.ndarray):
        return int(answer.nbytes) + VALUE_BYTES
    if isinstance(answer, dict):
        return VALUE_BYTES + sum(VALUE_BYTES + _size(value) for value in answer.values())
    if isinstance(answer, list):
        return VALUE_BYTES + sum(_size(value) for value in answer)
    return VALUE_BYTES
