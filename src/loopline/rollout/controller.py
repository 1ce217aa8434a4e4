"""`loopline rollout`: takes a challenger through shadow and canary to promotion, or back.

A state machine whose state is on the disk before each action, and whose actions can be done twice: who is killed is followed by one
who goes on. One at a time holds a lock; whoever wants something else by hand leaves a note, at which it lets go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from loopline.errors import LooplineError, RefusedError
from loopline.fleet import members
from loopline.fleet.gateway import BASELINE, CHALLENGER, Gateway
from loopline.fleet.members import Lane
from loopline.lib import credentials, locks, processes
from loopline.lib.processes import Process
from loopline.release import bundle, decisions
from loopline.rollout import evidence, judge
from loopline.rollout.evidence import Given
from loopline.rollout.state import FOLDER, OVER, RolloutPlan, RolloutState, Stage, read, write

SCRAPE_SECONDS = 2.0  # between two looks at the lanes' counters; the gateway's log is looked at in every round
Recent = Callable[[str, int], list[Given]]
Counters = dict[str, tuple[dict[str, float], tuple[float, float], int]]


class Controller:
    """Carries one rollout out."""

    def __init__(self, recent: Recent, *, up: Path = members.FOLDER, folder: Path = FOLDER) -> None:
        """recent: model, count -> latest inputs. up: the folder of what is up."""
        self.recent, self.up, self.folder = recent, up, folder
        self.gateway = Gateway(up)

    # What is asked for

    def start(
        self,
        source: Path,
        plan: RolloutPlan,
        *,
        store: Path = members.BUNDLES,
        again: bool = False,
        rolling: bool = False,
    ) -> RolloutState:
        """Note that this bundle is to replace its model's champion; `run` does it. A rollout of the same that was cut off goes on.

        Who was cut off may ask twice. If somebody carries out a rollout of the same, it is returned: `run` waits for its end. If the
        last rollout was of the same and is over, its end is returned and nothing begins; not so with `again`, or if what it promoted
        serves no more. rolling: at once, without shadow and canary.

        Raises LooplineError if another is under way, if it serves already, if it was rolled back before, or if the journal has too
        few inputs for the shadow.
        """
        with self._held_at_once(bundle.read(source)) as joined:
            if joined:
                return joined
            present, wanted = read(self.folder), members.read(self.up)
            model, found = members.keep(source, store)
            if present and present.stage not in OVER:
                if (present.model, present.challenger) == (model, found.version):
                    return present
                raise LooplineError(
                    f"a rollout is under way: {present}\nfinish it with `loopline rollout resume` or `rollback`"
                )
            if model not in wanted.champion.bundles:
                raise LooplineError(f"{model} is not served: there are {', '.join(wanted.champion.bundles)}")
            champion = bundle.read(Path(wanted.champion.bundles[model]))
            serves = champion.version == found.version
            same = present is not None and (present.model, present.challenger) == (model, found.version)
            if present and same and not again and (serves or present.stage == "rolled back"):
                return present
            if serves:
                raise LooplineError(f"{model}: bundle {found.version:.12} serves already")
            if wanted.sentinel and not (found.folder / "golden.json").exists():
                raise LooplineError(
                    f"{source} has no golden.json, without which nobody sees whether it is served rightly"
                )
            if not again and (said := decisions.withdrawn(decisions.read().records, model, found.version)):
                raise RefusedError(
                    f"{model}: bundle {found.version:.12} was rolled back before: {said}; --again tries it anew"
                )
            # What the journal lacks is no fault of the challenger: it is said before anything begins.
            if plan.inputs and (kept := len(self.recent(model, plan.inputs))) < plan.policy.shadow_inputs:
                raise LooplineError(
                    f"{model}: the journal has {kept} answered inputs of the {plan.policy.shadow_inputs} that the shadow wants: "
                    "wait for more traffic, ask for fewer with --inputs, or go without with --inputs 0"
                )
            state = RolloutState(
                id=f"{time.time_ns():x}",
                model=model,
                champion=champion.version,
                challenger=found.version,
                before=str(champion.folder),
                after=str(found.folder),
                stage="promote" if rolling else "shadow",
                reasons=("no canary was asked for",) if rolling else (),
                plan=plan,
            )
            return self._save(state)

    def promote(self, model: str) -> RolloutState:
        """By hand: the challenger on trial serves all, whatever the judge would say. Raises LooplineError if there is none."""
        with self._taken(model) as state:
            if state.stage in OVER:
                raise LooplineError(f"no rollout of {model} is under way")
            return self._finish(self._enter(state, "promote", ("by hand",)))

    def rollback(self, model: str, reason: str = "by hand") -> RolloutState:
        """By hand, at any time: a trial ends at once; after a promotion the champion before it comes back.

        Raises LooplineError if there is nothing to go back from.
        """
        present = read(self.folder)
        if present is None or present.model != model:
            raise LooplineError(f"there was no rollout of {model}: there is nothing to go back to")
        self.gateway.share(model, 0)  # at once; the rest may have to wait for somebody's server to start
        with self._taken(model) as state:
            if state.stage == "rolled back":
                raise LooplineError(f"{model}: the last rollout is rolled back already")
            return self._finish(self._enter(replace(state, withdraws=True), "roll back", (reason,)))

    def run(self) -> RolloutState:
        """Go on until it is over; while somebody takes over by hand, wait for what they do. Raises LooplineError if there is none."""
        while True:
            with self._held():
                state = read(self.folder)
                if state is None:
                    raise LooplineError("there is no rollout: `loopline rollout start MODEL --bundle FOLDER`")
                try:
                    while state.stage not in OVER:
                        self._unless_asked()
                        state = self._advance(state)
                except _TakenOver:
                    state = read(self.folder) or state
            if state.stage in OVER:
                return state
            time.sleep(0.1)  # without the lock, so that they get it

    # The stages

    def _advance(self, state: RolloutState) -> RolloutState:
        try:
            if state.stage == "shadow":
                return self._shadow(state)
            if state.stage == "canary":
                return self._canary(state)
            return self._finish(state)
        except LooplineError as error:  # a server that does not start, for one
            if state.stage == "roll back":
                raise
            return self._enter(replace(state, withdraws=False), "roll back", (str(error),))

    def _shadow(self, state: RolloutState) -> RolloutState:
        plan, wanted = state.plan, members.read(self.up)
        replicas = plan.replicas or wanted.champion.replicas
        ours, theirs = (Lane({state.model: path}, replicas) for path in (state.after, state.before))
        members.apply(replace(wanted, challenger=ours, baseline=theirs), self.up)
        expected = 0.0
        if plan.inputs:
            inputs = self.recent(state.model, plan.inputs)
            champion, challenger = (members.servers(lane, self.up)[0].address for lane in (BASELINE, CHALLENGER))
            seen = evidence.replay(self._unless_asked(inputs), state.model, champion, challenger, _token())
            seen = replace(seen, sick=self._sick(state))
            verdict = judge.shadow(seen, plan.policy)
            if verdict.action != "pass":  # a replay again would be the same: nothing is gained by holding
                return self._back(state, verdict)
            expected, reasons = seen.expected, verdict.reasons
        else:
            reasons = ("no shadow was asked for",)
        self._note(state, "shadow", reasons)
        log = self.up / "gateway.log"
        return self._enter(replace(state, offset=log.stat().st_size, expected=expected), "canary", reasons)

    def _canary(self, state: RolloutState) -> RolloutState:
        """All steps from this one on."""
        plan = state.plan
        log, tally = evidence.GatewayLog(self.up / "gateway.log", state.offset), evidence.Tally(state.model)
        while True:
            self._unless_asked()
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
        """Look until there is a verdict, or time runs out: then it holds still, and that never passes."""
        plan = state.plan
        last = state.step + 1 == len(plan.steps)
        # Labels come late: the last step waits for them
        policy = plan.policy if last else replace(plan.policy, labels=0)
        counters, looked = self._counters(state), time.monotonic()
        while True:
            self._unless_asked()
            tally.add(log.read())
            if time.monotonic() - looked > SCRAPE_SECONDS:
                counters, looked = self._counters(state), time.monotonic()
            verdict = self._judge(state, policy, tally, counters)
            if verdict.action == "pass":
                # Counters are scraped now and then; nothing passes on old ones.
                counters, looked = self._counters(state), time.monotonic()
                verdict = self._judge(state, policy, tally, counters)
            if verdict.action != "hold":
                return verdict
            if time.time() - state.since > plan.hold:
                return judge.Verdict("hold", (f"no verdict within {plan.hold:g} s", *verdict.reasons))
            time.sleep(plan.every)

    def _judge(
        self, state: RolloutState, policy: judge.RolloutPolicy, tally: evidence.Tally, counters: Counters
    ) -> judge.Verdict:
        seen = judge.RolloutEvidence(
            challenger=tally.lane(CHALLENGER, *counters[CHALLENGER][:2]),
            baseline=tally.lane(BASELINE, *counters[BASELINE][:2]),
            sick=self._sick(state, tally),
            invalid=counters[CHALLENGER][2],
            expected=state.expected,
        )
        return judge.canary(seen, policy)

    def _finish(self, state: RolloutState) -> RolloutState:
        """Promotion and rollback: say what is wanted, make it so, note it. Nobody's note stops that half-way."""
        back = state.stage == "roll back"
        serves = state.before if back else state.after
        if back:
            self.gateway.share(state.model, 0)
        members.apply(members.read(self.up).with_champion(state.model, serves), self.up)
        self.gateway.share(state.model, 0)
        self._note(state, "rollback" if back else "promote", state.reasons)
        return self._save(replace(state, stage="rolled back" if back else "promoted"))

    # What they share

    def _enter(self, state: RolloutState, stage: Stage, reasons: Sequence[str]) -> RolloutState:
        """On the disk before anything is done."""
        return self._save(replace(state, stage=stage, reasons=tuple(reasons), since=time.time()))

    def _back(self, state: RolloutState, verdict: judge.Verdict) -> RolloutState:
        return self._enter(replace(state, withdraws=verdict.action == "roll back"), "roll back", verdict.reasons)

    def _save(self, state: RolloutState) -> RolloutState:
        write(state, self.folder)
        return state

    def _note(self, state: RolloutState, action: str, reasons: Sequence[str]) -> None:
        """A line in the decision log; once, should the one before us have been killed after it."""
        back = action == "rollback"
        champion = state.challenger if action == "promote" else state.champion
        about = {"rollout": state.id, "step": state.step} | (
            {"withdrawn": state.challenger} if back and state.withdraws else {}
        )
        last = [r for r in decisions.read().records if r.evidence.get("rollout") == state.id][-1:]
        if not (last and last[0].action == action and last[0].evidence == about):
            decisions.append(
                state.model,
                action,
                bundle=state.champion if back else state.challenger,
                champion=champion,
                reasons=reasons,
                evidence=about,
            )

    def _counters(self, state: RolloutState) -> Counters:
        """Lane -> predicted classes, labels, and answers that are no number."""
        prometheus = members.read(self.up).prometheus
        found = {}
        for lane, version in ((CHALLENGER, state.challenger), (BASELINE, state.champion)):
            try:
                servers = members.servers(lane, self.up)
                rows = [row for server in servers for row in evidence.series(server.address, _token())]
            # One that is left out would be a gate that is off: the judge holds for want of counts
            except LooplineError:
                rows = []
            seen, invalid = evidence.classes(rows, state.model)
            said = evidence.labels(prometheus, state.model, version[:12], state.began) if prometheus else (0.0, 0.0)
            found[lane] = (seen, said, invalid)
        return found

    def _sick(self, state: RolloutState, tally: evidence.Tally | None = None) -> str:
        """Why the challenger's servers are not healthy; empty if they are."""
        wanted = members.read(self.up).challenger.replicas
        if (alive := len(members.servers(CHALLENGER, self.up))) < wanted:
            return f"{alive} of {wanted} servers of {state.challenger:.12} are alive"
        slots = [slot for slot in self.gateway.slots(CHALLENGER) if slot.name.startswith("s") and slot.port]
        if not all(slot.up for slot in slots) or len(slots) < wanted:
            return f"the gateway finds servers of {state.challenger:.12} down"
        if tally and tally.stood_in:
            return f"the champion had to answer {tally.stood_in} requests for {state.challenger:.12}"
        return ""

    # Who may

    @contextmanager
    def _held(self) -> Iterator[None]:
        with locks.held(self.folder / "controller.lock"):
            yield

    @contextmanager
    def _held_at_once(self, wanted: bundle.Bundle) -> Iterator[RolloutState | None]:
        """What it gives is the rollout of this bundle that somebody else carries out now."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.held(self.folder / "controller.lock", wait=False))
            except BlockingIOError as error:
                present = read(self.folder)
                if present and (present.model, present.challenger) == (wanted.manifest.name, wanted.version):
                    yield present
                    return
                raise LooplineError(
                    f"a rollout is under way: {present or 'it just begins'}\n"
                    "wait for its end, or end it with `loopline rollout promote` or `rollback`"
                ) from error
            yield None

    @contextmanager
    def _taken(self, model: str) -> Iterator[RolloutState]:
        """Take over from whoever is at it."""
        import psutil

        note = self.folder / f"asked.{os.getpid()}.{psutil.Process().create_time()!r}"
        self.folder.mkdir(parents=True, exist_ok=True)
        note.touch()
        try:
            with self._held():
                state = read(self.folder)
                if state is None or state.model != model:
                    raise LooplineError(f"there was no rollout of {model}")
                yield state
        finally:
            note.unlink(missing_ok=True)

    def _asked(self) -> bool:
        """Does somebody wait to take over? Of one who was killed, the note counts no more, whoever has its number now."""
        notes = (note.name.split(".", 2) for note in self.folder.glob("asked.*.*"))
        return any(processes.alive(Process("", int(pid), float(created), "")) for _, pid, created in notes)

    def _unless_asked(self, inputs: Sequence[Given] = ()) -> Iterator[Given]:
        """Raises _TakenOver if somebody waits; so does going through what it returns."""
        if self._asked():
            raise _TakenOver

        def each() -> Iterator[Given]:
            for one in inputs:
                if self._asked():
                    raise _TakenOver
                yield one

        return each()


class _TakenOver(Exception):
    pass


def progress(state: RolloutState, up: Path = members.FOLDER) -> list[str]:
    """What a rollout that is under way has counted in this step, and the time that is left for it."""
    if state.stage not in ("shadow", "canary"):
        return []
    plan = state.plan
    left = max(0.0, (state.since or state.began) + plan.hold - time.time())
    until = f"{left / 60:.1f} of {plan.hold / 60:.1f} min are left, then it is rolled back"
    if state.stage == "shadow":
        return [f"asks both for {plan.inputs} inputs of the journal"]
    tally = evidence.Tally(state.model)
    tally.begin(state.since)
    try:
        tally.add(evidence.GatewayLog(up / "gateway.log", state.offset).read())
    except OSError as error:
        raise LooplineError(f"the gateway's log cannot be read: {error}") from error
    lines = []
    for name in (CHALLENGER, BASELINE):
        count = len(tally.seconds[name])
        points = min(count // plan.policy.slice, plan.policy.points)
        lines.append(
            f"{name}: {min(count, plan.policy.requests)} of {plan.policy.requests} requests, {points} of "
            f"{plan.policy.points} points of latency, {tally.errors[name]} errors since the canary began"
        )
    return [*lines, until]


def behind(up: Path = members.FOLDER) -> None:
    """A controller that goes on with the rollout as a process of its own, which `loopline down` ends; one is enough."""
    with locks.held(up / "lock"):
        there = processes.running(up)
        if any(process.name == "rollout" for process in there):
            return
        command = [*members.LOOPLINE, "rollout", "resume"]
        processes.save([*there, processes.start("rollout", command, "", up, again=True)], up)


def mend(up: Path = members.FOLDER, folder: Path = FOLDER) -> bool:
    """A controller for a rollout that is under way and that nobody carries out; was anything to do? Raises LooplineError as `read`."""
    found = read(folder)
    if found is None or found.stage in OVER:
        return False
    try:
        with locks.held(folder / "controller.lock", wait=False):
            pass
    except BlockingIOError:
        return False
    behind(up)
    return True


def _token() -> str | None:
    """What our servers want as bearer token."""
    return credentials.secret(credentials.SERVER)
