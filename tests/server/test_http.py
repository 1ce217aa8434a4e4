"""HTTP over raw sockets: no client can harm the server."""

import gzip
import json
import re
import socket
import time
import zlib
from http.client import HTTPConnection

import pytest

from loopline.server import heads, http, messages
from loopline.server.connection import (
    BODY_SECONDS,
    HEAD_BYTES,
    HEAD_SECONDS,
    IDLE_SECONDS,
    LINGER_BYTES,
    LINGER_SECONDS,
)

INFER = "/v2/models/classifier/infer"
BODY = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [200] * 64}]}
).encode()


@pytest.fixture
def connect(server):
    """connect() -> a socket to the server with a timeout of a minute."""
    sockets = []

    def new():
        sockets.append(socket.create_connection((server.host, server.port), 60))
        return sockets[-1]

    yield new
    for opened in sockets:
        opened.close()


def request(path=INFER, body=BODY, *, method="POST", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read(client, content=b""):
    """Status, headers and body of the next answer, whose start `content` was already read."""
    while b"\r\n\r\n" not in content:
        piece = client.recv(65536)
        if not piece:
            return None
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += client.recv(65536)
    length = int(headers["content-length"])
    assert len(body) == length or body[length:].startswith(b"HTTP/1.1"), "an answer follows, or nothing"
    read.rest = body[length:]
    return int(first.split()[1]), headers, body[:length]


def ask(client, data):
    client.sendall(data)
    return read(client)


def works(client):
    assert ask(client, request())[0] == 200


def test_a_connection_is_kept_and_closed_when_asked(connect):
    client = connect()
    works(client)
    works(client)
    status, headers, _ = ask(client, request(headers=["Connection: close"]))
    assert (status, headers["connection"]) == (200, "close")
    assert client.recv(1) == b""


def test_answers_of_a_pipeline_come_in_their_order(connect):
    client = connect()
    paths = ["/v2", INFER, "/nothing", "/v2/health/live", INFER] * 8
    client.sendall(
        b"".join(
            request(path, BODY if path == INFER else b"", method="POST" if path == INFER else "GET") for path in paths
        )
    )
    content = b""
    while content.count(b"HTTP/1.1 ") < len(paths):
        content += client.recv(65536)
    statuses = [int(part[:3]) for part in content.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404, 200, 200] * 8


def test_a_body_may_come_byte_by_byte_and_in_chunks(connect):
    client = connect()
    data = request()
    for start in range(0, len(data), 50):
        client.sendall(data[start : start + 50])
        time.sleep(0.001)
    assert read(client)[0] == 200
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(BODY[i : i + 99]), BODY[i : i + 99]) for i in range(0, len(BODY), 99))
    assert (
        ask(
            client,
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n",
        )[0]
        == 200
    )


def test_a_repeated_head_means_the_same_again(connect):
    """The server parses it once; after that, only its bytes are compared."""
    client = connect()
    dark = json.dumps(
        {"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [100] * 64}]}
    ).encode()
    assert len(dark) == len(BODY)
    first, other = ask(client, request())[2], ask(client, request(body=dark))[2]
    assert first != other, "the body is read anew"
    for cut in (1, 60, len(request()) - len(BODY), len(request()) - 5):  # in the head, at its end, in the body
        client.sendall(request()[:cut])
        time.sleep(0.02)
        client.sendall(request()[cut:])
        assert read(client)[2] == first
    client.sendall(request() + request(body=dark))
    assert read(client)[2] == first
    while not read.rest.endswith(other):
        read.rest += client.recv(65536)
    for _ in range(3):  # refused, with a body that nobody reads
        assert ask(client, request("/nothing", b"x" * 200_000))[0] == 404
    works(client)


@pytest.mark.parametrize(
    ("raw", "headers", "kept"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", {b"host": b"x"}, True),
        (b"POST / HTTP/1.1\nHost: x\n\nbody\r\n\r\n", {b"host": b"x"}, False),  # a part of the body is in it
        (b"\r\nPOST / HTTP/1.1\r\nHost: x\r\n\r\n", {b"host": b"x"}, False),
        (b"POST / HTTP/1.1\r\nHost: x\r\nA: 1\r\nA: 2\r\n\r\n", {b"host": b"x", b"a": b"2"}, False),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", {b"expect": b"100-continue"}, False),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", {b"transfer-encoding": b"chunked"}, False),
    ],
)
def test_only_a_head_whose_bytes_are_all_its_own_is_remembered(raw, headers, kept):
    fields = {"path": "/", "query": b"", "length": 4, "version": "1.1", "say_kept": False, "compress": None}
    head = messages.Head(method="POST", headers=headers, keep_alive=True, **fields)
    cache = heads.HeadCache()
    cache.remember(raw, head)
    assert (cache.find(raw + b"body")[1] is head) == kept


