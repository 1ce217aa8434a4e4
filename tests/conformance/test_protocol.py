"""Does a server keep to the Open Inference Protocol v2 over HTTP? Requests are made from what it says of its models.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, and the binary tensor
extension of Triton. Every test asks every model, so that a failure names the model.
"""

import gzip
import json
import math
import zlib

import numpy as np
import pytest
import requests

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="session")
def http():
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="session")
def models(http, url, request):
    """Metadata of every model by name."""
    names = request.config.getoption("--model", default=None)
    if not names:
        index = http.post(f"{url}/v2/repository/index", json={}, timeout=10)
        assert index.status_code == 200, "the server has no repository index: name models by --model"
        names = [row["name"] for row in index.json()]
    assert names, "the server serves nothing"
    return {name: http.get(f"{url}/v2/models/{name}", timeout=10).json() for name in names}


@pytest.fixture(scope="session")
def binary(http, url, request):
    """Skips where the server does not offer the binary extension."""
    if "binary_tensor_data" not in http.get(f"{url}/v2", timeout=10).json()["extensions"]:
        given = request.config.getoption("--url", default=None)  # ours must have it
        (pytest.skip if given else pytest.fail)("the server does not list binary_tensor_data")


def tensors(metadata, rows=1):
    """Inputs of zeros: `rows` along the first free dimension, 4 along the others."""
    found = {}
    for tensor in metadata["inputs"]:
        free = iter([rows, *[4] * 8])
        shape = [next(free) if side == -1 else side for side in tensor["shape"]]
        found[tensor["name"]] = np.zeros(shape, DTYPES[tensor["datatype"]])
    return found


def datatype(array):
    return next(name for name, dtype in DTYPES.items() if array.dtype == dtype)


def as_json(arrays, **more):
    rows = [
        {"name": n, "shape": a.shape, "datatype": datatype(a), "data": a.reshape(-1).tolist()}
        for n, a in arrays.items()
    ]
    return {"inputs": rows, **more}


def as_binary(arrays, **more):
    """Body and headers of the binary extension."""
    rows = [
        {"name": n, "shape": a.shape, "datatype": datatype(a), "parameters": {"binary_data_size": a.nbytes}}
        for n, a in arrays.items()
    ]
    head = json.dumps({"inputs": rows, **more}).encode()
    return head + b"".join(a.tobytes() for a in arrays.values()), {
        LENGTH: str(len(head)),
        "Content-Type": "application/octet-stream",
    }


def read(answer):
    """The head and the outputs as arrays, whether they came as JSON or binary."""
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    head, rest, start, found = json.loads(answer.content[:length]), answer.content[length:], 0, {}
    for row in head["outputs"]:
        dtype = np.dtype(DTYPES[row["datatype"]])
        size = row.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(row["data"], dtype)
        else:
            array = np.frombuffer(rest[start : start + size], dtype)
            start += size
        assert array.size == math.prod(row["shape"])
        found[row["name"]] = array.reshape(row["shape"])
    assert start == len(rest)
    return head, found


