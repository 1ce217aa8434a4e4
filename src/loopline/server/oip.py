"""The Open Inference Protocol v2: tensors in JSON, and in its binary extension, to numpy and back.

In the extension the body starts with JSON, whose length the header Inference-Header-Content-Length gives; the tensors
that say `binary_data_size` follow, little endian, one after the other. An element of BYTES is its length in four bytes and
then itself. https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loopline.release.bundle import Tensor
from loopline.server.messages import BINARY, Headers, Refusal, Response, number

LENGTH = b"inference-header-content-length"
DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
MOST_DIMENSIONS = 8
MOST_SIDE = 2**31
REMEMBERED, REMEMBERED_BYTES = 256, 2048  # requests' JSON, and of each
Parsed = NDArray[Any] | list[bytes]


@dataclass(slots=True)
class Call:
    """An inference request. tensors: by name; a list of bytes for BYTES. outputs: wanted name -> as binary?"""

    id: str
    tensors: dict[str, Parsed]
    outputs: dict[str, bool]


@dataclass(slots=True)
class _Part:
    """One input as the JSON describes it. size: its bytes behind the JSON, or None where `row` has its data."""

    tensor: Tensor
    shape: tuple[int, ...]
    size: int | None
    row: dict[str, Any]


@dataclass(slots=True)
class _Plan:
    """All that a request's JSON says."""

    id: str
    parts: list[_Part]
    outputs: dict[str, bool]


class RequestReader:
    """Reads requests for one model. Where tensors are binary a client's JSON is the same from call to call, so it is remembered."""

    def __init__(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """inputs, outputs: the model's, by name."""
        self.inputs, self.outputs = inputs, outputs
        self.plans: dict[bytes, _Plan] = {}

    def __call__(self, body: bytes, headers: Headers) -> Call:
        """Raises Refusal (400) naming what is wrong."""
        head, tail = _parts(body, headers)
        plan = self.plans.get(head)
        if plan is None:
            plan = self._plan(head)
            if len(head) <= REMEMBERED_BYTES and all(part.size is not None for part in plan.parts):
                if len(self.plans) >= REMEMBERED:
                    self.plans.clear()
                self.plans[head] = plan
        tensors: dict[str, Parsed] = {}
        start = 0
        for part in plan.parts:
            if part.size is None:
                # Somewhere: a look at each value would cost what numpy does
                bools = b"true" in head or b"false" in head
                tensors[part.tensor.name] = _from_json(part.row, part.tensor, part.shape, bools=bools)
            else:
                tensors[part.tensor.name] = _from_binary(part, tail, start)
                start += part.size
        if start != len(tail):
            raise Refusal(400, f"{len(tail) - start} bytes follow the last tensor")
        return Call(plan.id, tensors, plan.outputs)

    def _plan(self, head: bytes) -> _Plan:
        try:
            request = orjson.loads(head)
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"the request is not JSON: {error}") from None
        given = _get(request, "inputs", list, "the request")
        identity = _optional(request, "id", "")
        if not isinstance(identity, str):
            raise Refusal(400, "id must be a string")
        parts: dict[str, _Part] = {}
        for row in given:
            name = _get(row, "name", str, "an input")
            if name not in self.inputs:
                raise Refusal(400, f"there is no input {name!r}: {', '.join(self.inputs)} are there")
            if name in parts:
                raise Refusal(400, f"input {name!r} comes twice")
            parts[name] = _part(row, self.inputs[name])
        if missing := self.inputs.keys() - parts.keys():
            raise Refusal(400, f"input {', '.join(sorted(missing))} is missing")
        return _Plan(identity, list(parts.values()), _wanted(request, self.outputs))


def _parts(body: bytes, headers: Headers) -> tuple[bytes, bytes]:
    given = headers.get(LENGTH)
    if not given:
        return body, b""
    if (length := number(given, len(body))) is None:
        raise Refusal(400, "Inference-Header-Content-Length must be the bytes of the JSON at the body's start")
    return body[:length], body[length:]


def _get(row: Any, key: str, kind: type, what: str) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise Refusal(400, f"{what} must be an object with {key!r}, a {kind.__name__}")
    return value


def _optional(row: dict[str, Any], key: str, default: Any) -> Any:
    """The field, or the default where it is left out: clients that write every field write null."""
    value = row.get(key)
    return default if value is None else value


def _parameters(row: dict[str, Any], what: str) -> dict[str, Any]:
    found = _optional(row, "parameters", {})
    if not isinstance(found, dict):
        raise Refusal(400, f"the parameters of {what} must be an object")
    return found


