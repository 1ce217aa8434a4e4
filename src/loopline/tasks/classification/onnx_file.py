"""Read a finished ONNX file of an image classifier, and what is written beside it of what it takes and gives.

Beside `name.onnx` stands `name.json`: {"labels": ["cat", "dog"], "layout": "NCHW", "colours": "RGB", "mean": [123.7, 116.3, 103.5],
"deviation": [58.4, 57.1, 57.4], "gives": "logits"}, where mean and deviation are of pixels from 0 to 255.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

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
    digest = packaged.sha256(path)
    if expected and digest != expected:
        raise LooplineError(f"adopt: {source!r} has sha256 {digest}, but train.weights_sha256 is {expected}")
    description = _description(path.with_suffix(".json"))
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
    return _prepared(model, path.name), description, _shape(model, description, path.name), digest


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
    taken = model.graph.input[0].type.tensor_type
    dims = [dim.dim_value or None for dim in taken.shape.dim]
    if len(model.graph.input) != 1 or len(dims) != 4:
        raise LooplineError(
            f"adopt: {name} takes {len(model.graph.input)} inputs, the first with {len(dims)} dimensions: one image input with "
            "four dimensions is needed"
        )
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
    """The graph with a free batch, an opset that is new enough, and a name for each node, which the quantizer needs."""
    from onnx import version_converter

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
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
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"adopted_{number}"
    del model.graph.value_info[:]
    return model