def test_a_client_that_expects_100_continue_gets_it(connect):
    client = connect()
    client.sendall(request(body=b"", headers=["Expect: 100-continue"]).replace(b"Length: 0", b"Length: %d" % len(BODY)))
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert ask(client, BODY)[0] == 200


def test_100_continue_waits_for_the_earlier_answer(connect):
    client = connect()
    asking = request(body=b"", headers=["Expect: 100-continue"]).replace(b"Length: 0", b"Length: %d" % len(BODY))
    client.sendall(request() + asking)
    assert read(client)[0] == 200
    assert (read.rest or client.recv(100)) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert ask(client, BODY)[0] == 200


def test_white_space_after_a_headers_value_is_ignored(connect):
    client = connect()
    headers = ["X-Request-Id: abc \t", "X-Request-Timeout-Ms: 60000 ", "Expect: 100-continue "]
    client.sendall(request(body=b"", headers=headers).replace(b"Length: 0", b"Length: %d" % len(BODY)))
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    status, headers, _ = ask(client, BODY)
    assert (status, headers["x-request-id"]) == (200, "abc")


def test_a_list_header_may_have_several_lines(connect):
    body = gzip.compress(zlib.compress(BODY))
    assert ask(connect(), request(body=body, headers=["Content-Encoding: deflate", "Content-Encoding: gzip"]))[0] == 200
    weighed = ["Accept-Encoding: gzip;q=0.5", "Accept-Encoding: deflate"]
    headers = ask(connect(), request("/metrics", b"", method="GET", headers=weighed))[1]
    assert headers["content-encoding"] == "deflate"


LONG = bytes(20 << 20)  # more than a route accepts and than the system buffers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/predict/classifier", 413),
        ("POST", INFER, 413),
        ("POST", "/v2/repository/index", 413),
        ("POST", "/predict/nope", 404),
        ("POST", "/v2/health/ready", 405),
        ("GET", "/v2", 413),
    ],
)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_client_that_sends_all_before_it_reads_gets_the_refusal(server, method, path, status, framing):
    """Closing a connection with unread input resets it, and the client loses the answer."""
    client = HTTPConnection(server.host, server.port, timeout=60)
    body = LONG if framing == "length" else (LONG[start : start + (1 << 20)] for start in range(0, len(LONG), 1 << 20))
    client.request(
        method, path, body, encode_chunked=framing == "chunks", headers=CHUNKED if framing == "chunks" else {}
    )
    answer = client.getresponse()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert json.loads(answer.read())["error"]
    client.close()


CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_refusal_before_a_long_body_keeps_its_reason(connect, framing):
    """The body is read to keep the connection or is too long for that; the error must not be about its size."""
    late, body = "X-Request-Timeout-Ms: 0\r\n", LONG[: 3 << 19]
    if framing == "length":
        data = request(body=body, headers=[late.strip()])
    else:
        data = IN_CHUNKS + late.encode() + b"\r\n" + chunked(body, 1 << 16)
    status, _, answer = ask(connect(), data)
    assert (status, "X-Request-Timeout-Ms" in json.loads(answer)["error"]) == (400, True)


def test_the_parsers_reason_is_in_the_error(connect):
    assert "Invalid method" in json.loads(ask(connect(), b"hello\r\n\r\n")[2])["error"]


def chunked(body, size, trailers=""):
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return content + b"0\r\n" + trailers.encode() + b"\r\n"


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAA")
IN_CHUNKS = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n".encode()


