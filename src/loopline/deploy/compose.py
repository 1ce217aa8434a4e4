"""Deployment in containers on one machine, with Docker Compose or podman-compose: serving/compose.yaml.

Two services, `blue` and `green`, take turns as the champion; the gateway sends to whichever is healthy. A third, `challenger`, is
asked its golden inputs before anything else changes, and gets a share while a canary is on. Sentinel and retrainer know the champion.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from types import MappingProxyType

from loopline.deploy import verify
from loopline.errors import LooplineError
from loopline.fleet import configuration, gateway, members
from loopline.fleet.gateway import CHALLENGER, CHAMPION, COLOURS
from loopline.lib import credentials, files, locks
from loopline.lib.http import FetchError, answers, fetch
from loopline.lib.waiting import until
from loopline.observability import prometheus_api, rules
from loopline.release import bundle, decisions, signature
from loopline.rollout import canary_metrics
from loopline.rollout.state import RolloutPlan

FOLDER = Path(".loopline/compose")
FILE = Path(__file__).parents[3] / "serving/compose.yaml"
SENTINEL, JOURNAL, RETRAINER = "sentinel", "journal", "retrainer"
WATCHERS = {SENTINEL: 9101, JOURNAL: 9102, RETRAINER: 9095}  # ports of their metrics
SERVICES = ("gateway", "alertmanager", "prometheus", *WATCHERS, "grafana", "postgres", "mlflow")
TOKEN = "LOOPLINE_RETRAINER_TOKEN"  # noqa: S105 - the name of a variable
SECRETS = ("POSTGRES_PASSWORD", "GRAFANA_ADMIN_PASSWORD", TOKEN)
READY_SECONDS = 120.0
PORTS = {"LOOPLINE_PORT": 8080, "LOOPLINE_METRICS_PORT": 8081, "LOOPLINE_CHALLENGER_PORT": 8085}


@dataclass(frozen=True)
class ComposeState:
    """What serves. active: the champion's colour. releases: service -> model -> the bundle's folder. share: of the challenger."""

    active: str = ""
    releases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    share: int = 0


@dataclass(frozen=True, kw_only=True)
class Compose:
    """The stack of serving/compose.yaml. services: beside the servers. share: percent that a canary gets. policy: the retrainer's.

    plan: how the judge is to judge a canary; None: nobody judges. scrape: seconds between two looks that Prometheus takes.
    """

    services: Sequence[str] = SERVICES
    share: int = 5
    plan: RolloutPlan | None = None
    scrape: float = 15.0
    policy: Path = configuration.CONFIGURATION / "retraining.yaml"
    folder: Path = FOLDER

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. What the golden inputs find wrong never gets a request of a client."""
        with locks.held(self.folder / "lock"):
            state, release = self._wanted(bundles)
            if state.active and not state.share and release == state.releases[state.active]:
                self._configure()
                self._tell(release)  # the policy or a token may be new, or the last one was killed before it got there
                said = ["all of these bundles serve already: nothing to do"]
            else:
                said = self._swap(state, release)
            try:
                return [*said, *self._checked(_url("LOOPLINE_PORT"), bundles)]
            except LooplineError:
                if state.active and state.active != self.read().active:
                    self._turn(self.read(), state.active)
                    _noted(state.releases[state.active], release, "rollback")
                raise

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Without a plan nobody judges: look at the dashboards, then `deploy` the same, or `rollback`.

        With one it waits for the judge, and raises LooplineError with its reasons once it has ended a canary that did not pass.
        """
        if self.plan and "prometheus" not in self.services:
            raise LooplineError("the judge asks Prometheus, which is not among the services")
        with locks.held(self.folder / "lock"):
            state, release = self._wanted(bundles)
            if not state.active:
                raise LooplineError("nothing serves yet: `make deploy TARGET=compose` first")
            serves = state.releases[state.active]
            new = [model for model, path in release.items() if serves.get(model, path) != path]
            if not new:
                raise LooplineError("all of these bundles serve already: there is nothing to try")
            self._try(state, release)
            self._write(replace(state, releases={**state.releases, CHALLENGER: release}, share=self.share))
            self._shares(dict.fromkeys(new, self.share))
            try:
                self._until(lambda: _up(CHALLENGER, lane=CHALLENGER), CHALLENGER)  # until then the champion stands in
            except LooplineError:
                self._end_trial(replace(self.read(), share=0))
                raise
        said = [f"{', '.join(new)}: {self.share} % of the requests go to the challenger"]
        return said if self.plan is None else [*said, *self._soak(self.plan, release, new)]

    def _soak(self, plan: RolloutPlan, release: Mapping[str, str], models: Sequence[str]) -> list[str]:
        """Without the lock, so that somebody can end it by hand."""
        before = _stood_in()

        def sick() -> str:
            state = self.read()
            if not state.share or state.releases.get(CHALLENGER) != release:
                raise LooplineError("the canary was ended by hand")
            if (stood_in := _stood_in() - before) > 0:
                return f"the champion had to answer {stood_in} requests for the challenger"
            return "" if _up(CHALLENGER, lane=CHALLENGER) else "the gateway finds the challenger down"

        ask = partial(prometheus_api.instant, _url("LOOPLINE_PROMETHEUS_PORT"))
        verdict = canary_metrics.Soak(ask=ask, sick=sick, plan=plan, scrape=self.scrape).verdict(models)
        passed = verdict.action == "pass"
        with locks.held(self.folder / "lock"):
            sick()  # as it is now
            if not passed:
                self._end_trial(replace(self.read(), share=0))
            serves = self.read().releases[self.read().active]
            for model in models:
                ours, champion = (bundle.read(Path(of[model])).version for of in (release, serves))
                decisions.append(
                    model,
                    "canary" if passed else "rollback",
                    bundle=ours if passed else champion,
                    champion=champion,
                    reasons=verdict.reasons,
                    evidence={"withdrawn": ours} if verdict.action == "roll back" else {},
                )
        return canary_metrics.said(verdict)

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`."""
        return verify.differences(_url("LOOPLINE_PORT"), bundles)

    def rollback(self, model: str | None) -> list[str]:
        """See `Target`. The whole release goes back: a canary ends, or the colour before takes over."""
        if model:
            raise LooplineError("in containers the whole release goes back: leave the model out")
        with locks.held(self.folder / "lock"):
            state = self.read()
            if state.share:
                self._end_trial(replace(state, share=0))
                return ["the canary is over, the champion serves all"]
            before = _other(state.active)
            if not state.releases.get(before):
                raise LooplineError("there is no release before this one to go back to")
            self._turn(state, before)
            _noted(state.releases[before], state.releases[state.active], "rollback")
            return [f"{before} serves again: {_versions(state.releases[before])}"]

    def read(self) -> ComposeState:
        """What was done last."""
        try:
            return ComposeState(**json.loads((self.folder / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ComposeState()

    def down(self) -> None:
        """End every container; data stays in its volumes. What served is forgotten: the next deployment is a first one."""
        with locks.held(self.folder / "lock"):
            self._compose("down", given=dict.fromkeys(SECRETS, "not needed"))
            (self.folder / "state.json").unlink(missing_ok=True)
            files.write(self.folder / "gateway/shares.map", "", shared=True)

    def _wanted(self, bundles: Sequence[Path]) -> tuple[ComposeState, dict[str, str]]:
        """What serves, and what is to: the bundles that are named, and of other models those that serve."""
        if missing := [name for name in SECRETS if not os.environ.get(name)]:
            raise LooplineError(f"{' and '.join(missing)} must be set in the environment, and not be empty")
        kept = [members.keep(path) for path in bundles]
        asked = {model: str(found.folder) for model, found in kept}
        if len(asked) < len(kept):
            raise LooplineError("two of the bundles are of one model: name one of each")
        state = self.read()
        return state, {**state.releases.get(state.active, {}), **asked}

    def _swap(self, state: ComposeState, release: dict[str, str]) -> list[str]:
        self._configure()
        if JOURNAL in self.services:  # first of all: its image says who may write into the volume
            self._compose("up", "--detach", "--no-deps", "--no-recreate", JOURNAL)
        if not (state.share and state.releases.get(CHALLENGER) == release):  # else its canary has shown that
            self._try(state, release)
        to = _other(state.active)
        self._fill(to, release)
        self._turn(replace(state, releases={**state.releases, to: release}), to)
        _noted(release, state.releases.get(state.active, {}), "promote")
        return [f"{to} serves: {_versions(release)}"]

    def _try(self, state: ComposeState, release: dict[str, str]) -> None:
        """Start it where no client gets to, and ask its golden inputs. Raises LooplineError, and nothing but a canary has ended."""
        state = replace(state, share=0)
        if self.read().share:
            self._end_trial(state)
        self._fill(CHALLENGER, release)
        self._compose("up", "--detach", "--no-deps", "--force-recreate", CHALLENGER)
        url = _url("LOOPLINE_CHALLENGER_PORT")
        try:
            self._until(lambda: answers(f"{url}/v2/health/ready"), CHALLENGER)
            self._checked(url, [Path(path) for path in release.values()])
        except LooplineError:
            self._end_trial(state)
            raise

    def _turn(self, state: ComposeState, to: str) -> None:
        """The colour `to` takes over: it starts, and once the gateway sees it, the other one ends."""
        self._compose("up", "--detach", "--no-deps", "--force-recreate", to)
        self._compose(
            "up", "--detach", "--no-recreate", *(one for one in self.services if one not in (SENTINEL, RETRAINER))
        )
        try:
            self._until(lambda: _up(to), to)
        except LooplineError:
            self._compose("stop", to)
            raise
        self._end_trial(replace(state, active=to, share=0))
        if state.active:
            self._compose("stop", state.active)
        self._tell(state.releases[to])  # now that no other version answers

    def _tell(self, release: Mapping[str, str]) -> None:
        """Those that watch the champion learn which it is, and what of the configuration and the environment is new."""
        self._fill(CHAMPION, {f"{model}/bundle": path for model, path in release.items()})
        for service in {"prometheus", "alertmanager"}.intersection(self.services):
            self._compose("kill", "--signal", "HUP", service)
        if anew := [one for one in (SENTINEL, RETRAINER) if one in self.services]:
            token = self.folder / "alertmanager/token"
            files.write(token, credentials.secret(TOKEN) or "", shared=True)
            token.chmod(0o644)  # Alertmanager's user reads it; of this machine's users only ours gets into the folder
            self._compose("up", "--detach", "--no-deps", "--force-recreate", *anew)

    def _end_trial(self, state: ComposeState) -> None:
        if self.read().share:
            self._shares({})
        self._compose("stop", CHALLENGER)
        self._write(replace(state, releases={k: v for k, v in state.releases.items() if k != CHALLENGER}))

    def _shares(self, shares: Mapping[str, int]) -> None:
        """Model -> percent. The gateway reads them anew; no connection is closed on a client that waits."""
        text = "".join(f"{model} {share}\n" for model, share in shares.items())
        files.write(self.folder / "gateway/shares.map", text, shared=True)
        self._compose("kill", "--signal", "USR2", "gateway")

    def _configure(self) -> None:
        """What gateway, Prometheus and Alertmanager are told."""
        import yaml

        for name in ("gateway", "prometheus", "alertmanager", CHAMPION, CHALLENGER, *COLOURS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        (self.folder / "gateway/haproxy.cfg").write_text(gateway.containers("/etc/loopline"), encoding="utf-8")
        (self.folder / "gateway/shares.map").touch()
        (self.folder / "prometheus/rules.yml").write_text(rules.text(rules.WINDOW), encoding="utf-8")
        source = configuration.CONFIGURATION
        prometheus = yaml.safe_load((source / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
        prometheus["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": ["alertmanager:9093"]}]}]}
        prometheus["global"]["scrape_interval"] = f"{ceil(1000 * self.scrape)}ms"
        names = {"names": [*COLOURS, CHALLENGER], "type": "A", "port": 8080, "refresh_interval": "5s"}
        lane = {"source_labels": ["__meta_dns_name"], "target_label": "lane"}
        champion = {"regex": "|".join(COLOURS), "replacement": CHAMPION}
        prometheus["scrape_configs"] = [
            {"job_name": "loopline", "dns_sd_configs": [names], "relabel_configs": [lane, {**lane, **champion}]},
            *(
                {"job_name": name, "static_configs": [{"targets": [f"{name}:{port}"]}]}
                for name, port in {"gateway": 8081, **WATCHERS}.items()
                if name in self.services
            ),
        ]
        (self.folder / "prometheus/prometheus.yml").write_text(yaml.safe_dump(prometheus), encoding="utf-8")
        manager = yaml.safe_load((source / "alertmanager/alertmanager.yml").read_text(encoding="utf-8"))
        if RETRAINER in self.services:
            configuration.tell_retrainer(manager, f"http://{RETRAINER}:{WATCHERS[RETRAINER]}", "/etc/loopline/token")
        else:
            configuration.without_retrainer(manager)
        (self.folder / "alertmanager/alertmanager.yml").write_text(yaml.safe_dump(manager), encoding="utf-8")

    def _fill(self, service: str, release: Mapping[str, str]) -> None:
        """The service's folder of bundles; it does not run, or is started anew."""
        folder = self.folder / service
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for model, path in release.items():
            shutil.copytree(path, folder / model)
            signature.carry(Path(path), folder / model)
        for found in (folder, *folder.rglob("*")):  # the container's user is not the one who made them
            found.chmod(0o755 if found.is_dir() else 0o644)

    def _write(self, state: ComposeState) -> None:
        files.write(self.folder / "state.json", json.dumps(asdict(state), indent=1), shared=True)

    def _checked(self, url: str, bundles: Sequence[Path]) -> list[str]:
        if wrong := verify.differences(url, bundles):
            raise LooplineError("\n  ".join(["it does not answer as it should:", *wrong]))
        return [f"verified: {len(bundles)} bundles answer as they should at {url}"]

    def _until(self, true: Callable[[], bool], service: str) -> None:
        if not until(true, READY_SECONDS, every=0.2):
            logs = self._compose("logs", "--tail=20", service)
            raise LooplineError(f"{service} did not get ready; the end of its log:\n{logs[-1500:]}")

    def _compose(self, *words: str, given: Mapping[str, str] = MappingProxyType({})) -> str:
        """given: beside the environment. Raises LooplineError with its words where it fails."""
        command = [*engine(), "--file", str(FILE), *words]
        env = (
            os.environ
            | given
            | {
                "LOOPLINE_HOME": str(self.folder.absolute()),
                "LOOPLINE_POLICY": str(self.policy.absolute()),
            }
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise LooplineError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr.strip()[-1500:]}")
        return done.stdout + done.stderr


def engine() -> list[str]:
    """The words that start Compose: LOOPLINE_COMPOSE, else what works here. Raises LooplineError where nothing does."""
    if given := os.environ.get("LOOPLINE_COMPOSE"):
        return shlex.split(given)
    for words in (["docker", "compose"], ["podman-compose"]):
        if not shutil.which(words[0]):
            continue
        if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    raise LooplineError("neither `docker compose` nor `podman-compose` works here: install one, or TARGET=process")


def _other(colour: str) -> str:
    return COLOURS[1] if colour == COLOURS[0] else COLOURS[0]


def _url(port: str) -> str:
    return f"http://127.0.0.1:{os.environ.get(port) or PORTS[port]}"


def _gateway() -> list[str]:
    """Lines of its metrics; none where it does not answer."""
    try:
        return fetch(f"{_url('LOOPLINE_METRICS_PORT')}/metrics", timeout=5).decode().splitlines()
    except FetchError:
        return []


def _up(server: str, lane: str = CHAMPION) -> bool:
    """Does the gateway see it?"""
    return f'haproxy_server_status{{proxy="{lane}",server="{server}",state="UP"}} 1' in _gateway()


def _stood_in() -> int:
    """Requests of the challenger's share that the champion had to answer, since the gateway learned of the share."""
    of = tuple(f'haproxy_server_sessions_total{{proxy="{CHALLENGER}",server="{colour}"}} ' for colour in COLOURS)
    return sum(int(float(row.split()[-1])) for row in _gateway() if row.startswith(of))


def _versions(release: Mapping[str, str]) -> str:
    return ", ".join(f"{model} {Path(path).name:.12}" for model, path in sorted(release.items()))


def _noted(release: Mapping[str, str], before: Mapping[str, str], action: str) -> None:
    """A line in the decision log for each model that changed."""
    for model, path in release.items():
        if before.get(model) != path:
            version = bundle.read(Path(path)).version
            decisions.append(model, action, bundle=version, champion=version, reasons=["deployed with compose"])
