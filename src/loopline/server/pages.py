"""The two pages and their files: the demo at `/`, and the description of the routes at `/docs`. See docs/serving.md.

The pages load nothing from other servers, and their policy forbids it. `make demo` fetches onnxruntime-web from npm into
`pages/assets`. Without it the demo works on the server only, and the page says why its switch is off.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from loopline.errors import LooplineError
from loopline.release import bundle
from loopline.server import examples
from loopline.server.messages import BINARY, JSON, Headers, Refusal, Request, Respond, Response, acceptable
from loopline.server.model import Model

HERE = Path(__file__).with_suffix("")
RUNTIME = "assets/ort.wasm.bundle.min.mjs"
OF_DOCS = ("docs.js", "client.js", "style.css", "icon.svg")  # served even without the demo
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".mjs": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".jpg": b"image/jpeg",
    ".wasm": b"application/wasm",
    ".json": JSON,
    ".onnx": BINARY,
}
POLICY = (
    b"default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {b"content-security-policy": POLICY, b"x-content-type-options": b"nosniff", b"referrer-policy": b"no-referrer"}


class Page(NamedTuple):
    """The handler of a GET. open: whether it answers without a token."""

    answer: Callable[[Request, Respond], None]
    open: bool


def pages(models: Sequence[Model], document: bytes, *, demo: bool) -> dict[str, Page]:
    """Path -> page. document: the content of /openapi.json. demo: whether to serve `/` and the bundles' files for the browser."""
    table = {"/docs": Page(_file(HERE / "docs.html"), True), "/openapi.json": Page(_content(document), False)}
    demo = demo and (HERE / "index.html").exists()  # a container image may be built without it
    for path in sorted(HERE.rglob("*")):
        name = path.relative_to(HERE).as_posix()
        kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if kind in TYPES and kind not in (".html", ".json") and (demo or name.startswith(OF_DOCS)):
            table[f"/pages/{name.removesuffix('.gz')}"] = Page(_file(path), True)
    chosen = {model.name: examples.of(model) for model in models}
    for model in models:
        for example in chosen[model.name]:
            if example.text is None:
                table[examples.path(model, example)] = Page(_example(model, example), False)
    if demo:
        table["/"] = Page(_file(HERE / "index.html"), True)
        index = {
            "in_browser": f"/pages/{RUNTIME}" in table,
            "models": [model.name for model in models],
            "examples": {
                model.name: [
                    examples.path(model, example)[1:] if example.text is None else example.text
                    for example in chosen[model.name]
                ]
                for model in models
            },
        }
        table["/bundles"] = Page(_content(orjson.dumps(index)), False)
        for model in models:
            for name in ("model.onnx", "bundle.json", *(["tokenizer.json"] if model.spec.text else [])):
                table[f"/bundles/{model.name}/{name}"] = Page(_bundle_file(model, name), False)
    return table


def _content(content: bytes) -> Callable[[Request, Respond], None]:
    headers = SAFE | {b"cache-control": b"no-cache"}
    return lambda _, respond: respond(Response(body=(content,), headers=dict(headers)))


def _file(path: Path) -> Callable[[Request, Respond], None]:
    """A handler that reads the file on each request, so that unused files take no memory."""
    headers = SAFE | {b"cache-control": b"max-age=86400" if path.parent.name == "assets" else b"no-cache"}
    packed = path.suffix == ".gz"
    if packed:
        headers[b"vary"] = b"accept-encoding"
    kind = TYPES[path.with_suffix("").suffix if packed else path.suffix]

    def answer(request: Request, respond: Respond) -> None:
        response = _read(path, kind, dict(headers))
        if packed and acceptable(request.headers.get(b"accept-encoding", b"")) == b"gzip":
            response.headers[b"content-encoding"] = b"gzip"
        elif packed:
            response.body = (gzip.decompress(response.body[0]),)
        respond(response)

    return answer


def _bundle_file(model: Model, name: str) -> Callable[[Request, Respond], None]:
    """A handler for a bundle's file, while the folder holds the loaded version. Clients may cache `?v=<version>` for ever."""
    cacheable = f"v={model.version}".encode()

    def answer(request: Request, respond: Respond) -> None:
        _unchanged(model)
        control = b"private, max-age=31536000, immutable" if request.query == cacheable else b"no-cache"
        path = model.bundle.folder / name
        respond(_read(path, TYPES[path.suffix], SAFE | {b"cache-control": control}))

    return answer


def _example(model: Model, example: examples.Example) -> Callable[[Request, Respond], None]:
    """A handler for a golden image of a bundle, while the folder holds the loaded version."""

    def answer(_: Request, respond: Respond) -> None:
        _unchanged(model)
        body = (examples.content(model, example),)
        respond(Response(body=body, content_type=example.kind.encode(), headers=SAFE | {b"cache-control": b"no-cache"}))

    return answer


def _unchanged(model: Model) -> None:
    """Raise Refusal (404) if the bundle's folder holds another version than the loaded one."""
    try:
        same = bundle.version(model.bundle.folder) == model.bundle.version
    except (LooplineError, OSError):
        same = False
    if not same:
        raise Refusal(404, f"{model.name}: the bundle's folder no longer holds version {model.version}")


def _read(path: Path, kind: bytes, headers: Headers) -> Response:
    try:
        return Response(body=(path.read_bytes(),), content_type=kind, headers=headers)
    except OSError:
        raise Refusal(404, f"{path.name} is gone from the server's disk") from None
