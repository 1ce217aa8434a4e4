"""The Open Inference Protocol v2 and its binary extension: convert tensors between request bodies and numpy arrays.

With the extension the body starts with JSON, whose length is in the header Inference-Header-Content-Length. The data of
inputs with `binary_data_size` follows, little endian, without gaps. An element of BYTES is its length in four bytes, then its
bytes. https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol
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
REMEMBERED, REMEMBERED_BYTES = 256, 2048  # most remembered requests' JSON, most bytes of one
Parsed = NDArray[Any] | list[bytes]


@dataclass(slots=True)
class _Template:
    """The JSON of the last answer to some JSON. It depends on nothing but the shapes if all tensors are binary."""

    shapes: list[tuple[int, ...]]
    head: bytes = b""
    length: bytes = b""


@dataclass(slots=True)
class Call:
    """An inference request. tensors: by name; a list of bytes for BYTES. outputs: requested name -> whether as binary.

    template: for the answer, if the client has sent the same JSON before.
    """

    id: str
    tensors: dict[str, Parsed]
    outputs: dict[str, bool]
    template: _Template | None = None


@dataclass(slots=True)
class _Part:
    """An input as the JSON describes it. size: its bytes after the JSON, or None if `row` has its data."""

    tensor: Tensor
    shape: tuple[int, ...]
    size: int | None
    row: dict[str, Any]


@dataclass(slots=True)
class _Plan:
    """The content of a request's JSON."""

    id: str
    parts: list[_Part]
    outputs: dict[str, bool]
    template: _Template | None = None


class RequestReader:
    """Reads requests for one model. It remembers the JSON of binary requests, because a client repeats it in each call."""

    def __init__(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """inputs, outputs: the model's tensors by name."""
        self.inputs, self.outputs = inputs, outputs
        self.plans: dict[bytes, _Plan] = {}

    def __call__(self, body: bytes, headers: Headers) -> Call:
        """Read a request. Raises Refusal (400)."""
        head, tail = _parts(body, headers)
        plan = self.plans.get(head)
        if plan is None:
            plan = self._plan(head)
            if len(head) <= REMEMBERED_BYTES and all(part.size is not None for part in plan.parts):
                if len(self.plans) >= REMEMBERED:
                    self.plans.clear()
                self.plans[head] = plan
                if all(plan.outputs.values()):
                    plan.template = _Template([])
        tensors: dict[str, Parsed] = {}
        start = 0
        for part in plan.parts:
            if part.size is None:
                # Whether the JSON has them at all: a check of each value would double the time.
                bools = b"true" in head or b"false" in head
                tensors[part.tensor.name] = _from_json(part.row, part.tensor, part.shape, bools=bools)
            else:
                tensors[part.tensor.name] = _from_binary(part, tail, start)
                start += part.size
        if start != len(tail):
            raise Refusal(400, f"{len(tail) - start} bytes follow the last tensor: remove them")
        return Call(plan.id, tensors, plan.outputs, plan.template)

    def _plan(self, head: bytes) -> _Plan:
        try:
            request = orjson.loads(head)
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"the request is not JSON: {error}") from None
        rows = _get(request, "inputs", list, "the request")
        identity = _optional(request, "id", "")
        if not isinstance(identity, str):
            raise Refusal(400, "id must be a string")
        parts: dict[str, _Part] = {}
        for row in rows:
            name = _get(row, "name", str, "an input")
            if name not in self.inputs:
                raise Refusal(400, f"there is no input {name!r}: the model's inputs are {', '.join(self.inputs)}")
            if name in parts:
                raise Refusal(400, f"input {name!r} is there twice")
            parts[name] = _part(row, self.inputs[name])
        if missing := self.inputs.keys() - parts.keys():
            raise Refusal(400, f"input {', '.join(sorted(missing))} is missing")
        return _Plan(identity, list(parts.values()), _requested(request, self.outputs))


def _parts(body: bytes, headers: Headers) -> tuple[bytes, bytes]:
    """The body's JSON, and the binary data after it."""
    value = headers.get(LENGTH)
    if not value:
        return body, b""
    if (length := number(value, len(body))) is None:
        raise Refusal(400, "Inference-Header-Content-Length must be the bytes of the JSON at the body's start")
    return body[:length], body[length:]


def _get(row: Any, key: str, kind: type, owner: str) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise Refusal(400, f"{owner} must be an object with {key!r}, a {kind.__name__}")
    return value


def _optional(row: dict[str, Any], key: str, default: Any) -> Any:
    """The field, or the default if it is missing or null: some clients write null for every field without a value."""
    value = row.get(key)
    return default if value is None else value


