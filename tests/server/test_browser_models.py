"""The demo page with the models that `make repro` makes, in a real Chromium.

LOOPLINE_MODELS=models   the folder that holds <model>/bundle; the data lies beside it
"""

import base64
import json
import os
from math import cos, pi, sin
from pathlib import Path

import browser
import numpy as np
import pytest
import requests
from servers import Process

from loopline.data import manifest
from loopline.drift import golden
from loopline.release import bundle
from loopline.server import pages
from loopline.tasks.average_precision import overlap
from loopline.tasks.detection import task as detection

MODELS = Path(os.environ.get("LOOPLINE_MODELS", "models"))
NAMES = ("classifier", "detector", "text")
SAMPLES = 60  # of each test split
MOST_TIES = 2  # of some 150 boxes
SIDES = ("x1", "y1", "x2", "y2")


@pytest.fixture(scope="module")
def real():
    """A server of the three models."""
    complete = all((MODELS / name / "bundle/bundle.json").exists() for name in NAMES)
    browser.need(complete, f"no bundles under {MODELS}: make repro, or name a folder in LOOPLINE_MODELS")
    process = Process(*(MODELS / name / "bundle" for name in NAMES), "--port", 0, "--timeout-ms", 60_000)
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def page(real):
    with browser.chromium() as running:
        page = running.new_page()
        page.goto(real.url)
        page.wait_for_selector("body[data-ready]")
        yield page


@pytest.fixture
def local(page, real):
    """local(model, input) -> the model's answer in the browser."""
    browser.need((pages.HERE / "assets/ready").exists(), "onnxruntime-web is not there: make demo")
    page.evaluate("self.models = {}")

    def answer(name, sample):
        script = """async ([name, encoded, text]) => {
            const { open } = await import("/pages/local.js");
            models[name] ??= await open(name, "any");
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            return models[name](text ?? new Blob([bytes]));
        }"""
        file, text = (b"", sample) if isinstance(sample, str) else (sample, None)
        return page.evaluate(script, [name, base64.b64encode(file).decode(), text])

    return answer


def test_browser_and_server_agree_on_real_samples(real, local):
    """Probabilities agree within .02, labels agree unless two are as close; boxes agree within a pixel, scores within .05.

    Both run the same INT8 file but may round differently, by one of 256 steps. If two candidates for an object have nearly the same
    score, the other may win: then the browser's box must match, to a pixel, a box of the server's graph before suppression, with a
    score within .05 of the winner's. Measured on a CPU with VNNI: 3e-7, a quarter of a pixel and .033.
    """
    worst = {}
    for name in NAMES:
        samples = manifest.load_split(MODELS.parent / f"data/{name}/manifest.parquet", "test").inputs[:SAMPLES]
        compare = boxes if name == "detector" else probabilities
        gaps = [compare(local(name, sample), remote(real, name, sample), sample) for sample in samples]
        worst[name] = np.max(gaps, axis=0)
        if name == "detector":
            assert sum(ties for *_, ties in gaps) <= MOST_TIES, "too many for chance"
    assert worst["classifier"][0] <= 0.02
    assert worst["text"][0] <= 0.02
    pixels, score, _ = worst["detector"]
    assert pixels <= 1
    assert score <= 0.05


def remote(server, name, sample):
    body = {"json": {"text": sample}} if isinstance(sample, str) else {"data": sample}
    return requests.post(f"{server.url}/predict/{name}", timeout=60, **body).json()["predictions"][0]


def probabilities(local, remote, _):
    gaps = [abs(remote["probabilities"][label] - value) for label, value in local["probabilities"].items()]
    if local["label"] != remote["label"]:
        assert abs(remote["probabilities"][local["label"]] - remote["probability"]) <= 0.02
    return (max(gaps),)


def boxes(local, remote, sample):
    """The largest gaps between corners and scores of the same boxes. A box of only one side must be near the threshold."""
    local, remote = list(local["boxes"]), remote["boxes"]
    content = json.loads((MODELS / "detector/bundle/bundle.json").read_text(encoding="utf-8"))
    threshold = content["spec"]["score_threshold"]
    gaps, tied = [(0.0, 0.0)], 0
    for box in remote:
        same = [other for other in local if other["label"] == box["label"] and corners(box, other) <= 1]
        if same:
            local.remove(same[0])
            gaps.append((corners(box, same[0]), abs(box["score"] - same[0]["score"])))
        elif abs(box["score"] - threshold) > 0.05:
            rivals = suppressed(sample, box)
            assert min(corners(rival, box) for rival in rivals) <= 0.01, "the server answers a box of its graph"
            ties = [rival for rival in rivals if corners(rival, box) > 1 and abs(rival["score"] - box["score"]) <= 0.05]
            pairs = [
                (corners(tie, other), other, tie) for tie in ties for other in local if other["label"] == box["label"]
            ]
            assert pairs, (box, local)
            gap, other, tie = min(pairs, key=lambda pair: pair[0])
            local.remove(other)
            tied += 1
            gaps.append((gap, abs(tie["score"] - other["score"])))
    assert all(abs(box["score"] - threshold) <= 0.05 for box in local), local
    return (*np.max(gaps, axis=0), tied)


