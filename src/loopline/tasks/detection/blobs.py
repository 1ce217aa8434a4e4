"""The simple classical detector that the model must beat: connected blobs of contrast, classified by logistic regression.

Proposals are the connected components of the grey image above and below a few of its quantiles (a simple form of maximally
stable regions, Matas et al., BMVC 2002). Each is cropped, shrunk to 12 x 12 and classified, with one class for background.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loopline.lib.arrays import Arrays
from loopline.tasks.average_precision import overlap

LEVELS = (0.05, 0.15, 0.3, 0.7, 0.85, 0.95)
PROPOSALS = 60  # the largest of an image
PATCH = 12


def proposals(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return candidate boxes (m, 4), x1 y1 x2 y2, of one uint8 (h, w, c) image."""
    from scipy import ndimage

    grey = ndimage.gaussian_filter(image.astype(np.float32).mean(2), 1)
    side = min(grey.shape)
    boxes = []
    for level, threshold in zip(LEVELS, np.quantile(grey, LEVELS), strict=True):
        marks, _ = ndimage.label(grey < threshold if level < 0.5 else grey > threshold)
        for rows, columns in ndimage.find_objects(marks):
            box = (columns.start, rows.start, columns.stop, rows.stop)
            if (
                0.05 * side <= min(box[2] - box[0], box[3] - box[1])
                and max(box[2] - box[0], box[3] - box[1]) <= 0.8 * side
            ):
                boxes.append(box)
    largest = np.array(sorted(set(boxes), key=lambda b: -(b[2] - b[0]) * (b[3] - b[1]))[:PROPOSALS], np.float32)
    return largest.reshape(-1, 4)


def _patches(image: NDArray[np.uint8], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    from PIL import Image

    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).convert("L")
    crops = [
        np.asarray(
            picture.resize((PATCH, PATCH), box=(float(box[0]), float(box[1]), float(box[2]), float(box[3]))), np.float32
        ).ravel()
        for box in boxes
    ]
    flat = np.array(crops, np.float32).reshape(-1, PATCH * PATCH)
    spread = flat.std(1, keepdims=True) + 1e-3
    shape = np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], 1) / max(image.shape)
    return np.concatenate([(flat - flat.mean(1, keepdims=True)) / spread, shape, spread / 64], 1)


def detect(
    train: NDArray[np.uint8],
    targets: list[NDArray[np.float32]],
    test: NDArray[np.uint8],
    classes: int,
    *,
    most: int = 100,
) -> Arrays:
    """Train on images (n, h, w, c) with boxes (m, 5) (class, x1, y1, x2, y2 in pixels); return the graph's outputs for `test`."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    features, answers = [], []
    for image, truth in zip(train, targets, strict=True):
        boxes = np.concatenate([proposals(image), truth[:, 1:]])
        shared = overlap(boxes, truth[:, 1:]) if len(truth) else np.zeros((len(boxes), 1))
        best = shared.argmax(1)
        answers.append(np.where(shared.max(1) >= 0.5, truth[best, 0] if len(truth) else 0, classes))
        features.append(_patches(image, boxes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are enough for a baseline
        model = LogisticRegression(max_iter=200).fit(np.concatenate(features), np.concatenate(answers).astype(int))
    order = [c for c in model.classes_ if c < classes]
    columns = [list(model.classes_).index(c) for c in order]

    shape = (len(test), most)
    outputs: Arrays = {
        "boxes": np.zeros((*shape, 4), np.float32),
        "scores": np.zeros(shape, np.float32),
        "classes": np.zeros(shape, np.int64),
    }
    for row, image in enumerate(test):
        boxes = proposals(image)
        if not len(boxes):
            continue
        chances = model.predict_proba(_patches(image, boxes))[:, columns]
        scores = chances.max(1)
        kept = _suppress(boxes, scores)[:most]
        outputs["boxes"][row, : len(kept)] = boxes[kept]
        outputs["scores"][row, : len(kept)] = scores[kept]
        outputs["classes"][row, : len(kept)] = np.array(order)[chances.argmax(1)[kept]]
    return outputs


def _suppress(boxes: NDArray[np.float32], scores: NDArray[np.float64], limit: float = 0.5) -> list[int]:
    """Return the indices of the boxes to keep, best first: greedy non-maximum suppression."""
    shared = overlap(boxes, boxes)
    kept: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        if all(shared[row, other] < limit for other in kept):
            kept.append(int(row))
    return kept
