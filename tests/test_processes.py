"""Waiting for a process that is to listen."""

import os
import socketserver
import threading

import psutil

from loopline import processes


def test_an_answer_that_is_no_http_is_none_yet(tmp_path):
    """A connection to a port where nobody listens yet may reach its own other end, and then reads its own request."""
    asked = []

    class Echo(socketserver.BaseRequestHandler):
        def handle(self):
            request = self.request.recv(4096)
            asked.append(request)
            self.request.sendall(request if len(asked) == 1 else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        here = processes.Process("echo", os.getpid(), psutil.Process().create_time(), address)
        processes.wait(here, f"{address}/-/ready", tmp_path)
        server.shutdown()
    assert len(asked) == 2
