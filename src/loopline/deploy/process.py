"""Deployment on one machine without containers: processes behind HAProxy, which one supervisor restarts if they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loopline.deploy import supervisor, verify
from loopline.errors import LooplineError, RefusedError
from loopline.fleet import configuration, members, stack, supervised
from loopline.lib import processes
from loopline.release import bundle, decisions
from loopline.rollout import controller as rollout
from loopline.rollout import state as rollout_state
from loopline.rollout.controller import Controller
from loopline.rollout.state import OVER, RolloutPlan, RolloutState

NewBundle = tuple[str, Path, str]  # model, folder, version


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The stack of processes on this machine.

    options: for the start of the stack. plan: of a rollout; None: replace at once, without a canary. again: also allow a bundle
    that was rolled back before.
    """

    options: configuration.StackOptions
    controller: Controller
    plan: RolloutPlan | None
    again: bool = False

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Starts the stack if nothing is up; otherwise rolls out one model after the other."""
        if not processes.running(members.FOLDER):
            started = stack.up(self.options)
            lines = [f"{process.name:24} {process.address}".rstrip() for process in started]
            lines += [stack.KEPT] if self.options.keep_metrics else []
            return [*lines, *self._verified(bundles, lambda _: stack.down())]
        lines = [f"restarted: {name}" for name in supervisor.mend()]
        for model, folder, version in (new := _differing(bundles)):
            lines += self._replace(model, folder, version)
        if not new:
            lines.append("all of these bundles already serve: nothing to do")
        return [*lines, *self._verified(bundles)]

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. The judge then promotes the bundle or rolls it back."""
        if len(new := _differing(bundles)) != 1:
            raise LooplineError(f"a canary takes one new bundle, but {len(new)} are new: name one with --bundle")
        [(_, folder, _)] = new
        state = self.controller.start(folder, self.plan or RolloutPlan(), again=self.again)
        if state.stage in OVER:  # the last rollout was of this bundle, and nothing begins
            raise RefusedError(f"no canary begins, because this bundle's rollout is over: {state}\n--again retries it")
        rollout.behind()
        return [str(state), "`loopline rollout status` shows its progress"]

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. The supervisor must run, too."""
        dead = supervised.SUPERVISOR not in {process.name for process in processes.running(members.FOLDER)}
        wrong = ["the supervisor does not run: `make deploy` starts it again"] if dead else []
        return [*wrong, *verify.differences(members.read().url, bundles)]

    def rollback(self, model: str | None) -> list[str]:
        """See `Target`. model: None: the model of the last rollout."""
        last = rollout_state.read()
        if last is None:
            raise LooplineError("nothing was rolled out yet, so there is nothing to roll back")
        return [str(self.controller.rollback(model or last.model))]

    def _replace(self, model: str, folder: Path, version: str) -> list[str]:
        """Roll out the bundle, verify it, and return lines that report it. A model that is not served yet joins the others."""
        if model not in members.read().champion.bundles:
            return self._add(model, folder, version)
        present = rollout_state.read()
        if present and present.stage not in OVER and present.challenger == version:  # its canary is under way
            ended = self.controller.run() if self.plan else self.controller.promote(model)
        else:
            self.controller.start(
                folder, self.plan or RolloutPlan(inputs=0), again=self.again, rolling=self.plan is None
            )
            ended = self.controller.run()
        if ended.stage != "promoted":
            raise LooplineError(f"the new bundle was not promoted, and the former one serves: {ended}")
        return [str(ended), *self._verified([folder], lambda why: self._back(ended, why))]

    def _add(self, model: str, folder: Path, version: str) -> list[str]:
        """Add a model that was not served before."""
        before, (_, kept) = members.read(), members.keep(folder)
        members.apply(before.with_champion(model, str(kept.folder)))
        self._verified([folder], lambda _: members.apply(before))
        decisions.append(model, "promote", bundle=version, champion=version, reasons=["it was not served before"])
        return [f"{model}: {version:.12} serves"]

    def _back(self, ended: RolloutState, why: str) -> None:
        self.controller.rollback(ended.model, why)

    def _verified(self, bundles: Sequence[Path], undo: Callable[[str], object] | None = None) -> list[str]:
        """Verify what serves. If it is wrong, call `undo` with the reasons and raise LooplineError."""
        if wrong := self.verify(bundles):
            if undo:
                undo("; ".join(wrong))
            undone = ", and was taken back" if undo else ""
            raise LooplineError("\n  ".join([f"the deployment is up, but failed its verification{undone}:", *wrong]))
        return [f"verified: {len(bundles)} bundles answer as they should at {members.read().url}"]


def _differing(bundles: Sequence[Path]) -> list[NewBundle]:
    """The bundles that the champion does not serve. Raises LooplineError if two are of one model."""
    named = [(content.manifest.name, content.folder, content.version) for content in map(bundle.read, bundles)]
    if len({model for model, _, _ in named}) < len(named):
        raise LooplineError("two of the bundles are of one model: name one bundle for each model")
    serves = {model: bundle.read(Path(path)).version for model, path in members.read().champion.bundles.items()}
    return [(model, folder, version) for model, folder, version in named if serves.get(model) != version]
