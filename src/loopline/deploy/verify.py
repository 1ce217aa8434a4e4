"""Does a live address serve what it should? Asked from outside, as a client asks: health, bundle hash, golden answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.http import FetchError, fetch
from loopline.observability import sentinel
from loopline.release import bundle

SECONDS = 10.0  # for an answer


def differences(url: str, folders: Sequence[Path]) -> list[str]:
    """What the server or gateway at `url` does otherwise than these bundles say, a line each; empty if nothing.

    A bearer token is LOOPLINE_TOKEN of the environment. Raises LooplineError where a bundle is damaged, has no golden inputs or is
    none, so that nothing passes unseen.
    """
    watched, token = sentinel.load(folders), credentials.secret(credentials.SERVER)
    headers = credentials.authorization(token)
    if not watched:
        raise LooplineError("no bundle to verify: run `make repro` first, or name some with --bundle")
    try:
        fetch(f"{url}/v2/health/ready", headers=headers, timeout=SECONDS)
    except FetchError as error:
        return [f"{url} is not ready: {error}"]
    found = []
    for one, folder in zip(watched, folders, strict=True):
        wanted = bundle.read(folder).version
        try:
            answer = fetch(f"{url}/v2/models/{one.name}", headers=headers, timeout=SECONDS)
            serves = json.loads(answer)["parameters"]["bundle"]
        except (FetchError, ValueError, KeyError, TypeError) as error:
            found.append(f"{one.name}: no metadata from {url}: {error!r}")
            continue
        if serves != wanted:
            found.append(f"{one.name}: bundle {serves:.12} is served, {wanted:.12} is asked for")
            continue
        for number, sample in enumerate(one.samples):
            result, far = sentinel.check(url, one, sample, token)
            if result != "same":
                said = f" by {far:.3g}" if result == "different" else ""
                found.append(f"{one.name}: golden input {number}: {result.replace('_', ' ')}{said}")
    return found
