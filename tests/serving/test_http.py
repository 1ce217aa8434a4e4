"""Raw sockets: what a client must not be able to do to a server."""

import gzip
import json
import socket
import time
import zlib

import pytest

from loopline.serving import http, messages

INFER = "/v2/models/classifier/infer"
BODY = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [200] * 64}]}
).encode()


@pytest.fixture
def connect(server):
    """connect() -> a socket to the server; it gives up after 5 s."""
    sockets = []

    def new():
        sockets.append(socket.create_connection((server.host, server.port), 5))
        return sockets[-1]

    yield new
    for one in sockets:
        one.close()


def request(path=INFER, body=BODY, *, method="POST", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read(one):
    """Status, headers and body of the next answer."""
    content = b""
    while b"\r\n\r\n" not in content:
        piece = one.recv(65536)
        if not piece:
            return None
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += one.recv(65536)
    length = int(headers["content-length"])
    assert len(body) == length or body[length:].startswith(b"HTTP/1.1"), "an answer follows, or nothing"
    read.rest = body[length:]
    return int(first.split()[1]), headers, body[:length]


def ask(one, data):
    one.sendall(data)
    return read(one)


def works(one):
    assert ask(one, request())[0] == 200


def test_a_connection_is_kept_and_closed_when_asked(connect):
    one = connect()
    works(one)
    works(one)
    status, headers, _ = ask(one, request(headers=["Connection: close"]))
    assert (status, headers["connection"]) == (200, "close")
    assert one.recv(1) == b""


def test_answers_of_a_pipeline_come_in_their_order(connect):
    one = connect()
    paths = ["/v2", INFER, "/nothing", "/v2/health/live", INFER] * 8
    one.sendall(
        b"".join(
            request(path, BODY if path == INFER else b"", method="POST" if path == INFER else "GET") for path in paths
        )
    )
    content = b""
    while content.count(b"HTTP/1.1 ") < len(paths):
        content += one.recv(65536)
    statuses = [int(part[:3]) for part in content.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404, 200, 200] * 8


def test_a_body_may_come_byte_by_byte_and_in_chunks(connect):
    one = connect()
    whole = request()
    for start in range(0, len(whole), 50):
        one.sendall(whole[start : start + 50])
        time.sleep(0.001)
    assert read(one)[0] == 200
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(BODY[i : i + 99]), BODY[i : i + 99]) for i in range(0, len(BODY), 99))
    assert (
        ask(one, f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n")[0]
        == 200
    )


def test_a_client_that_asks_first_is_told_to_go_on(connect):
    one = connect()
    one.sendall(request(body=b"", headers=["Expect: 100-continue"]).replace(b"Length: 0", b"Length: %d" % len(BODY)))
    assert one.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert ask(one, BODY)[0] == 200


def test_an_offer_of_another_protocol_is_ignored(connect):
    one = connect()
    offer = b"GET /v2 HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    assert ask(one, offer)[0] == 200
    works(one)


def test_a_head_request_has_no_body(connect):
    one = connect()
    one.sendall(request("/v2", b"", method="HEAD"))
    answer = one.recv(65536)
    assert b"200 OK" in answer
    assert answer.endswith(b"\r\n\r\n")
    works(one)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (request(headers=["Content-Length: 5"]), 400),
        (request(headers=["Transfer-Encoding: chunked"]), 400),
        (request(headers=[f"X-{n}: 1" for n in range(200)]), 431),
        (request(headers=["X: " + "a" * 40_000]), 431),
        (request("/" + "a" * 40_000), 414),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 20_000, 431),
        (request(headers=["Upgrade: websocket", "Connection: Upgrade"]), 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\n\r\n", 400),
    ],
)
def test_nonsense_is_refused_and_the_connection_closed(connect, data, status):
    one = connect()
    assert ask(one, data)[0] == status
    assert one.recv(1) == b""
    works(connect())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/nothing"), 404),
        (request(method="PUT"), 405),
        (request("/v2", b"", method="POST"), 405),
        (request(body=b"{"), 400),
        (request(headers=["X-Request-Timeout-Ms: soon"]), 400),
        (request(headers=["X-Request-Timeout-Ms: 0"]), 400),
        (request(headers=["X-Request-Timeout-Ms: " + "0" * 8 + "1" * 5000]), 400),
        (request(headers=["Inference-Header-Content-Length: " + "0" * 5000]), 400),
        (request(headers=["X-Request-Id: " + "a" * 200]), 400),
        (request(headers=["Content-Encoding: br"]), 415),
        (request(headers=["Content-Encoding: gzip"]), 400),
        (request(headers=["Inference-Header-Content-Length: 99999"]), 400),
        (request("/v2/repository/index", b"[]"), 400),
    ],
)
def test_a_mistake_costs_the_request_and_not_the_connection(connect, data, status):
    one = connect()
    found, headers, body = ask(one, data)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"]
    works(one)


