"""Deployment on one machine without containers: processes behind HAProxy, all kept by one supervisor."""

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
from loopline.rollout import state
from loopline.rollout.controller import Controller
from loopline.rollout.state import OVER, RolloutPlan, RolloutState

Found = tuple[str, Path, str]  # model, folder, version


@dataclass(frozen=True, kw_only=True)
class Processes:
    """What is up, or is to be.

    options: of a stack that has to be started. plan: of a rollout; None replaces at once, without a canary. again: also what was
    rolled back before.
    """

    options: configuration.StackOptions
    controller: Controller
    plan: RolloutPlan | None
    again: bool = False

    def deploy(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. Starts everything where nothing is up; else one model after the other goes through its rollout."""
        if not processes.running(members.FOLDER):
            started = stack.up(self.options)
            said = [f"{process.name:24} {process.address}".rstrip() for process in started]
            said += [stack.KEPT] if self.options.keep_metrics else []
            return [*said, *self._verified(bundles, lambda _: stack.down())]
        said = [f"started anew: {name}" for name in supervisor.mend()]
        for model, folder, version in (found := _differing(bundles)):
            said += self._replace(model, folder, version)
        if not found:
            said.append("all of these bundles serve already: nothing to do")
        return [*said, *self._verified(bundles)]

    def canary(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. The judge decides and goes on to promotion, or back."""
        if len(found := _differing(bundles)) != 1:
            raise LooplineError(f"a canary is of one new bundle, these are {len(found)}: name one with --bundle")
        [(_, folder, _)] = found
        begun = self.controller.start(folder, self.plan or RolloutPlan(), again=self.again)
        if begun.stage in OVER:  # the last rollout was of this bundle, and nothing begins
            raise RefusedError(f"no canary begins, for this bundle's rollout is over: {begun}\n--again tries it anew")
        rollout.behind()
        return [str(begun), "`loopline rollout status` says where it stands"]

    def verify(self, bundles: Sequence[Path]) -> list[str]:
        """See `Target`. The supervisor must live, too."""
        dead = supervised.SUPERVISOR not in {process.name for process in processes.running(members.FOLDER)}
        found = ["the supervisor does not run: `make deploy` starts it anew"] if dead else []
        return [*found, *verify.differences(members.read().url, bundles)]

    def rollback(self, model: str | None) -> list[str]:
        """See `Target`. model: None is that of the last rollout."""
        last = state.read()
        if last is None:
            raise LooplineError("nothing was rolled out yet: there is nothing to go back to")
        return [str(self.controller.rollback(model or last.model))]

    def _replace(self, model: str, folder: Path, version: str) -> list[str]:
        if model not in members.read().champion.bundles:
            return self._add(model, folder, version)
        found = state.read()
        if found and found.stage not in OVER and found.challenger == version:  # its canary is under way
            ended = self.controller.run() if self.plan else self.controller.promote(model)
        else:
            self.controller.start(
                folder, self.plan or RolloutPlan(inputs=0), again=self.again, rolling=self.plan is None
            )
            ended = self.controller.run()
        if ended.stage != "promoted":
            raise LooplineError(f"the former bundle serves: {ended}")
        return [str(ended), *self._verified([folder], lambda why: self._back(ended, why))]

    def _add(self, model: str, folder: Path, version: str) -> list[str]:
        """A model that was not served so far."""
        before, (_, kept) = members.read(), members.keep(folder)
        members.apply(before.with_champion(model, str(kept.folder)))
        self._verified([folder], lambda _: members.apply(before))
        decisions.append(model, "promote", bundle=version, champion=version, reasons=["it was not served before"])
        return [f"{model}: {version:.12} serves"]

    def _back(self, ended: RolloutState, why: str) -> None:
        self.controller.rollback(ended.model, why)

    def _verified(self, bundles: Sequence[Path], undo: Callable[[str], object] | None = None) -> list[str]:
        """Raises LooplineError with what is wrong, once that is undone."""
        if wrong := self.verify(bundles):
            if undo:
                undo("; ".join(wrong))
            what = ", and it was taken back" if undo else ""
            raise LooplineError("\n  ".join([f"it is up, but not as it should be{what}:", *wrong]))
        return [f"verified: {len(bundles)} bundles answer as they should at {members.read().url}"]


def _differing(bundles: Sequence[Path]) -> list[Found]:
    """Those that the champion does not serve. Raises LooplineError if two are of one model."""
    found = [(one.manifest.name, one.folder, one.version) for one in map(bundle.read, bundles)]
    if len({model for model, _, _ in found}) < len(found):
        raise LooplineError("two of the bundles are of one model: name one of each")
    serves = {model: bundle.read(Path(path)).version for model, path in members.read().champion.bundles.items()}
    return [one for one in found if serves.get(one[0]) != one[2]]
