"""The two pages and what they load: the demo at `/`, the description of the routes at `/docs`. See docs/serving.md.

Nothing comes from another server, and the pages' policy forbids it. `make demo` fetches onnxruntime-web from npm into
`pages/assets`; without it the demo works, and its switch says why it is off.
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
OF_DOCS = ("docs.js", "client.js", "style.css", "icon.svg")  # these stay without the demo
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
    """What answers a GET, and whether it does so without a token."""

    answer: Callable[[Request, Respond], None]
    open: bool


def pages(models: Sequence[Model], document: bytes, *, demo: bool) -> dict[str, Page]:
    """Path -> page. document: what /openapi.json says; demo: also `/` and the bundles' files, for the browser to run."""
    found = {"/docs": Page(_file(HERE / "docs.html"), True), "/openapi.json": Page(_said(document), False)}
    demo = demo and (HERE / "index.html").exists()  # an image may come without it
    for path in sorted(HERE.rglob("*")):
        name = path.relative_to(HERE).as_posix()
        kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if kind in TYPES and kind not in (".html", ".json") and (demo or name.startswith(OF_DOCS)):
            found[f"/pages/{name.removesuffix('.gz')}"] = Page(_file(path), True)
    chosen = {model.name: examples.of(model) for model in models}
    for model in models:
        for example in chosen[model.name]:
            if example.text is None:
                found[examples.path(model, example)] = Page(_example(model, example), False)
    if demo:
        found["/"] = Page(_file(HERE / "index.html"), True)
        said = {
            "in_browser": f"/pages/{RUNTIME}" in found,
            "models": [model.name for model in models],
            "examples": {
                model.name: [
                    examples.path(model, example)[1:] if example.text is None else example.text
                    for example in chosen[model.name]
                ]
                for model in models
            },
        }
        found["/bundles"] = Page(_said(orjson.dumps(said)), False)
        for model in models:
            for name in ("model.onnx", "bundle.json", *(["tokenizer.json"] if model.spec.text else [])):
                found[f"/bundles/{model.name}/{name}"] = Page(_part(model, name), False)
    return found


def _said(content: bytes) -> Callable[[Request, Respond], None]:
    headers = SAFE | {b"cache-control": b"no-cache"}
    return lambda _, respond: respond(Response(body=(content,), headers=dict(headers)))


def _file(path: Path) -> Callable[[Request, Respond], None]:
    """Read at each request: what nobody asks for takes no memory."""
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


def _part(model: Model, name: str) -> Callable[[Request, Respond], None]:
    """A file of a bundle, while the folder holds what was loaded from it. `?v=<version>` may be kept for ever."""
    kept = f"v={model.version}".encode()

    def answer(request: Request, respond: Respond) -> None:
        _unchanged(model)
        control = b"private, max-age=31536000, immutable" if request.query == kept else b"no-cache"
        path = model.bundle.folder / name
        respond(_read(path, TYPES[path.suffix], SAFE | {b"cache-control": control}))

    return answer


def _example(model: Model, example: examples.Example) -> Callable[[Request, Respond], None]:
    """A golden image of a bundle, while the folder holds what was loaded from it."""

    def answer(_: Request, respond: Respond) -> None:
        _unchanged(model)
        body = (examples.content(model, example),)
        respond(Response(body=body, content_type=example.kind.encode(), headers=SAFE | {b"cache-control": b"no-cache"}))

    return answer


def _unchanged(model: Model) -> None:
    """Raises Refusal where the bundle's folder holds another version than the one that answers."""
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
