"""Common HTTP clients with their default settings. Those that are not installed are skipped; CI has all of them."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import aiohttp
import brightness
import httpx
import numpy as np
import pytest
import requests
import tritonclient.http as triton

CLIENTS = Path(__file__).parent / "clients"
NAME = 'für "uns".png'  # clients encode a name beyond ASCII in half a dozen ways


def needs(program):
    """Skip without the program, or fail if LOOPLINE_REQUIRE_CLIENTS is set."""
    path = shutil.which(program) or os.environ.get("LOOPLINE_REQUIRE_CLIENTS")
    return pytest.mark.skipif(not path, reason=f"no {program} on this machine")


def run(*words, **options):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(brightness.png(230))
    return path


@needs("java")
def test_javas_client(server):
    lines = run("java", CLIENTS / "Call.java", f"{server.url}/predict/text").splitlines()
    tried = ["default"] * 3 + ["chunked", "expecting", "HTTP/1.1"]
    assert lines == [*(f"200 good {mode}" for mode in tried), "200 GET", "200 good HttpURLConnection"]


@needs("go")
def test_gos_client(server, picture, tmp_path):
    env = os.environ | {"GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    lines = run("go", "run", CLIENTS / "call.go", server.url, picture, env=env).splitlines()
    assert lines == ["200 good plain", "200 good expecting", "200 bright trailing", "200 bright form"]


@needs("node")
def test_nodes_clients(server, picture):
    lines = run("node", CLIENTS / "call.mjs", server.url, picture).splitlines()
    tried = ["200 good fetch", "200 bright fetch, form", "200 good fetch, stream"]
    assert lines == tried + ["200 good http, trailers"] * 2


@needs("curl")
@pytest.mark.parametrize(
    "options",
    [
        ["--json", '{"text": "good"}'],
        ["--http2", "--json", '{"text": "good"}'],
        ["--http2", "--json", '{"text": "good"}', "--header", "Transfer-Encoding: chunked"],
        ["--http2", "--json", '{"text": "good"}', "--header", "Expect: 100-continue"],
        ["--http1.0", "--json", '{"text": "good"}'],
        ["--compressed", "--json", '{"text": "good"}'],
        ["--form", "text=good"],
        ["--header", "Content-Type: text/plain", "--data", "good"],
    ],
    ids=" ".join,
)
def test_curl_with_a_text(server, options):
    words = ["curl", "--silent", "--show-error", "--fail-with-body", *options, f"{server.url}/predict/text"]
    assert json.loads(run(*words))["predictions"][0]["label"] == "good"


@needs("curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_curl_with_an_image(server, picture, version):
    large = picture.with_name("large.png")  # so large that curl sends Expect; bytes after a PNG are ignored
    large.write_bytes(brightness.png(230) + bytes(3 << 20))
    for options in (["--form", f"file=@{picture}"], ["--data-binary", f"@{picture}"], ["--data-binary", f"@{large}"]):
        words = ["curl", "--silent", "--show-error", version, *options, f"{server.url}/predict/classifier"]
        assert json.loads(run(*words))["predictions"][0]["label"] == "bright", options


@needs("curl")
def test_curl_keeps_its_connection_and_gets_what_is_packed_only_if_it_asks(server):
    url = f"{server.url}/metrics"
    report = "%{num_connects}"
    words = ["curl", "--silent", "--show-error", "--write-out", report, "--output", os.devnull]
    for version in ("--http1.0", "--http1.1", "--http2"):
        kept = ["--header", "Connection: keep-alive"] if version == "--http1.0" else []
        assert run(*words, version, *kept, url, "--output", os.devnull, url) == "10", version
    assert "loopline_ready" in run("curl", "--silent", url)
    assert "loopline_ready" in run("curl", "--silent", "--compressed", url)
    assert "loopline_ready" in run("curl", "--silent", "--header", "Accept-Encoding: identity;q=1, *;q=0", url)


@needs("ab")
@pytest.mark.parametrize("kept", [True, False], ids=["-k", "anew"])
def test_ab(server, tmp_path, kept):
    """ab uses HTTP/1.0 and waits for the connection's end unless the answer says that it is kept."""
    (tmp_path / "body").write_text('{"text": "good"}')
    words = ["ab", *(["-k"] if kept else []), "-n", 40, "-c", 2, "-s", 20]
    post = ["-p", tmp_path / "body", "-T", "application/json", f"{server.url}/predict/text"]
    for rest in ([f"{server.url}/v2/health/ready"], [*post]):
        report = run(*words, *rest)
        figures = dict(re.findall(r"^([\w -]+):\s+(\d+)", report, re.M))
        assert figures["Complete requests"] == "40"
        assert "Non-2xx responses" not in figures
        assert figures.get("Keep-Alive requests") == ("40" if kept else None)


