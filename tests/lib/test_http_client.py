"""`lib.http_client` against servers that answer well, refuse, stay silent, end early or redirect."""

import socket
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loopline.errors import LooplineError
from loopline.lib import http_client
from loopline.lib.http_client import FetchError, fetch


@contextmanager
def served(answer):
    """A server that calls answer(handler) for each request. Yields its address, and a list that collects the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length", 0))
            requests.append((self.command, self.path, self.headers.get("Authorization"), self.rfile.read(length)))
            answer(self)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(status, content=b"", **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def test_content_is_returned_and_a_body_is_posted():
    with served(reply(201, b"made")) as (url, asked):
        assert fetch(f"{url}/a", b"body", {"Authorization": "Bearer t"}, timeout=60) == b"made"
        assert fetch(url, timeout=60) == b"made"
    assert asked == [("POST", "/a", "Bearer t", b"body"), ("GET", "/", None, b"")]


def test_a_refusal_has_its_status_and_content():
    with served(reply(503, b"later" * 99_999)) as (url, _), pytest.raises(FetchError, match="503") as caught:
        fetch(url, timeout=60)
    assert caught.value.status == 503
    assert caught.value.content == (b"later" * 99_999)[: http_client.LARGEST_REFUSAL]


def test_an_answer_that_is_too_large_is_refused():
    with served(reply(200, b"x" * 2000)) as (url, _):
        assert len(fetch(url, timeout=60, most=2000)) == 2000
        with pytest.raises(FetchError, match="more than"):
            fetch(url, timeout=60, most=1999)


@pytest.mark.parametrize(
    "talk",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\xff\x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
def test_an_answer_that_is_not_http_or_ends_early_is_an_error_without_a_status(talk):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def talk_once():
            connection, _ = listener.accept()
            with connection:
                connection.recv(9999)
                connection.sendall(talk)

        thread = threading.Thread(target=talk_once)
        thread.start()
        with pytest.raises(FetchError) as caught:
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60)
        thread.join()
    assert caught.value.status is None
    assert str(caught.value)


def test_silence_and_a_closed_port_give_different_errors():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(FetchError, match=r"no answer within 0\.2 s"):
            fetch(f"http://127.0.0.1:{port}", timeout=0.2)
    with pytest.raises(FetchError, match="refused"):
        fetch(f"http://127.0.0.1:{port}", timeout=60)
    assert not http_client.answers(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["localhost:8080", "file:///etc/passwd", "ftp://127.0.0.1/x", ""])
def test_addresses_of_other_schemes_are_refused_without_a_request(url):
    with pytest.raises(LooplineError, match="starts with http"):
        fetch(url, timeout=60)


def test_a_token_does_not_follow_a_redirect_to_another_host():
    with served(reply(200, b"there")) as (other, asked), served(reply(302, Location=f"{other}/moved")) as (url, _):
        assert fetch(url, headers={"Authorization": "Bearer secret"}, timeout=60) == b"there"
    assert asked == [("GET", "/moved", None, b"")]


def test_a_token_follows_a_redirect_on_its_own_host():
    def answer(handler):
        reply(302, Location="/new")(handler) if handler.path == "/old" else reply(200, b"here")(handler)

    with served(answer) as (url, asked):
        assert fetch(f"{url}/old", headers={"Authorization": "Bearer secret"}, timeout=60) == b"here"
    assert [request[2] for request in asked] == ["Bearer secret"] * 2
