"""The lineage of the served models: `loopline whoami URL` follows the chain back and compares each link with the next.

    server ▸ metrics ▸ image ▸ bundle ▸ registry ▸ revision ▸ dvc.lock ▸ parameters ▸ code ▸ data

A link is whole, broken, or could not be checked here. An unchecked link fails like a broken one, unless the user allows it to be
missing. Reads a live server, a bundle's folder, MLflow's registry, git and DVC; writes nothing.
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
from loopline.lib.http_client import FetchError, fetch
from loopline.release import bundle
from loopline.release.bundle import Bundle

TIMEOUT = 10.0  # seconds
MOST_BYTES = 16 << 20  # limit for an answer
KEPT = Path(".loopline/bundles")  # copies that rollouts keep
State = Literal["whole", "broken", "unchecked", "not asked"]
LINKS = ("server", "metrics", "image", "bundle", "registry", "revision", "dvc.lock", "parameters", "code", "data")
MARKS = {"whole": "✓", "broken": "✗", "unchecked": "?", "not asked": "-"}
T = TypeVar("T")


class _Unchecked(LooplineError):
    """The other side of a link cannot be read here."""


class _NotAsked(LooplineError):
    """A link that this deployment does not need."""


@dataclass(frozen=True)
class Link:
    """One link of a model's chain. outcome: what was compared, or what is wrong."""

    model: str
    name: str
    state: State
    outcome: str

    def __str__(self) -> str:
        """Return the line that `loopline whoami` prints."""
        return f"{MARKS[self.state]} {self.name:<10} {'not checked: ' * (self.state == 'unchecked')}{self.outcome}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What to check, and where.

    url: address of a server or the gateway. metrics: address of a server, if the gateway does not pass on /metrics. image: name of
    an image or a container. bundle: folder of the bundle, if it is in none of the usual places. made_from: model and an unpacked
    revision -> sha256 of the parameters and of the code, as that revision's pipeline writes them into a bundle.
    """

    url: str
    made_from: Callable[[str, Path], tuple[str, str]]
    metrics: str = ""
    image: str = ""
    bundle: Path | None = None
    token: str | None = None


def models(question: Question) -> list[str]:
    """Return the names of the served models. Raises LooplineError if no server of models answers."""
    try:
        rows = json.loads(_get(question, f"{question.url}/v2/repository/index", post=True))
        names = sorted(row["name"] for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        raise LooplineError(f"{question.url} is not a server of models: {error!r}") from error
    if not names:
        raise LooplineError(f"{question.url} serves no model")
    return names


def walk(question: Question, model: str) -> Iterator[Link]:
    """Yield every link of a model's chain in order. The links after a broken one are checked as well."""
    with tempfile.TemporaryDirectory() as scratch:
        chain = _Chain(question, model, Path(scratch))
        for name in LINKS:
            state: State = "whole"
            try:
                text = getattr(chain, name.replace(".", "_"))()
            except _Unchecked as error:
                state, text = "unchecked", str(error)
            except _NotAsked as error:
                state, text = "not asked", str(error)
            except LooplineError as error:
                state, text = "broken", str(error)
            except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
                state, text = "broken", f"its content has an unexpected form: {error!r}"
            yield Link(model, name, state, text)


def stands(links: Sequence[Link], allow_missing: Sequence[str] = ()) -> bool:
    """Return whether no link is broken and every unchecked one is in `allow_missing`."""
    return not any(
        link.state == "broken" or (link.state == "unchecked" and link.name not in allow_missing) for link in links
    )


