"""The search for INT8 and the parity of graphs, on a small convolution made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from loopline import settings
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.stages import quantize
from loopline.tasks.bootstrap import Interval
from loopline.training import parity, quantization


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A graph from uint8 (n, 8, 8, 3) to probabilities (n, 4), with a convolution whose channels weigh very differently."""
    generator = np.random.default_rng(0)
    weight = (generator.normal(size=(4, 3, 3, 3)) * np.array([1, 3, 0.2])[None, :, None, None]).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight"], ["maps"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    tensors = {"weight": weight, "scale": np.array(1 / 255, np.float32)}
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def images():
    return {"image": np.random.default_rng(1).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)}


def test_int8_is_close_to_fp32_and_quantizes_the_convolution(graph, images, tmp_path):
    candidate = quantization.grid("static", ("minmax",))[0]
    quantization.quantize(graph, tmp_path / "int8.onnx", candidate, images, exclude=[])
    kinds = {node.op_type for node in load(tmp_path / "int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    assert quantization.distance(sessions.run(graph, images), sessions.run(tmp_path / "int8.onnx", images)) < 0.02


def test_an_excluded_node_stays_as_it_was(graph, images, tmp_path):
    candidate = quantization.grid("static", ("minmax",))[0]
    quantization.quantize(graph, tmp_path / "int8.onnx", candidate, images, exclude=["conv"])
    conv = next(node for node in load(tmp_path / "int8.onnx").graph.node if node.op_type == "Conv")
    assert "weight" in conv.input


def test_without_eight_bit_dot_products_weights_get_seven_bits(monkeypatch):
    monkeypatch.setattr(quantization, "cpu_features", lambda: ["avx2"])
    assert quantization.grid("static", ("minmax", "percentile"))[1] == quantization.Candidate("percentile", True)
    monkeypatch.setattr(quantization, "cpu_features", lambda: ["avx512_vnni"])
    assert quantization.grid("dynamic", ("minmax",)) == [quantization.Candidate("dynamic", False)]


OPTIONS = settings.Quantize(calibration_samples=8, max_loss=0.01, tolerance=0.02)
SAME, FASTER = Interval(0.0, 0.0, 0.0), Interval(2.0, 1.9, 2.1)
SMALLER = {"fp32": 100, "int8": 30}


@pytest.mark.parametrize(
    ("change", "gap", "sizes", "fast", "reason"),
    [
        (Interval(-0.8, -0.9, -0.7), 0.0, SMALLER, FASTER, "map50 may fall by 0.9"),
        (Interval(0.0, -0.02, 0.02), 0.0, SMALLER, FASTER, "may fall by 0.02"),
        (SAME, 0.03, SMALLER, FASTER, "outputs differ by 0.03"),
        (SAME, 0.0, {"fp32": 100, "int8": 100}, FASTER, "not smaller than FP32"),
        (SAME, 0.0, SMALLER, Interval(0.5, 0.4, 0.6), "clearly slower than FP32"),
        (SAME, 0.0, SMALLER, Interval(*[float("nan")] * 3), "clearly slower than FP32"),
        (Interval(*[float("nan")] * 3), 0.0, SMALLER, FASTER, "may fall by nan"),
    ],
)
def test_int8_ships_only_if_it_is_as_good_close_smaller_and_not_clearly_slower(change, gap, sizes, fast, reason):
    assert reason in quantize.objections(change, gap, sizes, fast, "map50", OPTIONS)[0]


def test_a_good_int8_model_has_no_objection():
    assert quantize.objections(Interval(0.001, -0.009, 0.01), 0.01, SMALLER, FASTER, "map50", OPTIONS) == []


def test_fp32_ships_where_the_settings_say_so():
    options = OPTIONS.model_copy(update={"precision": "fp32"})
    assert quantize.objections(SAME, 0.0, SMALLER, FASTER, "map50", options) == ["precision: fp32 in params.yaml"]


class Clock:
    """A processor's clock, and models that advance it. A call takes its seconds plus noise, and sometimes three times as long."""

    def __init__(self, seed):
        self.now, self.noise = 0.0, np.random.default_rng(seed)

    def thread_time(self):
        return self.now

    def session(self, seconds):
        place = self.noise.normal(0, 0.03)  # the effect of a session's place in memory

        def run(*_):
            pause = 3 if self.noise.random() < 0.05 else 1
            self.now += seconds * pause * np.exp(place + self.noise.normal(0, 0.1))

        return SimpleNamespace(run=run)


def reasons_at(ratio, seed, monkeypatch):
    """Return the objections to an INT8 model of `ratio` times FP32's speed, in a run whose clock has the noise `seed`."""
    clock = Clock(seed)
    monkeypatch.setattr(sessions, "time", clock)
    monkeypatch.setattr(sessions, "session", lambda path: clock.session({"fp32": ratio * 0.01, "int8": 0.01}[path]))
    fast = quantize.speedup(sessions.pairs("fp32", "int8", {}, rounds=quantize.ROUNDS))
    return quantize.objections(SAME, 0.0, SMALLER, fast, "accuracy", OPTIONS)


@pytest.mark.parametrize("ratio", [0.8, 0.85, 0.9, 0.95, 1.0, 1.02, 1.05, 1.08, 1.1, 1.2, 1.5, 2.0, 4.0])
def test_int8_ships_in_every_run_if_it_is_at_most_a_fifth_slower(ratio, monkeypatch):
    assert [reasons_at(ratio, seed, monkeypatch) for seed in range(20)] == [[]] * 20


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_an_int8_model_that_takes_twice_as_long_never_ships(ratio, monkeypatch):
    reasons = [reasons_at(ratio, seed, monkeypatch) for seed in range(20)]
    assert reasons == [["clearly slower than FP32 on this processor: under 0.67 times its speed"]] * 20


def test_channels_in_the_wrong_order_break_parity(graph, images):
    """Training reads RGB; a server that hands over BGR must be caught."""
    right = sessions.run(graph, images)
    swapped = sessions.run(graph, {"image": np.ascontiguousarray(images["image"][..., ::-1])})
    assert parity.check(right, sessions.run(graph, images), tolerance=1e-4, what="the same")["probabilities"] == 0
    with pytest.raises(LooplineError, match="channel order"):
        parity.check(right, swapped, tolerance=1e-4, what="torch and FP32 ONNX")


def test_a_nan_breaks_parity():
    sound, broken = {"probabilities": np.ones((2, 2))}, {"probabilities": np.full((2, 2), np.nan)}
    with pytest.raises(LooplineError, match="differ by nan"):
        parity.check(sound, broken, tolerance=1, what="they")


def test_only_boxes_with_a_score_count_for_parity():
    a = {"boxes": np.zeros((1, 2, 4)), "scores": np.array([[0.9, 0.01]])}
    b = {"boxes": np.array([[[1.0, 0, 0, 0], [50, 0, 0, 0]]]), "scores": np.array([[0.9, 0.01]])}
    assert parity.largest_difference(a, b)["boxes"] == 1


def test_missing_outputs_are_named():
    with pytest.raises(LooplineError, match="embedding"):
        parity.largest_difference({"scores": np.zeros(1)}, {"scores": np.zeros(1), "embedding": np.zeros(1)})


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2", "avx512_vnni"), [("int8", False)]),
        (("avx2",), [("int8", True), ("uint8", False)]),
        (("asimddp",), [("int8", False)]),
    ],
)
def test_without_vnni_signed_weights_get_seven_bits_and_unsigned_ones_are_tried_too(monkeypatch, features, expected):
    monkeypatch.setattr(quantization, "cpu_features", lambda: features)
    candidates = quantization.grid("dynamic", ())
    assert [(candidate.weights, candidate.reduce_range) for candidate in candidates] == expected
    assert [candidate.weights for candidate in quantization.grid("static", ("minmax", "entropy"))] == ["int8", "int8"]
