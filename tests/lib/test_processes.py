"""Background processes: waiting until one listens, and the errors for damaged records and foreign processes."""

import os
import socketserver
import threading

import psutil
import pytest

from loopline.errors import LooplineError
from loopline.lib import processes


def test_an_answer_that_is_not_http_does_not_count_as_ready(tmp_path):
    """If no process listens on a local port yet, a connection can connect to itself and read its own request."""
    requests = []

    class Echo(socketserver.BaseRequestHandler):
        def handle(self):
            request = self.request.recv(4096)
            requests.append(request)
            self.request.sendall(request if len(requests) == 1 else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        process = processes.Process("echo", os.getpid(), psutil.Process().create_time(), address)
        processes.wait(process, f"{address}/-/ready", tmp_path)
        server.shutdown()
    assert len(requests) >= 2


@pytest.mark.parametrize("content", ["", "null", "7", '[{"name": "a"}]', '[{"of": "tomorrow"}]', "[7]"])
def test_a_damaged_record_of_processes_is_one_message(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(LooplineError, match=r"state\.json is damaged, or of another version: remove it"):
        processes.running(tmp_path)


def test_the_error_for_another_users_process_names_it(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.kill", refuse)
    own = processes.Process("server-1", os.getpid(), psutil.Process().create_time(), "")
    with pytest.raises(LooplineError, match="server-1 was started by another user"):
        processes.end([own])