class _Chain:
    """One method for each link: it returns what was compared, or raises. Attributes hold what later links need."""

    def __init__(self, question: Question, model: str, scratch: Path) -> None:
        self.question, self.model, self.scratch = question, model, scratch
        self.version: str | None = None  # of the served bundle
        self.opened: Bundle | None = None  # its files
        self.tags: dict[str, str] | None = None
        self.revision_: str | None = None
        self.lock: dict[str, Any] | None = None

    def server(self) -> str:
        answer = json.loads(_get(self.question, f"{self.question.url}/v2/models/{self.model}"))
        version = answer["parameters"]["bundle"]
        if not re.fullmatch("[0-9a-f]{64}", version):
            raise LooplineError(f"{self.question.url} names no bundle: {version!r:.80}")
        self.version = version
        return f"{self.question.url}/v2/models/{self.model} serves bundle {self.version}"

    def metrics(self) -> str:
        from prometheus_client.parser import text_string_to_metric_families

        version = _required(self.version, "server")
        url = f"{self.question.metrics or self.question.url}/metrics"
        try:
            text = _get(self.question, url).decode()
        except _Missing as error:
            raise _Unchecked(f"{error}; behind a gateway, set --metrics URL to a server") from error
        rows = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        samples = [sample for sample in rows if sample.labels.get("model") == self.model]
        exported = [row.labels["bundle"] for row in samples if row.name == "loopline_model_info" and row.value]
        if exported != [version]:
            raise LooplineError(f"{url}: model_info names bundle {_short(exported)}, but {version:.12} is served")
        if [row.value for row in samples if row.name == "loopline_bundle_intact"] != [1.0]:
            raise LooplineError(f"{url}: bundle_intact is not 1: the server's files changed since they were loaded")
        return f"model_info names the same bundle, bundle_intact is 1: {url}"

    def image(self) -> str:
        version = _required(self.version, "server")
        if not self.question.image:
            raise _NotAsked("only for containers: --image NAME compares the labels")
        labels = _labels(self.question.image)
        inside = dict(word.split("=", 1) for word in labels.get("loopline.bundles", "").split())
        if not inside:
            raise _Unchecked(f"{self.question.image} holds no bundles, so its label names none")
        if inside.get(self.model) != version:
            raise LooplineError(
                f"{self.question.image}: its label names {_short(inside.get(self.model))}, not {version:.12}"
            )
        built = labels.get("org.opencontainers.image.revision", "none")
        return f"{self.question.image}: its label names the same bundle; built from {_commit(built)}"

    def bundle(self) -> str:
        version = _required(self.version, "server")
        usual = (Path("models") / self.model / "bundle", KEPT / self.model / version)
        for folder in [self.question.bundle] if self.question.bundle else usual:
            if folder == self.question.bundle or (
                (folder / bundle.SUMS).exists() and bundle.version(folder) == version
            ):
                opened = bundle.read(folder)
                if opened.version != version:
                    raise LooplineError(f"{folder} is bundle {opened.version:.12}, but {version:.12} is served")
                self.opened = opened
                return f"{folder}: every file has its sum in {bundle.SUMS}, and their hash is the served one"
        raise _Unchecked(f"not in {' or '.join(map(str, usual))}: set --bundle, else the registry's copy is used")

    def registry(self) -> str:
        from loopline.release import registry

        version = _required(self.version, "server")
        try:
            stored = registry.fetch(self.model, version, self.scratch / "registered")
        except registry.Away as error:
            raise _Unchecked(str(error)) from error
        self.tags, self.opened = stored.tags, self.opened or stored.bundle
        lineage = stored.bundle.manifest.lineage
        for kind in ("data", "parameters", "code"):
            if stored.tags.get(f"{kind}_sha256") != getattr(lineage, kind):
                raise LooplineError(f"version {stored.number}: the tag {kind}_sha256 differs from its bundle.json")
        if stored.run_tags.get(registry.HASH) != version:
            raise LooplineError(f"version {stored.number}: its run {stored.run} is of another bundle")
        return f"{self.model} version {stored.number} holds the same bundle, files and tags; run {stored.run}"

    def revision(self) -> str:
        revision = _required(self.tags, "registry").get("git_revision", "none")
        commit = _commit(revision)
        self.revision_ = revision
        return f"{commit}, as the registry's tag says"

    def dvc_lock(self) -> str:
        revision, opened = _required(self.revision_, "revision"), _required(self.opened, "bundle")
        lock: dict[str, Any] = yaml.safe_load(_git("show", f"{revision}:dvc.lock"))
        locked = _out(lock, f"package@{self.model}", f"models/{self.model}/bundle")
        if (md5 := _dvc_md5(opened.folder)) != locked:
            raise LooplineError(f"dvc.lock of {revision:.12}: package@{self.model} made {locked}, the bundle is {md5}")
        self.lock = lock
        return f"package@{self.model} made {locked}, which is the bundle's content"

    def parameters(self) -> str:
        return self._made("parameters", 0, "params.yaml")

    def code(self) -> str:
        return self._made("code", 1, "src/loopline")

    def _made(self, kind: str, place: int, source: str) -> str:
        revision, opened = _required(self.revision_, "revision"), _required(self.opened, "bundle")
        tree = self.scratch / "tree"
        if not tree.exists():
            packed = self.scratch / "tree.tar"
            _git("archive", "--format=tar", f"--output={packed}", revision, "src/loopline", "params.yaml")
            with tarfile.open(packed) as archive:
                archive.extractall(tree, filter="data")
        computed, recorded = self.question.made_from(self.model, tree)[place], getattr(opened.manifest.lineage, kind)
        if computed != recorded:
            raise LooplineError(f"{source} of {revision:.12} gives {computed:.12}, bundle.json says {recorded:.12}")
        return f"{source} of {revision:.12} gives {recorded:.12}, as bundle.json says"

    def data(self) -> str:
        lock, opened = _required(self.lock, "dvc.lock"), _required(self.opened, "bundle")
        path = Path("data") / self.model / "manifest.parquet"
        locked = _out(lock, f"ingest@{self.model}", path.as_posix())
        content = _manifest(path, locked, _required(self.revision_, "revision"))
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != locked:
            raise LooplineError(f"DVC's copy of {path} is not {locked}, which dvc.lock names")
        if (sha256 := hashlib.sha256(content).hexdigest()) != opened.manifest.lineage.data:
            raise LooplineError(f"{path} is {sha256:.12}, bundle.json says {opened.manifest.lineage.data:.12}")
        return f"{path} is {locked} as in dvc.lock, and {sha256:.12} as in bundle.json"


