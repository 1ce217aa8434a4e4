"""Downloads against a real HTTP server on this machine: resumed, retried, verified, bounded."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loopline.data import download
from loopline.data.catalog import Dataset, File
from loopline.errors import LooplineError

CONTENT = random.Random(0).randbytes(700_000)


class Server(ThreadingHTTPServer):
    """Serves `files`, with the `faults` listed for a path, each once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.sent: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.three = threading.Barrier(3)  # requests that come together

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.at_once, self.server.most_at_once)
        self.server.requests.append((self.path, self.headers.get("Range")))
        faults = self.server.faults.get(self.path, [])
        try:
            self._answer(faults.pop(0) if faults else "")
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def _answer(self, fault: str) -> None:
        if fault.startswith("status "):
            return self.send_error(int(fault.split()[1]))
        if fault.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", fault.split()[1])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = self.server.files[self.path]
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and self.server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start : start + 300_000] if fault == "cut" else content[start:]
        if fault == "together":
            self.server.three.wait(60)
        self.wfile.write(part)
        self.server.sent[self.path] += len(part)
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("LOOPLINE_MIRROR", raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def dataset(server: Server, **contents: bytes) -> Dataset:
    """A dataset of these files, which the server has."""
    server.files |= {f"/{name}": content for name, content in contents.items()}
    files = tuple(
        File(path=f"sub/{name}", bytes=len(c), sha256=hashlib.sha256(c).hexdigest(), **{"from": name})
        for name, c in contents.items()
    )
    return Dataset(
        name="toy", description="-", task="text", format="toy", samples=1, licence="MIT", citation="-",
        url=server.url + "/{from}", files=files,
    )  # fmt: skip


def fetch(entry: Dataset, root: Path) -> bytes:
    """The content of the first file after a fetch."""
    folder = download.fetch(entry, root=root, backoff=0.01, timeout=60)
    assert not list(folder.rglob("*.partial"))
    return (folder / entry.files[0].path).read_bytes()


def test_files_come_in_parallel_and_a_second_fetch_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=b"one", b=b"two", c=b"three")
    server.faults = {f"/{name}": ["together"] for name in "abc"}
    assert fetch(entry, tmp_path) == b"one"
    assert server.most_at_once == 3
    fetch(entry, tmp_path)
    assert len(server.requests) == 3


def test_an_empty_file_is_fetched(server: Server, tmp_path: Path) -> None:
    assert fetch(dataset(server, a=b""), tmp_path) == b""