@pytest.mark.parametrize("offer", [OFFER, ("Upgrade: websocket", "Connection: upgrade")])
@pytest.mark.parametrize("cut", [1, 40, 100_000])
def test_an_offer_of_another_protocol_is_declined_and_the_request_answered(connect, offer, cut):
    """With a body of either framing, without one, in a pipeline, and with any cut of the bytes."""
    lines = "".join(f"{line}\r\n" for line in offer).encode()
    data = request(headers=offer)
    data += request("/v2", b"", method="GET", headers=offer)
    data += IN_CHUNKS + lines + b"\r\n" + chunked(BODY, 99, "X-Sum: 1\r\n")
    data += request("/nothing", headers=offer)
    client = connect()
    statuses, rest = [], b""
    for start in range(0, len(data), cut):
        client.sendall(data[start : start + cut])
    while len(statuses) < 4:
        status, headers, _ = read(client, rest)
        statuses.append(status)
        assert "upgrade" not in headers
        rest = read.rest
    assert statuses == [200, 200, 200, 404]
    works(client)


@pytest.mark.parametrize(
    ("line", "length", "status"),
    [(f"POST {INFER}", 10**9, 413), ("GET http://[", 0, 400)],
)
def test_a_request_with_an_offer_is_refused_like_any_other(connect, line, length, status):
    lines = [f"{line} HTTP/1.1", "Host: x", *OFFER, f"Content-Length: {length}", "", ""]
    got, headers, body = ask(connect(), "\r\n".join(lines).encode())
    assert (got, headers["connection"]) == (status, "close")
    assert json.loads(body)["error"]


def test_a_request_with_an_offer_may_expect_100_continue(connect):
    client = connect()
    headers = [*OFFER, "Expect: 100-continue"]
    client.sendall(request(body=b"", headers=headers).replace(b"Length: 0", b"Length: %d" % len(BODY)))
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert ask(client, BODY)[0] == 200


def test_a_long_pipeline_of_offers_is_answered_without_deep_recursion(connect):
    client = connect()
    count = 1500
    client.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nUpgrade:a\r\nConnection:upgrade\r\n\r\n" * count)
    content = b""
    while content.count(b"HTTP/1.1 200 OK") < count:
        piece = client.recv(1 << 16)
        assert piece, content[-200:]
        content += piece
    works(client)


@pytest.mark.parametrize("cut", [1, 100_000])
def test_trailers_are_ignored(connect, cut):
    """They follow a body that is larger than a head may be, and do not change the head's values."""
    rows = {"inputs": [{"name": "image", "shape": [400, 8, 8, 1], "datatype": "UINT8", "data": [7] * 25_600}]}
    body = json.dumps(rows).encode()
    assert len(body) > HEAD_BYTES
    client = connect()
    trailers = "X-Sum: abc\r\nContent-Encoding: br\r\nX-Request-Id: trailer\r\n"
    client.sendall(IN_CHUNKS + b"X-Request-Id: head\r\n\r\n")
    content = chunked(body, 5000, trailers)
    client.sendall(content[:-200])
    for start in range(len(content) - 200, len(content), cut):
        client.sendall(content[start : start + cut])
    status, headers, _ = read(client)
    assert (status, headers["x-request-id"]) == (200, "head")
    works(client)


class Transport:
    """A fake transport. `ended` and `closed` hold the clock's time of each end of writing and each close."""

    def __init__(self, clock):
        self.clock, self.written, self.ended, self.closed = clock, [], [], []

    def write(self, data):
        self.written.append(data)

    def write_eof(self):
        self.ended.append(self.clock[0])

    def close(self):
        self.ended.append(self.clock[0])
        self.closed.append(self.clock[0])

    abort = close

    def is_closing(self):
        return bool(self.closed)


class Application:
    """An application that accepts bodies of 100 bytes."""

    def turn(self):
        pass

    def admit(self, *_):
        return 100

    def refusal(self, refusal):
        return messages.Response(refusal.status)


@pytest.fixture
def alone(monkeypatch):
    """alone(clock) -> a connection without a socket, and its transport."""

    def make(clock):
        server = http.Server(Application())
        server.now = lambda: clock[0]
        monkeypatch.setattr(server, "opened", lambda _: None)
        connection, transport = server.protocol(), Transport(clock)
        connection.connection_made(transport)
        return connection, transport

    return make


