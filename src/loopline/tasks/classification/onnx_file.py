"""Read a finished ONNX file of an image classifier, and what is written beside it of what it takes and gives.

Beside `name.onnx` stands `name.json`: {"labels": ["cat", "dog"], "layout": "NCHW", "colours": "RGB", "mean": [123.7, 116.3, 103.5],
"deviation": [58.4, 57.1, 57.4], "gives": "logits"}, where mean and deviation are of pixels from 0 to 255.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, model_validator

from loopline.errors import LooplineError
from loopline.settings import Strict, located
from loopline.tasks import packaged
from loopline.tasks.spec import ImageInput

if TYPE_CHECKING:
    import onnx

LEAST_OPSET = 13  # from it on, Softmax is over one axis


class Description(Strict):
    """What the file beside a graph says.

    labels: in the order of its output. mean, deviation: of each channel, pixels from 0 to 255. height, width: in pixels, where the
    graph takes any.
    """

    labels: tuple[str, ...] = Field(min_length=2)
    layout: Literal["NCHW", "NHWC"]
    colours: Literal["RGB", "BGR", "grey"] = "RGB"
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    gives: Literal["logits", "probabilities"]
    height: int | None = None
    width: int | None = None

    @model_validator(mode="after")
    def _scales(self) -> Description:
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} needs 1 or {self.channels} finite numbers")
        if min(self.deviation) <= 0:
            raise ValueError("deviation must be above 0")
        if any(self.mean) and max(self.mean) <= 1 and max(self.deviation) <= 1:
            raise ValueError(
                "mean and deviation are of pixels from 0 to 255: multiply those of pixels from 0 to 1 by 255"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("two labels are equal")
        return self

    @property
    def channels(self) -> Literal[1, 3]:
        """The number of channels of an image."""
        return 1 if self.colours == "grey" else 3


def finished(source: str, expected: str | None = None) -> tuple[onnx.ModelProto, Description, ImageInput, str]:
    """Return the graph at `source`, its description, the input's shape and the file's sha256. Raises LooplineError.

    expected: that sha256; None for any. The batch of the graph becomes free.
    """
    import onnx

    path = located(source)
    if path.suffix != ".onnx" or not path.is_file():
        raise LooplineError(f"adopt: {source!r} is no file that ends in .onnx")
    description = _description(path.with_suffix(".json"))
    digest = _digest(path)
    if expected and digest != expected:
        raise LooplineError(
            f"adopt: {source!r}, its weights or its description changed: together they have sha256 {digest}, but "
            f"train.weights_sha256 is {expected}"
        )
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise LooplineError(
            f"adopt: {path.name} keeps its weights in another file, {Path(error.filename or '').name}, which is missing: "
            "put it beside it"
        ) from error
    except Exception as error:  # protobuf and onnx raise many kinds
        raise LooplineError(f"adopt: {path.name} cannot be read as ONNX ({_first_line(error)})") from error
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if domains:
        names = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain in domains})
        raise LooplineError(
            f"adopt: {path.name} has operators outside of the ONNX standard: {', '.join(names[:5])}. Export it without them"
        )
    model = _prepared(model, path.name)
    return model, description, _shape(model, description, path.name), digest


def _digest(path: Path) -> str:
    """The sha256 of the hashes of the graph, the files with its weights, and its description."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        places = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    except Exception:  # the caller says what is wrong
        places = set()
    beside = [path.parent / place for place in sorted(places) if (path.parent / place).is_file()]
    hashes = [packaged.sha256(each) for each in (path, *beside, path.with_suffix(".json"))]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _description(path: Path) -> Description:
    try:
        return Description.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise LooplineError(
            f"adopt: there is no {path}, which says what the graph takes and gives: labels, layout, colours, mean, deviation, "
            "gives (docs/pretrained.md)"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise LooplineError(f"adopt: {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise LooplineError(f"adopt: {path} is not JSON ({error})") from error


def _shape(model: onnx.ModelProto, description: Description, name: str) -> ImageInput:
    """The shape of an image: what the graph fixes, and else what the description says."""
    inputs = [[dim.dim_value or None for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
    if len(inputs) != 1 or len(inputs[0]) != 4:
        raise LooplineError(
            f"adopt: {name} takes {len(inputs)} inputs, with {', '.join(str(len(each)) for each in inputs)} dimensions: one image "
            "input with four dimensions is needed"
        )
    dims = inputs[0]
    height, width, channels = (*dims[2:], dims[1]) if description.layout == "NCHW" else dims[1:]
    if channels not in (None, description.channels):
        raise LooplineError(
            f"adopt: {name} takes {channels} channels in the layout {description.layout}, but its description says colours: "
            f"{description.colours}"
        )
    height, width = height or description.height, width or description.width
    if not height or not width:
        raise LooplineError(f"adopt: {name} takes images of any size: give height and width in its description")
    return ImageInput(height=height, width=width, channels=description.channels)


def _prepared(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph with a free batch, an opset that is new enough, names that clash with none of Loopline's, and no listed weights."""
    from onnx import TensorProto, compose, version_converter

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not opset or not model.graph.node or not model.graph.output:
        raise LooplineError(f"adopt: {name} holds no graph of the ONNX standard")
    if opset < LEAST_OPSET:
        try:
            model = version_converter.convert_version(model, LEAST_OPSET)
        except Exception as error:  # it raises many kinds
            raise LooplineError(
                f"adopt: {name} has opset {opset}, which cannot be converted to {LEAST_OPSET} ({_first_line(error)}): export it "
                "with a newer opset"
            ) from error
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]  # old exporters list weights, too
    kinds = {value.type.tensor_type.elem_type for value in inputs} | {
        each.data_type for each in model.graph.initializer
    }
    if kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        raise LooplineError(f"adopt: {name} is in half precision, which cannot be quantized: export it in float32")
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    for number, node in enumerate(model.graph.node):
        node.name = node.name or str(number)  # the quantizer needs names
    del model.graph.value_info[:]
    return compose.add_prefix(model, "adopted/")