def infer(http, url, name, body, headers=None, path=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(f"{url}/v2/models/{name}{path}/infer", data=data, headers=headers, timeout=30)


def test_health_is_a_status(http, url):
    assert http.get(f"{url}/v2/health/live", timeout=10).status_code == 200
    assert http.get(f"{url}/v2/health/ready", timeout=10).status_code == 200


def test_the_server_says_what_it_is(http, url):
    said = http.get(f"{url}/v2", timeout=10).json()
    assert isinstance(said["name"], str)
    assert isinstance(said["version"], str)
    assert all(isinstance(name, str) for name in said["extensions"])


def test_a_model_says_what_it_takes_and_gives(models):
    for name, said in models.items():
        assert said["name"] == name
        assert isinstance(said["platform"], str)
        for tensor in said["inputs"] + said["outputs"]:
            assert tensor["datatype"] in {*DTYPES, "BYTES"}
            assert all(isinstance(side, int) for side in tensor["shape"])


def test_every_model_is_ready_by_name_and_by_version(http, url, models):
    for name, said in models.items():
        assert http.get(f"{url}/v2/models/{name}/ready", timeout=10).status_code == 200
        for version in said.get("versions", []):
            assert http.get(f"{url}/v2/models/{name}/versions/{version}", timeout=10).json()["name"] == name
            assert http.get(f"{url}/v2/models/{name}/versions/{version}/ready", timeout=10).status_code == 200


@pytest.mark.parametrize("rows", [1, 3])
def test_json_is_answered_as_the_metadata_promises(http, url, models, rows):
    for name, said in models.items():
        head, found = read(infer(http, url, name, as_json(tensors(said, rows), id="an id")))
        assert (head["model_name"], head["id"]) == (name, "an id")
        promised = {tensor["name"]: tensor for tensor in said["outputs"]}
        assert found.keys() == promised.keys()
        for output, array in found.items():
            assert datatype(array) == promised[output]["datatype"]
            shape = promised[output]["shape"]
            assert len(array.shape) == len(shape)
            assert all(wanted in (-1, side) for wanted, side in zip(shape, array.shape, strict=True))
            assert array.shape[0] == rows


def test_nested_data_is_the_same_as_flat_data(http, url, models):
    for name, said in models.items():
        flat = as_json(tensors(said, 2))
        nested = {"inputs": [row | {"data": np.reshape(row["data"], row["shape"]).tolist()} for row in flat["inputs"]]}
        assert read(infer(http, url, name, flat))[1].keys() == read(infer(http, url, name, nested))[1].keys()


def test_a_version_can_be_asked(http, url, models):
    for name, said in models.items():
        for version in said.get("versions", []):
            head, _ = read(infer(http, url, name, as_json(tensors(said)), path=f"/versions/{version}"))
            assert head["model_version"] == version


def test_only_wanted_outputs_come(http, url, models):
    for name, said in models.items():
        wanted = said["outputs"][-1]["name"]
        _, found = read(infer(http, url, name, as_json(tensors(said), outputs=[{"name": wanted}])))
        assert list(found) == [wanted]


@pytest.mark.usefixtures("binary")
def test_binary_and_json_say_the_same(http, url, models):
    for name, said in models.items():
        arrays = tensors(said, 2)
        _, plain = read(infer(http, url, name, as_json(arrays)))
        for parameters in ({}, {"binary_data_output": True}):
            head, found = read(infer(http, url, name, *as_binary(arrays, parameters=parameters)))
            came = {row["name"] for row in head["outputs"] if "binary_data_size" in row.get("parameters", {})}
            assert came == (set(found) if parameters else set())
            for output, array in found.items():
                np.testing.assert_allclose(array, plain[output], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("binary")
def test_each_output_may_choose(http, url, models):
    for name, said in models.items():
        outputs = [{"name": t["name"], "parameters": {"binary_data": n == 0}} for n, t in enumerate(said["outputs"])]
        head, _ = read(infer(http, url, name, as_json(tensors(said), outputs=outputs)))
        assert ["binary_data_size" in row.get("parameters", {}) for row in head["outputs"]] == [
            n == 0 for n in range(len(outputs))
        ]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_understood(http, url, models, encoding, pack):
    for name, said in models.items():
        body = pack(json.dumps(as_json(tensors(said))).encode())
        assert infer(http, url, name, body, {"Content-Encoding": encoding}).status_code == 200


def refused(answer):
    assert 400 <= answer.status_code < 500, answer.text
    assert isinstance(answer.json()["error"], str)
    assert answer.json()["error"]


def test_what_is_not_there_is_an_error(http, url):
    refused(http.get(f"{url}/v2/models/no-such-model", timeout=10))
    refused(http.get(f"{url}/v2/models/no-such-model/ready", timeout=10))
    refused(infer(http, url, "no-such-model", {"inputs": []}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: {k: v for k, v in row.items() if k != "name"},
        lambda row: row | {"name": "no-such-input"},
        lambda row: row | {"datatype": "FP64"},
        lambda row: row | {"datatype": 7},
        lambda row: row | {"shape": [*row["shape"], 1]},
        lambda row: row | {"shape": [-1, *row["shape"][1:]]},
        lambda row: row | {"data": row["data"][1:]},
        lambda row: row | {"data": ["a"] * len(row["data"])},
        lambda row: {k: v for k, v in row.items() if k != "data"},
        lambda row: row | {"data": None, "parameters": {"binary_data_size": 10**9}},
    ],
)
def test_a_spoilt_input_is_an_error_and_not_a_guess(http, url, models, spoil):
    for name, said in models.items():
        first, *others = as_json(tensors(said))["inputs"]
        refused(infer(http, url, name, {"inputs": [spoil(first), *others]}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"inputs": 3}', b'{"inputs": []}', b"\xff\x00"])
def test_a_body_that_is_no_request_is_an_error(http, url, models, body):
    for name in models:
        refused(infer(http, url, name, body))


@pytest.mark.usefixtures("binary")
@pytest.mark.parametrize("length", ["-1", "x", "999999999", "1"])
def test_a_length_that_lies_is_an_error(http, url, models, length):
    for name, said in models.items():
        body, headers = as_binary(tensors(said))
        refused(infer(http, url, name, body, headers | {LENGTH: length}))
