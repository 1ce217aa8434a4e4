"""The ONNX model in MLflow: its signature from the graph, an input example and pinned requirements."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    from mlflow.models import ModelSignature


def _tensor(value: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    import onnx

    kind = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)
    return value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape


def signature(model: onnx.ModelProto) -> ModelSignature:
    """Return names, types and shapes of the graph's inputs and outputs; a dimension of -1 is free."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Any) -> Schema:
        return Schema([TensorSpec(kind, shape, name) for name, kind, shape in map(_tensor, values)])

    return ModelSignature(schema(model.graph.input), schema(model.graph.output))


def example(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return the smallest valid input: zeros, one sample, two tokens."""

    def smallest(shape: tuple[int, ...]) -> list[int]:
        return [1 if axis == 0 else 2 if size == -1 else size for axis, size in enumerate(shape)]

    return {name: np.zeros(smallest(shape), kind) for name, kind, shape in map(_tensor, model.graph.input)}


def log_onnx_model(run_id: str, bundle: Path) -> str:
    """Log `bundle/model.onnx` as `model` in a run of MLflow's current store; return the id of the logged model."""
    import mlflow
    import onnx

    model = onnx.load(bundle / "model.onnx")
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            model,
            name="model",
            signature=signature(model),
            input_example=example(model),
            pip_requirements=[f"{name}=={version(name)}" for name in ("numpy", "onnx", "onnxruntime")],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    return str(logged.model_id)
