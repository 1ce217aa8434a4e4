"""Read the bodies of the predict route: one or several image files or texts, sent raw, as a form, or as JSON."""

from __future__ import annotations

import logging
import re
from typing import Any

import orjson

from loopline.server.messages import Headers, Refusal
from loopline.server.model import MOST_TEXT, Encoded

MOST_ITEMS = 64  # images or texts in a request
MOST_PARTS = 128  # parts of a form
UTF8 = {b"", b"utf-8", b"utf8", b"us-ascii", b"ascii"}
CHARSET = re.compile(rb";\s*charset\s*=[\s\"']*([^\s\"';]*)", re.IGNORECASE)
EXTENDED = re.compile(rb"filename\*(\d+\*?)?=", re.IGNORECASE)  # RFC 5987 and 2231: long names and names beyond ASCII
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs clients' mistakes as warnings


def images(body: bytes, headers: Headers) -> Encoded:
    """One image as the raw body, or the files of a form. Raises Refusal (400, 413, 415)."""
    if not body:
        raise Refusal(400, "the body is empty: send an image file")
    if _kind(headers) == b"multipart/form-data":
        files = [content for _, content, is_file, _ in _form(body, headers) if is_file]
        return Encoded(_few(files, "no file in the form: send one, as with curl -F file=@image.png"))
    if _kind(headers) == b"application/json":
        raise Refusal(415, "send the image file itself, as the raw body or in a form: curl --data-binary @image.png")
    return Encoded([body])


def texts(body: bytes, headers: Headers) -> Encoded:
    """Texts from JSON (`text`, `texts` or a list), plain text, or a form's fields `text`. Raises Refusal (400, 413, 415)."""
    kind = _kind(headers)
    if kind == b"multipart/form-data":
        items: Any = [_decoded(content, own) for name, content, _, own in _form(body, headers) if name == b"text"]
    elif kind == b"text/plain":
        items = [_decoded(body, headers)]
    else:
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Refusal(
                400, f'the body is not JSON: {error}. Send {{"text": "..."}}, or Content-Type: text/plain'
            ) from None
        if isinstance(request, dict):
            text, items = request.get("text"), request.get("texts")
            if text is not None and items:
                raise Refusal(400, 'send either "text" or "texts", not both')
            if text is not None:  # the other field may be null or an empty list: some clients write every field
                items = [text]
        else:
            items = [request] if isinstance(request, str) else request
    if not isinstance(items, list) or not all(isinstance(text, str) for text in items):
        raise Refusal(400, 'send {"text": "..."} or {"texts": ["...", "..."]}')
    if any(len(text) > MOST_TEXT for text in items):
        raise Refusal(413, f"a text has more than {MOST_TEXT} characters")
    return Encoded(_few(items, "there is no text in the request"))


def _few(items: list[Any], if_empty: str) -> list[Any]:
    """The items. Raises Refusal (400, with that message) if there are none, or (413) if there are too many."""
    if not items:
        raise Refusal(400, if_empty)
    if len(items) > MOST_ITEMS:
        raise Refusal(413, f"{len(items)} items, at most {MOST_ITEMS} are accepted in one request")
    return items


def _kind(headers: Headers) -> bytes:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _decoded(content: bytes, headers: Headers) -> str:
    """The text of a body or of a form's part, without a byte order mark."""
    charset = CHARSET.search(headers.get(b"content-type", b""))
    if charset and charset[1].lower() not in UTF8:
        raise Refusal(415, f"a text is in {charset[1][:40].decode('latin-1')}: send it in UTF-8, with charset=utf-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"a text is not UTF-8: {error.reason} at byte {error.start}") from None


def _form(body: bytes, headers: Headers) -> list[tuple[bytes, bytes, bool, Headers]]:
    """The name, content, whether it is a file, and headers of each part of a form. Raises Refusal (400, 413)."""
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(headers[b"content-type"])[1].get(b"boundary")
    if not boundary:
        raise Refusal(400, "the form's Content-Type has no boundary")
    parts: list[tuple[bytes, bytes, bool, Headers]] = []
    state: dict[str, Any] = {}

    def begin() -> None:
        if len(parts) >= MOST_PARTS:
            raise Refusal(413, f"the form has more than {MOST_PARTS} parts")
        state.update(field=b"", value=b"", headers={}, data=[])

    def header_end() -> None:
        state["headers"][state["field"].lower()] = state["value"]
        state.update(field=b"", value=b"")

    def end() -> None:
        disposition = EXTENDED.sub(b"filename=", state["headers"].get(b"content-disposition", b""))
        options = parse_options_header(disposition)[1]
        kind = _kind(state["headers"])  # a part with a content type other than text is a file too
        is_file = b"filename" in options or (kind != b"" and not kind.startswith(b"text/"))
        parts.append((options.get(b"name", b""), b"".join(state["data"]), is_file, state["headers"]))

    def piece(key: str) -> Any:
        def add(data: bytes, start: int, stop: int) -> None:
            state[key] += data[start:stop]

        return add

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": piece("field"),
        "on_header_value": piece("value"),
        "on_header_end": header_end,
        "on_part_data": lambda data, start, stop: state["data"].append(data[start:stop]),
        "on_part_end": end,
    }
    ended = []
    callbacks["on_end"] = lambda: ended.append(True)
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"the form cannot be read: {error}") from None
    if not ended:
        raise Refusal(400, "the form is cut off")
    return parts
