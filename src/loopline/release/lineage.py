"""Where does what serves come from? `loopline whoami URL` walks the chain back, link by link, and holds each against the next.

    server ▸ metrics ▸ image ▸ bundle ▸ registry ▸ revision ▸ dvc.lock ▸ parameters ▸ code ▸ data

A link is whole, broken, or could not be looked at here, which is no better than broken unless somebody says that it may be missing.
Reads a live server, a bundle's folder, MLflow's registry, git and DVC; writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from loopline.errors import LooplineError
from loopline.lib import credentials
from loopline.lib.http import FetchError, fetch
from loopline.release import bundle
from loopline.release.bundle import Bundle

TIMEOUT = 10.0
MOST_BYTES = 16 << 20  # of an answer
KEPT = Path(".loopline/bundles")  # where a rollout keeps its copies
State = Literal["whole", "broken", "unchecked", "not asked"]
LINKS = ("server", "metrics", "image", "bundle", "registry", "revision", "dvc.lock", "parameters", "code", "data")
MARKS = {"whole": "✓", "broken": "✗", "unchecked": "?", "not asked": "-"}
T = TypeVar("T")


class _Unchecked(LooplineError):
    """The other side of a link is not here."""


class _NotAsked(LooplineError):
    """A link that this deployment need not have."""


@dataclass(frozen=True)
class Link:
    """One link of a model's chain, and what was compared with what."""

    model: str
    name: str
    state: State
    said: str

    def __str__(self) -> str:
        """As `loopline whoami` prints it."""
        return f"{MARKS[self.state]} {self.name:<10} {'not checked: ' * (self.state == 'unchecked')}{self.said}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    url: of a server or the gateway; metrics: of a server, where the gateway keeps them to itself. image: name of an image or of a
    container. bundle: its folder, where it is in none of the usual places. made_from: model and an unpacked revision -> sha256 of
    the parameters and of the code, as that revision's pipeline writes them into a bundle.
    """

    url: str
    made_from: Callable[[str, Path], tuple[str, str]]
    metrics: str = ""
    image: str = ""
    bundle: Path | None = None
    token: str | None = None


def models(question: Question) -> list[str]:
    """The names of the models that are served. Raises LooplineError where nobody answers."""
    try:
        rows = json.loads(_get(question, f"{question.url}/v2/repository/index", post=True))
        names = sorted(row["name"] for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        raise LooplineError(f"{question.url} is no server of models: {error!r}") from error
    if not names:
        raise LooplineError(f"{question.url} serves no model")
    return names


def walk(question: Question, model: str) -> Iterator[Link]:
    """Every link of a model's chain, in order; a broken one does not keep those after it from being looked at."""
    with tempfile.TemporaryDirectory() as scratch:
        chain = _Chain(question, model, Path(scratch))
        for name in LINKS:
            state: State = "whole"
            try:
                said = getattr(chain, name.replace(".", "_"))()
            except _Unchecked as error:
                state, said = "unchecked", str(error)
            except _NotAsked as error:
                state, said = "not asked", str(error)
            except LooplineError as error:
                state, said = "broken", str(error)
            except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
                state, said = "broken", f"what is there is of another form: {error!r}"
            yield Link(model, name, state, said)


def stands(links: Sequence[Link], allow_missing: Sequence[str] = ()) -> bool:
    """No link is broken, and none is unchecked but those that may be missing."""
    return not any(
        link.state == "broken" or (link.state == "unchecked" and link.name not in allow_missing) for link in links
    )


