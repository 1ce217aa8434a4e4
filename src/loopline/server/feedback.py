"""`POST /v2/models/{m}/feedback`: the truth about answers given earlier, `{"id", "label", "source"}` or a list of them.

202 says that the labels are in the journal. They are joined to the predictions by `loopline journal`, however late they come.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from loopline.errors import LooplineError
from loopline.server.inference import PRINTABLE, Handler
from loopline.server.journal_writer import Journal
from loopline.server.messages import Refusal, Request, Respond, Response
from loopline.server.metrics import Metrics
from loopline.server.model import Model

BODY_BYTES = 1 << 20
MOST_LABELS, MOST_CHARACTERS = 1000, 160


def handler(model: Model, journal: Journal, metrics: Metrics) -> Handler:
    """Of one model. To be called in the event loop's thread."""
    accepted = metrics.value("feedback", model.name, model.version, "202")
    failed = metrics.value("feedback", model.name, model.version, "503")

    def handle(request: Request, respond: Respond) -> None:
        rows = read(request.body, model)
        loop, left, whole = asyncio.get_running_loop(), len(rows), True

        def arrived(ok: bool) -> None:
            nonlocal left, whole
            left, whole = left - 1, whole and ok
            if left:
                return
            (accepted if whole else failed).value += 1
            said = {"accepted": len(rows)} if whole else {"error": "the journal cannot be written now; send them again"}
            respond(Response(202 if whole else 503, (orjson.dumps(said),)))

        def written(ok: bool) -> None:
            loop.call_soon_threadsafe(arrived, ok)

        for identity, label, source in rows:
            journal.label(model, identity, label, source, written)

    return handle


def read(body: bytes, model: Model) -> list[tuple[str, Any, str]]:
    """Request id, label and source of each. Raises Refusal (400, 413) naming the place."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the feedback is not JSON: {error}") from None
    rows = given if isinstance(given, list) else [given]
    if not rows:
        raise Refusal(400, "there is no label in the feedback")
    if len(rows) > MOST_LABELS:
        raise Refusal(413, f"{len(rows)} labels, at most {MOST_LABELS} are accepted in one request")
    found = []
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Refusal(400, f'feedback {place}: send {{"id": ..., "label": ..., "source": ...}}')
        given = row.get("source")
        source = _word("source", "feedback" if given is None else given, place)
        identity = _word("id", row.get("id"), place)
        if not PRINTABLE.issuperset(identity.encode()):
            raise Refusal(
                400, f"feedback {place}: no answer has the id {identity[:40]!r}: ids are ASCII without spaces"
            )
        found.append((identity, label(row.get("label"), model, place), source))
    return found


def _word(name: str, value: Any, place: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MOST_CHARACTERS or not value.isprintable():
        raise Refusal(400, f"feedback {place}: {name} must be a text of 1 to {MOST_CHARACTERS} characters")
    return value


def label(given: Any, model: Model, place: int) -> Any:
    """The label as the journal keeps it: what the task's `check_label` makes of it. Raises Refusal."""
    try:
        return model.task.check_label(given, model.spec, model.name)
    except LooplineError as error:
        raise Refusal(400, f"feedback {place}: {error}") from None
