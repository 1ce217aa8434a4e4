"""Answers by the content of what was asked, for traffic that repeats itself. Bounded in bytes; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any

import numpy as np

from loopline.server.model import Encoded, Tensors

ENTRY_BYTES = 200  # of the key and the table, beside the answer
VALUE_BYTES = 80  # of a number or a short string in Python


def key(model: str, payload: Tensors | Encoded) -> bytes:
    """128 bits of BLAKE2b over the model's name and all of the content, its shape included."""
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
    """At most `limit` bytes of answers. Not for several threads."""

    def __init__(self, limit: int) -> None:
        """limit: in bytes."""
        self.limit, self.bytes = limit, 0
        self.entries: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()

    def get(self, key: bytes) -> Any | None:
        """The answer, or None."""
        found = self.entries.get(key)
        if found is None:
            return None
        self.entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, answer: Any) -> None:
        """Keep `answer`; arrays are copied, for they are views of a whole batch. One that is over the limit is not kept."""
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
