"""Small HTTP servers for tests, each made from a function that maps a request to an answer."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """A server on a free port of 127.0.0.1. answer(method, path, headers, body) returns status, body and optional headers."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("Content-Length") or 0)
                status, body, *more = answer(self.command, self.path, self.headers, self.rfile.read(length))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(more[0] if more else {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(BrokenPipeError):  # the client gave up waiting
                    self.wfile.write(body)

            do_POST = do_PUT = do_GET  # noqa: N815 - the library's names

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
