"""What is sent to each server and what must come back: the same samples for all, in the form that each takes."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline import tasks
from loopline.data.embedded import digit_scenes, digits
from loopline.lib import sessions
from loopline.release import bundle

JSON = {"Content-Type": "application/json"}
TOLERANCE = 1e-4
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """One sample of a model. array: with its batch axis. file: the PNG it was made from. expected: what the bare engine says."""

    model: str
    task: str
    name: str
    datatype: str
    array: NDArray[Any]
    file: bytes
    expected: Outputs


@dataclass(frozen=True)
class Ask:
    """A POST request. read: the answer's headers and body -> outputs by name."""

    path: str
    headers: dict[str, str]
    body: bytes
    read: Callable[[Any, bytes], Outputs]


def samples(folders: Sequence[Path]) -> list[Sample]:
    """One of each bundle: a digit, a scene with digits, a name."""
    found = []
    for folder in folders:
        opened = bundle.read(folder)
        spec, tensor = opened.manifest.spec, opened.manifest.inputs[0]
        image = (
            next(iter((digits if spec.task == "classification" else digit_scenes).read())).image if spec.image else b""
        )
        raw: Any = image or "Vereinigte Staaten"
        array = tasks.find(spec.task).preprocessor(spec, folder)([raw])[tensor.name]
        names = [output.name for output in opened.manifest.outputs if output.name != "embedding"]
        expected = dict(zip(names, sessions.session(opened.model).run(names, {tensor.name: array}), strict=True))
        found.append(Sample(opened.manifest.name, spec.task, tensor.name, tensor.datatype, array, image, expected))
    return found


def _plain(_: Any, body: bytes) -> Outputs:
    said = json.loads(body)
    said = said[0] if isinstance(said, list) else said.get("predictions", said)
    return {name: np.array(value) for name, value in said.items()}


def _v2(headers: Any, body: bytes) -> Outputs:
    length = headers.get("Inference-Header-Content-Length")
    said = json.loads(body[: int(length)] if length else body)
    kinds = {"FP32": np.float32, "INT64": np.int64}
    found, start = {}, int(length or 0)
    for row in said["outputs"]:
        if size := row.get("parameters", {}).get("binary_data_size"):
            found[row["name"]] = np.frombuffer(body[start : start + size], kinds[row["datatype"]]).reshape(row["shape"])
            start += size
        else:
            found[row["name"]] = np.array(row["data"]).reshape(row["shape"])
    return found


def v2_binary(sample: Sample) -> Ask:
    """The Open Inference Protocol with binary tensors both ways."""
    raw = sample.array.tobytes()
    tensor = {"name": sample.name, "datatype": sample.datatype, "shape": sample.array.shape}
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in sample.expected]
    head = json.dumps(
        {"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}], "outputs": outputs}
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Ask(f"/v2/models/{sample.model}/infer", headers, head + raw, _v2)


def v2_json(sample: Sample) -> Ask:
    """The same in JSON."""
    tensor = {"name": sample.name, "datatype": sample.datatype, "shape": sample.array.shape}
    body = json.dumps({"inputs": [tensor | {"data": sample.array.ravel().tolist()}]}).encode()
    return Ask(f"/v2/models/{sample.model}/infer", JSON, body, _v2)


def nested(sample: Sample) -> Ask:
    """Nested lists."""
    return Ask(f"/{sample.model}", JSON, json.dumps({"data": sample.array.tolist()}).encode(), _plain)


def raw(sample: Sample) -> Ask:
    """The tensor's bytes."""
    return Ask(f"/{sample.model}", {"Content-Type": "application/octet-stream"}, sample.array.tobytes(), _plain)


def base64_one(sample: Sample) -> Ask:
    """Base64 in JSON."""
    return Ask(f"/{sample.model}", JSON, json.dumps({"data": base64.b64encode(sample.array).decode()}).encode(), _plain)


def base64_many(sample: Sample) -> Ask:
    """A list of one sample in base64."""
    return Ask(
        f"/{sample.model}", JSON, json.dumps({"data": [base64.b64encode(sample.array).decode()]}).encode(), _plain
    )


def mlflow(sample: Sample) -> Ask:
    """What `mlflow models serve` takes."""
    return Ask("/invocations", JSON, json.dumps({"inputs": {sample.name: sample.array.tolist()}}).encode(), _plain)


def _label(_: Any, body: bytes) -> Outputs:
    said = json.loads(body)["predictions"][0]["probabilities"]
    return {"probabilities": np.array([[said[label] for label in sorted(said)]])}


def file_predict(sample: Sample) -> Ask:
    """Loopline's route for people: the image file as it is."""
    return Ask(f"/predict/{sample.model}", {"Content-Type": "image/png"}, sample.file, _label)


def file_raw(sample: Sample) -> Ask:
    """The FastAPI peer's route for files."""
    return Ask(f"/file/{sample.model}", {"Content-Type": "image/png"}, sample.file, _plain)


def check(port: int, ask: Ask, sample: Sample) -> str:
    """Why the server's answer is wrong, or nothing if it is right. Raises OSError while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", ask.path, ask.body, ask.headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return f"status {answer.status}: {body[:200]!r}"
        found = ask.read(answer.headers, body)
        for name, wanted in sample.expected.items():
            if name not in found or found[name].shape != wanted.shape:
                return f"{name} is missing or has another shape"
            if not np.allclose(found[name], wanted, atol=TOLERANCE, rtol=TOLERANCE):
                return f"{name} differs from the bare engine's"
    except http.client.HTTPException as error:
        return repr(error)
    finally:
        connection.close()
    return ""