def _parameters(row: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = _optional(row, "parameters", {})
    if not isinstance(parameters, dict):
        raise Refusal(400, f"the parameters of {owner} must be an object")
    return parameters


def _part(row: Any, tensor: Tensor) -> _Part:
    owner = f"input {tensor.name!r}"
    datatype = _get(row, "datatype", str, owner)
    if datatype != tensor.datatype:
        raise Refusal(400, f"{owner} has datatype {datatype}, the model takes {tensor.datatype}")
    shape = _shape(_get(row, "shape", list, owner), tensor)
    size = _parameters(row, owner).get("binary_data_size")
    if size is None:
        return _Part(tensor, shape, None, row)
    if row.get("data") is not None:
        raise Refusal(400, f"{owner} has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise Refusal(400, f"{owner}: binary_data_size is {size!r}, it must be a whole number")
    if datatype != "BYTES" and size != math.prod(shape) * np.dtype(DTYPES[datatype]).itemsize:
        raise Refusal(400, f"{owner}: binary_data_size {size} does not fit shape {list(shape)} of {datatype}")
    return _Part(tensor, shape, size, {})


def _from_binary(part: _Part, tail: bytes, start: int) -> Parsed:
    assert part.size is not None, "called for binary tensors"
    owner = f"input {part.tensor.name!r}"
    if start + part.size > len(tail):
        raise Refusal(400, f"{owner}: binary_data_size is {part.size}, but only {len(tail) - start} bytes are there")
    if part.tensor.datatype == "BYTES":
        return _elements(tail[start : start + part.size], math.prod(part.shape), owner)
    dtype = DTYPES[part.tensor.datatype]
    return _finite(np.frombuffer(tail, dtype, math.prod(part.shape), start).reshape(part.shape), owner)


def _shape(sides: list[Any], tensor: Tensor) -> tuple[int, ...]:
    ok = len(sides) == len(tensor.shape) <= MOST_DIMENSIONS
    for side, required in zip(sides, tensor.shape, strict=False):
        ok = ok and type(side) is int and (1 <= side < MOST_SIDE if required < 0 else side == required)
    if not ok:
        free = ", ".join("1 or more" if side < 0 else str(side) for side in tensor.shape)
        raise Refusal(400, f"input {tensor.name!r} has shape {sides!r:.80}, the model takes [{free}]")
    return tuple(sides)


def _from_json(row: Any, tensor: Tensor, shape: tuple[int, ...], *, bools: bool) -> Parsed:
    owner = f"input {tensor.name!r}"
    data = _get(row, "data", list, owner)
    if tensor.datatype == "BYTES":
        flat = _flat(data)
        if len(flat) != math.prod(shape) or not all(isinstance(value, str) for value in flat):
            raise Refusal(400, f"{owner}: data must be {math.prod(shape)} strings")
        return [value.encode() for value in flat]
    dtype = np.dtype(DTYPES[tensor.datatype])
    try:
        array = np.array(data)
        if dtype == np.uint64 and all(type(value) is int for value in _flat(data)):
            array = np.array(data, np.uint64)  # by itself, numpy makes floats of values on both sides of 2**63
    except (ValueError, OverflowError):
        raise Refusal(400, f"{owner}: data has rows of different length") from None
    fits = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    mixed = bools and dtype.kind != "b" and bool in set(map(type, _flat(data)))  # numpy makes 1 of true
    if array.size != math.prod(shape) or array.dtype.kind not in fits or mixed:
        raise Refusal(400, f"{owner}: data must be {math.prod(shape)} values of {tensor.datatype}")
    # Nested data may be flatter than the shape, but its rows must be rows of the shape: else values change places.
    if array.ndim > 1 and not set(accumulate(array.shape, mul)) <= set(accumulate(shape, mul)):
        raise Refusal(400, f"{owner}: data is nested as {list(array.shape)}, but its shape is {list(shape)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise Refusal(400, f"{owner}: a value is outside {tensor.datatype}, {limits.min} to {limits.max}")
    return _finite(array.astype(dtype).reshape(shape), owner)


def _flat(data: list[Any]) -> list[Any]:
    while data and all(isinstance(row, list) for row in data):
        data = [value for row in data for value in row]
    return data


def _elements(content: bytes, count: int, owner: str) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    while start < len(content) and len(elements) <= count:
        if start + 4 > len(content):
            raise Refusal(400, f"{owner}: the length of element {len(elements)} is cut off")
        (length,) = struct.unpack_from("<I", content, start)
        start += 4
        if start + length > len(content):
            raise Refusal(400, f"{owner}: element {len(elements)} has {length} bytes, {len(content) - start} are there")
        elements.append(content[start : start + length])
        start += length
    if len(elements) != count or start != len(content):
        raise Refusal(400, f"{owner}: binary_data_size does not fit the {count} elements of the shape")
    return elements


def _finite(array: NDArray[Any], owner: str) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal(400, f"{owner} has values that are not finite numbers")
    return array


def _requested(request: dict[str, Any], outputs: dict[str, Tensor]) -> dict[str, bool]:
    binary = _optional(_parameters(request, "the request"), "binary_data_output", default=False) is True
    rows = _optional(request, "outputs", [])
    if rows == []:
        return dict.fromkeys(outputs, binary)
    if not isinstance(rows, list):
        raise Refusal(400, "outputs must be a list")
    requested = {}
    for row in rows:
        name = _get(row, "name", str, "an output")
        if name not in outputs:
            raise Refusal(400, f"there is no output {name!r}: the model's outputs are {', '.join(outputs)}")
        requested[name] = _optional(_parameters(row, f"output {name!r}"), "binary_data", binary) is True
    return requested


def answer(
    call: Call, model: str, version: str, arrays: dict[str, NDArray[Any]], outputs: dict[str, Tensor]
) -> Response:
    """The answer as JSON, followed by the tensors that were requested as binary."""
    template = call.template
    if template is not None:
        tensors = [arrays[name] for name in call.outputs]
        if [array.shape for array in tensors] == template.shapes:
            content = (template.head, *[array.tobytes() for array in tensors])
            return Response(body=content, content_type=BINARY, headers={LENGTH: template.length})
    rows: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in call.outputs.items():
        array = arrays[name]
        row: dict[str, Any] = {"name": name, "datatype": outputs[name].datatype, "shape": array.shape}
        if binary:
            parts.append(array.tobytes())
            row["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            row["data"] = array.reshape(-1).tolist()
        rows.append(row)
    fields: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": rows}
    if call.id:
        fields["id"] = call.id
    head = orjson.dumps(fields)
    if not parts:
        return Response(body=(head,))
    length = b"%d" % len(head)
    if template is not None:
        template.shapes, template.head, template.length = [array.shape for array in tensors], head, length
    return Response(body=(head, *parts), content_type=BINARY, headers={LENGTH: length})
