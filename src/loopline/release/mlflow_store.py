"""The configured MLflow store, a check that it can be used, and one sentence on the reason if it cannot.

The default is SQLite in `mlflow.db`; `MLFLOW_TRACKING_URI` names another store. A store that is *away* (connection refused, no
answer, 5xx) may come back by itself, so a training uses the spool in the meantime. The user must mend any other failure (a login,
a deleted experiment, a database of another version), so it is an error before the training starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loopline.errors import LooplineError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///mlflow.db"
SPOOL = Path(".loopline/spool")
LATER = f"the run is kept in {SPOOL}; send it later with `loopline track sync`"
PROBE = "/api/2.0/mlflow/experiments/search"
LONGEST_REASON = 300  # characters of a message by a server or a library
LONGEST_BODY = 200  # characters of a server's plain text
DATABASE_TRIES = 3  # MLflow's default of ten takes 100 seconds
# By default MLflow waits up to 2 minutes for an answer, tries eight times, and obeys a server's Retry-After however long.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# Hides their warnings, and the tracebacks that MLflow logs of database errors, so that the user sees our one message.
LOGGERS = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    "urllib3": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,
}
LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
DENIED = "this user may not use it: set MLFLOW_TRACKING_USERNAME, or ask the server's administrator for the right"
NOT_MLFLOW = "this is not MLflow's answer: check the address in MLFLOW_TRACKING_URI, and any proxy on the way to it"
ADDRESS = f"set MLFLOW_TRACKING_URI=http://127.0.0.1:5000 for a server, or MLFLOW_TRACKING_URI={DEFAULT_URI} for a SQLite file"
TLS = "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of the server's certificate authority"
ADVICE_BY_CODE = {
    "UNAUTHENTICATED": LOGIN,
    "CUSTOMER_UNAUTHORIZED": LOGIN,
    "PERMISSION_DENIED": DENIED,
    "ENDPOINT_NOT_FOUND": NOT_MLFLOW,
}
ADVICE_BY_STATUS = {401: LOGIN, 403: DENIED, 407: "log in to the proxy: set HTTPS_PROXY=http://user:password@host:port"}
# Advice for errors that MLflow reports only in words.
ADVICE_BY_TEXT = {
    "WRONG_VERSION_NUMBER": "that server does not use TLS: write an address that begins with http://, not https://",
    "SSLError": TLS,
    "Invalid Host header": "start the server with `mlflow server --allowed-hosts HOST`",
    "Invalid url": ADDRESS,
    "Failed to parse": ADDRESS,
    "not in a valid JSON format": NOT_MLFLOW,
    "redirects": NOT_MLFLOW,
    "out-of-date database schema": "copy the database, then run `mlflow db upgrade {uri}`",
    "Can't locate revision": "a newer MLflow wrote this database: install that version, or name another file",
    "readonly database": "the file is read-only: make it writable, or name another in MLFLOW_TRACKING_URI",
    "unable to open database file": "its folder must exist and be writable",
    "file is not a database": "name another file in MLFLOW_TRACKING_URI",
    "No module named": "install the database's driver, or use sqlite:///mlflow.db",
}
# MLflow's codes for failures that may pass by themselves.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")


class StoreError(LooplineError):
    """A store that cannot be used. away: whether it may come back by itself."""

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


def configured_uri() -> str:
    """Return the address of the configured store: `MLFLOW_TRACKING_URI`, or the local SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or DEFAULT_URI


def client(uri: str | None = None) -> MlflowClient:
    """Return a client of a store that answers, by default the configured one, and make it MLflow's current store.

    Raises StoreError within a minute if the store cannot be used.
    """
    uri = uri or configured_uri()
    if problem := _problem(uri):
        raise StoreError(f"tracking store {shown(uri)}: {problem}. To mend it: {ADDRESS}")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.store.db import utils

    for name, level in LOGGERS.items():  # after the import, which sets levels too
        logging.getLogger(name).setLevel(level)
    utils.MAX_RETRY_COUNT = DATABASE_TRIES
    try:
        if uri.startswith(("http://", "https://")):
            _probe(uri)
        store = mlflow.MlflowClient(uri)
        store.search_experiments(max_results=1)
    except StoreError:
        raise
    except Exception as error:  # MLflow, requests, SQLAlchemy and drivers have no common base
        raise explain(error, uri) from error
    _use(uri)
    return store


def _problem(uri: str) -> str | None:
    """Return what is wrong with an address that no store can have, else None. Such a store is not away: it never comes back."""
    try:
        parts = urlsplit(uri)
        server = parts.scheme in ("http", "https")
        wrong = server and (not parts.hostname or parts.port == 0 or any(character.isspace() for character in uri))
    except ValueError:  # e.g. a port that is not a number; the error's own message may hold a part of the password
        wrong = True
    if wrong:
        return "no server can have this address"
    if parts.scheme in ("", "file") or "://" not in uri:
        return "not an address. MLflow no longer keeps runs in folders; `mlflow migrate-filestore` converts old ones"
    return None


