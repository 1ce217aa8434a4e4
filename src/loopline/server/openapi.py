"""`/openapi.json`: every route of the loaded models in OpenAPI 3.1, with working examples.

The document is made from the loaded models, so it has this server's own paths, shapes, labels and limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loopline import __version__
from loopline.release.bundle import Tensor
from loopline.server import examples, feedback, oip, payloads
from loopline.server.model import Model
from loopline.tasks.base import Json, record

IMAGES = ("image/jpeg", "image/png", "image/webp")
REASONS = {
    "400": "The request is invalid; the error says where.",
    "401": "The server requires a bearer token.",
    "404": "The bundle's folder now holds another version.",
    "413": "The request has too many bytes, rows, items or pixels.",
    "415": "The server does not support the content type or encoding.",
    "429": "Too many requests wait; Retry-After says when to try again.",
    "503": "The server is not ready, or too busy to answer in time; Retry-After says when to try again.",
}
REFUSALS = ("400", "413", "415", "429", "503")  # statuses of a route that runs a model
TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1, "maximum": 600_000},
    "description": "Milliseconds in which to answer; the server answers 503 if it cannot.",
}


def document(models: Sequence[Model], *, token: bool = False, journal: bool = False) -> Json:
    """The OpenAPI document. token: whether the server requires a token. journal: whether it accepts labels."""
    paths = _server_paths(models)
    for model in models:
        paths |= _model_paths(model) | (_feedback(model) if journal else {})
    content: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Loopline",
            "version": __version__,
            "description": "Models behind the Open Inference Protocol v2, and a simpler route for people.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": model.name, "description": _about(model)} for model in models]
        + [{"name": "server", "description": "health, index and metrics"}],
        "paths": paths,
        "components": {"schemas": {"Error": record({"error": {"type": "string"}})}},
    }
    if token:
        content["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, methods in paths.items():
            if path.startswith("/v2/health/"):
                continue
            for operation in methods.values():
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = _error("401")
    return content


def _server_paths(models: Sequence[Model]) -> Json:
    names = {"name": {"enum": [model.name for model in models]}, "version": {"type": "string"}}
    state = {"state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": {"type": "string"}}
    index = _operation(
        "server", "index", "Every model with its version and state", _array(record(names | state)), "400", "413", "415"
    )
    body = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    index["requestBody"] = {"content": {"application/json": {"schema": body, "example": {"ready": True}}}}
    texts = {"name": {"const": "loopline"}, "version": {"type": "string"}, "extensions": _array({"type": "string"})}
    metrics = _operation("server", "metrics", "Prometheus metrics", None)
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/v2": {"get": _operation("server", "metadata", "The server's name, version and extensions", record(texts))},
        "/v2/health/live": {"get": _operation("server", "live", "Whether the process answers", None)},
        "/v2/health/ready": {"get": _operation("server", "ready", "Whether every model is ready", None, "503")},
        "/v2/repository/index": {"post": index},
        "/metrics": {"get": metrics},
    }


def _model_paths(model: Model) -> Json:
    name = model.name
    paths: Json = {}
    for base, key, suffix in _bases(model):
        metadata = _operation(name, f"{key}metadata", f"Inputs, outputs and labels{suffix}", _metadata(model))
        ready = _operation(name, f"{key}ready", f"Readiness{suffix}", None, "503")
        infer = _operation(name, f"{key}infer", f"Tensors in, tensors out{suffix}", _answer(model), *REFUSALS)
        # The answer of the binary extension, if the request asks for it.
        infer["responses"]["200"]["content"]["application/octet-stream"] = {}
        infer["requestBody"] = {"required": True, "content": {"application/json": _call(model)}}
        infer["parameters"] = [TIMEOUT]
        paths |= {base: {"get": metadata}, f"{base}/ready": {"get": ready}, f"{base}/infer": {"post": infer}}
    predict = _operation(name, "predict", model.task.question, _predictions(model), *REFUSALS)
    predict["requestBody"] = {"required": True, "content": _predict_bodies(model)}
    predict["parameters"] = [TIMEOUT]
    return {f"/predict/{name}": {"post": predict}} | paths


def _feedback(model: Model) -> Json:
    """The feedback routes, which take labels."""
    label = dict(model.task.label_schema(model.spec))
    truth = label.pop("example")
    word = {"type": "string", "minLength": 1, "maxLength": feedback.MOST_CHARACTERS}
    row = record({"id": word | {"pattern": "^[!-~]+$"}, "label": label, "source": word}) | {"required": ["id", "label"]}
    schema = {"oneOf": [row, _array(row, minItems=1, maxItems=feedback.MOST_LABELS)]}
    example = {"id": "5f3a9c01b7d20000", "label": truth, "source": "a person"}
    accepted = {"application/json": {"schema": record({"accepted": {"type": "integer"}})}}
    paths: Json = {}
    for base, key, suffix in _bases(model):
        summary = f"The true label of an earlier answer{suffix}"
        operation = _operation(model.name, f"{key}feedback", summary, None, "400", "413", "415", "503")
        operation["responses"]["202"] = {"description": "The labels are in the journal.", "content": accepted}
        del operation["responses"]["200"]
        content = {"application/json": {"schema": schema, "example": example}}
        operation["requestBody"] = {"required": True, "content": content}
        paths[f"{base}/feedback"] = {"post": operation}
    return paths


def _bases(model: Model) -> list[tuple[str, str, str]]:
    """A model's two addresses, each with the prefix of its operations' ids and the suffix of their summaries."""
    base = f"/v2/models/{model.name}"
    return [(base, "", ""), (f"{base}/versions/{model.version}", "version_", " of this version")]


def _about(model: Model) -> str:
    labels = model.spec.labels
    some = ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
    return f"{model.spec.task}, {model.bundle.manifest.quantization}, version {model.version}: {some}"


def _predict_bodies(model: Model) -> Json:
    chosen = examples.of(model)
    if model.spec.text:
        texts = [example.text for example in chosen] or [examples.ANY_TEXT]
        text = {"type": "string", "maxLength": examples.MOST_TEXT}
        single = record({"text": text})
        several = record({"texts": _array(text, minItems=1, maxItems=payloads.MOST_ITEMS)})
        calls = {"one": {"value": {"text": texts[0]}}, "several": {"value": {"texts": texts[:2]}}}
        return {
            "application/json": {"schema": {"oneOf": [single, several]}, "examples": calls},
            "text/plain": {"schema": {"type": "string", "minLength": 1}, "example": texts[0]},
        }
    raw: Json = {"schema": {"type": "string", "format": "binary"}}
    kind = chosen[0].kind if chosen else IMAGES[0]
    form = record({"file": {"type": "string", "format": "binary", "contentMediaType": kind}})
    shown = {"examples": {"example": {"externalValue": examples.path(model, chosen[0])}}} if chosen else {}
    others = dict.fromkeys((other for other in IMAGES if other != kind), raw)
    return {kind: raw | shown} | others | {"multipart/form-data": {"schema": form}}


def _call(model: Model) -> Json:
    """The schema and an example of an inference request in JSON."""
    binary = {"type": "object", "properties": {"binary_data": {"type": "boolean"}}}
    outputs = _array(
        {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"enum": list(model.outputs)}, "parameters": binary},
        }
    )
    inputs = [_input(tensor) for tensor in model.inputs.values()]
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
            "inputs": _array(
                inputs[0] if len(inputs) == 1 else {"anyOf": inputs}, minItems=len(inputs), maxItems=len(inputs)
            ),
            "outputs": outputs,
        },
    }
    example = [
        {"name": tensor.name, "shape": list(array.shape), "datatype": tensor.datatype, "data": array.ravel().tolist()}
        for tensor, array in ((model.inputs[name], array) for name, array in model.example(1).items())
    ]
    return {"schema": schema, "example": {"inputs": example}}


def _input(tensor: Tensor) -> Json:
    sides = [
        {"const": side} if side >= 0 else {"type": "integer", "minimum": 1, "maximum": 16} for side in tensor.shape
    ]
    values: Json = {"type": "number"} if tensor.datatype.startswith("FP") else {"type": "integer"}
    if tensor.datatype == "UINT8":
        values |= {"minimum": 0, "maximum": 255}
    elif tensor.datatype == "INT64":
        values |= {"minimum": -(2**63), "maximum": 2**63 - 1}
    shape = {"type": "array", "prefixItems": sides, "items": False, "minItems": len(sides), "maxItems": len(sides)}
    fields: Json = {"name": {"const": tensor.name}, "datatype": {"const": tensor.datatype}, "shape": shape}
    return record(fields | {"data": _array(values, description="flat, as many values as the shape says")})


def _answer(model: Model) -> Json:
    kinds = [
        record(
            {
                "name": {"const": tensor.name},
                "datatype": {"const": tensor.datatype},
                "shape": _array(
                    {"type": "integer", "minimum": 1}, minItems=len(tensor.shape), maxItems=len(tensor.shape)
                ),
                "data": _array({"type": "number"}),
            }
        )
        for tensor in model.outputs.values()
    ]
    fields = {
        "model_name": {"const": model.name},
        "model_version": {"const": model.version},
        "outputs": _array({"anyOf": kinds}),
    }
    answer = record(fields)
    answer["properties"] |= {"id": {"type": "string"}}
    return answer


def _metadata(model: Model) -> Json:
    tensor = record(
        {
            "name": {"type": "string"},
            "datatype": {"enum": [*oip.DTYPES, "BYTES"]},
            "shape": _array({"type": "integer", "minimum": -1}),
        }
    )
    parameters = record(
        {
            "bundle": {"const": model.bundle.version},
            "task": {"const": model.spec.task},
            "labels": {"const": list(model.spec.labels)},
            "precision": {"enum": ["int8", "fp32"]},
            "unjudged": {"type": "boolean"},
        }
    )
    return record(
        {
            "name": {"const": model.name},
            "versions": {"const": [model.version]},
            "platform": {"const": "onnxruntime_onnx"},
            "inputs": _array(tensor),
            "outputs": _array(tensor),
            "parameters": parameters,
        }
    )


def _predictions(model: Model) -> Json:
    fields = {
        "model": {"const": model.name},
        "version": {"const": model.version},
        "id": {"type": "string", "minLength": 1},
    }
    return record(fields | {"predictions": _array(model.task.answer_schema(model.spec), minItems=1)})


def _operation(tag: str, name: str, summary: str, schema: Json | None, *statuses: str) -> Json:
    ok: Json = {"description": "The answer."}
    if schema is not None:
        ok["content"] = {"application/json": {"schema": schema}}
    responses = {"200": ok} | {status: _error(status) for status in statuses}
    return {"tags": [tag], "operationId": f"{tag}_{name}", "summary": summary, "responses": responses}


def _error(status: str) -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": REASONS[status], "content": content}


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items} | more
