"""Who sent a webhook, and what it says: Alertmanager's with a bearer token, Grafana's signed with a time stamp.

Both send the same shape. Tokens come from the environment, or from files that it names.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints, ValidationError

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.retraining.guard import Alert
from loopline.retraining.state import key

TOKEN, SECRET = "LOOPLINE_RETRAINER_TOKEN", "LOOPLINE_RETRAINER_HMAC_SECRET"
# As observability/grafana/alerting.py has them
SIGNATURE, STAMP = ("x-grafana-alerting-signature", "x-grafana-alerting-timestamp")
STALE = 300.0  # seconds that a time stamp may be off
LARGEST = 256 << 10  # bytes of a webhook
MOST = 100  # alerts in one
SHORTEST = 16  # characters of a token


class Sent(BaseModel):
    """One alert; fields that we do not use are not looked at."""

    status: Literal["firing", "resolved"]
    labels: Annotated[dict[str, str], Field(max_length=64)]
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
    startsAt: AwareDatetime  # noqa: N815 - their name


class Webhook(BaseModel):
    """What Alertmanager 4 and Grafana send."""

    alerts: Annotated[list[Sent], Field(max_length=MOST)]


@dataclass(frozen=True)
class Secrets:
    """token: of Alertmanager. hmac: of Grafana. Without one its route takes nothing."""

    token: str | None
    hmac: str | None


def secrets() -> Secrets:
    """From LOOPLINE_RETRAINER_TOKEN and LOOPLINE_RETRAINER_HMAC_SECRET, or from the files in ..._FILE. Raises LooplineError."""
    found = Secrets(_secret(TOKEN), _secret(SECRET))
    if not (found.token or found.hmac):
        raise LooplineError(
            f"the retrainer starts trainings, so it wants to know who asks: set {TOKEN} (Alertmanager) or {SECRET} (Grafana), "
            f"or {TOKEN}_FILE or {SECRET}_FILE with the path of a file. `openssl rand -hex 32` makes a good one"
        )
    return found


def _secret(name: str) -> str | None:
    found = credentials.secret(name)
    if found and len(found) < SHORTEST:
        raise LooplineError(f"{name} has {len(found)} characters, at least {SHORTEST} are needed")
    return found


def bearer(header: str | None, token: str | None) -> bool:
    """Tell whether the header Authorization carries the token, in constant time."""
    return token is not None and credentials.bearer((header or "").encode(), token.encode())


def signed(body: bytes, stamp: str | None, signature: str | None, secret: str | None, now: float) -> bool:
    """Is it signed with the secret, now? The signature is the hex HMAC-SHA256 of `time stamp:body`, in seconds of the epoch."""
    if secret is None or not signature or not stamp or not re.fullmatch(r"[0-9]{1,12}", stamp):
        return False
    wanted = hmac.new(secret.encode(), stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(signature.encode(), wanted.encode()) and abs(now - int(stamp)) <= STALE


def read(body: bytes, models: frozenset[str]) -> list[tuple[str, Alert]]:
    """(id, alert) of those that are about one of our models. Raises LooplineError on what is no webhook."""
    try:
        found = Webhook.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise LooplineError(f"no webhook of alerts: {where}: {error.errors()[0]['msg']}") from error
    return [(_id(sent), _alert(sent)) for sent in found.alerts if sent.labels.get("model") in models]


def _id(sent: Sent) -> str:
    return key(sent.labels["model"], sent.fingerprint, sent.startsAt.astimezone(UTC).isoformat())


def _alert(sent: Sent) -> Alert:
    version = sent.labels.get("version", "")
    return Alert(
        model=sent.labels["model"],
        name=sent.labels.get("alertname", "")[:80],
        version=version if re.fullmatch(r"[0-9a-f]{1,64}", version) else "",
        firing=sent.status == "firing",
    )
