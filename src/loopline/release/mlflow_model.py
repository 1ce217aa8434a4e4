"""The ONNX model as MLflow knows it: with a signature read off its graph, an input example and pinned requirements."""

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
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape


def signature(model: onnx.ModelProto) -> ModelSignature:
    """Names, types and shapes of the graph's inputs and outputs; -1 where a dimension is free."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(values: Any) -> Schema:
        return Schema([TensorSpec(kind, shape, name) for name, kind, shape in map(_tensor, values)])

    return ModelSignature(schema(model.graph.input), schema(model.graph.output))


def example(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """A smallest valid input: zeros, one sample, two tokens."""

    def smallest(shape: tuple[int, ...]) -> list[int]:
        return [1 if axis == 0 else 2 if size == -1 else size for axis, size in enumerate(shape)]

    return {name: np.zeros(smallest(shape), kind) for name, kind, shape in map(_tensor, model.graph.input)}


def log_onnx_model(run_id: str, bundle: Path) -> str:
    """Log `bundle/model.onnx` as the model `model` of a run in MLflow's current store; returns the store's id of it."""
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
