"""Authenticate and parse webhooks: Alertmanager sends a bearer token, Grafana a signature with a time stamp.

Both send the same JSON. The secrets come from environment variables, or from files that environment variables name.
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
from loopline.retraining.run_store import key

TOKEN, SECRET = "LOOPLINE_RETRAINER_TOKEN", "LOOPLINE_RETRAINER_HMAC_SECRET"
# The same names as in observability/grafana/alerting.py
SIGNATURE, STAMP = "x-grafana-alerting-signature", "x-grafana-alerting-timestamp"
STALE = 300.0  # seconds; the largest error of a time stamp, either way
LARGEST = 256 << 10  # bytes of a webhook's body
MOST = 100  # alerts in one webhook
SHORTEST = 16  # characters of a token or secret


class Sent(BaseModel):
    """One alert. Fields that the retrainer does not use are ignored."""

    status: Literal["firing", "resolved"]
    labels: Annotated[dict[str, str], Field(max_length=64)]
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8,64}$")]
    startsAt: AwareDatetime  # noqa: N815 - the sender's name


class Webhook(BaseModel):
    """The JSON of Alertmanager's webhook, version 4, which Grafana sends too."""

    alerts: Annotated[list[Sent], Field(max_length=MOST)]


@dataclass(frozen=True)
class Secrets:
    """token: for Alertmanager. hmac: for Grafana. A sender without its secret is refused."""

    token: str | None
    hmac: str | None


def secrets() -> Secrets:
    """The secrets from LOOPLINE_RETRAINER_TOKEN and LOOPLINE_RETRAINER_HMAC_SECRET, or from the files named by ..._FILE.

    Raises LooplineError if both are missing, or one is too short.
    """
    loaded = Secrets(_secret(TOKEN), _secret(SECRET))
    if not (loaded.token or loaded.hmac):
        raise LooplineError(
            f"the retrainer must authenticate who starts trainings: set {TOKEN} (Alertmanager) or {SECRET} (Grafana), "
            f"or {TOKEN}_FILE or {SECRET}_FILE to the path of a file. `openssl rand -hex 32` makes a good secret"
        )
    return loaded


def _secret(name: str) -> str | None:
    value = credentials.secret(name)
    if value and len(value) < SHORTEST:
        raise LooplineError(f"{name} has {len(value)} characters, at least {SHORTEST} are needed")
    return value


def bearer(header: str | None, token: str | None) -> bool:
    """Tell whether the Authorization header carries the token; compares in constant time."""
    return token is not None and credentials.bearer((header or "").encode(), token.encode())


def signed(body: bytes, stamp: str | None, signature: str | None, secret: str | None, now: float) -> bool:
    """Tell whether the body is signed with the secret and the time stamp is at most STALE seconds from `now`.

    The signature is the hex HMAC-SHA256 of `stamp:body`; the stamp is in seconds since the epoch.
    """
    if secret is None or not signature or not stamp or not re.fullmatch(r"[0-9]{1,12}", stamp):
        return False
    expected = hmac.new(secret.encode(), stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(signature.encode(), expected.encode()) and abs(now - int(stamp)) <= STALE


def read(body: bytes, models: frozenset[str]) -> list[tuple[str, Alert]]:
    """The (id, alert) pairs that concern one of these models. Raises LooplineError if the body is not a webhook of alerts."""
    try:
        webhook = Webhook.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise LooplineError(f"this is not a webhook of alerts: {where}: {error.errors()[0]['msg']}") from error
    return [(_id(sent), _alert(sent)) for sent in webhook.alerts if sent.labels.get("model") in models]


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