class _Chain:
    """One method a link: returns what was compared, or raises. What a link found stands in an attribute for those after it."""

    def __init__(self, question: Question, model: str, scratch: Path) -> None:
        self.asked, self.model, self.scratch = question, model, scratch
        self.version: str | None = None  # of the bundle
        self.found: Bundle | None = None
        self.tags: dict[str, str] | None = None
        self.revision_: str | None = None
        self.lock: dict[str, Any] | None = None

    def server(self) -> str:
        said = json.loads(_get(self.asked, f"{self.asked.url}/v2/models/{self.model}"))
        version = said["parameters"]["bundle"]
        if not re.fullmatch("[0-9a-f]{64}", version):
            raise LooplineError(f"{self.asked.url} names no bundle: {version!r:.80}")
        self.version = version
        return f"{self.asked.url}/v2/models/{self.model} serves bundle {self.version}"

    def metrics(self) -> str:
        from prometheus_client.parser import text_string_to_metric_families

        version = _given(self.version, "server")
        url = f"{self.asked.metrics or self.asked.url}/metrics"
        try:
            text = _get(self.asked, url).decode()
        except _Missing as error:
            raise _Unchecked(f"{error}; a gateway keeps them to itself: --metrics URL of a server") from error
        rows = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        ours = [sample for sample in rows if sample.labels.get("model") == self.model]
        exported = [one.labels["bundle"] for one in ours if one.name == "loopline_model_info" and one.value]
        if exported != [version]:
            raise LooplineError(f"{url}: model_info names bundle {_short(exported)}, served is {version:.12}")
        if [one.value for one in ours if one.name == "loopline_bundle_intact"] != [1.0]:
            raise LooplineError(f"{url}: bundle_intact is not 1: the server's files changed since they were loaded")
        return f"model_info names the same bundle, bundle_intact is 1: {url}"

    def image(self) -> str:
        version = _given(self.version, "server")
        if not self.asked.image:
            raise _NotAsked("is a container's: --image NAME compares its labels")
        labels = _labels(self.asked.image)
        inside = dict(word.split("=", 1) for word in labels.get("loopline.bundles", "").split())
        if not inside:
            raise _Unchecked(f"{self.asked.image} has no bundles in it, so its label names none")
        if inside.get(self.model) != version:
            raise LooplineError(
                f"{self.asked.image}: its label names {_short(inside.get(self.model))}, not {version:.12}"
            )
        built = labels.get("org.opencontainers.image.revision", "none")
        return f"{self.asked.image}: its label names the same bundle; built from {_commit(built)}"

    def bundle(self) -> str:
        version = _given(self.version, "server")
        usual = (Path("models") / self.model / "bundle", KEPT / self.model / version)
        for folder in [self.asked.bundle] if self.asked.bundle else usual:
            if folder == self.asked.bundle or ((folder / bundle.SUMS).exists() and bundle.version(folder) == version):
                found = bundle.read(folder)
                if found.version != version:
                    raise LooplineError(f"{folder} is bundle {found.version:.12}, served is {version:.12}")
                self.found = found
                return f"{folder}: every file has its sum in {bundle.SUMS}, and their hash is the served one"
        raise _Unchecked(f"not in {' or '.join(map(str, usual))}; --bundle FOLDER, or the registry's copy is taken")

    def registry(self) -> str:
        from loopline.release import registry

        version = _given(self.version, "server")
        try:
            stored = registry.fetch(self.model, version, self.scratch / "registered")
        except registry.Away as error:
            raise _Unchecked(str(error)) from error
        self.tags, self.found = stored.tags, self.found or stored.bundle
        lineage = stored.bundle.manifest.lineage
        for kind in ("data", "parameters", "code"):
            if stored.tags.get(f"{kind}_sha256") != getattr(lineage, kind):
                raise LooplineError(f"version {stored.number}: the tag {kind}_sha256 is not what its bundle.json says")
        if stored.run_tags.get(registry.HASH) != version:
            raise LooplineError(f"version {stored.number}: its run {stored.run} is of another bundle")
        return f"{self.model} version {stored.number} holds the same bundle, files and tags; run {stored.run}"

    def revision(self) -> str:
        said = _given(self.tags, "registry").get("git_revision", "none")
        told = _commit(said)
        self.revision_ = said
        return f"{told}, as the registry's tag says"

    def dvc_lock(self) -> str:
        revision, found = _given(self.revision_, "revision"), _given(self.found, "bundle")
        lock: dict[str, Any] = yaml.safe_load(_git("show", f"{revision}:dvc.lock"))
        wanted = _out(lock, f"package@{self.model}", f"models/{self.model}/bundle")
        if (here := _dvc_md5(found.folder)) != wanted:
            raise LooplineError(f"dvc.lock of {revision:.12}: package@{self.model} made {wanted}, the bundle is {here}")
        self.lock = lock
        return f"package@{self.model} made {wanted}, which is the bundle's content"

    def parameters(self) -> str:
        return self._made("parameters", 0, "params.yaml")

    def code(self) -> str:
        return self._made("code", 1, "src/loopline")

    def _made(self, kind: str, place: int, source: str) -> str:
        revision, found = _given(self.revision_, "revision"), _given(self.found, "bundle")
        tree = self.scratch / "tree"
        if not tree.exists():
            packed = self.scratch / "tree.tar"
            _git("archive", "--format=tar", f"--output={packed}", revision, "src/loopline", "params.yaml")
            with tarfile.open(packed) as archive:
                archive.extractall(tree, filter="data")
        here, wanted = self.asked.made_from(self.model, tree)[place], getattr(found.manifest.lineage, kind)
        if here != wanted:
            raise LooplineError(f"{source} of {revision:.12} gives {here:.12}, bundle.json says {wanted:.12}")
        return f"{source} of {revision:.12} gives {wanted:.12}, as bundle.json says"

    def data(self) -> str:
        lock, found = _given(self.lock, "dvc.lock"), _given(self.found, "bundle")
        path = Path("data") / self.model / "manifest.parquet"
        wanted = _out(lock, f"ingest@{self.model}", path.as_posix())
        content = _manifest(path, wanted, _given(self.revision_, "revision"))
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != wanted:
            raise LooplineError(f"DVC's copy of {path} is not {wanted}, which dvc.lock names")
        if (here := hashlib.sha256(content).hexdigest()) != found.manifest.lineage.data:
            raise LooplineError(f"{path} is {here:.12}, bundle.json says {found.manifest.lineage.data:.12}")
        return f"{path} is {wanted} as in dvc.lock, and {here:.12} as in bundle.json"


