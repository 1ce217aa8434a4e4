"""`POST /v2/models/{m}/feedback` takes the true labels of earlier answers: `{"id", "label", "source"}` or a list of these.

Status 202 means that the labels are in the journal. `loopline journal` joins them to the predictions, however late they come.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from loopline.errors import LooplineError
from loopline.server.exchange import PRINTABLE
from loopline.server.inference import Handler
from loopline.server.journal_writer import Journal
from loopline.server.messages import Refusal, Request, Respond, Response
from loopline.server.metrics import Metrics
from loopline.server.model import Model

BODY_BYTES = 1 << 20
MOST_LABELS, MOST_CHARACTERS = 1000, 160  # labels in one request, characters of an id or a source


def handler(model: Model, journal: Journal, metrics: Metrics) -> Handler:
    """The handler for one model. It must be called in the event loop's thread."""
    accepted = metrics.value("feedback", model.name, model.version, "202")
    failed = metrics.value("feedback", model.name, model.version, "503")

    def handle(request: Request, respond: Respond) -> None:
        rows = read(request.body, model)
        loop, left, complete = asyncio.get_running_loop(), len(rows), True

        def arrived(ok: bool) -> None:
            nonlocal left, complete
            left, complete = left - 1, complete and ok
            if left:
                return
            (accepted if complete else failed).value += 1
            error = "the journal cannot be written now; send the labels again"
            answer = {"accepted": len(rows)} if complete else {"error": error}
            respond(Response(202 if complete else 503, (orjson.dumps(answer),)))

        def written(ok: bool) -> None:
            loop.call_soon_threadsafe(arrived, ok)

        for identity, label, source in rows:
            journal.label(model, identity, label, source, written)

    return handle


def read(body: bytes, model: Model) -> list[tuple[str, Any, str]]:
    """The request id, label and source of each row. Raises Refusal (400, 413) naming the row's place."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the feedback is not JSON: {error}") from None
    rows = content if isinstance(content, list) else [content]
    if not rows:
        raise Refusal(400, "the feedback has no labels")
    if len(rows) > MOST_LABELS:
        raise Refusal(413, f"{len(rows)} labels, at most {MOST_LABELS} are accepted in one request")
    labels = []
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Refusal(400, f'feedback {place}: send {{"id": ..., "label": ..., "source": ...}}')
        source = row.get("source")
        source = _word("source", "feedback" if source is None else source, place)
        identity = _word("id", row.get("id"), place)
        if identity.encode().translate(None, PRINTABLE):
            raise Refusal(
                400, f"feedback {place}: no answer has the id {identity[:40]!r}: ids are ASCII without spaces"
            )
        labels.append((identity, label(row.get("label"), model, place), source))
    return labels


def _word(name: str, value: Any, place: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MOST_CHARACTERS or not value.isprintable():
        raise Refusal(400, f"feedback {place}: {name} must be a text of 1 to {MOST_CHARACTERS} characters")
    return value


def label(truth: Any, model: Model, place: int) -> Any:
    """The label as the journal keeps it, checked by the task's `check_label`. Raises Refusal (400)."""
    try:
        return model.task.check_label(truth, model.spec, model.name)
    except LooplineError as error:
        raise Refusal(400, f"feedback {place}: {error}") from None
