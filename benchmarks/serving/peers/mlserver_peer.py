"""MLServer: the Open Inference Protocol in JSON (1.7 has no binary tensors over HTTP), batching on, no workers on one core."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

from engine import BATCH, WAIT, Engine, folders, port
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    """One model."""

    async def load(self) -> bool:
        """Open it."""
        self.engine = Engine(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """All rows at once."""
        batch = NumpyCodec.decode_input(payload.inputs[0])
        outputs = [NumpyCodec.encode_output(name, array) for name, array in self.engine(batch).items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def free() -> int:
    """A port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


if __name__ == "__main__":
    home = Path(tempfile.mkdtemp(dir=os.environ["SCRATCH"]))
    ports = {"http_port": port(), "grpc_port": free(), "metrics_endpoint": None}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, "gzip_enabled": False, **ports}
    (home / "settings.json").write_text(json.dumps(settings))
    for name, folder in folders().items():
        (home / name).mkdir()
        model = {"name": name, "implementation": "mlserver_peer.Runtime", "parameters": {"uri": str(folder.resolve())}}
        batching = {"max_batch_size": BATCH, "max_batch_time": WAIT}
        (home / name / "model-settings.json").write_text(json.dumps(model | batching))
    os.execv(Path(sys.executable).with_name("mlserver"), ["mlserver", "start", str(home)])  # noqa: S606 - no shell is wanted