def _probe(uri: str) -> None:
    """Send a request as MLflow's own client does (login, proxy, certificates) to check the status, which that client hides."""
    from mlflow.utils import credentials, rest_utils

    login: Any = credentials.get_default_host_creds  # neither function has types
    request: Any = rest_utils.http_request
    answer = request(login(uri), PROBE, "POST", json={"max_results": 1}, raise_on_status=False)
    reason = f"tracking server {shown(uri)} answers {answer.status_code} {answer.reason}"
    if answer.status_code in (408, 429) or answer.status_code >= 500:
        raise StoreError(reason, away=True)
    if answer.status_code != 200:
        plain = answer.headers.get("Content-Type", "").startswith("text/plain")
        text = " ".join(answer.text.split())[:LONGEST_BODY] if plain else ""
        advice = _advice(text) or ADVICE_BY_STATUS.get(answer.status_code, NOT_MLFLOW)
        raise StoreError(f"{reason}{text and f' ({text})'}: {advice}")
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict) or (content and "experiments" not in content):
        kind = answer.headers.get("Content-Type", "no type")
        raise StoreError(f"tracking server {shown(uri)} answers with other content ({kind}): {NOT_MLFLOW}")


def explain(error: Exception, uri: str) -> StoreError:
    """Return an error that says in one sentence why the store at `uri` failed and what to do."""
    if isinstance(error, StoreError):
        return error
    text = " ".join(str(getattr(error, "message", "") or error or type(error).__name__).split())
    cause = " ".join(_cause(error).split())
    message = cause or text
    message = message if len(message) <= LONGEST_REASON else message[:LONGEST_REASON] + "..."
    code, is_server = getattr(error, "error_code", None), uri.startswith(("http://", "https://"))
    reason = f"tracking {'server' if is_server else 'store'} {shown(uri)}: {message.rstrip('.')}"
    advice = _advice(f"{text} {cause}") or ADVICE_BY_CODE.get(str(code))
    if advice:
        return StoreError(f"{reason}. To mend it: {advice.format(uri=shown(uri))}")
    return StoreError(reason, away=(code is None or code in PASSING) and not uri.startswith("sqlite:"))


def _advice(text: str) -> str | None:
    return next((advice for part, advice in ADVICE_BY_TEXT.items() if part in text), None)


def _cause(error: BaseException) -> str:
    """Return the message of the first error if it came from the system or a driver; else an empty text."""
    import sqlite3

    from urllib3.exceptions import HTTPError

    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return str(error) if isinstance(error, OSError | HTTPError | sqlite3.Error) else ""


def shown(uri: str) -> str:
    """Return the address without its password."""
    return re.sub(r"(://[^/@:]*:).*@", r"\1***@", uri)  # no urlsplit, because the address may be invalid


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of MLflow's client if a store, its database, its server or its files fail."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    kinds: list[type[Exception]] = [MlflowException, SQLAlchemyError, OSError]  # the library requests raises OSErrors
    with contextlib.suppress(ImportError):  # files in S3
        from botocore.exceptions import BotoCoreError, ClientError

        kinds += [BotoCoreError, ClientError]
    return tuple(kinds)


def on_the_store(action: Callable[[MlflowClient], None]) -> MlflowClient:
    """Run `action` on the configured store, or again on the spool if the store is away; return the store that was used.

    Raises StoreError if the user must mend something.
    """
    try:
        store = client()
        try:
            action(store)
        except failures() as error:
            raise explain(error, store.tracking_uri) from error
    except StoreError as error:
        if not error.away:
            raise
        reason = str(error)
    else:
        return store
    unusable: tuple[type[Exception], ...] = (StoreError, *failures())  # e.g. a full disk
    try:  # outside the handler, or the server's failure would become the cause of the spool's
        store = open_spool()
        action(store)
    except unusable as error:
        raise StoreError(f"{reason}. {SPOOL} cannot keep the run: {explain(error, spool_uri())}") from error
    print(f"{reason}: {LATER}", file=sys.stderr)  # noqa: T201 - a stage's line
    return store


def spool_uri() -> str:
    """Return the address of the spool's database."""
    return f"sqlite:///{SPOOL.resolve()}/mlflow.db"


def open_spool() -> MlflowClient:
    """Open the local store of runs that could not be sent; return its client."""
    SPOOL.mkdir(parents=True, exist_ok=True)
    return client(spool_uri())


def is_spool(store: MlflowClient) -> bool:
    """Return whether this is the local store of runs that could not be sent."""
    return str(store.tracking_uri) == spool_uri()


def experiment(store: MlflowClient, name: str) -> str:
    """Return the id of experiment `name`, created if it is missing. Raises StoreError if it was deleted."""
    stored = store.get_experiment_by_name(name)
    if stored is None:
        location = (SPOOL / "artifacts").resolve().as_uri() if is_spool(store) else None
        # Without this tag MLflow's page opens on traces of language models.
        tags: dict[str, Any] = {"mlflow.experimentKind": "custom_model_development"}
        return str(store.create_experiment(name, artifact_location=location, tags=tags))
    if stored.lifecycle_stage != "active":
        uri = str(store.tracking_uri)
        prefix = f"MLFLOW_TRACKING_URI={uri} " if uri == shown(uri) else ""
        raise StoreError(
            f"experiment {name!r} in {shown(uri)} was deleted, so nothing can be added to it. Restore it with all its runs: "
            f"`{prefix}mlflow experiments restore --experiment-id {stored.experiment_id}`"
        )
    return str(stored.experiment_id)


def find(store: MlflowClient, name: str, *, tag: str, value: str) -> Run | None:
    """Return the latest run of experiment `name` with this tag; None if there is none."""
    stored = store.get_experiment_by_name(name)
    if stored is None:
        return None
    runs = store.search_runs([stored.experiment_id], f"tags.{tag} = '{value}'", max_results=1)
    return runs[0] if runs else None


def _use(uri: str) -> None:
    """Make `uri` MLflow's current store. MLflow writes it to the environment, so the user's own setting is put back."""
    import mlflow

    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if chosen is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = chosen