def _part(row: Any, tensor: Tensor) -> _Part:
    what = f"input {tensor.name!r}"
    datatype = _get(row, "datatype", str, what)
    if datatype != tensor.datatype:
        raise Refusal(400, f"{what} has datatype {datatype}, the model takes {tensor.datatype}")
    shape = _shape(_get(row, "shape", list, what), tensor)
    size = _parameters(row, what).get("binary_data_size")
    if size is None:
        return _Part(tensor, shape, None, row)
    if row.get("data") is not None:
        raise Refusal(400, f"{what} has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise Refusal(400, f"{what}: binary_data_size is {size!r}")
    if datatype != "BYTES" and size != math.prod(shape) * np.dtype(DTYPES[datatype]).itemsize:
        raise Refusal(400, f"{what}: binary_data_size {size} is not {list(shape)} of {datatype}")
    return _Part(tensor, shape, size, {})


def _from_binary(part: _Part, tail: bytes, start: int) -> Parsed:
    assert part.size is not None, "called for binary tensors"
    what = f"input {part.tensor.name!r}"
    if start + part.size > len(tail):
        raise Refusal(400, f"{what}: binary_data_size is {part.size}, {len(tail) - start} bytes are there")
    if part.tensor.datatype == "BYTES":
        return _elements(tail[start : start + part.size], math.prod(part.shape), what)
    dtype = DTYPES[part.tensor.datatype]
    return _sound(np.frombuffer(tail, dtype, math.prod(part.shape), start).reshape(part.shape), what)


def _shape(given: list[Any], tensor: Tensor) -> tuple[int, ...]:
    ok = len(given) == len(tensor.shape) <= MOST_DIMENSIONS
    for side, wanted in zip(given, tensor.shape, strict=False):
        ok = ok and type(side) is int and (1 <= side < MOST_SIDE if wanted < 0 else side == wanted)
    if not ok:
        free = ", ".join("1 or more" if side < 0 else str(side) for side in tensor.shape)
        raise Refusal(400, f"input {tensor.name!r} has shape {given!r:.80}, the model takes [{free}]")
    return tuple(given)


def _from_json(row: Any, tensor: Tensor, shape: tuple[int, ...], *, bools: bool) -> Parsed:
    what = f"input {tensor.name!r}"
    data = _get(row, "data", list, what)
    if tensor.datatype == "BYTES":
        flat = _flat(data)
        if len(flat) != math.prod(shape) or not all(isinstance(value, str) for value in flat):
            raise Refusal(400, f"{what}: data must be {math.prod(shape)} strings")
        return [value.encode() for value in flat]
    dtype = np.dtype(DTYPES[tensor.datatype])
    try:
        found = np.array(data)
        if dtype == np.uint64 and all(type(value) is int for value in _flat(data)):
            found = np.array(data, np.uint64)  # left to itself, numpy takes a float for both sides of 2**63
    except (ValueError, OverflowError):
        raise Refusal(400, f"{what}: data has rows of different length") from None
    fits = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    mixed = bools and dtype.kind != "b" and bool in set(map(type, _flat(data)))  # numpy takes true for 1
    if found.size != math.prod(shape) or found.dtype.kind not in fits or mixed:
        raise Refusal(400, f"{what}: data must be {math.prod(shape)} values of {tensor.datatype}")
    # The rows of nested data may be flat, but each must be one of the shape's: else its values would change their places.
    if found.ndim > 1 and not set(accumulate(found.shape, mul)) <= set(accumulate(shape, mul)):
        raise Refusal(400, f"{what}: data is nested as {list(found.shape)}, and its shape is {list(shape)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if found.min() < limits.min or found.max() > limits.max:
            raise Refusal(400, f"{what}: a value is outside of {tensor.datatype}, {limits.min} to {limits.max}")
    return _sound(found.astype(dtype).reshape(shape), what)


def _flat(data: list[Any]) -> list[Any]:
    while data and all(isinstance(row, list) for row in data):
        data = [value for row in data for value in row]
    return data


def _elements(content: bytes, count: int, what: str) -> list[bytes]:
    found: list[bytes] = []
    start = 0
    while start < len(content) and len(found) <= count:
        if start + 4 > len(content):
            raise Refusal(400, f"{what}: the length of element {len(found)} is cut off")
        (length,) = struct.unpack_from("<I", content, start)
        start += 4
        if start + length > len(content):
            raise Refusal(400, f"{what}: element {len(found)} says {length} bytes, {len(content) - start} are there")
        found.append(content[start : start + length])
        start += length
    if len(found) != count or start != len(content):
        raise Refusal(400, f"{what}: {count} elements were announced, others are there")
    return found


def _sound(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal(400, f"{what} has values that are no finite numbers")
    return array


def _wanted(request: dict[str, Any], outputs: dict[str, Tensor]) -> dict[str, bool]:
    binary = _optional(_parameters(request, "the request"), "binary_data_output", default=False) is True
    given = _optional(request, "outputs", [])
    if given == []:
        return dict.fromkeys(outputs, binary)
    if not isinstance(given, list):
        raise Refusal(400, "outputs must be a list")
    found = {}
    for row in given:
        name = _get(row, "name", str, "an output")
        if name not in outputs:
            raise Refusal(400, f"there is no output {name!r}: {', '.join(outputs)} are there")
        found[name] = _optional(_parameters(row, f"output {name!r}"), "binary_data", binary) is True
    return found


def answer(
    call: Call, model: str, version: str, arrays: dict[str, NDArray[Any]], outputs: dict[str, Tensor]
) -> Response:
    """The answer, as JSON, or with the binary tensors behind it."""
    rows: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in call.outputs.items():
        array = arrays[name]
        row: dict[str, Any] = {"name": name, "datatype": outputs[name].datatype, "shape": array.shape}
        if binary:
            content = array.tobytes()
            row["parameters"] = {"binary_data_size": len(content)}
            parts.append(content)
        else:
            row["data"] = array.reshape(-1).tolist()
        rows.append(row)
    said: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": rows}
    if call.id:
        said["id"] = call.id
    head = orjson.dumps(said)
    if not parts:
        return Response(body=(head,))
    return Response(body=(head, *parts), content_type=BINARY, headers={LENGTH: b"%d" % len(head)})
