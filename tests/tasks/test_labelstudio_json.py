"""Results of Label Studio become classes and boxes in pixels, or give the reason why they cannot."""

import pytest

from loopline.tasks import labelstudio_json


def rectangle(*, x=50, y=20, width=30, height=10, names=("car",), **more):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": more.pop("rotation", 0)}
    value["rectanglelabels"] = list(names)
    return {"type": "rectanglelabels", "original_width": 128, "original_height": 192, "value": value} | more


def box(result):
    (region,) = labelstudio_json.regions([result])
    return region.problem or pytest.approx(region.corners)


@pytest.mark.parametrize(
    ("rotation", "corners"),
    [
        (0, (64, 38.4, 102.4, 57.6)),
        (90, (44.8, 38.4, 64, 76.8)),
        (180, (25.6, 19.2, 64, 38.4)),
        (-90, (64, 0, 83.2, 38.4)),
    ],
)
def test_a_rectangle_turns_around_its_upper_left_corner(rotation, corners):
    assert box(rectangle(rotation=rotation)) == corners


def test_polygons_and_ellipses_become_the_boxes_around_them():
    shape = {"original_width": 200, "original_height": 100}
    polygon = {"points": [[10, 10], [30, 20], [20, 60]], "polygonlabels": ["a"]}
    ellipse = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 90, "ellipselabels": ["a"]}
    assert box(shape | {"type": "polygonlabels", "value": polygon}) == (20, 10, 60, 60)
    assert box(shape | {"type": "ellipselabels", "value": ellipse}) == (80, 30, 120, 70)


def test_a_rectangle_and_its_labels_may_be_two_results():
    corners = {"x": 0, "y": 0, "width": 50, "height": 50}
    size = {"id": "r1", "original_width": 10, "original_height": 10}
    shape = size | {"type": "rectangle", "value": corners}
    name = size | {"type": "labels", "value": corners | {"labels": ["car"]}}
    text = size | {"type": "textarea", "value": corners | {"text": ["a note"]}}
    relation = {"type": "relation", "from_id": "r1", "to_id": "r1"}
    assert labelstudio_json.regions([shape, name, text, relation]) == [labelstudio_json.Region("car", (0, 0, 5, 5))]


def test_two_shapes_with_one_id_are_two_regions():
    """A script that prepares annotations may give all of them the same `id`."""
    regions = labelstudio_json.regions(
        [rectangle(id="r1"), rectangle(id="r1", x=0, names=("bus",)), rectangle(id="r1")]
    )
    assert [(region.label, region.corners[0]) for region in regions] == [("car", 64), ("bus", 0)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("bitmasklabels", {"imageDataURL": "data:image/png;base64,AA==", "bitmasklabels": ["car"]}),
        ("vectorlabels", {"vertices": [{"id": "a", "x": 1, "y": 2}], "closed": True, "vectorlabels": ["car"]}),
        ("cuboidlabels", {"cuboidlabels": ["car"]}),
        ("videorectangle", {"sequence": [{"frame": 1, "x": 1, "y": 2}], "labels": ["car"]}),
        ("bitmask", {"imageDataURL": "data:image/png;base64,AA=="}),
        ("a kind of tomorrow", {"points": 3}),
        (None, {"vertices": []}),
    ],
)
def test_a_region_of_another_kind_is_a_region(kind, value):
    (region,) = labelstudio_json.regions(
        [{"id": "1", "type": kind, "original_width": 9, "original_height": 9, "value": value}]
    )
    assert region.problem == "region that is not a box, a polygon or an ellipse"


def test_a_result_that_describes_a_region_is_not_a_region():
    size, corners = {"original_width": 9, "original_height": 9}, {"x": 1, "y": 1, "width": 2, "height": 2}
    kinds = ("choices", "rating", "textarea", "number", "taxonomy", "datetime", "relation", "pairwise", "ranker")
    assert labelstudio_json.regions([size | {"type": kind, "value": corners} for kind in kinds]) == []


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (rectangle(names=("car", "bus")), "several classes"),
        (rectangle(image_rotation=90), "image was turned"),
        (rectangle(original_width=None), "size of its image"),
        (rectangle(x="7"), "without coordinates"),
        (rectangle(x=10**400), "without coordinates"),
        (rectangle(value=[]), "without a shape"),
        (rectangle(type="brushlabels", value={"rle": [1], "brushlabels": ["a"]}), "not a box"),
        (rectangle(type="keypointlabels", value={"x": 1, "y": 1, "width": 1}), "not a box"),
        (rectangle(type="polygonlabels", value={"points": [[1, 2], [3, None], [4, 5]]}), "not numbers"),
    ],
)
def test_a_region_that_has_no_box_gives_the_reason(result, problem):
    assert problem in box(result)


def test_choices_of_the_whole_sample_count_and_those_of_a_region_do_not():
    sample = {"type": "choices", "value": {"choices": ["cat"]}}
    inside = {"type": "choices", "value": {"x": 1, "y": 1, "width": 2, "height": 2, "choices": ["blurred"]}}
    assert labelstudio_json.choices([inside, sample, sample]) == ["cat"]
    assert labelstudio_json.choices([{"type": "choices", "value": {"choices": ["a", "b"]}}]) == ["a", "b"]
    assert labelstudio_json.choices([{"type": "choices", "value": {"choices": []}}, {"type": "rating"}]) == []


def test_submitted_annotations_count_and_ground_truth_alone_where_it_is_marked():
    first, second = [{"type": "choices", "value": {"choices": [name]}} for name in "ab"]
    task = {"data": {}, "predictions": [{"result": [first]}]}
    skipped = {"result": [first], "was_cancelled": True}
    assert labelstudio_json.submitted(task | {"annotations": [skipped, {"result": [second]}]}) == [[second]]
    old = {"result": [first], "skipped": True}
    assert labelstudio_json.submitted(task | {"completions": [old, {"result": [second]}]}) == [[second]]
    truth = {"result": [second], "ground_truth": True}
    assert labelstudio_json.submitted(task | {"annotations": [{"result": [first]}, truth]}) == [[second]]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"image": "a.png", "label": []}, "JSON-MIN"),
        (None, "JSON-MIN"),
        ({"data": {}}, "annotations"),
        ({"data": {}, "annotations": [None]}, "annotations"),
        ({"data": {}, "annotations": [{"result": {"a": 1}}]}, "result"),
    ],
)
def test_a_task_that_is_not_from_the_json_export_is_refused(task, message):
    with pytest.raises(labelstudio_json.UnusableResult, match=message):
        labelstudio_json.submitted(task)
