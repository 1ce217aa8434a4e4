"""Export a torch network to an ONNX file with a dynamic batch. The bytes do not depend on where it is made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.lib import files
from loopline.lib.arrays import Arrays

if TYPE_CHECKING:
    import onnx
    import torch


def to_onnx(
    network: torch.nn.Module, example: torch.Tensor, *, takes: str, gives: Sequence[str], free: Sequence[str] = ("n",)
) -> onnx.ModelProto:
    """Return the graph of `network`, which takes one tensor. free: names of the input's leading dimensions, which have any size."""
    import torch

    # It says at each start that it cannot export torchvision's operators, which nobody uses.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses what torch deprecates
        program = torch.onnx.export(
            network.eval(),
            (example,),
            input_names=[takes],
            output_names=list(gives),
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in enumerate(free)},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"inner_{value.name}"  # torch may have given it the name of an output
    model = program.model_proto
    del model.graph.value_info[:]  # the quantizer fails on shapes of fused layers
    return model


def reference(
    answer: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], takes: str
) -> Callable[[Arrays], Arrays]:
    """Return a network's `answer` as a function from the graph's input `takes` to its outputs `probabilities` and `embedding`."""
    import torch

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            probabilities, embedding = answer(torch.from_numpy(inputs[takes]))
        return {"probabilities": probabilities.numpy(), "embedding": embedding.numpy()}

    return run


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` atomically, without the exporter's notes: they hold source paths, which differ between clones."""
    import onnx

    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    with files.replacing(path) as partial:
        onnx.save(model, partial)
