"""A detector's graph as ultralytics exports it: boxes in pixels and scores in one tensor, which eight bits cannot represent."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def one_tensor(source: Path, target: Path, *, labels: int) -> Path:
    """Copy the graph, with boxes and scores joined and split again before suppression. Only quantization changes the answers."""
    model = onnx.load(source)
    suppression = next(node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    boxes, scores = suppression.input[:2]
    parted = {boxes: "parted_boxes", scores: "parted_scores"}
    for node in model.graph.node:
        if node.name.startswith("suppression"):
            node.input[:] = [parted.get(name, name) for name in node.input]
    new = [
        helper.make_node("Transpose", [boxes], ["rows"], name="to_rows", perm=[0, 2, 1]),
        helper.make_node("Concat", ["rows", scores], ["output0"], name="output0", axis=1),
        helper.make_node("Split", ["output0", "parts"], ["box_rows", "parted_scores"], name="part", axis=1),
        helper.make_node("Transpose", ["box_rows"], ["parted_boxes"], name="to_columns", perm=[0, 2, 1]),
    ]
    model.graph.initializer.append(helper.make_tensor("parts", TensorProto.INT64, [2], [4, labels]))
    first = next(i for i, node in enumerate(model.graph.node) if node.name.startswith("suppression"))
    for node in reversed(new):
        model.graph.node.insert(first, node)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return target
