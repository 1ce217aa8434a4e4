"""Verify what a live address serves, from outside as a client: health, bundle hash, golden answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.http_client import FetchError, fetch
from loopline.observability import sentinel
from loopline.release import bundle

SECONDS = 10.0  # limit for an answer


def differences(url: str, folders: Sequence[Path]) -> list[str]:
    """Return a line for each difference between the server or gateway at `url` and these bundles; empty if there is none.

    The bearer token is LOOPLINE_TOKEN of the environment. Raises LooplineError if there is no bundle, or if one is damaged or has
    no golden inputs, so that nothing passes unchecked.
    """
    watched, token = sentinel.load(folders), credentials.secret(credentials.SERVER)
    headers = credentials.authorization(token)
    if not watched:
        raise LooplineError("no bundle to verify: run `make repro` first, or name bundles with --bundle")
    try:
        fetch(f"{url}/v2/health/ready", headers=headers, timeout=SECONDS)
    except FetchError as error:
        return [f"{url} is not ready: {error}"]
    wrong = []
    for model, folder in zip(watched, folders, strict=True):
        version = bundle.read(folder).version
        try:
            answer = fetch(f"{url}/v2/models/{model.name}", headers=headers, timeout=SECONDS)
            serves = json.loads(answer)["parameters"]["bundle"]
        except (FetchError, ValueError, KeyError, TypeError) as error:
            wrong.append(f"{model.name}: no metadata from {url}: {error!r}")
            continue
        if serves != version:
            wrong.append(f"{model.name}: bundle {serves:.12} is served, {version:.12} is expected")
            continue
        for number, sample in enumerate(model.samples):
            result, distance = sentinel.check(url, model, sample, token)
            if result != "same":
                by = f" by {distance:.3g}" if result == "different" else ""
                wrong.append(f"{model.name}: golden input {number}: {result.replace('_', ' ')}{by}")
    return wrong
