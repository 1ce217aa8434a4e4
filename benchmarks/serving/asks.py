"""The requests to each server and their right answers. All servers get the same samples, each in the format that it reads."""

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
    """One sample of a model. array: with its batch axis. file: the PNG that it came from. expected: the bare engine's outputs."""

    model: str
    task: str
    name: str
    datatype: str
    array: NDArray[Any]
    file: bytes
    expected: Outputs


@dataclass(frozen=True)
class Ask:
    """A POST request. read: a function of the answer's headers and body that returns the outputs by name."""

    path: str
    headers: dict[str, str]
    body: bytes
    read: Callable[[Any, bytes], Outputs]


def samples(folders: Sequence[Path]) -> list[Sample]:
    """One sample for each bundle: a digit, a scene with digits, a country's name."""
    collected = []
    for folder in folders:
        opened = bundle.read(folder)
        spec, tensor = opened.manifest.spec, opened.manifest.inputs[0]
        image = (
            next(iter((digits if spec.task == "classification" else digit_scenes).read())).image if spec.image else b""
        )
        content: Any = image or "Vereinigte Staaten"
        array = tasks.find(spec.task).preprocessor(spec, folder)([content])[tensor.name]
        names = [output.name for output in opened.manifest.outputs if output.name != "embedding"]
        expected = dict(zip(names, sessions.session(opened.model).run(names, {tensor.name: array}), strict=True))
        collected.append(Sample(opened.manifest.name, spec.task, tensor.name, tensor.datatype, array, image, expected))
    return collected


def _plain(_: Any, body: bytes) -> Outputs:
    answer = json.loads(body)
    outputs = answer[0] if isinstance(answer, list) else answer.get("predictions", answer)
    return {name: np.array(value) for name, value in outputs.items()}


def _v2(headers: Any, body: bytes) -> Outputs:
    length = headers.get("Inference-Header-Content-Length")
    answer = json.loads(body[: int(length)] if length else body)
    kinds = {"FP32": np.float32, "INT64": np.int64}
    outputs, start = {}, int(length or 0)
    for row in answer["outputs"]:
        if size := row.get("parameters", {}).get("binary_data_size"):
            array = np.frombuffer(body[start : start + size], kinds[row["datatype"]])
            start += size
        else:
            array = np.array(row["data"])
        outputs[row["name"]] = array.reshape(row["shape"])
    return outputs


def v2_binary(sample: Sample) -> Ask:
    """A request of the Open Inference Protocol with binary tensors in both directions."""
    content = sample.array.tobytes()
    tensor = {"name": sample.name, "datatype": sample.datatype, "shape": sample.array.shape}
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in sample.expected]
    head = json.dumps(
        {"inputs": [tensor | {"parameters": {"binary_data_size": len(content)}}], "outputs": outputs}
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Ask(f"/v2/models/{sample.model}/infer", headers, head + content, _v2)


def v2_json(sample: Sample) -> Ask:
    """A request of the Open Inference Protocol in JSON."""
    tensor = {"name": sample.name, "datatype": sample.datatype, "shape": sample.array.shape}
    body = json.dumps({"inputs": [tensor | {"data": sample.array.ravel().tolist()}]}).encode()
    return Ask(f"/v2/models/{sample.model}/infer", JSON, body, _v2)


def nested(sample: Sample) -> Ask:
    """The tensor as nested lists in JSON."""
    return Ask(f"/{sample.model}", JSON, json.dumps({"data": sample.array.tolist()}).encode(), _plain)


def raw(sample: Sample) -> Ask:
    """The tensor's bytes without a wrapper."""
    return Ask(f"/{sample.model}", {"Content-Type": "application/octet-stream"}, sample.array.tobytes(), _plain)


def base64_one(sample: Sample) -> Ask:
    """The sample in base64 in JSON."""
    return Ask(f"/{sample.model}", JSON, json.dumps({"data": base64.b64encode(sample.array).decode()}).encode(), _plain)


def base64_many(sample: Sample) -> Ask:
    """A list of one sample in base64."""
    return Ask(
        f"/{sample.model}", JSON, json.dumps({"data": [base64.b64encode(sample.array).decode()]}).encode(), _plain
    )


def mlflow(sample: Sample) -> Ask:
    """A request to `mlflow models serve`."""
    return Ask("/invocations", JSON, json.dumps({"inputs": {sample.name: sample.array.tolist()}}).encode(), _plain)


def _label(_: Any, body: bytes) -> Outputs:
    probabilities = json.loads(body)["predictions"][0]["probabilities"]
    return {"probabilities": np.array([[probabilities[label] for label in sorted(probabilities)]])}


def file_predict(sample: Sample) -> Ask:
    """An image file to Loopline's route for files."""
    return Ask(f"/predict/{sample.model}", {"Content-Type": "image/png"}, sample.file, _label)


def file_raw(sample: Sample) -> Ask:
    """An image file to the FastAPI peer's route for files."""
    return Ask(f"/file/{sample.model}", {"Content-Type": "image/png"}, sample.file, _plain)


def check(port: int, ask: Ask, sample: Sample) -> str:
    """Return why the server's answer is wrong, empty if it is right. Raises OSError while no server listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", ask.path, ask.body, ask.headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return f"status {answer.status}: {body[:200]!r}"
        outputs = ask.read(answer.headers, body)
        for name, expected in sample.expected.items():
            if name not in outputs or outputs[name].shape != expected.shape:
                return f"{name} is missing or has another shape"
            if not np.allclose(outputs[name], expected, atol=TOLERANCE, rtol=TOLERANCE):
                return f"{name} differs from the bare engine's"
    except http.client.HTTPException as error:
        return repr(error)
    finally:
        connection.close()
    return ""
