"""Candidates for INT8: the grid to try, one candidate's graph, and its distance from FP32. The stage `quantize` judges it.

Activations are unsigned and weights signed, per channel, because VNNI multiplies such a pair in one step. Signed activations are
slower than FP32 on x86. Without VNNI the 16-bit sums of AVX2 can overflow, so signed weights get 7 bits (`reduce_range`). Dynamic
quantization may also have unsigned ones of 8 bits, which AVX2 multiplies in 16 bits: a tenth slower, and closer to FP32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loopline.lib import files
from loopline.lib.arrays import Arrays
from loopline.lib.machine import cpu_features
from loopline.training.parity import answering


@dataclass(frozen=True)
class Candidate:
    """One point of the grid."""

    method: Literal["minmax", "entropy", "percentile", "dynamic"]
    reduce_range: bool
    weights: Literal["int8", "uint8"] = "int8"


def grid(kind: Literal["static", "dynamic"], methods: tuple[str, ...]) -> list[Candidate]:
    """Return the candidates for this processor. Dynamic quantization has no calibration method to choose."""
    reduce_range = not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(cpu_features())
    if kind == "dynamic":
        unsigned = [Candidate("dynamic", reduce_range=False, weights="uint8")] if reduce_range else []
        return [Candidate("dynamic", reduce_range), *unsigned]
    chosen: Any = methods
    return [Candidate(method, reduce_range) for method in chosen]


def quantize(source: Path, target: Path, candidate: Candidate, inputs: Arrays, *, exclude: list[str]) -> None:
    """Write the INT8 version of `source` atomically, calibrated on `inputs`; the nodes named in `exclude` stay FP32."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    weight_type = QuantType.QUInt8 if candidate.weights == "uint8" else QuantType.QInt8
    common = {"per_channel": True, "reduce_range": candidate.reduce_range, "weight_type": weight_type}
    with tempfile.TemporaryDirectory() as folder, files.replacing(target) as partial, _quiet():
        prepared = _prepare(source, Path(folder) / "prepared.onnx")
        if candidate.method == "dynamic":
            quantize_dynamic(prepared, partial, nodes_to_exclude=exclude, **common)
        else:
            quantize_static(
                prepared,
                partial,
                _reader(inputs),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                calibrate_method=getattr(
                    CalibrationMethod, {"minmax": "MinMax"}.get(candidate.method, candidate.method.title())
                ),
                nodes_to_exclude=exclude,
                **common,
            )


def _prepare(source: Path, target: Path) -> Path:
    """Drop the shapes of inner values: the quantizer fails on those of fused layers."""
    import onnx

    model = onnx.load(source)
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def _reader(inputs: Arrays) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    rows = len(next(iter(inputs.values())))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows: Iterator[Arrays] = ({k: v[i : i + 1] for k, v in inputs.items()} for i in range(rows))

        def get_next(self) -> Arrays | None:
            return next(self._rows, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer, which prints its progress and advises a preparation at every call."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def distance(a: Arrays, b: Arrays) -> float:
    """Return the largest mean absolute difference of the outputs that carry the answer, such as probabilities or scores."""
    return max(float(np.abs(a[name].astype(np.float64) - b[name].astype(np.float64)).mean()) for name in answering(a))
