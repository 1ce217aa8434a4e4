"""The pages' files over HTTP: which files are served, and to which clients. test_browser.py has the browser's tests."""

import gzip
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import brightness
import bundles
import pytest
import requests

from loopline.drift import golden
from loopline.observability import sentinel
from loopline.server import examples, messages, pages

TOKEN = {"authorization": "Bearer secret"}


def get(server, path, **options):
    return requests.get(server.url + path, timeout=60, **options)


def test_both_pages_come_with_a_policy_that_forbids_other_servers(server):
    for path in ("/", "/docs", "/pages/demo.js", "/openapi.json", "/bundles/text/bundle.json"):
        answer = get(server, path)
        assert answer.status_code == 200
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'", " ".join(policy.values()))
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_a_page_names_is_served(server):
    for page in ("/", "/docs"):
        for name in re.findall(r'(?:src|href)="(pages/[^"]+)"', get(server, page).text):
            assert get(server, f"/{name}").status_code == 200


def test_nothing_in_the_pages_comes_from_another_server():
    files = [
        path for path in pages.HERE.rglob("*") if path.suffix in (".js", ".html", ".css") and "assets" not in path.parts
    ]
    assert len(files) > 10
    for path in files:
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", path.read_text(encoding="utf-8")), path


def test_files_have_their_types(server):
    types = {
        "/pages/demo.js": "text/javascript",
        "/pages/style.css": "text/css",
        "/examples/classifier/0": "image/png",
    }
    for path, kind in types.items():
        assert get(server, path).headers["content-type"].startswith(kind)


def test_only_what_the_pages_need_is_served(server):
    for path in (
        "package.json",
        "package-lock.json",
        "index.html",
        "assets/ready",
        "../pages.py",
        "%2e%2e/pages.py",
        "",
    ):
        raw = requests.Request("GET", server.url).prepare()
        raw.url = f"{server.url}/pages/{path}"
        with requests.Session() as session:
            assert session.send(raw, timeout=60).status_code == 404, path


def test_the_browser_gets_the_bundles_own_files(server, folders):
    for name, folder in folders.items():
        for part in ("model.onnx", "bundle.json", *(["tokenizer.json"] if name == "text" else [])):
            assert get(server, f"/bundles/{name}/{part}").content == (folder / part).read_bytes()
    for path in ("/bundles/classifier/tokenizer.json", "/bundles/text/drift.json", "/bundles/text/SHA256SUMS"):
        assert get(server, path).status_code == 404


def test_a_file_may_be_cached_for_ever_only_under_its_version(server):
    version = get(server, "/v2/models/text").json()["versions"][0]
    kept = get(server, f"/bundles/text/model.onnx?v={version}").headers["cache-control"]
    assert "immutable" in kept
    assert "private" in kept, "not by a proxy that serves others without a token"
    for query in ("", "?v=", "?v=0"):
        assert get(server, f"/bundles/text/model.onnx{query}").headers["cache-control"] == "no-cache"


def test_the_files_of_a_replaced_bundle_are_not_served(serve, tmp_path):
    server = serve(bundles.classifier(tmp_path / "one").folder)
    bundles.classifier(tmp_path / "one", threshold=10)
    answer = get(server, "/bundles/classifier/model.onnx")
    assert answer.status_code == 404
    assert "no longer holds version" in answer.json()["error"]
    shutil.rmtree(tmp_path / "one")
    assert get(server, "/bundles/classifier/model.onnx").status_code == 404


def test_without_the_demo_its_page_and_the_bundles_are_gone_and_the_docs_stay(serve, folders):
    server = serve(folders["text"], "--no-demo")
    for path in (
        "/",
        "/bundles",
        "/bundles/text/model.onnx",
        "/pages/demo.js",
        "/pages/local.js",
        f"/pages/{pages.RUNTIME}",
    ):
        assert get(server, path).status_code == 404, path
    for path in (
        "/docs",
        "/pages/docs.js",
        "/pages/client.js",
        "/pages/style.css",
        "/openapi.json",
        "/pages/icon.svg",
    ):
        assert get(server, path).status_code == 200, path


def test_a_token_guards_the_bundles_and_the_description_and_not_the_empty_pages(serve, folders):
    server = serve(folders["text"], folders["classifier"], env={"LOOPLINE_TOKEN": "secret"})
    for path in ("/", "/docs", "/pages/demo.js"):
        assert get(server, path).status_code == 200
    for path in (
        "/openapi.json",
        "/bundles",
        "/bundles/text/model.onnx",
        "/bundles/text/bundle.json",
        "/examples/classifier/1",
    ):
        assert get(server, path).status_code == 401
        assert get(server, path, headers=TOKEN).status_code == 200