def test_a_cut_connection_is_resumed_where_it_stopped(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    server.faults = {"/a": ["cut", "cut"]}
    assert fetch(entry, tmp_path) == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=600000-"]
    assert server.sent["/a"] == len(CONTENT)


def test_a_server_without_ranges_sends_the_file_again(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    server.faults, server.ranges = {"/a": ["cut"]}, False
    assert fetch(entry, tmp_path) == CONTENT
    assert server.sent["/a"] == len(CONTENT) + 300_000


def test_the_next_run_resumes_after_a_killed_one(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    partial = tmp_path / "toy/sub/a.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT[:500_000])
    assert fetch(entry, tmp_path) == CONTENT
    assert server.requests == [("/a", "bytes=500000-")]


@pytest.mark.parametrize("left", [b"not the beginning of it", CONTENT[:10] + bytes(900_000), bytes(len(CONTENT))])
def test_a_left_over_of_another_file_is_thrown_away(left: bytes, server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    (tmp_path / "toy/sub").mkdir(parents=True)
    (tmp_path / "toy/sub/a.partial").write_bytes(left)
    assert fetch(entry, tmp_path) == CONTENT


def test_a_changed_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    fetch(entry, tmp_path)
    (tmp_path / "toy/sub/a").write_bytes(CONTENT[:-1] + b"x")
    assert fetch(entry, tmp_path) == CONTENT


def test_a_busy_server_is_tried_again(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    server.faults = {"/a": ["status 503", "status 429"]}
    assert fetch(entry, tmp_path) == CONTENT


def test_after_too_many_tries_the_message_gives_advice(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    server.faults = {"/a": ["cut"] + ["status 503"] * 9}
    with pytest.raises(LooplineError, match=r"503.*Gave up after 5 tries.*LOOPLINE_MIRROR"):
        fetch(entry, tmp_path)
    assert (tmp_path / "toy/sub/a.partial").stat().st_size == 300_000  # the next run resumes here


def test_a_file_that_is_gone_is_not_tried_twice(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    server.faults = {"/a": ["status 404"]}
    with pytest.raises(LooplineError, match="HTTP 404"):
        fetch(entry, tmp_path)
    assert len(server.requests) == 1


def test_a_wrong_hash_removes_the_file_and_fails(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT, b=b"right")
    server.files["/a"] = CONTENT[:-1] + b"x"
    with pytest.raises(LooplineError, match=r"/a has sha256 [0-9a-f]{64}, but the catalogue says .* removed"):
        fetch(entry, tmp_path)
    assert not list(tmp_path.rglob("a*"))


def test_a_file_longer_than_the_catalogue_says_is_refused_before_it_fills_the_disk(
    server: Server, tmp_path: Path
) -> None:
    entry = dataset(server, a=CONTENT)
    server.files["/a"] = CONTENT + bytes(50_000_000)
    with pytest.raises(LooplineError, match="longer than the catalogue's 700,000 bytes"):
        fetch(entry, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0


@pytest.mark.parametrize("url", ["http://example.org/{from}", "file:///etc/{from}", "ftp://example.org/{from}"])
def test_only_https_is_fetched(url: str, server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=b"x").model_copy(update={"url": url})
    with pytest.raises(LooplineError, match="only https"):
        fetch(entry, tmp_path)


def test_a_redirect_does_not_lead_away_from_https(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=b"x", b=b"y")
    server.faults = {"/a": ["redirect http://example.org/a"]}
    with pytest.raises(LooplineError, match=r"http://example.org/a: only https"):
        fetch(entry, tmp_path)


def test_a_redirect_on_this_machine_is_followed(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=CONTENT)
    server.files["/moved"] = CONTENT
    server.faults = {"/a": ["redirect /moved"]}
    assert fetch(entry, tmp_path) == CONTENT


def test_the_mirror_is_tried_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataset(server, a=CONTENT, b=b"only on the server")
    mirror = tmp_path / "mirror"
    (mirror / "toy/sub").mkdir(parents=True)
    (mirror / "toy/sub/a").write_bytes(CONTENT)
    monkeypatch.setenv("LOOPLINE_MIRROR", str(mirror))
    assert fetch(entry, tmp_path / "cache") == CONTENT
    assert server.requests == [("/b", None)]


def test_the_mirror_is_verified_too(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataset(server, a=CONTENT)
    (tmp_path / "toy/sub").mkdir(parents=True)
    (tmp_path / "toy/sub/a").write_bytes(b"something else")
    monkeypatch.setenv("LOOPLINE_MIRROR", str(tmp_path))
    with pytest.raises(LooplineError, match=r"toy/sub/a has sha256"):
        fetch(entry, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("a*"))


def test_a_missing_mirror_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPLINE_MIRROR", str(tmp_path / "typo"))
    with pytest.raises(LooplineError, match="typo is not a folder"):
        fetch(dataset(server, a=b"x"), tmp_path / "cache")


def test_a_file_without_an_address_needs_the_mirror_and_the_message_says_so(server: Server, tmp_path: Path) -> None:
    entry = dataset(server, a=b"x")
    entry = entry.model_copy(update={"files": (entry.files[0].model_copy(update={"mirror_only": True}),)})
    with pytest.raises(LooplineError, match=r"no public address is known for sub/a.*set LOOPLINE_MIRROR"):
        fetch(entry, tmp_path)
    assert not server.requests
