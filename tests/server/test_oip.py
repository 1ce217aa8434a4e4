"""The protocol's parser: valid tensors come back as they were sent, invalid requests are refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loopline.release.bundle import Tensor
from loopline.server import oip
from loopline.server.messages import Refusal

OUT = {"y": Tensor(name="y", datatype="FP32", shape=(-1, 2))}
KINDS = sorted(oip.DTYPES)
IMAGE = Tensor(name="x", datatype="UINT8", shape=(-1, 2))


def parse(body, headers, tensor):
    """Parse twice, because a remembered request must give the same result."""
    read = oip.RequestReader({"x": tensor}, OUT)
    first, second = read(body, headers), read(body, headers)
    assert first.id == second.id
    assert first.outputs == second.outputs
    for name, call in first.tensors.items():
        np.testing.assert_array_equal(call, second.tensors[name])
    return second


def binary(rows, *content):
    """Body and headers of a request with these inputs and these tensors behind it."""
    head = json.dumps({"inputs": rows}).encode()
    return head + b"".join(content), {oip.LENGTH: b"%d" % len(head)}


def row(**changes):
    return {"name": "x", "datatype": "UINT8", "shape": [1, 2], "data": [1, 2]} | changes


def refused(body, headers=None, tensor=IMAGE):
    with pytest.raises(Refusal) as error:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {}, tensor)
    assert error.value.status == 400
    return error.value.message


@given(st.data(), st.sampled_from(KINDS), st.booleans())
def test_a_tensor_comes_back_as_it_was_sent(data, kind, as_binary):
    dtype = np.dtype(oip.DTYPES[kind])
    shape = data.draw(arrays.array_shapes(max_dims=4, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    array = data.draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **finite)))
    tensor = Tensor(name="x", datatype=kind, shape=(-1,) * len(shape))
    given_row = {"name": "x", "datatype": kind, "shape": list(shape)}
    if as_binary:
        body, headers = binary([given_row | {"parameters": {"binary_data_size": array.nbytes}}], array.tobytes())
    else:
        body, headers = json.dumps({"inputs": [given_row | {"data": array.tolist()}]}).encode(), {}
    parsed = parse(body, headers, tensor).tensors["x"]
    assert parsed.dtype == dtype
    np.testing.assert_array_equal(parsed, array)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_bytes_come_back_as_they_were_sent(elements):
    tensor = Tensor(name="x", datatype="BYTES", shape=(-1,))
    content = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    shape = {"name": "x", "datatype": "BYTES", "shape": [len(elements)]}
    body, headers = binary([shape | {"parameters": {"binary_data_size": len(content)}}], content)
    assert parse(body, headers, tensor).tensors["x"] == elements
    texts = json.dumps({"inputs": [shape | {"data": [element.hex() for element in elements]}]}).encode()
    assert parse(texts, {}, tensor).tensors["x"] == [element.hex().encode() for element in elements]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[" * 5000, "not JSON"),
        ([], "'inputs'"),
        ({"inputs": {}}, "'inputs'"),
        ({"inputs": [1]}, "an input"),
        ({"inputs": [row(name="z")]}, "no input 'z'"),
        ({"inputs": [row(), row()]}, "twice"),
        ({"inputs": [row(datatype="FP32")]}, "datatype FP32"),
        ({"inputs": [row(shape=[2])]}, "shape"),
        ({"inputs": [row(shape=[1, 3])]}, "shape"),
        ({"inputs": [row(shape=[0, 2])]}, r"shape \[0, 2\], the model takes \[1 or more, 2\]"),
        ({"inputs": [row(shape=[-1, 2])]}, "shape"),
        ({"inputs": [row(shape=[True, 2])]}, "shape"),
        ({"inputs": [row(shape=[2**40, 2])]}, "shape"),
        ({"inputs": [row(data=[1])]}, "2 values"),
        ({"inputs": [row(data=[1, 2, 3])]}, "2 values"),
        ({"inputs": [row(data=[1, 256])]}, "outside"),
        ({"inputs": [row(data=[1, -1])]}, "outside"),
        ({"inputs": [row(data=[1, 2**70])]}, "values|different"),
        ({"inputs": [row(data=[1, 1.5])]}, "2 values"),
        ({"inputs": [row(data=[1, "a"])]}, "2 values"),
        ({"inputs": [row(data=[1, None])]}, "2 values"),
        ({"inputs": [row(data=[1, True])]}, "2 values of UINT8"),
        ({"inputs": [row(data=[[False, 1]])]}, "2 values of UINT8"),
        (
            {"inputs": [row(shape=[3, 2], data=[[1, 2, 3], [4, 5, 6]])]},
            r"nested as \[2, 3\], but its shape is \[3, 2\]",
        ),
        ({"inputs": [row(data=[[1], [2, 3]])]}, "different length|values|outside"),
        ({"inputs": [row(parameters=[])]}, "parameters"),
        ({"inputs": [row(parameters={"binary_data_size": 2})]}, "both"),
        (
            {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 2], "parameters": {"binary_data_size": 2}}]},
            "0 bytes are there",
        ),
        ({"inputs": []}, "missing"),
        (
            {"inputs": [{k: v for k, v in row(parameters={"binary_data_size": -1}).items() if k != "data"}]},
            "binary_data_size",
        ),
        (
            {"inputs": [{k: v for k, v in row(parameters={"binary_data_size": True}).items() if k != "data"}]},
            "binary_data_size",
        ),
        ({"inputs": [row()], "outputs": [{"name": "z"}]}, "no output 'z'"),
        ({"inputs": [row()], "outputs": {}}, "outputs must be a list"),
        ({"inputs": [row()], "id": 7}, "id must be a string"),
        ({"inputs": [row()], "parameters": 7}, "parameters"),
        (b'{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 2], "data": [NaN, 1]}]}', "not JSON"),
    ],
)
def test_an_invalid_request_is_explained(body, message):
    import re

    assert re.search(message, refused(body))


@pytest.mark.parametrize("nested", [(2, 4, 3, 1), (2, 4, 3), (2, 12), (8, 3)])
def test_rows_of_nested_data_may_be_flat(nested):
    """They may also leave out a side of 1: each value keeps its place in the shape."""
    values = np.arange(24, dtype=np.uint8)
    given_row = row(shape=[2, 4, 3, 1], data=values.reshape(nested).tolist())
    body = json.dumps({"inputs": [given_row], "parameters": {"binary_data_output": True}}).encode()
    call = parse(body, {}, Tensor(name="x", datatype="UINT8", shape=(-1, 4, 3, 1)))
    np.testing.assert_array_equal(call.tensors["x"], values.reshape(2, 4, 3, 1))


@pytest.mark.parametrize("nested", [(2, 1, 3, 4), (2, 3, 4), (3, 8), (1, 2, 12, 1)])
def test_nested_data_of_another_shape_is_refused(nested):
    data = np.arange(24).reshape(nested).tolist()
    tensor = Tensor(name="x", datatype="UINT8", shape=(-1, 4, 3, 1))
    assert "is nested as" in refused({"inputs": [row(shape=[2, 4, 3, 1], data=data)]}, tensor=tensor)


def test_values_that_are_not_finite_are_refused():
    tensor = Tensor(name="x", datatype="FP32", shape=(-1,))
    content = np.array([1, np.nan], np.float32).tobytes()
    given_row = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    body, headers = binary([given_row], content)
    assert "finite" in refused(body, headers, tensor)


@pytest.mark.parametrize(
    "content", [b"\x05\x00\x00\x00abc", b"\x01\x00", b"\x01\x00\x00\x00ab", b"", b"\xff\xff\xff\xffab"]
)
def test_wrong_lengths_of_elements_are_refused(content):
    tensor = Tensor(name="x", datatype="BYTES", shape=(-1,))
    given_row = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(content)}}
    refused(*binary([given_row], content), tensor)


def test_bytes_after_the_last_tensor_are_refused():
    given_row = {"name": "x", "datatype": "UINT8", "shape": [1, 2], "parameters": {"binary_data_size": 2}}
    assert "follow" in refused(*binary([given_row], b"abc"))


@given(st.binary(max_size=300), st.sampled_from([None, b"0", b"10", b"999", b"x", b"-1", b"1" * 30]))
def test_any_bytes_are_parsed_or_refused(body, length):
    try:
        parse(body, {oip.LENGTH: length} if length else {}, IMAGE)
    except Refusal as error:
        assert error.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "name": st.just("x") | JSON,
                        "datatype": st.just("UINT8") | JSON,
                        "shape": st.just([1, 2]) | JSON,
                        "data": st.just([1, 2]) | JSON,
                        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-5, 5) | JSON}) | JSON,
                    },
                ),
                max_size=3,
            )
        },
        optional={"id": JSON, "outputs": JSON, "parameters": JSON},
    ),
    st.binary(max_size=6),
)
def test_any_json_with_the_right_fields_is_parsed_or_refused(request, tail):
    head = json.dumps(request).encode()
    try:
        call = parse(head + tail, {oip.LENGTH: b"%d" % len(head)}, IMAGE)
    except Refusal as error:
        assert error.status == 400
    else:
        assert all(tensor.shape == (1, 2) for tensor in call.tensors.values())


def test_null_counts_as_a_missing_field():
    """Some clients write every field, with null for optional ones."""
    everywhere = {"id": None, "parameters": None, "outputs": None, "inputs": [row(parameters=None)]}
    sizes = {"id": None, "parameters": {"binary_data_output": None}, "outputs": [{"name": "y", "parameters": None}]}
    for request in (everywhere, sizes | {"inputs": [row(parameters={"binary_data_size": None})]}):
        call = parse(json.dumps(request).encode(), {}, IMAGE)
        assert (call.id, call.outputs, call.tensors["x"].tolist()) == ("", {"y": False}, [[1, 2]])
    behind = row(data=None, parameters={"binary_data_size": 2})
    head = json.dumps(
        {"inputs": [behind], "outputs": [{"name": "y", "parameters": {"binary_data": None}}]}
        | {"parameters": {"binary_data_output": True}}
    )
    call = parse(head.encode() + b"\x01\x02", {oip.LENGTH: b"%d" % len(head)}, IMAGE)
    assert (call.outputs, call.tensors["x"].tolist()) == ({"y": True}, [[1, 2]]), "and takes what holds without it"


@pytest.mark.parametrize("key", ["name", "datatype", "shape", "data"])
def test_null_in_a_required_field_is_refused(key):
    assert repr(key) in refused({"inputs": [row(**{key: None})]})


@pytest.mark.parametrize("as_binary", [True, False])
def test_the_answer_has_the_requested_outputs(as_binary):
    call = oip.Call("7", {}, {"y": as_binary})
    array = np.array([[0.25, 0.75]], np.float32)
    response = oip.answer(call, "m", "v", {"y": array}, OUT)
    head = json.loads(response.body[0])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "v", "7")
    (output,) = head["outputs"]
    assert (output["shape"], output["datatype"]) == ([1, 2], "FP32")
    if as_binary:
        assert int(response.headers[oip.LENGTH]) == len(response.body[0])
        assert output["parameters"]["binary_data_size"] == 8
        np.testing.assert_array_equal(np.frombuffer(response.body[1], np.float32), array[0])
    else:
        assert output["data"] == [0.25, 0.75]
