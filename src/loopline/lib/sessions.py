"""ONNX models: open one, run it over a split, time two side by side. Stages, releases and the server use this."""

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
    """Open a model on the first of `providers` that is available. Raises LooplineError if the model cannot be opened.

    The default is one thread on the CPU: figures do not depend on the machine's cores or accelerators, and timings vary less.
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
    except Exception as error:  # onnxruntime's errors have no common base class
        raise LooplineError(f"{path} cannot be opened as an ONNX model: {error}") from error


def run(path: Path, inputs: Arrays, batch: int = 64) -> Arrays:
    """Run the model at `path` in batches; return its outputs by name, with all samples along the first axis.

    inputs: arrays by input name, all with the same length n >= 1 along the first axis.
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
    """The seconds of one run of the models `a` and `b` on `inputs`: float64 (rounds, 2).

    The models are timed in turn, so that both meet the same noise: a round repeats the call until `least_seconds` have passed,
    first with `a`, then with `b`. The seconds are processor time of the one thread that runs, since clock time would include the
    work of other processes. inputs_b: inputs of `b`, if they have other shapes than those of `a`.
    """
    calls = [(session(a), inputs), (session(b), inputs if inputs_b is None else inputs_b)]
    repeats = []
    for model, tensors in calls:
        model.run(None, tensors)  # the first call allocates memory, so it is not timed
        start = time.thread_time()
        model.run(None, tensors)
        repeats.append(max(1, int(least_seconds / max(time.thread_time() - start, 1e-6))))
    seconds = np.empty((rounds, 2))
    for row in seconds:
        for side, (model, tensors) in enumerate(calls):
            start = time.thread_time()
            for _ in range(repeats[side]):
                model.run(None, tensors)
            row[side] = (time.thread_time() - start) / repeats[side]
    return seconds


def side_by_side(a: Path, b: Path, inputs: Arrays, inputs_b: Arrays | None = None, **options: Any) -> dict[str, float]:
    """The median seconds of one run of the models `a` and `b`; see `pairs`."""
    first, second = np.median(pairs(a, b, inputs, inputs_b, **options), axis=0)
    return {"a": float(first), "b": float(second)}
