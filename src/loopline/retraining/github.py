"""Starts `retrain.yml` in GitHub Actions in place of a run here. Only ids pass; the token may write its Actions alone."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.retraining.policy import GitHub

TOKEN = "LOOPLINE_GITHUB_TOKEN"  # noqa: S105 - the name of a variable
TIMEOUT = 30.0  # seconds
LARGEST = 8 << 20  # bytes of an answer


def dispatch(to: GitHub, *, model: str, run: str) -> str:
    """Start the workflow for this run, once: one that carries the run's id already is left alone. Raises LooplineError.

    The alert's id is the run's. The workflow says `run-name: retrain ${{ inputs.run }}`, which is how it is found again.
    """
    if not (token := credentials.secret(TOKEN)):
        raise LooplineError(
            f"{TOKEN} is not set: a fine-grained token with write access to Actions of {to.repository}, no more"
        )
    workflow = f"{to.api.rstrip('/')}/repos/{to.repository}/actions/workflows/retrain.yml"
    query = urllib.parse.urlencode({"event": "workflow_dispatch", "per_page": 100})
    listed = _ask(f"{workflow}/runs?{query}", token).get("workflow_runs", [])
    if any(run in str(one.get("display_title", "")).split() for one in listed):
        return f"{to.repository} runs {run} already"
    _ask(f"{workflow}/dispatches", token, {"ref": to.ref, "inputs": {"model": model, "run": run}})
    return f"{to.repository}: retrain.yml was started for {run}"


def _ask(address: str, token: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {
        **credentials.authorization(token),
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
        "Content-Type": "application/json",
    }
    request = urllib.request.Request(address, json.dumps(body).encode() if body else None, headers)  # noqa: S310 - http or https, see the policy
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            found: dict[str, Any] = json.loads(answer.read(LARGEST) or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(500).decode("utf-8", "replace")
        raise LooplineError(f"GitHub refuses with {error.code}: {said} (may the token write Actions?)") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise LooplineError(f"{address} cannot be asked: {error}") from error
    return found
