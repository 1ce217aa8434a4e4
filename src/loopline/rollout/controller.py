"""The controller of `loopline rollout`: it takes a challenger through shadow and canary to promotion, or to rollback.

State is saved before each action and every action is idempotent, so a new controller can resume after a crash. See `takeover` for
how a manual command gets the lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from loopline.errors import LooplineError, RefusedError
from loopline.fleet import members
from loopline.fleet.gateway import BASELINE, CHALLENGER, Gateway
from loopline.fleet.members import Lane
from loopline.lib import credentials, locks, processes
from loopline.release import bundle, decisions
from loopline.rollout import evidence, judge
from loopline.rollout.evidence import ModelInput
from loopline.rollout.progress import progress
from loopline.rollout.state import FOLDER, OVER, RolloutPlan, RolloutState, Stage, read, write
from loopline.rollout.takeover import ControllerLock, TakenOverError

__all__ = ["Controller", "behind", "mend", "progress"]
SCRAPE_SECONDS = 2.0  # between two readings of the lanes' counters; the gateway's log is read in every round
Recent = Callable[[str, int], list[ModelInput]]
# Lane -> (predicted class -> samples, (labelled answers, sum of their quality), answers with NaN)
Counters = dict[str, tuple[dict[str, float], tuple[float, float], int]]


class Controller:
    """Carries out one rollout."""

    def __init__(self, recent: Recent, *, up: Path = members.FOLDER, folder: Path = FOLDER) -> None:
        """recent: (model, count) -> latest inputs. up: folder of the running stack. folder: of the rollout's state."""
        self.recent, self.up, self.folder = recent, up, folder
        self.gateway, self.lock = Gateway(up), ControllerLock(folder)

    # Commands

    def start(
        self,
        source: Path,
        plan: RolloutPlan,
        *,
        store: Path = members.BUNDLES,
        again: bool = False,
        rolling: bool = False,
    ) -> RolloutState:
        """Save the plan to replace the model's champion by this bundle, and return the state; `run` carries it out.

        A call can be repeated. An interrupted rollout of the same bundle goes on. If another process carries it out, its state is
        returned, and `run` waits for its end. If the last rollout was of this bundle and is over, its end is returned and nothing
        begins, unless `again` is set or the promoted bundle no longer serves.

        again: also allow a bundle that was rolled back before. rolling: promote at once, without shadow and canary.

        Raises LooplineError if another rollout is under way, if the bundle already serves, if it was rolled back before, or if
        the journal has too few inputs for the shadow.
        """
        new = bundle.read(source)
        with self.lock.held_or_joined(new.manifest.name, new.version) as joined:
            if joined:
                return joined
            present, fleet = read(self.folder), members.read(self.up)
            model, challenger = members.keep(source, store)
            if present and present.stage not in OVER:
                if (present.model, present.challenger) == (model, challenger.version):
                    return present
                raise LooplineError(
                    f"a rollout is under way: {present}\nfinish it with `loopline rollout resume` or `rollback`"
                )
            if model not in fleet.champion.bundles:
                raise LooplineError(f"{model} is not served; the models served are {', '.join(fleet.champion.bundles)}")
            champion = bundle.read(Path(fleet.champion.bundles[model]))
            serves = champion.version == challenger.version
            same = present is not None and (present.model, present.challenger) == (model, challenger.version)
            if present and same and not again and (serves or present.stage == "rolled back"):
                return present
            if serves:
                raise LooplineError(f"{model}: bundle {challenger.version:.12} already serves")
            if fleet.sentinel and not (challenger.folder / "golden.json").exists():
                raise LooplineError(f"{source} has no golden.json, which the sentinel needs to check the answers")
            if not again:
                self._refuse_withdrawn(model, challenger.version)
            self._refuse_short_journal(model, plan)
            state = RolloutState(
                id=f"{time.time_ns():x}",
                model=model,
                champion=champion.version,
                challenger=challenger.version,
                before=str(champion.folder),
                after=str(challenger.folder),
                stage="promote" if rolling else "shadow",
                reasons=("no canary was requested",) if rolling else (),
                plan=plan,
            )
            return self._save(state)

    def promote(self, model: str) -> RolloutState:
        """Promote the challenger on trial at once, without the judge. Raises LooplineError if no rollout is under way."""
        with self.lock.taken_over(model) as state:
            if state.stage in OVER:
                raise LooplineError(f"no rollout of {model} is under way")
            return self._finish(self._enter(state, "promote", ("by hand",)))

    def rollback(self, model: str, reason: str = "by hand") -> RolloutState:
        """End a trial at once, or bring back the former champion after a promotion. Works at any time.

        reason: for the decision log. Raises LooplineError if there is nothing to roll back.
        """
        present = read(self.folder)
        if present is None or present.model != model:
            raise LooplineError(f"there was no rollout of {model}, so there is nothing to roll back")
        # This comes first, because the controller may release the lock only after a server has started.
        self.gateway.share(model, 0)
        with self.lock.taken_over(model) as state:
            if state.stage == "rolled back":
                raise LooplineError(f"{model}: the last rollout was already rolled back")
            return self._finish(self._enter(replace(state, withdraws=True), "roll back", (reason,)))

    def run(self) -> RolloutState:
        """Carry out the rollout to its end and return the state. While a manual command has taken over, wait for it.

        Raises LooplineError if there is no rollout.
        """
        while True:
            with self.lock.held():
                state = read(self.folder)
                if state is None:
                    raise LooplineError(
                        "there is no rollout: begin with `loopline rollout start MODEL --bundle FOLDER`"
                    )
                try:
                    while state.stage not in OVER:
                        self.lock.check()
                        state = self._advance(state)
                except TakenOverError:
                    state = read(self.folder) or state
            if state.stage in OVER:
                return state
            time.sleep(0.1)  # without the lock, so that the manual command gets it

    # Stages

    def _advance(self, state: RolloutState) -> RolloutState:
        """Carry out the present stage; after an error, enter the rollback."""
        try:
            if state.stage == "shadow":
                return self._shadow(state)
            if state.stage == "canary":
                return self._canary(state)
            return self._finish(state)
        except LooplineError as error:  # for example, a server that does not start
            if state.stage == "roll back":
                raise
            return self._enter(replace(state, withdraws=False), "roll back", (str(error),))

    def _shadow(self, state: RolloutState) -> RolloutState:
        plan, fleet = state.plan, members.read(self.up)
        replicas = plan.replicas or fleet.champion.replicas
        challenger, baseline = (Lane({state.model: path}, replicas) for path in (state.after, state.before))
        members.apply(replace(fleet, challenger=challenger, baseline=baseline), self.up)
        expected = 0.0
        if plan.inputs:
            inputs = self.recent(state.model, plan.inputs)
            champion_url, challenger_url = (
                members.servers(lane, self.up)[0].address for lane in (BASELINE, CHALLENGER)
            )
            replay = evidence.replay(self.lock.checked(inputs), state.model, champion_url, challenger_url, _token())
            replay = replace(replay, sick=self._sick(state))
            verdict = judge.shadow(replay, plan.policy)
            if verdict.action != "pass":  # holding is no use, because another replay would give the same result
                return self._back(state, verdict)
            expected, reasons = replay.expected, verdict.reasons
        else:
            reasons = ("no shadow was requested",)
        self._note(state, "shadow", reasons)
        log = self.up / "gateway.log"
        return self._enter(replace(state, offset=log.stat().st_size, expected=expected), "canary", reasons)

    def _canary(self, state: RolloutState) -> RolloutState:
        """Carry out this step and all later ones."""
        plan = state.plan
        log, tally = evidence.GatewayLog(self.up / "gateway.log", state.offset), evidence.Tally(state.model)
        while True:
            self.lock.check()
            self.gateway.share(state.model, plan.steps[state.step])
            tally.begin(state.since)
            verdict = self._watch(state, log, tally)
            if verdict.action != "pass":
                return self._back(state, verdict)
            self._note(state, "canary", (f"{plan.steps[state.step]} %", *verdict.reasons))
            if state.step + 1 == len(plan.steps):
                return self._enter(state, "promote", verdict.reasons)
            state = self._enter(replace(state, step=state.step + 1), "canary", verdict.reasons)

    def _watch(self, state: RolloutState, log: evidence.GatewayLog, tally: evidence.Tally) -> judge.Verdict:
        """Wait for the verdict on a step. If the time runs out first, the verdict is "hold", which never counts as a pass."""
        plan = state.plan
        last = state.step + 1 == len(plan.steps)
        # Labels come late, so only the last step waits for them.
        policy = plan.policy if last else replace(plan.policy, labels=0)
        counters, counted = self._counters(state), time.monotonic()
        while True:
            self.lock.check()
            tally.add(log.read())
            if time.monotonic() - counted > SCRAPE_SECONDS:
                counters, counted = self._counters(state), time.monotonic()
            verdict = self._judge(state, policy, tally, counters)
            if verdict.action == "pass":
                # A pass needs fresh counters: these may be up to SCRAPE_SECONDS old.
                counters, counted = self._counters(state), time.monotonic()
                verdict = self._judge(state, policy, tally, counters)
            if verdict.action != "hold":
                return verdict
            if time.time() - state.since > plan.hold:
                return judge.Verdict("hold", (f"no verdict within {plan.hold:g} s", *verdict.reasons))
            time.sleep(plan.every)

    def _judge(
        self, state: RolloutState, policy: judge.RolloutPolicy, tally: evidence.Tally, counters: Counters
    ) -> judge.Verdict:
        lanes = judge.RolloutEvidence(
            challenger=tally.lane(CHALLENGER, *counters[CHALLENGER][:2]),
            baseline=tally.lane(BASELINE, *counters[BASELINE][:2]),
            sick=self._sick(state, tally),
            invalid=counters[CHALLENGER][2],
            expected=state.expected,
        )
        return judge.canary(lanes, policy)

    def _finish(self, state: RolloutState) -> RolloutState:
        """Promote or roll back: change the fleet, then note the decision. A manual command cannot interrupt this."""
        back = state.stage == "roll back"
        serves = state.before if back else state.after
        if back:
            self.gateway.share(state.model, 0)
        members.apply(members.read(self.up).with_champion(state.model, serves), self.up)
        self.gateway.share(state.model, 0)
        self._note(state, "rollback" if back else "promote", state.reasons)
        return self._save(replace(state, stage="rolled back" if back else "promoted"))

    # Helpers

    def _refuse_withdrawn(self, model: str, version: str) -> None:
        if withdrawn := decisions.withdrawn(decisions.read().records, model, version):
            raise RefusedError(f"{model}: bundle {version:.12} was rolled back before: {withdrawn}; --again retries it")

    def _refuse_short_journal(self, model: str, plan: RolloutPlan) -> None:
        """Report a journal with too few inputs before the rollout begins, because it is not the challenger's fault."""
        if plan.inputs and (kept := len(self.recent(model, plan.inputs))) < plan.policy.shadow_inputs:
            raise LooplineError(
                f"{model}: the journal has {kept} answered inputs of the {plan.policy.shadow_inputs} that the shadow needs: "
                "wait for more traffic, lower --inputs, or skip the shadow with --inputs 0"
            )

    def _enter(self, state: RolloutState, stage: Stage, reasons: Sequence[str]) -> RolloutState:
        """Save the next stage, before anything of it is done."""
        return self._save(replace(state, stage=stage, reasons=tuple(reasons), since=time.time()))

    def _back(self, state: RolloutState, verdict: judge.Verdict) -> RolloutState:
        return self._enter(replace(state, withdraws=verdict.action == "roll back"), "roll back", verdict.reasons)

    def _save(self, state: RolloutState) -> RolloutState:
        write(state, self.folder)
        return state

    def _note(self, state: RolloutState, action: str, reasons: Sequence[str]) -> None:
        """Append to the decision log, unless a controller that was killed has already written this line."""
        back = action == "rollback"
        champion = state.challenger if action == "promote" else state.champion
        about = {"rollout": state.id, "step": state.step} | (
            {"withdrawn": state.challenger} if back and state.withdraws else {}
        )
        records = [record for record in decisions.read().records if record.evidence.get("rollout") == state.id]
        if not (records and records[-1].action == action and records[-1].evidence == about):
            decisions.append(
                state.model,
                action,
                bundle=state.champion if back else state.challenger,
                champion=champion,
                reasons=reasons,
                evidence=about,
            )

    def _counters(self, state: RolloutState) -> Counters:
        """Read the counters of both lanes, and their labels since the rollout began."""
        prometheus = members.read(self.up).prometheus
        counters = {}
        for lane, version in ((CHALLENGER, state.challenger), (BASELINE, state.champion)):
            try:
                servers = members.servers(lane, self.up)
                rows = [row for server in servers for row in evidence.series(server.address, _token())]
            # Leaving out one server would switch off the gate. Without any counts the judge holds.
            except LooplineError:
                rows = []
            classes, invalid = evidence.classes(rows, state.model)
            labels = evidence.labels(prometheus, state.model, version[:12], state.began) if prometheus else (0.0, 0.0)
            counters[lane] = (classes, labels, invalid)
        return counters

    def _sick(self, state: RolloutState, tally: evidence.Tally | None = None) -> str:
        """Return why the challenger's servers are not healthy; empty if they are."""
        replicas = members.read(self.up).challenger.replicas
        if (alive := len(members.servers(CHALLENGER, self.up))) < replicas:
            return f"{alive} of {replicas} servers of {state.challenger:.12} are alive"
        slots = [slot for slot in self.gateway.slots(CHALLENGER) if slot.name.startswith("s") and slot.port]
        if not all(slot.up for slot in slots) or len(slots) < replicas:
            return f"the gateway reports servers of {state.challenger:.12} down"
        if tally and tally.stood_in:
            return f"the champion had to answer {tally.stood_in} requests for {state.challenger:.12}"
        return ""


def behind(up: Path = members.FOLDER) -> None:
    """Start a controller as a background process, unless one is running. `loopline down` ends it."""
    with locks.held(up / "lock"):
        running = processes.running(up)
        if any(process.name == "rollout" for process in running):
            return
        command = [*members.LOOPLINE, "rollout", "resume"]
        processes.save([*running, processes.start("rollout", command, "", up, again=True)], up)


def mend(up: Path = members.FOLDER, folder: Path = FOLDER) -> bool:
    """Start a controller if a rollout is under way and no process carries it out; return whether one was needed.

    Raises LooplineError as `read` does.
    """
    state = read(folder)
    if state is None or state.stage in OVER:
        return False
    try:
        with ControllerLock(folder).held(wait=False):
            pass
    except BlockingIOError:
        return False
    behind(up)
    return True


def _token() -> str | None:
    """The bearer token that the servers demand, if they demand one."""
    return credentials.secret(credentials.SERVER)