def suppressed(sample, box):
    """The served graph's candidates at the place of `box`, including it. Images must have the size of the input."""
    import onnx
    import onnxruntime

    folder = MODELS / "detector/bundle"
    spec = bundle.read(folder).manifest.spec
    graph = onnx.load(folder / "model.onnx")
    (suppression,) = (node for node in graph.graph.node if node.op_type == "NonMaxSuppression")
    names = list(suppression.input[:2])
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    places, scores = session.run(names, detection.TASK.preprocessor(spec, folder)([sample]))
    places = np.clip(places, 0, spec.image.width)
    rivals = overlap(places[0], np.array([[box[side] for side in SIDES]]))[:, 0] > spec.extra["nms_iou"]
    scores = scores[0, spec.labels.index(box["label"])]
    return [
        {"score": float(score), **dict(zip(SIDES, map(float, place), strict=True))}
        for place, score in zip(places[0][rivals], scores[rivals], strict=True)
    ]


def corners(a, b):
    return max(abs(a[side] - b[side]) for side in SIDES)


def arc(x, y, across, down, start, end):
    return [(x + across * cos(t * pi), y + down * sin(t * pi)) for t in np.linspace(start, end, 16)]


DIGITS = {  # strokes in shares of the pad's side, y downwards; deliberately small and off centre
    0: [arc(0.5, 0.5, 0.2, 0.32, -0.5, 1.5)],
    1: [[(0.38, 0.35), (0.52, 0.2), (0.5, 0.8)]],
    2: [[*arc(0.5, 0.35, 0.18, 0.16, -0.95, 0.15), (0.3, 0.8), (0.7, 0.8)]],
    3: [arc(0.48, 0.34, 0.18, 0.15, -0.85, 0.5), arc(0.48, 0.66, 0.2, 0.17, -0.5, 0.85)],
    4: [[(0.55, 0.18), (0.28, 0.6), (0.74, 0.6)], [(0.6, 0.4), (0.6, 0.85)]],
    5: [[(0.68, 0.2), (0.38, 0.2), (0.36, 0.47), *arc(0.48, 0.62, 0.19, 0.18, -0.7, 0.8)]],
    6: [[(0.6, 0.18), (0.45, 0.3), (0.33, 0.58), *arc(0.5, 0.66, 0.17, 0.16, 1, 3)]],
    7: [[(0.3, 0.22), (0.7, 0.22), (0.45, 0.8)]],
    8: [arc(0.5, 0.35, 0.15, 0.15, 0.5, 2.5), arc(0.5, 0.66, 0.19, 0.16, -0.5, 1.5)],
    9: [[*arc(0.5, 0.35, 0.16, 0.16, 0, 2), (0.65, 0.6), (0.56, 0.82)]],
}


@pytest.mark.parametrize(("size", "shift"), [(1, 0), (0.5, 0.35)], ids=["large", "small and in a corner"])
def test_every_drawn_digit_is_recognised(page, size, shift):
    page.click("#tab-classifier")
    recognised = {}
    for digit, strokes in DIGITS.items():
        page.click("#panel-classifier button:text('Clear')")
        for stroke in strokes:
            with page.expect_response("**/predict/classifier") as answer:
                browser.stroke(page, [(x * size + shift, y * size + shift) for x, y in stroke])
            prediction = answer.value.json()["predictions"][0]
        recognised[digit] = int(prediction["label"])
    assert recognised == {digit: digit for digit in DIGITS}


def test_the_pages_examples_are_golden_samples_with_their_golden_answers(page):
    for model in ("classifier", "detector", "text"):
        samples = golden.read(MODELS / model / "bundle/golden.json")
        buttons = page.locator(f"#panel-{model} .{'chip' if model == 'text' else 'thumb'}")
        page.click(f"#tab-{model}")
        assert 2 <= buttons.count() <= len(samples)
        for number in range(buttons.count()):
            with page.expect_response(f"**/predict/{model}") as answer:
                buttons.nth(number).click()
            prediction = answer.value.json()["predictions"][0]
            assert any(golden.distance(sample.answer, prediction) < 1e-3 for sample in samples)