class _Missing(LooplineError):
    """404."""


def _given(value: T | None, link: str) -> T:
    if value is None:
        raise _Unchecked(f"nothing to compare with: see {link}")
    return value


def _short(version: Any) -> str:
    versions = [version] if isinstance(version, str) else version or ()
    return " and ".join(f"{one:.12}" for one in versions) or "none"


def _get(question: Question, url: str, *, post: bool = False) -> bytes:
    try:
        return fetch(
            url, b"" if post else None, credentials.authorization(question.token), timeout=TIMEOUT, most=MOST_BYTES
        )
    except FetchError as error:
        if error.status:
            raise (_Missing if error.status == 404 else LooplineError)(f"{url} answers {error.status}") from error
        raise LooplineError(f"{url} does not answer: {error}") from error


def _labels(image: str) -> dict[str, str]:
    """Of an image or a container, from the engine that has it."""
    for program in ("podman", "docker"):
        words = [program, "inspect", "--format", "{{json .Config.Labels}}", image]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return json.loads(done.stdout) or {}
    raise _Unchecked(f"neither podman nor docker here knows {image}")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # noqa: S607 - the user's git
    except FileNotFoundError as error:
        raise _Unchecked("git is not here") from error
    if done.returncode:
        raise LooplineError(f"`git {words[0]}`: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip()


def _commit(revision: str) -> str:
    """What a revision is. Raises LooplineError where no commit holds it."""
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise LooplineError(
            f"revision {revision}: no commit holds what it was made from; commit, then register or build again"
        )
    try:
        root = Path(_git("rev-parse", "--show-toplevel"))
    except LooplineError as error:
        raise _Unchecked(f"this is no repository, {error}") from error
    if not (root / "dvc.yaml").exists():
        raise _Unchecked(f"{root} is not the project's repository")
    try:
        return f"commit {_git('show', '--no-patch', '--format=%H (%cs)', f'{revision}^{{commit}}')}"
    except LooplineError as error:
        raise LooplineError(
            f"commit {revision} is not in this repository: `git fetch` it, or it is another's"
        ) from error


def _out(lock: dict[str, Any], stage: str, path: str) -> str:
    """The MD5 that dvc.lock has for an output."""
    try:
        return next(str(out["md5"]) for out in lock["stages"][stage]["outs"] if out["path"] == path)
    except (KeyError, TypeError, StopIteration) as error:
        raise LooplineError(f"dvc.lock has no output {path} of {stage}") from error


def _dvc_md5(folder: Path) -> str:
    """What DVC calls a folder: the MD5 of the JSON list of its files' paths and MD5s, sorted by path."""
    rows = [
        {
            "md5": hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
            "relpath": path.relative_to(folder).as_posix(),
        }
        for path in folder.rglob("*")
        if path.is_file()
    ]
    listed = json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True)
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"


def _manifest(path: Path, md5: str, revision: str) -> bytes:
    """The manifest of that revision: the one at `path` if it is that, else from DVC's cache or remote."""
    if path.exists() and hashlib.md5(here := path.read_bytes(), usedforsecurity=False).hexdigest() == md5:
        return here
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        content: bytes = dvc.api.read(str(path), rev=revision, mode="rb")
    except (DvcException, OSError) as error:
        raise _Unchecked(f"{path} of {revision:.12} is neither here nor in DVC's cache or remote: {error}") from error
    return content
