"""Deployment in containers on one machine, with Docker Compose or podman-compose: serving/compose.yaml.

Two services, `blue` and `green`, take turns as the champion, and the gateway sends requests to the healthy one. A third service,
`challenger`, must answer its golden inputs before anything else changes, and gets a share of the requests during a canary.
Sentinel and retrainer have a copy of the champion's bundles.
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
from pathlib import Path
from types import MappingProxyType

from loopline.deploy import compose_configuration, compose_gateway, verify
from loopline.errors import LooplineError
from loopline.fleet import configuration, members
from loopline.fleet.gateway import CHALLENGER, CHAMPION, COLOURS
from loopline.lib import credentials, files, locks
from loopline.lib.http_client import answers
from loopline.lib.waiting import until
from loopline.observability import prometheus_api
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


@dataclass(frozen=True)
class ComposeState:
    """The present deployment.

    active: the champion's colour, empty before the first deployment. releases: service -> model -> the bundle's folder. share:
    percent of the requests that the challenger gets.
    """

    active: str = ""
    releases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    share: int = 0


@dataclass(frozen=True, kw_only=True)
class Compose:
    """The stack of serving/compose.yaml.

    services: those to run beside the servers. share: percent of the requests that a canary gets. plan: for the judge of a canary;
    None: no judge. scrape: seconds between two scrapes by Prometheus. policy: file of the retrainer's. folder: of state and
    configuration.
    """

    services: Sequence[str] = SERVICES
    share: int = 5
    plan: RolloutPlan | None = None
    scrape: float = 15.0
    policy: Path = configuration.CONFIGURATION / "retraining.yaml"
    folder: Path = FOLDER

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. A bundle that fails its golden inputs never gets a client's request."""
        with locks.held(self.folder / "lock"):
            state, release = self._plan_release(bundles)
            if state.active and not state.share and release == state.releases[state.active]:
                self._configure()
                self._tell(release)  # policy or token may be new, or an earlier call was killed before it got here
                lines = ["all of these bundles already serve: nothing to do"]
            else:
                lines = self._swap(state, release)
            try:
                return [*lines, *self._checked(compose_gateway.url("LOOPLINE_PORT"), bundles)]
            except LooplineError:
                if state.active and state.active != self.read().active:
                    self._turn(self.read(), state.active)
                    _noted(state.releases[state.active], release, "rollback")
                raise

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Without a plan there is no judge: look at the dashboards, then `deploy` the same, or `rollback`.

        With a plan it waits for the judge. It ends a canary that does not pass, and raises LooplineError with the judge's
        reasons.
        """
        if self.plan and "prometheus" not in self.services:
            raise LooplineError("the judge needs Prometheus, which is not among the services: add it to --services")
        with locks.held(self.folder / "lock"):
            state, release = self._plan_release(bundles)
            if not state.active:
                raise LooplineError("nothing serves yet: `make deploy TARGET=compose` first")
            serves = state.releases[state.active]
            new = [model for model, path in release.items() if serves.get(model, path) != path]
            if not new:
                raise LooplineError("all of these bundles already serve: there is nothing to try")
            self._try(state, release)
            self._write(replace(state, releases={**state.releases, CHALLENGER: release}, share=self.share))
            self._shares(dict.fromkeys(new, self.share))
            try:  # until the challenger is up, the champion answers for it
                self._until(lambda: compose_gateway.reports_up(CHALLENGER, lane=CHALLENGER), CHALLENGER)
            except LooplineError:
                self._end_trial(replace(self.read(), share=0))
                raise
        lines = [f"{', '.join(new)}: {self.share} % of the requests go to the challenger"]
        return lines if self.plan is None else [*lines, *self._soak(self.plan, release, new)]

    def _soak(self, plan: RolloutPlan, release: Mapping[str, str], models: Sequence[str]) -> list[str]:
        """Wait for the judge and note its decision. The wait is without the lock, so that a manual command can end the canary."""
        before = compose_gateway.stood_in()

        def sick() -> str:
            state = self.read()
            if not state.share or state.releases.get(CHALLENGER) != release:
                raise LooplineError("the canary was ended by hand")
            if (stood_in := compose_gateway.stood_in() - before) > 0:
                return f"the champion had to answer {stood_in} requests for the challenger"
            up = compose_gateway.reports_up(CHALLENGER, lane=CHALLENGER)
            return "" if up else "the gateway reports the challenger down"

        ask = partial(prometheus_api.instant, compose_gateway.url("LOOPLINE_PROMETHEUS_PORT"))
        verdict = canary_metrics.Soak(ask=ask, sick=sick, plan=plan, scrape=self.scrape).verdict(models)
        passed = verdict.action == "pass"
        with locks.held(self.folder / "lock"):
            sick()  # raises if the canary was ended meanwhile
            if not passed:
                self._end_trial(replace(self.read(), share=0))
            serves = self.read().releases[self.read().active]
            for model in models:
                challenger, champion = (bundle.read(Path(folders[model])).version for folders in (release, serves))
                decisions.append(
                    model,
                    "canary" if passed else "rollback",
                    bundle=challenger if passed else champion,
                    champion=champion,
                    reasons=verdict.reasons,
                    evidence={"withdrawn": challenger} if verdict.action == "roll back" else {},
                )
        return canary_metrics.said(verdict)

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`."""
        return verify.differences(compose_gateway.url("LOOPLINE_PORT"), bundles)

    def rollback(self, model: str | None) -> list[str]:
        """See `Target`. Rolls back the complete release: a canary ends, or else the other colour takes over."""
        if model:
            raise LooplineError("in containers a rollback is of the whole release: leave the model out")
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
        """The saved state; the default state before the first deployment."""
        try:
            return ComposeState(**json.loads((self.folder / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ComposeState()

    def down(self) -> None:
        """End every container and forget the state, so that the next deployment is a first one. Volumes keep their data."""
        with locks.held(self.folder / "lock"):
            self._compose("down", variables=dict.fromkeys(SECRETS, "not needed"))
            (self.folder / "state.json").unlink(missing_ok=True)
            files.write(self.folder / "gateway/shares.map", "", shared=True)

    def _plan_release(self, bundles: Sequence[Path]) -> tuple[ComposeState, dict[str, str]]:
        """The state and the new release: these bundles, and the present ones of all other models."""
        if missing := [name for name in SECRETS if not os.environ.get(name)]:
            raise LooplineError(f"{' and '.join(missing)} must be set in the environment and must not be empty")
        kept = [members.keep(path) for path in bundles]
        named = {model: str(copy.folder) for model, copy in kept}
        if len(named) < len(kept):
            raise LooplineError("two of the bundles are of one model: name one bundle for each model")
        state = self.read()
        return state, {**state.releases.get(state.active, {}), **named}

    def _swap(self, state: ComposeState, release: dict[str, str]) -> list[str]:
        """Put the release on trial, then into the idle colour, which takes over."""
        self._configure()
        if JOURNAL in self.services:  # it starts first, because its image sets the owner of the volume
            self._compose("up", "--detach", "--no-deps", "--no-recreate", JOURNAL)
        if not (state.share and state.releases.get(CHALLENGER) == release):  # otherwise the canary has run the trial
            self._try(state, release)
        to = _other(state.active)
        self._fill(to, release)
        self._turn(replace(state, releases={**state.releases, to: release}), to)
        _noted(release, state.releases.get(state.active, {}), "promote")
        return [f"{to} serves: {_versions(release)}"]

    def _try(self, state: ComposeState, release: dict[str, str]) -> None:
        """Start the release as challenger without clients, and ask its golden inputs. Ends a canary that is on.

        Raises LooplineError if the release fails; the champion is then untouched.
        """
        state = replace(state, share=0)
        if self.read().share:
            self._end_trial(state)
        self._fill(CHALLENGER, release)
        self._compose("up", "--detach", "--no-deps", "--force-recreate", CHALLENGER)
        url = compose_gateway.url("LOOPLINE_CHALLENGER_PORT")
        try:
            self._until(lambda: answers(f"{url}/v2/health/ready"), CHALLENGER)
            self._checked(url, [Path(path) for path in release.values()])
        except LooplineError:
            self._end_trial(state)
            raise

    def _turn(self, state: ComposeState, to: str) -> None:
        """Let the colour `to` take over: start it, and once the gateway reports it up, end the other colour."""
        self._compose("up", "--detach", "--no-deps", "--force-recreate", to)
        others = [service for service in self.services if service not in (SENTINEL, RETRAINER)]
        self._compose("up", "--detach", "--no-recreate", *others)
        try:
            self._until(lambda: compose_gateway.reports_up(to), to)
        except LooplineError:
            self._compose("stop", to)
            raise
        self._end_trial(replace(state, active=to, share=0))
        if state.active:
            self._compose("stop", state.active)
        self._tell(state.releases[to])  # only now, when no other version answers

    def _tell(self, release: Mapping[str, str]) -> None:
        """Give the services that watch the champion its bundles, the configuration and the environment."""
        self._fill(CHAMPION, {f"{model}/bundle": path for model, path in release.items()})
        for service in {"prometheus", "alertmanager"}.intersection(self.services):
            self._compose("kill", "--signal", "HUP", service)
        if watchers := [service for service in (SENTINEL, RETRAINER) if service in self.services]:
            token = self.folder / "alertmanager/token"
            files.write(token, credentials.secret(TOKEN) or "", shared=True)
            # Alertmanager's user must read the file. Other users of this machine cannot enter the folder.
            token.chmod(0o644)
            self._compose("up", "--detach", "--no-deps", "--force-recreate", *watchers)

    def _end_trial(self, state: ComposeState) -> None:
        """Stop the challenger, and save this state without it."""
        if self.read().share:
            self._shares({})
        self._compose("stop", CHALLENGER)
        self._write(
            replace(state, releases={name: release for name, release in state.releases.items() if name != CHALLENGER})
        )

    def _shares(self, shares: Mapping[str, int]) -> None:
        """Write the shares, model -> percent, and let the gateway reload them. No connection of a waiting client is closed."""
        text = "".join(f"{model} {share}\n" for model, share in shares.items())
        files.write(self.folder / "gateway/shares.map", text, shared=True)
        self._compose("kill", "--signal", "USR2", "gateway")

    def _configure(self) -> None:
        """Write the configuration of gateway, Prometheus and Alertmanager."""
        ports = {name: port for name, port in {"gateway": 8081, **WATCHERS}.items() if name in self.services}
        retrainer = f"http://{RETRAINER}:{WATCHERS[RETRAINER]}" if RETRAINER in self.services else ""
        compose_configuration.write(self.folder, ports, scrape=self.scrape, retrainer=retrainer)

    def _fill(self, service: str, release: Mapping[str, str]) -> None:
        """Fill the service's folder with the bundles of the release. The service must not run, or be restarted afterwards."""
        folder = self.folder / service
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for model, source in release.items():
            shutil.copytree(source, folder / model)
            signature.carry(Path(source), folder / model)
        for path in (folder, *folder.rglob("*")):  # the container runs as another user
            path.chmod(0o755 if path.is_dir() else 0o644)

    def _write(self, state: ComposeState) -> None:
        files.write(self.folder / "state.json", json.dumps(asdict(state), indent=1), shared=True)

    def _checked(self, url: str, bundles: Sequence[Path]) -> list[str]:
        if wrong := verify.differences(url, bundles):
            raise LooplineError("\n  ".join([f"{url} does not answer as the bundles say:", *wrong]))
        return [f"verified: {len(bundles)} bundles answer as they should at {url}"]

    def _until(self, condition: Callable[[], bool], service: str) -> None:
        if not until(condition, READY_SECONDS, every=0.2):
            logs = self._compose("logs", "--tail=20", service)
            raise LooplineError(f"{service} did not get ready; the end of its log:\n{logs[-1500:]}")

    def _compose(self, *words: str, variables: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run a Compose command and return its output. variables: for the environment. Raises LooplineError if it fails."""
        command = [*engine(), "--file", str(FILE), *words]
        paths = {"LOOPLINE_HOME": str(self.folder.absolute()), "LOOPLINE_POLICY": str(self.policy.absolute())}
        env = os.environ | variables | paths
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise LooplineError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr.strip()[-1500:]}")
        return done.stdout + done.stderr


def engine() -> list[str]:
    """The command for Compose: LOOPLINE_COMPOSE, or else one that works here. Raises LooplineError if none works."""
    if command := os.environ.get("LOOPLINE_COMPOSE"):
        return shlex.split(command)
    for words in (["docker", "compose"], ["podman-compose"]):
        if not shutil.which(words[0]):
            continue
        if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    raise LooplineError("neither `docker compose` nor `podman-compose` works here: install one, or use TARGET=process")


def _other(colour: str) -> str:
    return COLOURS[1] if colour == COLOURS[0] else COLOURS[0]


def _versions(release: Mapping[str, str]) -> str:
    return ", ".join(f"{model} {Path(path).name:.12}" for model, path in sorted(release.items()))


def _noted(release: Mapping[str, str], before: Mapping[str, str], action: str) -> None:
    """Append a line to the decision log for each model that changed."""
    for model, path in release.items():
        if before.get(model) != path:
            version = bundle.read(Path(path)).version
            decisions.append(model, action, bundle=version, champion=version, reasons=["deployed with compose"])
