"""A server's start and stop, under load and without losing requests."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException

import brightness
import bundles
import psutil
import pytest
import requests
from servers import until

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.server import run as server

CALL = "/v2/models/classifier/infer"
BODY = json.dumps({"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [200] * 64}]})


class Load:
    """Clients on kept connections that count their answers. They reopen a closed connection, as any client does."""

    def __init__(self, host, port, *, clients=4):
        self.host, self.port, self.statuses, self.versions, self.lost = host, port, [], [], []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _run(self):
        connection = HTTPConnection(self.host, self.port, timeout=60)
        while not self.over.is_set():
            try:
                connection.request("POST", CALL, BODY)
                answer = connection.getresponse()
                body = answer.read()
                self.statuses.append(answer.status)
                self.versions.append(json.loads(body).get("model_version"))
            except ConnectionRefusedError:
                return  # the last server has stopped
            except (HTTPException, OSError) as error:
                self.lost.append(repr(error))
                connection.close()
        connection.close()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


def fails(folder):
    done = subprocess.run(
        [sys.executable, "-m", "loopline.cli", "serve", str(folder), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_sigterm_under_load_loses_nothing(serve, folders):
    server = serve(folders["classifier"])
    load = Load(server.host, server.port)
    until(lambda: len(load.statuses) > 100)
    assert server.stop() == 0
    load.stop()
    assert set(load.statuses) == {200}
    assert load.lost == []
    assert [line["message"] for line in server.log][-2:] == ["stopping", "stopped"]


def test_a_new_version_takes_over_on_the_same_port_and_nothing_is_lost(serve, folders, tmp_path):
    old = serve(folders["classifier"], "--share-port")
    load = Load(old.host, old.port)
    until(lambda: load.versions)
    new = serve(bundles.classifier(tmp_path / "new", threshold=120).folder, "--share-port", "--port", old.port)
    assert old.stop() == 0
    until(lambda: load.versions[-1] != load.versions[0])
    load.stop()
    assert load.lost == []
    assert set(load.statuses) == {200}
    assert load.versions[0] != load.versions[-1]
    assert new.stop() == 0


def test_two_processes_share_a_port_and_their_counts_add_up(serve, folders):
    def free():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    ports = [free(), free()]
    first = serve(folders["classifier"], "--share-port", "--metrics-port", ports[0])
    second = serve(folders["classifier"], "--share-port", "--port", first.port, "--metrics-port", ports[1])
    for _ in range(40):
        assert requests.post(f"{first.url}/predict/classifier", data=brightness.png(9), timeout=60).status_code == 200
    counts = []
    for port in ports:
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        row = next(line for line in text.splitlines() if line.startswith("loopline_inference_rows_total{"))
        counts.append(float(row.split()[-1]))
    assert sum(counts) == 40
    assert min(counts) > 0, "both of them answer"
    assert first.stop() == second.stop() == 0


def test_of_two_servers_that_start_at_the_same_time_one_is_refused(monkeypatch):
    """The system lets both bind before either listens. The second to listen must not start to answer."""
    first = server.bound("127.0.0.1", 0)
    port = first.getsockname()[1]
    monkeypatch.setattr(server, "load", lambda *_: first.listen() or [])
    with first, pytest.raises(LooplineError, match=f"127.0.0.1:{port} is taken"):
        server.run([], server.ServerOptions(port=port))


def test_a_stopping_server_is_not_ready_but_still_answers(serve, folders):
    server = serve(folders["classifier"], "--grace", 600)  # it ends with the test
    with requests.Session() as session:
        assert session.get(server.url + "/v2/health/ready", timeout=60).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: session.get(server.url + "/v2/health/ready", timeout=60).status_code == 503)
        assert session.get(server.url + "/v2/health/live", timeout=60).status_code == 200
        assert session.post(server.url + "/predict/classifier", data=brightness.png(9), timeout=60).status_code == 200


def test_a_client_that_never_finishes_does_not_keep_the_server_running(serve, folders):
    server = serve(folders["classifier"], "--drain", 1)
    connection = HTTPConnection(server.host, server.port)
    connection.connect()
    head = b"POST " + CALL.encode() + b" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
    connection.sock.sendall(head + b"abc")
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 100"), "it waits for the rest"
    assert server.stop() == 1
    connection.close()


def test_a_refused_client_that_never_closes_does_not_keep_the_server_running(serve, folders):
    server = serve(folders["classifier"], "--drain", 60)
    with socket.create_connection((server.host, server.port), 60) as client:
        client.sendall(b"POST " + CALL.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 20, "neither until it is swept nor until the drain is over"


def test_an_idle_server_sleeps(serve, folders):
    server = serve(*folders.values())
    requests.get(server.url + "/v2", timeout=60)
    process = psutil.Process(server.process.pid)

    def used():
        before = sum(process.cpu_times()[:2])
        time.sleep(3)
        return sum(process.cpu_times()[:2]) - before

    # 1 % of a core. A pause of the machine may be charged to a process, so there are three tries: one that polls fails all.
    assert any(used() <= 0.03 for _ in range(3))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "model.onnx was changed"),
        (lambda folder: (folder / "drift.json").unlink(), "drift.json is missing"),
        (shutil.rmtree, "there is no bundle at"),
    ],
)
def test_a_bad_bundle_stops_the_start_with_one_clear_line(folders, tmp_path, harm, message):
    shutil.copytree(folders["classifier"], tmp_path / "bad")
    harm(tmp_path / "bad")
    code, printed = fails(tmp_path / "bad")
    assert code == 1
    assert message in printed
    assert printed.count("\n") == 1


def test_a_bundle_of_a_newer_schema_is_refused(folders, tmp_path):
    import hashlib

    folder = tmp_path / "newer"
    shutil.copytree(folders["classifier"], folder)
    content = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(content | {"schema": 2}))
    sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for _, name in sums]
    (folder / "SHA256SUMS").write_text("".join(lines))
    code, printed = fails(folder)
    assert (code, "schema 2, this version reads 1" in printed) == (1, True)


def test_two_bundles_of_one_name_are_refused(folders, tmp_path):
    other = bundles.classifier(tmp_path / "other", threshold=90).folder
    done = subprocess.run(
        [sys.executable, "-m", "loopline.cli", "serve", str(folders["classifier"]), str(other), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "already served" in done.stderr


def test_a_token_is_required_if_one_is_set(serve, folders):
    server = serve(folders["classifier"], env={"LOOPLINE_TOKEN": "secret"})
    url = server.url + "/predict/classifier"
    ask = {"data": brightness.png(200), "timeout": 60}
    assert requests.post(url, **ask).status_code == 401
    assert requests.post(url, headers={"Authorization": "Bearer wrong"}, **ask).status_code == 401
    assert requests.post(url, headers={"Authorization": "Bearer secret"}, **ask).status_code == 200
    assert requests.get(server.url + "/v2/health/ready", timeout=60).status_code == 200
    assert requests.get(server.url + "/metrics", timeout=60).status_code == 401
    assert "secret" not in json.dumps(server.log)
    for value in ("bearer secret", "BEARER  secret "):  # the scheme's case does not matter (RFC 9110, 11.1)
        assert requests.post(url, headers={"Authorization": value}, **ask).status_code == 200
    for value in ("", "secret", "Bearer", "Bearer ", "Basic secret", "Bearersecret", "Bearer secret x"):
        assert requests.post(url, headers={"Authorization": value}, **ask).status_code == 401, value


@pytest.mark.parametrize("named", [False, True], ids=["variable", "file"])
def test_white_space_around_a_token_is_ignored(serve, folders, tmp_path, named):
    """`echo secret` ends in a newline, which no header can have."""
    (tmp_path / "token").write_text(" secret\r\n")
    env = {"LOOPLINE_TOKEN_FILE": str(tmp_path / "token")} if named else {"LOOPLINE_TOKEN": "secret\n"}
    url = serve(folders["classifier"], env=env).url + "/metrics"
    assert requests.get(url, headers={"Authorization": "Bearer secret"}, timeout=60).status_code == 200
    assert requests.get(url, headers={"Authorization": "Bearer other"}, timeout=60).status_code == 401


@pytest.mark.parametrize(
    ("token", "message"),
    [(" \n", "is blank"), ("a\nb", "holds control characters"), ("größe", "holds characters that are not ASCII")],
)
def test_a_token_that_no_client_can_send_stops_the_start(folders, monkeypatch, token, message):
    monkeypatch.setenv("LOOPLINE_TOKEN", token)
    code, printed = fails(folders["classifier"])
    assert code == 1
    assert f"LOOPLINE_TOKEN {message}" in printed


def test_a_password_may_have_any_character_because_it_is_not_sent_in_a_header(monkeypatch):
    monkeypatch.setenv("LOOPLINE_SIGN_PASSWORD", "größe")
    assert credentials.secret("LOOPLINE_SIGN_PASSWORD") == "größe"


def test_the_slots_follow_the_cores_that_the_process_may_use(folders):
    done = subprocess.Popen(
        [sys.executable, "-m", "loopline.cli", "serve", str(folders["text"]), "--port", "0", "--grace", "0"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),  # noqa: PLW1509 - nothing else runs in this child yet
    )
    with done.stderr:
        for line in done.stderr:
            if (row := json.loads(line))["message"] == "ready":
                assert row["slots"] == 1
                done.terminate()
    assert done.wait(60) == 0