def test_the_examples_are_golden_samples_of_each_bundle(server, folders):
    """Before, every classifier's page showed digits, and every text model's page a country's name."""
    listed = get(server, "/bundles").json()["examples"]
    assert listed == {
        "classifier": ["examples/classifier/0", "examples/classifier/1"],
        "detector": ["examples/detector/0"],
        "text": ["good fine", "bad awful"],
    }
    for name in ("classifier", "detector"):
        for path, sample in zip(listed[name], golden.read(folders[name] / "golden.json"), strict=True):
            answer = get(server, f"/{path}")
            assert (answer.headers["content-type"], answer.content) == ("image/png", sample.given)
            assert "default-src" in answer.headers["content-security-policy"]
    assert get(server, "/examples/classifier/2").status_code == 404


def test_the_samples_of_the_tests_bundles_are_golden(server, folders):
    for name, folder in folders.items():
        (watched,) = sentinel.load([folder])
        for golden_sample in watched.samples:
            assert sentinel.check(server.url, watched, golden_sample)[0] == "same", name


def sample(given, *names):
    return golden.GoldenSample(
        given, {"label": names[0]} if len(names) == 1 else {"boxes": [{"label": name} for name in names]}
    )


PICTURE = brightness.png(9)


@pytest.mark.parametrize(
    ("samples", "chosen"),
    [
        ([sample(str(n), "ab"[n > 6]) for n in range(9)], ["0", "1", "2", "3", "7"]),
        ([sample(f"{n}", f"{n}") for n in range(9)], ["0", "1", "2", "3", "4"]),
        ([sample("x" * 1001, "a"), sample("short", "a")], ["short"]),
        ([sample(PICTURE, "a", "b"), sample(PICTURE, "b", "a", "a"), sample(b"GIF89a", "c", "d")], [0, 1]),
        ([], []),
        (None, []),
    ],
)
def test_examples_are_few_have_different_answers_and_are_short(tmp_path, samples, chosen):
    if samples is not None:
        (tmp_path / "golden.json").write_text(json.dumps(golden.to_dict(samples)))
    model = SimpleNamespace(name="m", bundle=SimpleNamespace(folder=tmp_path))
    places = examples.of(model)
    assert [example.place if example.text is None else example.text for example in places] == chosen


def test_a_bundle_without_golden_samples_has_a_page_without_examples(serve, folders, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(folders["classifier"], folder)
    (folder / "golden.json").unlink()
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in sums if "golden.json" not in line))
    server = serve(folder)
    assert get(server, "/bundles").json()["examples"] == {"classifier": []}
    body = get(server, "/openapi.json").json()["paths"]["/predict/classifier"]["post"]["requestBody"]["content"]
    assert not any("examples" in media for media in body.values())


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The pages' folder with other assets: copied(names) -> the paths that are served."""

    def copy(assets):
        shutil.copytree(pages.HERE, tmp_path / "pages", ignore=shutil.ignore_patterns("assets"))
        (tmp_path / "pages/assets").mkdir()
        for name in assets:
            Path(tmp_path / "pages/assets" / name).write_bytes(gzip.compress(b"\0asm"))
        monkeypatch.setattr(pages, "HERE", tmp_path / "pages")
        return pages.pages([], b"{}", demo=True)

    return copy


def response(page, path, accepted=b"gzip"):
    answers = []
    headers = {b"accept-encoding": accepted} if accepted else {}
    page[path].answer(messages.Request("GET", path, b"", headers, b"", 0.0), answers.append)
    return answers[0]


def test_the_switch_is_on_when_the_runtime_was_fetched(copied):
    served = copied(["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm.gz", "ready"])
    assert b'"in_browser":true' in response(served, "/bundles").body[0]
    wasm = response(served, "/pages/assets/ort-wasm-simd-threaded.wasm")
    assert (wasm.content_type, wasm.headers[b"content-encoding"]) == (b"application/wasm", b"gzip")
    assert gzip.decompress(wasm.body[0]) == b"\0asm"
    for accepted in (None, b"identity", b"gzip;q=0"):
        plain = response(served, "/pages/assets/ort-wasm-simd-threaded.wasm", accepted)
        assert plain.body[0] == b"\0asm", "to a client that does not take gzip"
        assert b"content-encoding" not in plain.headers
    assert not [path for path in served if "ready" in path]


def test_the_switch_is_off_without_the_runtime(copied):
    assert b'"in_browser":false' in response(copied([]), "/bundles").body[0]


def test_a_large_answer_is_sent_uncompressed():
    """Compressing 4 MB would take 80 ms without an answer to other clients."""
    for size, packed in ((10_000, b"content-encoding: gzip"), (2_000_000, b"content-length: 2000000")):
        response = messages.Response(body=(b"x" * size,))
        fields = {"path": "/", "query": b"", "headers": {}, "length": None, "version": "1.1", "say_kept": False}
        head = messages.Head(method="HEAD", keep_alive=True, compress=b"gzip", **fields)
        assert packed in messages.encode(response, None, head)