def test_requests_with_a_name_that_is_not_ascii(server):
    url = f"{server.url}/predict/classifier"
    for files in ({"file": (NAME, brightness.png(230))}, [("file", (NAME, brightness.png(230), "image/png"))]):
        answer = requests.post(url, files=files, timeout=20)
        assert answer.json()["predictions"][0]["label"] == "bright"
    answer = requests.post(url, data=iter([brightness.png(230)]), timeout=20)  # in chunks
    assert answer.json()["predictions"][0]["label"] == "bright"


@pytest.mark.parametrize("name", [NAME, "plain.png"])
def test_urllib3_of_every_age(server, name):
    """Before 1.25 it encoded names beyond ASCII by RFC 2231; `header_formatter` still does."""
    from email.utils import encode_rfc2231

    import urllib3
    from urllib3.fields import RequestField

    def before_1_25(key, value):
        return f"{key}*={encode_rfc2231(value, 'utf-8')}"

    for options in ({}, {"header_formatter": before_1_25}):
        part = RequestField("file", brightness.png(230), filename=name, **options)
        part.make_multipart()
        body, kind = urllib3.encode_multipart_formdata([part])
        with urllib3.PoolManager() as pool:
            answer = pool.request("POST", f"{server.url}/predict/classifier", body=body, headers={"Content-Type": kind})
            assert json.loads(answer.data)["predictions"][0]["label"] == "bright"


def test_httpx(server):
    with httpx.Client(base_url=server.url, timeout=20) as client:
        answer = client.post("/predict/classifier", files={"file": (NAME, brightness.png(230))})
        assert answer.json()["predictions"][0]["label"] == "bright"
        assert client.post("/predict/text", json={"text": "good"}).json()["predictions"][0]["label"] == "good"
        assert "loopline_ready" in client.get("/metrics").text


def test_aiohttp(server):
    async def calls():
        async with aiohttp.ClientSession(server.url) as session:
            labels = []
            for quoted in (True, False):
                form = aiohttp.FormData(quote_fields=quoted)
                form.add_field("file", brightness.png(230), filename=NAME)
                async with session.post("/predict/classifier", data=form) as answer:
                    labels.append((await answer.json())["predictions"][0]["label"])
            async with session.post("/predict/text", json={"text": "good"}, compress="gzip") as answer:
                labels.append((await answer.json())["predictions"][0]["label"])
            return labels

    assert asyncio.run(calls()) == ["bright", "bright", "good"]


def test_tritonclient(server):
    """The tests of its other calls are in test_client.py."""
    tensor = triton.InferInput("image", [1, 8, 8, 1], "UINT8")
    tensor.set_data_from_numpy(np.full((1, 8, 8, 1), 230, np.uint8))
    with triton.InferenceServerClient(f"{server.host}:{server.port}") as client:
        answer = client.infer("classifier", [tensor], headers={"Accept-Encoding": "gzip;q=0"})
    assert answer.as_numpy("probabilities")[0, 0] > 0.99