@pytest.mark.parametrize(
    "trailers", [b"".join(b"X-%d: 1\r\n" % n for n in range(200)), b"X: " + b"a" * 40_000, b"X" * 40_000]
)
@pytest.mark.parametrize("cut", [1000, 100_000])
def test_trailers_are_bounded(alone, trailers, cut):
    connection, transport = alone([0.0])
    connection.data_received(IN_CHUNKS + b"\r\n3\r\nabc\r\n0\r\n")
    for start in range(0, len(trailers), cut):
        connection.data_received(trailers[start : start + cut])
    assert [data[:12] for data in transport.written] == [b"HTTP/1.1 431"]
    assert transport.ended


@pytest.fixture
def lingering(alone):
    """lingering(clock) -> a connection that was refused in the middle of a request, and its transport."""

    def make(clock):
        connection, transport = alone(clock)
        connection.data_received(IN_CHUNKS + b"\r\nzz\r\n")
        assert [data[:12] for data in transport.written] == [b"HTTP/1.1 400"]
        assert transport.ended, "the server has ended its side"
        assert not transport.closed, "but goes on reading"
        return connection, transport

    return make


def test_a_refused_client_that_never_closes_is_cut_off(lingering):
    clock = [100.0]
    connection, transport = lingering(clock)
    clock[0] += LINGER_SECONDS - 1
    connection.sweep(clock[0])
    assert not transport.closed
    clock[0] += 2
    connection.sweep(clock[0])
    assert transport.closed == [101.0 + LINGER_SECONDS]


def test_a_refused_client_that_sends_for_ever_is_cut_off(lingering):
    connection, transport = lingering([100.0])
    sent = 0
    while not transport.closed:
        connection.data_received(LONG[: 1 << 20])
        sent += 1 << 20
    assert sent == LINGER_BYTES + (1 << 20)
    assert len(transport.written) == 1


def test_a_refused_client_that_closes_is_released(lingering):
    connection, transport = lingering([100.0])
    connection.data_received(b"more")
    assert not transport.closed
    assert not connection.eof_received(), "asyncio closes it then"


@pytest.mark.parametrize("path", ["/v2/health/ready", "/nothing"])
@pytest.mark.parametrize("header", ["Connection", "Proxy-Connection"])
def test_a_client_of_http_1_0_is_told_whether_the_connection_stays(connect, path, header):
    """Otherwise it waits for the connection's end: `ab -k` did until its timeout."""
    kept = f"GET {path} HTTP/1.0\r\n{header}: Keep-Alive\r\n\r\n".encode()
    client = connect()
    for _ in range(2):
        assert ask(client, kept)[1]["connection"] == "keep-alive"
    assert ask(client, kept.replace(b"Keep-Alive", b"close"))[1]["connection"] == "close"
    assert client.recv(1) == b""
    client = connect()
    assert ask(client, f"GET {path} HTTP/1.0\r\n\r\n".encode())[1]["connection"] == "close"
    assert client.recv(1) == b""


def test_a_client_of_http_1_0_gets_no_interim_answer(connect):
    client = connect()
    data = request(headers=["Expect: 100-continue", "Connection: keep-alive"]).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    assert ask(client, data)[0] == 200


def test_a_head_request_has_no_body(connect):
    client = connect()
    client.sendall(request("/v2", b"", method="HEAD"))
    answer = client.recv(65536)
    assert b"200 OK" in answer
    assert answer.endswith(b"\r\n\r\n")
    works(client)


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
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 405),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\n\r\n", 400),
        (request(headers=["Host: y"]), 400),
        (request(headers=["Transfer-Encoding: gzip, chunked"]).replace(b"Content-Length", b"X"), 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
def test_nonsense_is_refused_and_the_connection_closed(connect, data, status):
    client = connect()
    assert ask(client, data)[0] == status
    assert client.recv(1) == b""
    works(connect())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/nothing"), 404),
        (request("/v2", b"", method="GET").replace(b"Host: x\r\n", b""), 400),
        (request(method="PUT"), 405),
        (request("/v2", b"", method="POST"), 405),
        (request(body=b"{"), 400),
        (request(headers=["X-Request-Timeout-Ms: soon"]), 400),
        (request(headers=["X-Request-Timeout-Ms: 0"]), 400),
        (request(headers=["X-Request-Timeout-Ms: " + "0" * 8 + "1" * 5000]), 400),
        (request(headers=["Inference-Header-Content-Length: " + "0" * 5000]), 400),
        (request(headers=["Content-Encoding: br"]), 415),
        (request(headers=["Content-Encoding: gzip"]), 400),
        (request(headers=["Content-Encoding: gzip, gzip, gzip"]), 415),
        (request(headers=["Inference-Header-Content-Length: 99999"]), 400),
        (request("/v2/repository/index", b"[]"), 400),
    ],
)
def test_an_invalid_request_is_refused_and_the_connection_stays(connect, data, status):
    client = connect()
    actual, headers, body = ask(client, data)
    assert actual == status
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"]
    works(client)