def test_a_body_that_unpacks_to_too_much_is_refused_without_unpacking_it(connect):
    bomb = gzip.compress(bytes(200 * 1024 * 1024))
    assert len(bomb) < 1024 * 1024
    assert ask(connect(), request(body=bomb, headers=["Content-Encoding: gzip"]))[0] == 413


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_bodies_and_answers(connect, pack):
    kind = {"compress": "gzip"}.get(pack.__name__, "gzip") if pack is gzip.compress else "deflate"
    rows = json.dumps(
        {"inputs": [{"name": "image", "shape": [99, 8, 8, 1], "datatype": "UINT8", "data": [7] * 6336}]}
    ).encode()
    asked = request(body=pack(rows), headers=[f"Content-Encoding: {kind}", f"Accept-Encoding: {kind}"])
    status, headers, body = ask(connect(), asked)
    assert (status, headers["content-encoding"]) == (200, kind)
    assert json.loads(zlib.decompress(body, wbits=47))["outputs"]


def test_a_client_that_leaves_in_the_middle_harms_nobody(connect):
    for cut in (10, 100, len(request()) - 1, len(request())):
        one = connect()
        one.sendall(request()[:cut])
        one.close()
    works(connect())


def test_a_slow_head_a_slow_body_and_idleness_are_cut_off(monkeypatch):
    clock = [100.0]
    closed, written = [], []

    class Transport:
        def write(self, data):
            written.append(data)

        def close(self):
            closed.append(clock[0])

        def is_closing(self):
            return bool(closed)

    class Application:
        def turn(self):
            pass

        def admit(self, *_):
            return 100

        def refusal(self, refusal):
            return messages.Response(refusal.status)

    for sent, limit, answer in (
        (b"", http.IDLE_SECONDS, []),
        (b"GET / HT", http.HEAD_SECONDS, [b"HTTP/1.1 408"]),
        (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", http.BODY_SECONDS, [b"HTTP/1.1 408"]),
    ):
        closed.clear()
        written.clear()
        server = http.Server(Application())
        server.now = lambda: clock[0]
        monkeypatch.setattr(server, "opened", lambda _: None)
        connection = server.protocol()
        connection.connection_made(Transport())
        connection.data_received(sent)
        start = clock[0]
        clock[0] += limit - 1
        connection.sweep(clock[0])
        assert not closed
        clock[0] += 2
        connection.sweep(clock[0])
        assert closed == [start + limit + 1]
        assert [data[:12] for data in written] == answer


def test_a_client_that_does_not_read_is_not_read_from(connect, server):
    """It may send requests for ever; what it does not take must not pile up in the server."""
    import psutil

    one = connect()
    one.settimeout(1)
    before = psutil.Process(server.process.pid).memory_info().rss
    sent = 0
    try:
        while sent < 64 * 1024 * 1024:
            sent += one.send(request("/metrics", b"", method="GET") * 100)
    except TimeoutError:
        pass
    assert sent < 64 * 1024 * 1024
    assert psutil.Process(server.process.pid).memory_info().rss - before < 32 * 1024 * 1024
    works(connect())
