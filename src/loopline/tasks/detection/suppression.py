"""Non-maximum suppression twice: as part of an ONNX graph, and in numpy as its reference. Both are greedy, class by class.

Both return `boxes` (n, m, 4), `scores` (n, m) in falling order and `classes` (n, m), with zeros behind the last box.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopline.tasks.average_precision import overlap

if TYPE_CHECKING:
    import onnx

MOST = 100  # boxes per image, as in COCO's evaluation
FLOOR = 0.01  # scores up to this are dropped: they cost time and hardly move the average precision

# Kept scores go back to their place in (n, classes, anchors), so that one TopK over both ranks an image's boxes. If there are
# fewer places than boxes to return, they are padded with zeros.
GRAPH = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
suppression (float[n,a,4] all_boxes, float[n,c,a] all_scores, float[n,d] all_embedding)
    => (float[n,{most},4] boxes, float[n,{most}] scores, int64[n,{most}] classes, float[n,d] embedding) {{
    limit = Constant <value = int64[1] {{{most}}}> ()
    iou = Constant <value = float[1] {{{iou}}}> ()
    floor = Constant <value = float[1] {{{floor}}}> ()
    kept = NonMaxSuppression (all_boxes, all_scores, limit, iou, floor)
    kept_scores = GatherND (all_scores, kept)
    shape = Shape (all_scores)
    nothing = ConstantOfShape <value = float[1] {{0}}> (shape)
    sparse = ScatterND (nothing, kept, kept_scores)
    flat_shape = Constant <value = int64[2] {{0, -1}}> ()
    flat = Reshape (sparse, flat_shape)
    room = Constant <value = int64[4] {{0, 0, 0, {most}}}> ()
    roomy = Pad (flat, room)
    scores, place = TopK (roomy, limit)
    last = Constant <value = int64[1] {{2}}> ()
    anchors = Gather (shape, last)
    classes_padded = Div (place, anchors)
    anchor = Mod (place, anchors)
    axis = Constant <value = int64[1] {{2}}> ()
    index = Unsqueeze (anchor, axis)
    boxes_padded = GatherND <batch_dims = 1> (all_boxes, index)
    zero = Constant <value = float {{0}}> ()
    seen = Greater (scores, zero)
    seen_boxes = Cast <to = 1> (seen)
    seen_column = Unsqueeze (seen_boxes, axis)
    boxes = Mul (boxes_padded, seen_column)
    seen_classes = Cast <to = 7> (seen)
    classes = Mul (classes_padded, seen_classes)
    embedding = Identity (all_embedding)
}}
"""


def append(model: onnx.ModelProto, *, iou: float, most: int = MOST) -> onnx.ModelProto:
    """Return `model`, which ends in `all_boxes`, `all_scores` and `all_embedding`, with suppression appended."""
    import onnx
    import onnx.parser

    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    text = GRAPH.format(ir=model.ir_version, opset=opset, most=most, iou=iou, floor=FLOOR)
    tail = onnx.compose.add_prefix(onnx.parser.parse_model(text), "suppression_", rename_outputs=False)
    for number, node in enumerate(tail.graph.node):
        node.name = f"suppression_{number}"
    names = ("all_boxes", "all_scores", "all_embedding")
    joined = onnx.compose.merge_models(model, tail, io_map=[(name, f"suppression_{name}") for name in names])
    del joined.opset_import[:]  # the merge lists the same one twice, which the quantizer refuses
    joined.opset_import.extend([onnx.helper.make_opsetid("", opset)])
    return joined


def suppress(boxes: NDArray[Any], scores: NDArray[Any], *, iou: float, most: int = MOST) -> dict[str, NDArray[Any]]:
    """Suppress in numpy, from all boxes (n, a, 4) and their scores (n, classes, a), float32.

    iou: a box that overlaps a better one of its class by more than this is dropped.
    """
    n = len(boxes)
    out: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((n, most, 4), np.float32),
        "scores": np.zeros((n, most), np.float32),
        "classes": np.zeros((n, most), np.int64),
    }
    for number in range(n):
        picked = [
            (label, anchor)
            for label in range(scores.shape[1])
            for anchor in _greedy(boxes[number], scores[number, label], iou, most)
        ]
        if not picked:
            continue
        labels, anchors = np.array(picked, np.int64).T
        picked_scores = scores[number, labels, anchors]
        order = np.argsort(-picked_scores, kind="stable")[:most]
        out["scores"][number, : len(order)] = picked_scores[order]
        out["classes"][number, : len(order)] = labels[order]
        out["boxes"][number, : len(order)] = boxes[number, anchors[order]]
    return out


def _greedy(boxes: NDArray[Any], scores: NDArray[Any], iou: float, most: int) -> list[int]:
    order = np.flatnonzero(scores > FLOOR)
    order = order[np.argsort(-scores[order], kind="stable")]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        first, order = order[0], order[1:]
        kept.append(int(first))
        order = order[overlap(boxes[None, first], boxes[order])[0] <= iou]
    return kept
