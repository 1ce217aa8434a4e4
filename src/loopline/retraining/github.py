"""Start the workflow `retrain.yml` in GitHub Actions in place of a local run. Only the model's name and the run's id are sent."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.http_client import FetchError, fetch
from loopline.retraining.policy import GitHub

TOKEN = "LOOPLINE_GITHUB_TOKEN"  # noqa: S105 - the name of a variable
TIMEOUT = 30.0  # seconds
LARGEST = 8 << 20  # bytes of an answer


def dispatch(to: GitHub, *, model: str, run: str) -> str:
    """Start the workflow for this run, unless it was started before; say which. Raises LooplineError.

    The workflow sets `run-name: retrain ${{ inputs.run }}`, so the run's id in a title shows that it was started already.
    """
    if not (token := credentials.secret(TOKEN)):
        raise LooplineError(
            f"{TOKEN} is not set: create a fine-grained token with write access to Actions of {to.repository} alone"
        )
    workflow = f"{to.api.rstrip('/')}/repos/{to.repository}/actions/workflows/retrain.yml"
    query = urllib.parse.urlencode({"event": "workflow_dispatch", "per_page": 100})
    listed = _ask(f"{workflow}/runs?{query}", token).get("workflow_runs", [])
    if any(run in str(started.get("display_title", "")).split() for started in listed):
        return f"{to.repository}: retrain.yml was already started for {run}"
    _ask(f"{workflow}/dispatches", token, {"ref": to.ref, "inputs": {"model": model, "run": run}})
    return f"{to.repository}: retrain.yml was started for {run}"


def _ask(address: str, token: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {
        **credentials.authorization(token),
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
        "Content-Type": "application/json",
    }
    try:
        content = fetch(address, json.dumps(body).encode() if body else None, headers, timeout=TIMEOUT, most=LARGEST)
        answer: dict[str, Any] = json.loads(content or b"{}")
    except FetchError as error:
        if error.status:
            words = error.content[:500].decode("utf-8", "replace")
            raise LooplineError(
                f"GitHub refuses with {error.status}: {words} (does the token have write access to Actions?)"
            ) from error
        raise LooplineError(f"cannot reach {address}: {error}") from error
    except ValueError as error:
        raise LooplineError(f"cannot reach {address}: {error}") from error
    return answer