def test_a_refused_encoding_is_answered_with_the_supported_ones(connect):
    status, headers, _ = ask(connect(), request(headers=["Content-Encoding: zstd"]))
    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize(("path", "method"), [("/v2", "GET"), ("/v2/repository/index", "POST")])
def test_content_encoding_is_ignored_without_a_body(connect, path, method):
    assert ask(connect(), request(path, b"", method=method, headers=["Content-Encoding: br"]))[0] == 200


def test_a_body_that_unpacks_to_too_much_is_refused_early(connect):
    bomb = gzip.compress(bytes(200 * 1024 * 1024))
    assert len(bomb) < 1024 * 1024
    assert ask(connect(), request(body=bomb, headers=["Content-Encoding: gzip"]))[0] == 413


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_compressed_bodies_and_answers(connect, pack):
    kind = {"compress": "gzip"}.get(pack.__name__, "gzip") if pack is gzip.compress else "deflate"
    rows = json.dumps(
        {"inputs": [{"name": "image", "shape": [99, 8, 8, 1], "datatype": "UINT8", "data": [7] * 6336}]}
    ).encode()
    data = request(body=pack(rows), headers=[f"Content-Encoding: {kind}", f"Accept-Encoding: {kind}"])
    status, headers, body = ask(connect(), data)
    assert (status, headers["content-encoding"]) == (200, kind)
    assert json.loads(zlib.decompress(body, wbits=47))["outputs"]


HALVES = BODY[:100], BODY[100:]
RAW = zlib.compress(BODY, wbits=-15)


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(HALVES[0]) + gzip.compress(HALVES[1]), "gzip", 200),
        (gzip.compress(HALVES[0]) + gzip.compress(b"") + gzip.compress(HALVES[1]), "X-GZip", 200),
        (gzip.compress(b"") * 1000 + gzip.compress(BODY), "gzip", 200),
        (gzip.compress(BODY) + bytes(512), "gzip", 200),
        (RAW, "deflate", 200),
        (gzip.compress(zlib.compress(BODY)), "deflate, gzip", 200),
        (gzip.compress(BODY), "identity, gzip", 200),
        (BODY, "", 200),
        (BODY, "Identity", 200),
        (gzip.compress(BODY) + b"more", "gzip", 400),
        (gzip.compress(BODY) + bytes(512) + b"more", "gzip", 400),
        (gzip.compress(BODY) + bytes(512) + gzip.compress(b"more"), "gzip", 400),
        (gzip.compress(BODY) + gzip.compress(b"more")[:-3], "gzip", 400),
        (gzip.compress(BODY)[:-1], "gzip", 400),
        (zlib.compress(BODY) + b"more", "deflate", 400),
        (RAW[:-1], "deflate", 400),
        (b"", "gzip", 400),
        (gzip.compress(b"") * 2000 + gzip.compress(BODY), "gzip", 400),
        (gzip.compress(bytes(9 << 20)) * 2, "gzip", 413),
        (gzip.compress(gzip.compress(bytes(17 << 20))), "gzip, gzip", 413),
    ],
    # Fixed names: gzip writes the time, so names made from the bytes would differ in every process.
    ids=[
        "two members",
        "an empty member between",
        "a thousand members",
        "zeros behind",
        "raw deflate",
        "deflated, then packed",
        "identity and gzip",
        "no encoding",
        "identity",
        "bytes behind",
        "zeros and bytes behind",
        "zeros and a member behind",
        "a broken second member",
        "a broken member",
        "bytes behind deflate",
        "broken deflate",
        "nothing",
        "too many members",
        "too large in two members",
        "too large in two layers",
    ],
)
def test_a_body_may_be_compressed_in_every_standard_way(connect, body, encoding, status):
    assert ask(connect(), request(body=body, headers=[f"Content-Encoding: {encoding}"]))[0] == status


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("gzip", "gzip"),
        ("GZip, Deflate, br, zstd", "gzip"),
        ("deflate", "deflate"),
        ("x-gzip", "gzip"),
        ("identity;q=1, gzip;q=0", None),
        ("gzip;q=0.000, deflate;q=0", None),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip ; Q=0.5 , deflate;q=0.8", "deflate"),
        ("gzip;q=0.5", "gzip"),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=0.5, *;q=0", "gzip"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("br, zstd", None),
        ("gzipped", None),
        ("gzip;q=nonsense", None),
        ("gzip;q=", None),
        (",;=,", None),
        ("", None),
    ],
)
def test_an_answer_is_compressed_by_the_clients_weights(connect, accepted, chosen):
    status, headers, body = ask(
        connect(), request("/metrics", b"", method="GET", headers=[f"Accept-Encoding: {accepted}"])
    )
    assert (status, headers.get("content-encoding")) == (200, chosen)
    assert headers["vary"] == "accept-encoding"
    assert b"loopline_" in (zlib.decompress(body, wbits=47) if chosen else body)


