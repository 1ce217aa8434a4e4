"""Open an ONNX model, run it over a split, time two side by side: for stages, releases and the server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib.arrays import Arrays

if TYPE_CHECKING:
    import onnxruntime as ort


def session(
    path: Path, *, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """Open a model on the first of `providers` that is there. Raises LooplineError if it cannot be opened.

    One thread on the CPU by default: figures do not depend on the machine's cores or accelerators, and timings are steadier.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = set(ort.get_available_providers())
    try:
        return ort.InferenceSession(str(path), options, providers=[name for name in providers if name in available])
    except Exception as error:  # onnxruntime has no common base for its errors
        raise LooplineError(f"{path} cannot be opened as an ONNX model: {error}") from error


def run(path: Path, inputs: Arrays, batch: int = 64) -> Arrays:
    """Every output of the model at `path` for all samples, by output name, joined along the first axis.

    inputs: by input name, the same length n >= 1 along the first axis.
    """
    opened = session(path)
    names = [output.name for output in opened.get_outputs()]
    n = len(next(iter(inputs.values())))
    parts = [
        opened.run(names, {key: value[start : start + batch] for key, value in inputs.items()})
        for start in range(0, max(n, 1), batch)
    ]
    return {name: np.concatenate([part[row] for part in parts]) for row, name in enumerate(names)}


def pairs(
    a: Path, b: Path, inputs: Arrays, inputs_b: Arrays | None = None, *, rounds: int = 15, least_seconds: float = 0.01
) -> NDArray[np.float64]:
    """Seconds of one run of models `a` and `b` on `inputs`, timed in turn so that both meet the same noise: float64 (rounds, 2).

    Of the processor's time, not the clock's: a run is one thread's, and on a busy machine the clock counts what others do meanwhile.
    inputs_b: for a model `b` whose inputs have other shapes. A round repeats the call until `least_seconds` have
    passed, first with `a`, then with `b`.
    """
    calls = [(session(a), inputs), (session(b), inputs if inputs_b is None else inputs_b)]
    repeats = []
    for model, given in calls:
        model.run(None, given)  # the first call allocates
        start = time.thread_time()
        model.run(None, given)
        repeats.append(max(1, int(least_seconds / max(time.thread_time() - start, 1e-6))))
    seconds = np.empty((rounds, 2))
    for row in seconds:
        for side, (model, given) in enumerate(calls):
            start = time.thread_time()
            for _ in range(repeats[side]):
                model.run(None, given)
            row[side] = (time.thread_time() - start) / repeats[side]
    return seconds


def side_by_side(a: Path, b: Path, inputs: Arrays, inputs_b: Arrays | None = None, **options: Any) -> dict[str, float]:
    """Median seconds of one run of models `a` and `b`: see `pairs`."""
    first, second = np.median(pairs(a, b, inputs, inputs_b, **options), axis=0)
    return {"a": float(first), "b": float(second)}
