"""`mlflow models serve` on the ONNX flavour: one model a process, lists in JSON. Saves the classifier as an MLflow model first."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from engine import folders, port

if __name__ == "__main__":
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    folder = next(folder for name, folder in folders().items() if name == "classifier")
    saved = Path(tempfile.mkdtemp(dir=os.environ["SCRATCH"])) / "model"
    threads = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    takes = ModelSignature(Schema([TensorSpec(np.dtype(np.uint8), (-1, 28, 28, 1), "image")]))
    mlflow.onnx.save_model(onnx.load(folder / "model.onnx"), str(saved), signature=takes, onnx_session_options=threads)
    command = ["mlflow", "models", "serve", "-m", str(saved), "--env-manager", "local", "-h", "127.0.0.1"]
    os.execv(Path(sys.executable).with_name("mlflow"), [*command, "-p", str(port()), "--workers", "1"])  # noqa: S606 - no shell is wanted
