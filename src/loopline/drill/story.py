"""The drill's story in acts. Each act waits for its outcome and checks it; the first failure ends the drill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from loopline.data import repository
from loopline.drill import faults
from loopline.drill.faults import Pace
from loopline.drill.observer import Observer
from loopline.drill.record import DrillRecord
from loopline.drill.scenario import pools
from loopline.drill.scratch import Scratch
from loopline.drill.world import World
from loopline.errors import LooplineError
from loopline.lib import processes
from loopline.release import bundle

PATIENCE = 600.0  # seconds to wait for an outcome, on a machine that is also busy otherwise
LONG = 3 * 3600.0  # seconds to wait for a retraining or a rollout, which end by themselves and give a reason
T = TypeVar("T")


class Drill:
    """One run of the story, in a scratch clone."""

    def __init__(self, root: Path, out: Path, pace: Pace, model: str = "classifier") -> None:
        """root: the repository. out: the folder for the result."""
        self.pace, self.out, self.model, self.record = pace, out, model, DrillRecord()
        self.record.say("act", "A clone of the repository, with its data and its champion")
        self.scratch = Scratch(root, root / ".loopline/drill/repository", model)
        if self.scratch.uncommitted:
            changed = repository.few(self.scratch.uncommitted)
            self.record.say("note", f"the clone includes uncommitted changes: {changed}")
        self.folder = self.scratch.folder
        self.champion = bundle.read(self.folder / "models" / self.model / "bundle")
        self.observed = Observer(self.folder, self.model, self.record)
        self.accuracies: dict[str, float] = {}
        self.world: World | None = None

    def play(self) -> None:
        """Play every act. Raises LooplineError at the first outcome that fails."""
        for act in (
            self.the_champion_serves,
            self.clean_traffic_is_quiet,
            self.drift_is_seen,
            self.labels_and_one_retraining,
            self.the_challenger_is_promoted,
            self.accuracy_recovers,
            self.a_bad_challenger_is_refused,
            self.a_faulty_canary_is_rolled_back,
            self.nothing_was_lost,
        ):
            act()

    def close(self) -> None:
        """Stop everything, write the results so far, and remove the clone."""
        self.observed.close()
        try:
            if self.world:
                self.world.close()
            self.scratch.loopline("down", codes=(0, 1))
            self._keep()
        finally:
            self.scratch.remove()

    # The acts

    def the_champion_serves(self) -> None:
        """Start the gateway, a server, sentinel, journal, Prometheus, Alertmanager and retrainer."""
        say = self.record.say
        say("act", "The champion serves", "champion serves")
        samples = pools(
            self.folder, self.model, self.champion.manifest.spec, self.pace.dataset, labels=self.pace.labels
        )
        # Registering is slow, so it runs in the background until it is needed.
        self.registered = ThreadPoolExecutor(1).submit(self._register)
        first_port = faults.free_ports(8)
        policy = faults.policy(self.folder, self.pace)
        ports = {
            "port": first_port,
            "prometheus-port": first_port + 2,
            "alertmanager-port": first_port + 3,
            "sentinel-port": first_port + 4,
        }
        ports |= {"journal-port": first_port + 5, "retrainer-port": first_port + 6}
        options = [word for name, number in ports.items() for word in (f"--{name}", str(number))]
        options += ["--journal", ".loopline/journal", "--journal-sample", "1", "--policy", str(policy)]
        options += ["--window", self.pace.window, "--scrape", "1", "--sentinel", "5", "--gateway"]
        output = self.scratch.loopline("up", f"models/{self.model}/bundle", *options)
        say("note", f"{len(output.splitlines())} processes are up, bundle {self.champion.version:.12} is champion")
        began, kept = self.record.began, self.observed.kept
        self.world = World(f"http://127.0.0.1:{first_port}", self.model, samples, self.pace.rate, began, kept)
        self.observed.watch(f"http://127.0.0.1:{first_port + 2}")

    def clean_traffic_is_quiet(self) -> None:
        """Send two windows of clean traffic; check that the second raises no alert."""
        say = self.record.say
        say("act", f"Clean traffic, {self.pace.rate:g} requests a second", "clean traffic")
        began = self.record.now()
        seconds = int(self.pace.window[:-1])
        self._until("two windows of traffic", lambda: self.record.now() - began > 2 * seconds)
        # Only full windows count: Prometheus extrapolates the first counts of a short window to up to twice as many.
        figures = [figure for figure in self.record.figures if figure.at > began + seconds]
        scores = [score for figure in figures for score in figure.score.values()]
        self._check(bool(scores), "the drift score is known")
        self.registered.result()
        fired = sorted({name for figure in figures for name in figure.firing})
        self._check(not fired, f"no drift alert{': ' + ', '.join(fired) if fired else ''}")
        self._check(max(scores) < 1, f"the score stays under its threshold ({max(scores):.2f} of 1)")
        self.accuracies["clean, before"] = self._accuracy(began, drifted=False)
        say("good", f"accuracy {self.accuracies['clean, before']:.3f}")

    def drift_is_seen(self) -> None:
        """Send drifted traffic; check that alerts fire and accuracy falls."""
        say = self.record.say
        assert self.world is not None
        say("act", self.world.pools.drift, "drift begins")
        began, self.world.drifted = self.record.now(), True
        first = self._until("a drift alert", self.observed.firing)
        say("alert", f"{', '.join(first)} after {self.record.now() - began:.0f} s", "first alert")
        self._until("harmful drift that lasts: RetrainCandidate", lambda: "RetrainCandidate" in self.observed.firing())
        say("alert", f"RetrainCandidate after {self.record.now() - began:.0f} s", "retrain candidate")
        self.accuracies["drifted, before"] = self._accuracy(began, drifted=True)
        before, now = self.accuracies["clean, before"], self.accuracies["drifted, before"]
        self._check(now < before - 0.05, f"accuracy is {now:.3f}, it was {before:.3f}")

    def labels_and_one_retraining(self) -> None:
        """Wait until the retrainer asks for labels, give them, and wait for its decision to retrain."""
        self.record.say("act", "Labels, a decision, one retraining")
        assert self.world is not None
        self._until("the retrainer asks for labels", lambda: self.observed.decided("ask-labels"))
        self.world.labelling = True
        self.record.say(
            "note", "people label the traffic from now on, except samples of the test split", "people label"
        )
        self._until("the decision to retrain", lambda: self.observed.decided("retrain"))
        self.world.labelling = False
        self.record.say("good", f"{len(self.world.labelled)} labels were enough", "retraining")
        self._until("a challenger that beats the champion", self._challenger, patience=LONG)

    def the_challenger_is_promoted(self) -> None:
        """Wait for the challenger's shadow, canary and promotion."""
        self.record.say("act", "The challenger: shadow, canary, promotion")
        assert self.world is not None
        began = self.record.now()
        done = self._until("the rollout's end", self.observed.ended, patience=LONG)
        self._check(done.stage == "promoted", f"{done.challenger:.12} is champion: {done.stage}")
        self.challenger = done
        (run,) = self._until("the run's end", lambda: [run for run in self.observed.runs() if run.result])
        self._check(run.result == "succeeded", f"the retraining run {run.result}")
        self.record.say("good", "promoted", "promoted")
        self._check(not self.world.lost(began), f"no request was lost: {len(self._since(began))} answers")

    def accuracy_recovers(self) -> None:
        """Check the accuracy on samples that nobody labelled."""
        self.record.say("act", "Accuracy recovers")
        assert self.world is not None
        began = self.record.now()
        self._until("enough answers", lambda: self.world.accuracy(began, drifted=True)[1] >= 300)  # type: ignore[union-attr]
        now, before = self._accuracy(began, drifted=True), self.accuracies["drifted, before"]
        self.accuracies["drifted, after"] = now
        loss = self.accuracies["clean, before"] - before
        share = (now - before) / loss
        self._check(
            share >= 2 / 3, f"accuracy on drifted traffic {now:.3f}: {share:.0%} of the loss by drift is recovered"
        )
        clean_after = self.world.ask([sample for sample in self.world.pools.clean if sample.part == "test"])
        self.accuracies["clean, after"] = clean_after
        # Compared on the test split only, because the earlier traffic also had validation samples.
        tested = [s for s in self.world.seen if not s.drifted and s.part == "test" and s.right is not None]
        clean_before = sum(bool(s.right) for s in tested) / len(tested)
        self._check(
            clean_after >= clean_before - 0.01,
            f"accuracy on clean test samples {clean_after:.3f}, it was {clean_before:.3f}",
        )
        self._until("RetrainCandidate is over", lambda: "RetrainCandidate" not in self.observed.firing())
        runs = self.observed.runs()
        self._check(len(runs) == 1, f"number of retrainings: {len(runs)}")

    def a_bad_challenger_is_refused(self) -> None:
        """Offer a bundle with two swapped classes; check that promotion refuses it."""
        self.record.say("act", "A bad challenger")
        bad = faults.mixed_up(self.folder / self.challenger.after, self.folder / ".loopline/mixed-up")
        shutil.rmtree(self.folder / "models" / self.model / "bundle")
        shutil.copytree(bad, self.folder / "models" / self.model / "bundle")
        self.scratch.loopline("release", "register", self.model)
        self.scratch.loopline("release", "promote", self.model, codes=(2,))
        line = self.observed.decided("refuse")
        self._check(line is not None, "the bad challenger is refused on its evidence", "bad challenger refused")

    def a_faulty_canary_is_rolled_back(self) -> None:
        """Kill the challenger in its canary; check that the rollout is rolled back."""
        self.record.say(
            "act", "A faulty canary: the first champion is tried again, and its server is killed", "faulty canary"
        )
        assert self.world is not None
        began = self.record.now()
        self.scratch.loopline("rollout", "start", self.model, "--bundle", str(self.champion_kept()), "--journal", ".loopline/journal",
                              "--inputs", "100", "--requests", str(20 * self.pace.requests), "--hold", "300")  # fmt: skip
        self._until("its canary", lambda: self.observed.stage() == "canary" and self.observed.share() > 0)
        old = self.champion.version[:12]
        self._until("requests that it answers", lambda: [seen for seen in self._since(began) if seen.version == old])
        killed = self.record.now()
        faults.kill([p for p in processes.running(self.observed.up) if p.name.startswith("challenger-")])
        self.record.say("bad", "its server is killed")
        self._until("the gateway to send all to the champion", lambda: self.observed.share() == 0)
        took = self.record.now() - killed
        done = self._until("the rollback", self.observed.ended)
        self._check(
            done.stage == "rolled back" and "alive" in "".join(done.reasons),
            f"rolled back because its server died; the gateway sent all requests to the champion after {took:.1f} s",
            "faulty canary rolled back",
        )

    def nothing_was_lost(self) -> None:
        """Check that no request of the whole drill was lost."""
        assert self.world is not None
        began = self.record.now()
        self._until("some more answers", lambda: len(self._since(began)) > 100)
        lost = self.world.lost()
        self._check(not lost, f"{len(self.world.seen)} requests, {len(lost)} lost")

    # Helpers of the acts

    def _register(self) -> None:
        for word in ("register", "promote"):
            self.scratch.loopline("release", word, self.model)

    def champion_kept(self) -> Path:
        """The first champion's bundle, in the folder where the rollout keeps it."""
        return self.folder / ".loopline/bundles" / self.model / self.champion.version

    def _until(self, outcome: str, ask: Callable[[], T | None], patience: float = PATIENCE) -> T:
        """Wait until `ask` returns something true, and return it. Raises LooplineError after `patience` seconds."""
        deadline = time.monotonic() + patience
        while True:
            self.observed.relay()
            if answer := ask():
                return answer
            if time.monotonic() > deadline:
                raise LooplineError(f"the drill waited {patience:.0f} s in vain for {outcome}{self._latest()}")
            if self.world and (dead := self.observed.dead()):
                raise LooplineError(f"{dead} ended while the drill waited for {outcome}")
            time.sleep(0.2)

    def _latest(self) -> str:
        """The last decision and its reasons in one line, to explain why an outcome did not come."""
        lines = self.observed.lines()
        return f"; the last decision is {lines[-1].action}: {'; '.join(lines[-1].reasons)}" if lines else ""

    def _check(self, holds: bool, text: str, short: str = "") -> None:
        self.record.say("good" if holds else "bad", text, short)
        if not holds:
            raise LooplineError(f"the drill failed: {text}")

    def _accuracy(self, since: float, *, drifted: bool) -> float:
        assert self.world is not None
        return self.world.accuracy(since, drifted=drifted)[0]

    def _since(self, at: float) -> list[Any]:
        assert self.world is not None
        return [seen for seen in self.world.seen if seen.at >= at]

    def _challenger(self) -> bool:
        runs = self.observed.runs()
        if runs and runs[0].result in ("failed", "refused"):
            raise LooplineError(f"the retraining {runs[0].result}{self._latest()}")
        return self.observed.rollout() is not None

    def _keep(self) -> None:
        """Write the timeline as Markdown and JSON, the decision log, the evidence and the picture."""
        from loopline.drill import timeline_picture

        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        (self.out / "record.json").write_text(json.dumps(self.record.to_dict(), indent=1), encoding="utf-8")
        (self.out / "timeline.md").write_text(timeline_picture.table(self.record), encoding="utf-8")
        for source, name in (
            (self.folder / "decisions/log.jsonl", "decisions.jsonl"),
            (self.folder / "reports/retraining", "evidence"),
        ):
            if source.is_dir():
                shutil.copytree(source, self.out / name)
            elif source.exists():
                shutil.copy(source, self.out / name)
        if self.world and self.world.seen:
            timeline_picture.draw(self.out / "timeline.png", self.record, self.world.seen, self.world.pools.short)
