"""The official client, tritonclient: every model, in JSON and binary, plain and compressed."""

import brightness
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

INPUTS = {
    "classifier": ("image", np.stack([np.full((8, 8, 1), value, np.uint8) for value in (200, 20, 130)]), "UINT8"),
    "detector": ("image", np.stack([np.full((32, 32, 3), value, np.uint8) for value in (255, 51, 0)]), "UINT8"),
    "text": ("ids", np.array([[2, 3, 2, 0], [2, 4, 2, 0], [2, 3, 4, 2]], np.int64), "INT64"),
}


@pytest.fixture(scope="module")
def client(server):
    opened = triton.InferenceServerClient(f"{server.host}:{server.port}", concurrency=4)
    yield opened
    opened.close()


def given(model, *, binary=True):
    name, array, datatype = INPUTS[model]
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


def expected(model):
    array = INPUTS[model][1].astype(np.float64)
    if model == "detector":
        return "scores", np.stack([array.mean((1, 2, 3)) / 255, np.zeros(3)], 1)
    if model == "classifier":
        logit = (array.mean((1, 2, 3)) - 127.5) / 4
        return "probabilities", np.stack([1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))], 1)
    return "probabilities", None


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", INPUTS)
def test_the_official_client_gets_the_right_answer(client, model, binary, compression):
    kinds = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
    answer = client.infer(model, given(model, binary=binary), request_id="mine", **kinds)
    assert answer.get_response()["id"] == "mine"
    name, right = expected(model)
    output = answer.as_numpy(name)
    assert len(output) == 3
    if right is not None:
        np.testing.assert_allclose(output, right, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_only_the_requested_outputs_are_sent(client, binary):
    requested = [triton.InferRequestedOutput("embedding", binary_data=binary)]
    answer = client.infer("classifier", given("classifier"), outputs=requested)
    assert [row["name"] for row in answer.get_response()["outputs"]] == ["embedding"]
    np.testing.assert_allclose(answer.as_numpy("embedding")[:, 0], [200, 20, 130])


def test_many_asynchronous_calls_are_all_answered(client):
    calls = [client.async_infer("classifier", given("classifier"), request_id=str(n)) for n in range(64)]
    assert [call.get_result().get_response()["id"] for call in calls] == [str(n) for n in range(64)]


def test_health_metadata_and_index(client, folders):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "loopline"
    index = {row["name"]: row for row in client.get_model_repository_index()}
    assert index.keys() == folders.keys()
    for name, row in index.items():
        assert row["state"] == "READY"
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, row["version"])
        metadata = client.get_model_metadata(name, row["version"])
        assert metadata["versions"] == [row["version"]]
        assert metadata["inputs"][0]["name"] == INPUTS[name][0]


def test_labels_are_part_of_the_metadata(client):
    assert client.get_model_metadata("classifier")["parameters"]["labels"] == list(brightness.LABELS)


def test_a_version_can_be_named(client):
    version = client.get_model_metadata("text")["versions"][0]
    assert client.infer("text", given("text"), model_version=version).get_response()["model_version"] == version
    with pytest.raises(InferenceServerException, match="there is no route"):
        client.infer("text", given("text"), model_version="1")


def test_a_wrong_shape_is_explained(client):
    tensor = triton.InferInput("image", [1, 4, 4, 1], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(InferenceServerException, match="the model takes"):
        client.infer("classifier", [tensor])
