"""Parse the tasks of Label Studio's JSON export: choices as class names, regions as boxes in pixels.

Formats: https://labelstud.io/guide/export and https://labelstud.io/guide/task_format. Label Studio gives coordinates in percent
of the upright image and turns a rectangle clockwise around its upper left corner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Corners = tuple[float, float, float, float]
Result = dict[str, Any]
# Kinds that describe an image or a region. Any other kind is a shape: a new one must not read as an image without objects.
_NO_SHAPES = frozenset(
    {"choices", "taxonomy", "rating", "textarea", "number", "datetime", "relation", "pairwise", "ranker", "chatmessage"}
)


class UnusableResult(ValueError):
    """A task or a region that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Region:
    """A region of an image: its class and the box around it, x1, y1, x2, y2 in pixels of the upright image.

    problem: the reason why it is not a usable box; then the corners are zeros.
    """

    label: str
    corners: Corners
    problem: str | None = None


def submitted(task: object) -> list[list[Result]]:
    """Return the results of each annotation of a task that its annotator submitted, the oldest first.

    Skipped annotations and the model's predictions are left out; if some are marked as ground truth, only those remain.
    Raises UnusableResult with the reason where the task is not one of the JSON export.
    """
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        raise UnusableResult("it has no `data`: export as JSON, not as JSON-MIN")
    entries = task.get("annotations", task.get("completions"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UnusableResult("its `annotations` are not a list of objects")
    finished = [entry for entry in entries if not (entry.get("was_cancelled") or entry.get("skipped"))]
    chosen = [entry for entry in finished if entry.get("ground_truth")] or finished
    results = [entry.get("result") or [] for entry in chosen]
    if not all(isinstance(group, list) and all(isinstance(result, dict) for result in group) for group in results):
        raise UnusableResult("a `result` is not a list of objects")
    return results


def choices(results: Iterable[Result]) -> list[str]:
    """Return the different classes that were chosen for the whole sample, in their order; [] where nothing was chosen."""
    chosen: dict[str, None] = {}
    for result in results:
        value = result.get("value")
        if _kind(result) == "choices" and isinstance(value, dict) and not {"x", "start"} & value.keys():
            names = value.get("choices")
            chosen |= {str(name): None for name in (names if isinstance(names, list) else [names]) if name is not None}
    return list(chosen)


def regions(results: Iterable[Result]) -> list[Region]:
    """Return a region for each shape, of a known kind or not. Relations, texts, ratings and choices are skipped."""
    # A rectangle and its labels may be two results with the same id and shape. Scripts may give several shapes the same id.
    shapes: dict[tuple[str, str], list[Result]] = {}
    for place, result in enumerate(results):
        if _is_shape(result):
            shapes.setdefault((str(result.get("id") or place), _shape(result)), []).append(result)
    return [_region(group) for group in shapes.values()]


def other_kinds(results: Iterable[Result], *, regions: bool) -> list[str]:
    """Return the kind of each result that `regions`, or else `choices`, skips."""
    skipped = [result for result in results if not (_is_shape(result) if regions else _kind(result) == "choices")]
    return [_kind(result) or "unknown" for result in skipped]


def sizes(results: Iterable[Result]) -> list[tuple[int, int]]:
    """Return each different (width, height) in pixels on which regions were drawn; [] where none states it."""
    stated: dict[tuple[int, int], None] = {}
    for result in results:
        width, height = (number(result.get(f"original_{side}")) for side in ("width", "height"))
        if width and height and width > 0 and height > 0:
            stated[round(width), round(height)] = None
    return list(stated)


def _is_shape(result: Result) -> bool:
    kind = _kind(result)
    return kind not in _NO_SHAPES if kind else "original_width" in result


def _kind(result: Result) -> str:
    value = result.get("value")
    named = [key for key in value if str(key).endswith("labels")] if isinstance(value, dict) else []
    return str(result.get("type") or next(iter(named), "")).lower()


def _shape(result: Result) -> str:
    """Return a key for a region's shape: its value without class names and text."""
    value = result.get("value")
    drawn = (
        {key: value[key] for key in value if not str(key).endswith("labels") and key != "text"}
        if isinstance(value, dict)
        else {}
    )
    return json.dumps(drawn, sort_keys=True, default=str)


def _region(group: Sequence[Result]) -> Region:
    names: dict[str, None] = {}
    for result in group:
        listed = result["value"].get(_kind(result)) if isinstance(result.get("value"), dict) else None
        names |= {str(name): None for name in (listed if isinstance(listed, list) else [])}
    label = ", ".join(names)
    try:
        corners = enclosing(group[0])
    except UnusableResult as error:
        return Region(label, (0, 0, 0, 0), str(error))
    return Region(label, corners, "region with several classes" if len(names) > 1 else None)


def enclosing(result: Result) -> Corners:
    """Return the box around a rectangle, polygon or ellipse, in pixels. Raises UnusableResult with the reason otherwise."""
    value = result.get("value")
    width, height = (number(result.get(f"original_{side}")) for side in ("width", "height"))
    if not isinstance(value, dict):
        raise UnusableResult("region without a shape")
    if not (width and height and width > 0 and height > 0):
        raise UnusableResult("region without the size of its image")
    if number(result.get("image_rotation") or 0) != 0:
        raise UnusableResult("region drawn while the image was turned")
    points = _points(value, width / 100, height / 100)
    across, down = [x for x, _ in points], [y for _, y in points]
    return min(across), min(down), max(across), max(down)


def _points(value: dict[str, Any], across: float, down: float) -> list[tuple[float, float]]:
    """Return points in pixels that have the same box as the region. across, down: pixels per percent."""
    if isinstance(value.get("points"), list):
        pairs = [point for point in value["points"] if isinstance(point, list) and len(point) == 2]
        points = [(number(x), number(y)) for x, y in pairs]
        if len(points) < 3 or len(pairs) != len(value["points"]) or any(None in point for point in points):
            raise UnusableResult("region whose points are not numbers")
        return [(x * across, y * down) for x, y in points if x is not None and y is not None]
    numbers = {key: number(value.get(key)) for key in ("x", "y", "width", "height", "radiusX", "radiusY")}
    x, y, width, height, radius_x, radius_y = numbers.values()
    angle = number(value.get("rotation") or 0)
    if not {"x", "y"} <= value.keys():
        raise UnusableResult("region that is not a box, a polygon or an ellipse")
    if x is None or y is None or angle is None:
        raise UnusableResult("region without coordinates")
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    if radius_x is not None and radius_y is not None:
        half = math.hypot(radius_x * across * cos, radius_y * down * sin)
        rise = math.hypot(radius_x * across * sin, radius_y * down * cos)
        return [(x * across - half, y * down - rise), (x * across + half, y * down + rise)]
    if width is None or height is None:
        raise UnusableResult("region that is not a box, a polygon or an ellipse")
    sides = [(dx * width * across, dy * height * down) for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return [(x * across + dx * cos - dy * sin, y * down + dx * sin + dy * cos) for dx, dy in sides]


def number(value: object) -> float | None:
    """Return a JSON value as a finite float; None for any other, for true and false, and for text."""
    try:
        converted = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None
