"""BentoML: one service, a method a model, base64 in JSON, adaptive batching on. Started with `bentoml serve bentoml_peer:Peer`."""

from __future__ import annotations

import base64
from typing import Any

import bentoml
import numpy as np
from engine import BATCH, engines, lists


@bentoml.service(workers=1, traffic={"timeout": 60})
class Peer:
    """The models."""

    def __init__(self) -> None:
        """In the worker's process."""
        self.engines = engines()

    def _infer(self, model: str, samples: list[str]) -> list[dict[str, Any]]:
        engine = self.engines[model]
        found = engine(np.stack([engine.sample(base64.b64decode(sample)) for sample in samples]))
        return [lists({name: array[row : row + 1] for name, array in found.items()}) for row in range(len(samples))]

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
    def classifier(self, data: list[str]) -> list[dict[str, Any]]:
        """Digits."""
        return self._infer("classifier", data)

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
    def detector(self, data: list[str]) -> list[dict[str, Any]]:
        """Scenes."""
        return self._infer("detector", data)

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=1000)
    def text(self, data: list[str]) -> list[dict[str, Any]]:
        """Token ids."""
        return self._infer("text", data)
