"""LitServe: one API a model, base64 in JSON as its image examples do, batching on."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import litserve as ls
import numpy as np
from engine import BATCH, WAIT, Engine, folders, lists, port


class Api(ls.LitAPI):
    """One model."""

    def __init__(self, name: str, folder: Path) -> None:
        """name: also the route."""
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT, api_path=f"/{name}")
        self.folder = folder

    def setup(self, device: str) -> None:  # noqa: ARG002
        """In the worker's process."""
        self.engine = Engine(self.folder)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """One sample."""
        return self.engine.sample(base64.b64decode(request["data"]))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """One array of all."""
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """All at once."""
        return self.engine(batch)

    def unbatch(self, outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """One answer a sample."""
        count = len(next(iter(outputs.values())))
        return [{name: array[row : row + 1] for name, array in outputs.items()} for row in range(count)]

    def encode_response(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """As JSON."""
        return lists(outputs)


if __name__ == "__main__":
    server = ls.LitServer([Api(name, folder) for name, folder in folders().items()], accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=port(),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
