"""The cache of answers: off by default, correct, and bounded in bytes."""

import brightness
import numpy as np
import requests
from hypothesis import given
from hypothesis import strategies as st

from loopline.server.cache import Cache, key
from loopline.server.model import Encoded, Tensors


def counts(server):
    text = requests.get(server.url + "/metrics", timeout=60).text
    rows = [
        line.rsplit(" ", 1)
        for line in text.splitlines()
        if line.startswith(("loopline_cache", "loopline_inference_rows"))
    ]
    sums = {}
    for name, value in rows:
        sums[name.split("{")[0]] = sums.get(name.split("{")[0], 0) + float(value)
    return sums


def test_a_repeated_request_is_answered_without_the_model(serve, folders):
    server = serve(folders["classifier"], "--cache-mb", 1)
    url = f"{server.url}/predict/classifier"
    answers = [requests.post(url, data=brightness.png(value), timeout=60).json() for value in (200, 20, 200, 200)]
    assert [answer["predictions"][0]["label"] for answer in answers] == ["bright", "dark", "bright", "bright"]
    assert answers[0]["predictions"] == answers[2]["predictions"]
    assert len({answer["id"] for answer in answers}) == 4
    values = counts(server)
    assert (values["loopline_cache_hits_total"], values["loopline_cache_misses_total"]) == (2, 2)
    assert values["loopline_inference_rows_total"] == 2
    assert 0 < values["loopline_cache_bytes"] < 10_000


def test_the_cache_is_off_by_default(serve, folders):
    server = serve(folders["classifier"])
    for _ in range(3):
        requests.post(f"{server.url}/predict/classifier", data=brightness.png(200), timeout=60)
    assert counts(server)["loopline_inference_rows_total"] == 3
    assert counts(server)["loopline_cache_hits_total"] == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 200)), max_size=60))
def test_the_cache_holds_the_newest_answers_up_to_its_limit(puts):
    cache, last = Cache(2000), {}
    for name, size in puts:
        array = np.full(size, name, np.uint8)
        cache.put(b"%d" % name, {"y": array})
        array[:] = 99  # the batch's memory is reused
        last[name] = size
        assert cache.bytes <= 2000
        assert cache.bytes == sum(size for _, size in cache.entries.values())
        assert cache.get(b"%d" % name)["y"].tolist() == [name] * size


def test_an_answer_over_the_limit_is_not_kept():
    cache = Cache(1000)
    cache.put(b"small", {"y": np.zeros(10, np.uint8)})
    cache.put(b"large", {"y": np.zeros(5000, np.uint8)})
    assert cache.get(b"large") is None
    assert cache.get(b"small") is not None


def test_content_shape_and_model_are_part_of_the_key():
    zeros = np.zeros((1, 4), np.uint8)
    keys = [
        key("a", Tensors({"x": zeros})),
        key("b", Tensors({"x": zeros})),
        key("a", Tensors({"x": zeros.reshape(4, 1)})),
        key("a", Tensors({"x": zeros.view(np.int8)})),
        key("a", Tensors({"x": zeros + 1})),
        key("a", Encoded([b"ab", b"c"])),
        key("a", Encoded([b"a", b"bc"])),
        key("a", Encoded(["abc"])),
    ]
    assert len(set(keys)) == len(keys)