@pytest.mark.parametrize("value", ["", "a b", "a" * 129, "\xe4"])
def test_a_request_with_an_empty_or_invalid_id_gets_a_new_id(connect, value):
    """Proxies write such headers. The answer has an id that feedback accepts."""
    for path, body in ((INFER, BODY), ("/predict/text", b'"good"')):
        data = request(path, body, headers=["X-Request-Id: GIVEN", "X-Request-Timeout-Ms:"])
        status, headers, content = ask(connect(), data.replace(b"GIVEN", value.encode("latin-1")))
        assert status == 200
        assert re.fullmatch("[0-9a-f]{8,}", headers["x-request-id"])
        assert json.loads(content).get("id", headers["x-request-id"]) == headers["x-request-id"]
    kept = "~" + "a" * 127
    assert ask(connect(), request(headers=[f"X-Request-Id: {kept}"]))[1]["x-request-id"] == kept


def test_a_client_that_leaves_early_does_no_harm(connect):
    for cut in (10, 100, len(request()) - 1, len(request())):
        client = connect()
        client.sendall(request()[:cut])
        client.close()
    works(connect())


@pytest.mark.parametrize(
    ("sent", "limit", "answer"),
    [
        (b"", IDLE_SECONDS, []),
        (b"GET / HT", HEAD_SECONDS, [b"HTTP/1.1 408"]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", BODY_SECONDS, [b"HTTP/1.1 408"]),
    ],
)
def test_a_slow_head_a_slow_body_and_idleness_are_cut_off(alone, sent, limit, answer):
    clock = [100.0]
    connection, transport = alone(clock)
    connection.data_received(sent)
    clock[0] += limit - 1
    connection.sweep(clock[0])
    assert not transport.ended
    clock[0] += 2
    connection.sweep(clock[0])
    assert transport.ended == [100.0 + limit + 1]
    assert [data[:12] for data in transport.written] == answer


def test_the_server_stops_reading_from_a_client_that_does_not_read(connect, server):
    """It may send requests for ever, but unread answers must not pile up in the server."""
    import psutil

    client, other = connect(), connect()
    client.setblocking(False)
    before = psutil.Process(server.process.pid).memory_info().rss
    sent, full = 0, 0
    while sent < 64 * 1024 * 1024 and full < 5:
        try:
            sent += client.send(request("/metrics", b"", method="GET") * 100)
            full = 0
        except BlockingIOError:  # on a busy machine too: once it answers another client, it had time to read
            works(other)
            full += 1
    assert sent < 64 * 1024 * 1024
    assert psutil.Process(server.process.pid).memory_info().rss - before < 32 * 1024 * 1024
    works(connect())