class _Missing(LooplineError):
    """A server answers 404."""


def _required(value: T | None, link: str) -> T:
    if value is None:
        raise _Unchecked(f"nothing to compare with, because the link {link} is not whole")
    return value


def _short(version: Any) -> str:
    versions = [version] if isinstance(version, str) else version or ()
    return " and ".join(f"{item:.12}" for item in versions) or "none"


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
    """Return the labels of an image or a container from the engine that has it."""
    for program in ("podman", "docker"):
        words = [program, "inspect", "--format", "{{json .Config.Labels}}", image]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return json.loads(done.stdout) or {}
    raise _Unchecked(f"neither podman nor docker on this machine has {image}")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # noqa: S607 - the user's git
    except FileNotFoundError as error:
        raise _Unchecked("git is not installed") from error
    if done.returncode:
        raise LooplineError(f"`git {words[0]}`: {''.join(done.stderr.strip().splitlines()[-1:])}")
    return done.stdout.strip()


def _commit(revision: str) -> str:
    """Return the hash and the date of a revision. Raises LooplineError if it is not a commit of this repository."""
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise LooplineError(
            f"revision {revision} is not a commit, so the sources are unknown: commit, then register or build again"
        )
    try:
        root = Path(_git("rev-parse", "--show-toplevel"))
    except LooplineError as error:
        raise _Unchecked(f"this folder is not in a git repository: {error}") from error
    if not (root / "dvc.yaml").exists():
        raise _Unchecked(f"{root} is not the project's repository")
    try:
        return f"commit {_git('show', '--no-patch', '--format=%H (%cs)', f'{revision}^{{commit}}')}"
    except LooplineError as error:
        raise LooplineError(
            f"commit {revision} is not in this repository: run `git fetch`; it may be of another repository"
        ) from error


def _out(lock: dict[str, Any], stage: str, path: str) -> str:
    """Return the MD5 of an output in dvc.lock."""
    try:
        return next(str(out["md5"]) for out in lock["stages"][stage]["outs"] if out["path"] == path)
    except (KeyError, TypeError, StopIteration) as error:
        raise LooplineError(f"dvc.lock has no output {path} of {stage}") from error


def _dvc_md5(folder: Path) -> str:
    """Return DVC's name for a folder: the MD5 of the JSON list of its files' paths and MD5s, sorted by path."""
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
    """Return the manifest of a revision: the file at `path` if it has that MD5, else the one in DVC's cache or remote."""
    if path.exists() and hashlib.md5(local := path.read_bytes(), usedforsecurity=False).hexdigest() == md5:
        return local
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        content: bytes = dvc.api.read(str(path), rev=revision, mode="rb")
    except (DvcException, OSError) as error:
        raise _Unchecked(f"{path} of {revision:.12} is neither here nor in DVC's cache or remote: {error}") from error
    return content
