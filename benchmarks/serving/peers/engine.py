"""What every peer shares: the bundles named by $BUNDLES, opened as Loopline opens them: one thread, no spinning."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

BATCH = 16  # rows at most, for the peers that batch
WAIT = 0.002  # seconds at most, for those that wait for a batch to fill


class Engine:
    """One model. Calling it answers a batch with every output but the embedding, which serves only for drift."""

    def __init__(self, folder: Path) -> None:
        """folder: a bundle."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        tensor = self.session.get_inputs()[0]
        self.input, self.dtype = tensor.name, np.int64 if "int64" in tensor.type else np.uint8
        self.side = [side if isinstance(side, int) else -1 for side in tensor.shape[1:]]
        self.outputs = [output.name for output in self.session.get_outputs() if output.name != "embedding"]

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """batch: samples along the first axis."""
        return dict(zip(self.outputs, self.session.run(self.outputs, {self.input: batch}), strict=True))

    def sample(self, raw: bytes) -> np.ndarray:
        """One sample from its bytes, without a batch axis."""
        return np.frombuffer(raw, self.dtype).reshape(self.side)


def folders() -> dict[str, Path]:
    """Model name -> bundle."""
    bundles = {}
    for name in os.environ["BUNDLES"].split(os.pathsep):
        bundles[json.loads((Path(name) / "bundle.json").read_text(encoding="utf-8"))["name"]] = Path(name)
    return bundles


def engines() -> dict[str, Engine]:
    """Model name -> engine."""
    return {name: Engine(folder) for name, folder in folders().items()}


def port() -> int:
    """Where to listen, on the loopback."""
    return int(os.environ["PORT"])


def lists(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same as plain lists, for those that answer in JSON."""
    return {name: array.tolist() for name, array in outputs.items()}
