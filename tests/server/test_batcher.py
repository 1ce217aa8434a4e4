"""The queue: order, deadlines, poison, fairness, cancellation. The models here take a known time."""

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopline.server.batcher import INLINE_BYTES, MOST_BYTES, Batcher
from loopline.server.jobs import Job, TooLate
from loopline.server.messages import Refusal
from loopline.server.sockets import OLDEST_EVERY


class Clock:
    """A model that answers each payload with itself. A batch with `poison` fails. `gate` holds the first batch back."""

    def __init__(self, name="clock", *, best_rows=4, row_seconds=0.0, sleep=0.0):
        self.name, self.best_rows, self.row_seconds, self.sleep = name, best_rows, row_seconds, sleep
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, payloads):
        self.gate.wait(60)
        self.batches.append(list(payloads))
        time.sleep(self.sleep)
        if "poison" in payloads:
            raise RuntimeError("poison")
        return list(payloads)


def scenario(play, *models, slots=1, inline=-1.0):
    """Run `play(batcher, submit)` in an event loop. submit(model, payload) -> a future of the job. inline: seconds, see Batcher."""
    observed = []

    async def main():
        observe = lambda model, batch: observed.append((model.name, len(batch)))  # noqa: E731
        batcher = Batcher(models, slots=slots, observe=observe, inline_seconds=inline)
        loop = asyncio.get_running_loop()

        def submit(model, payload, *, rows=1, size=0, seconds=60.0):
            future = loop.create_future()
            job = Job(model, payload, rows, size, time.monotonic() + seconds, lambda job: future.set_result(job.result))
            batcher.submit(job)
            future.job = job
            return future

        try:
            return await play(batcher, submit)
        finally:
            batcher.close()

    return asyncio.run(main()), observed


async def occupied(model, submit, payload):
    """Occupy the slot with `payload` until the model's gate is opened."""
    model.gate.clear()
    future = submit(model, payload)
    while future.job.batch_rows == 0:
        await asyncio.sleep(0)
    return future


def test_waiting_jobs_share_a_batch_in_order_up_to_the_best_size():
    model = Clock(best_rows=4)

    async def play(_, submit):
        futures = [await occupied(model, submit, 0)] + [submit(model, n) for n in range(1, 10)]
        model.gate.set()
        return await asyncio.gather(*futures)

    answers, observed = scenario(play, model)
    assert answers == list(range(10))
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert observed == [("clock", 1), ("clock", 4), ("clock", 4), ("clock", 1)]


def test_an_idle_model_runs_a_job_at_once():
    model = Clock(best_rows=64)

    async def play(_, submit):
        timers = []
        asyncio.get_running_loop().call_at = lambda *given, **_: timers.append(given)
        await submit(model, 1)
        return timers

    timers, _ = scenario(play, model)
    assert timers == [], "there is no timer to wait for"


def test_on_one_core_a_short_batch_runs_in_the_event_loop_with_all_jobs_of_a_turn():
    model = Clock(best_rows=8)
    model.run = lambda payloads: [threading.current_thread().name for _ in payloads]

    async def play(_, submit):
        return await asyncio.gather(
            *[submit(model, n) for n in range(5)], submit(model, "large", size=INLINE_BYTES + 1)
        )

    answers, observed = scenario(play, model, inline=1.0)
    assert answers == ["slot-0"] * 6, "too many bytes for the loop's thread"
    answers, observed = scenario(
        lambda _, submit: asyncio.gather(*[submit(model, n) for n in range(5)]), model, inline=1.0
    )
    assert answers == ["MainThread"] * 5
    assert observed == [("clock", 5)]


class Flood:
    """A server with a simulated clock, as `sockets` drives it. All times are in seconds of one core.

    cores: with one, batches run in the event loop; with more, each slot runs one, and the cores are shared by the event loop and
    the slots. rate: requests a second, over `connections` that have one request each. read, write: cost of reading a request, and of
    writing its answer. batch, row: cost of a batch, and of a row in it. patience: after which an answer is of no use.
    """

    def __init__(self, *, cores, rate, connections, read, write, batch, row, best_rows, patience, seconds):
        self.cores, self.running = cores, []
        self.rate, self.read, self.write, self.patience, self.seconds = rate, read, write, patience, seconds
        self.free = connections
        self.model = Clock(best_rows=best_rows, row_seconds=(batch + best_rows * row) / best_rows)
        self.model.run = self.run
        self.batch, self.row = batch, row
        self.clock, self.worked = 0.0, 0.0
        self.unread = deque()
        self.late, self.refused, self.expired = [], [], 0
        self.answered = 0
        self.full_seconds = self.full_worked = 0.0

    def run(self, payloads):
        self.spend(self.batch + len(payloads) * self.row, worked=True)
        return list(payloads)

    def spend(self, seconds, *, worked=False):
        """Let time pass in which the event loop is busy."""
        self.pass_time(seconds, self.cores - 1)
        self.worked += seconds * worked

    def pass_time(self, seconds, cores):
        """Let time pass in which the slots have so many cores."""
        self.clock += seconds
        if self.running:
            done = seconds * min(1.0, cores / len(self.running))
            self.worked += done * len(self.running)
            for slot in self.running:
                slot[0] -= done
                self.batcher.returned |= slot[0] <= 1e-12

    def slots(self, batcher):
        """Start what the batcher gave to its slots, and end what is done."""
        while not batcher.inbox.empty():
            jobs = batcher.inbox.get()
            for job in jobs:
                job.started = self.clock
            self.running.append([self.batch + len(jobs) * self.row, jobs])
        for slot in [slot for slot in self.running if slot[0] <= 1e-12]:
            self.running.remove(slot)
            for job in slot[1]:
                job.result, job.finished = job.payload, self.clock
            batcher._finished(slot[1])

    def wait(self, due):
        """Let time pass until the next request or the end of a batch."""
        ends = [slot[0] / min(1.0, self.cores / len(self.running)) for slot in self.running]
        self.pass_time(max(0.0, min([due - self.clock, *ends])), self.cores)

    def done(self, job):
        self.spend(self.write, worked=True)
        self.free += 1
        if isinstance(job.result, TooLate):
            self.expired += self.clock > self.seconds / 3  # until then the pace is learnt
            return
        self.answered += 1
        if self.clock > job.deadline:
            self.late.append(self.clock - job.deadline)

    async def play(self):
        batcher = Batcher([self.model], slots=self.cores, observe=lambda *_: None, inline_seconds=1e9)
        self.batcher = batcher
        due, taken, batcher.budget.patience = 0.0, 0, self.patience
        while self.clock < self.seconds:
            full, start, worked = batcher.full, self.clock, self.worked
            while due <= self.clock:
                if self.free:
                    self.unread.append(due)
                    self.free -= 1
                due += 1 / self.rate
            spent = 0.0
            while self.unread and batcher.hungry(spent):
                taken += 1
                newest = taken % OLDEST_EVERY and batcher.newest(start - self.unread[0])
                arrived = self.unread.pop() if newest else self.unread.popleft()
                self.spend(self.read)
                try:
                    batcher.submit(Job(self.model, arrived, 1, 0, arrived + self.patience, self.done))
                except Refusal:
                    self.refused.append(self.clock - arrived)
                    self.free += 1
                spent = self.clock - start
            batcher.turn(spent)
            await asyncio.sleep(0)
            if (
                not (self.unread and batcher.hungry(0.0))
                and (self.running or not batcher.busy)
                and batcher.inbox.empty()
            ):
                self.wait(due)
            self.slots(batcher)
            if full and batcher.full:
                self.full_seconds += self.clock - start
                self.full_worked += self.worked - worked
        return self


@pytest.fixture
def flooded(monkeypatch):
    """flooded(...) -> the Flood after it was played."""

    def play(**given):
        flood = Flood(**given)
        for module in ("batcher", "jobs"):
            monkeypatch.setattr(f"loopline.server.{module}.time", SimpleNamespace(monotonic=lambda: flood.clock))
        monkeypatch.setattr("loopline.server.batcher.threading.Thread", lambda **_: SimpleNamespace(start=lambda: None))
        return asyncio.run(flood.play())

    return play


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    st.floats(0.2, 20),
    st.floats(1e-5, 5e-5),
    st.floats(0, 5e-5),
    st.floats(0, 2e-3),
    st.floats(2e-5, 5e-3),
    st.sampled_from([1, 2, 3, 8, 16, 32]),
    st.sampled_from([1, 2, 4]),
)
def test_in_a_flood_the_model_keeps_its_share_of_the_cores_and_nothing_is_answered_late(
    flooded, load, read, write, batch, row, best_rows, cores
):
    capacity = cores / (batch / best_rows + row + read + write)  # requests a second
    patience = 10 * (batch + best_rows * row) + 0.05
    seconds = patience + min(100 * (batch + best_rows * row) + 0.2, 20 * (batch + best_rows * row) + 3000 * read)
    flood = flooded(
        cores=cores,
        rate=load * capacity,
        connections=500,
        read=read,
        write=write,
        batch=batch,
        row=row,
        best_rows=best_rows,
        patience=patience,
        seconds=seconds,
    )
    if (
        flood.full_seconds > seconds / 2 and capacity * (read + write) < 0.5
    ):  # else the event loop cannot feed the slots
        assert flood.full_worked / flood.full_seconds / cores > 0.85 - (0.01 if cores == 1 else 0.05)
    if load > 2 and capacity * (read + write) < 0.5:
        assert flood.answered > 0.85 * capacity * (seconds - patience), (
            "reading what is refused costs the model no more than its share"
        )
    assert len(flood.late) <= best_rows * cores, "in the first batches, whose pace is not known"
    assert flood.expired <= 0.05 * flood.answered + best_rows * cores, "hardly any is accepted and refused later"


def test_a_poisoned_item_fails_alone():
    model = Clock(best_rows=8)

    async def play(_, submit):
        futures = [await occupied(model, submit, "first")] + [
            submit(model, payload) for payload in ("a", "poison", "b")
        ]
        model.gate.set()
        return await asyncio.gather(*futures)

    answers, _ = scenario(play, model)
    assert answers[:2] == ["first", "a"]
    assert isinstance(answers[2], RuntimeError)
    assert answers[3] == "b"
    assert model.batches == [["first"], ["a", "poison", "b"], ["a"], ["poison"], ["b"]]


def test_a_cancelled_or_late_job_is_not_run():
    model = Clock(best_rows=8)

    async def play(_, submit):
        first = await occupied(model, submit, 0)
        cancelled, late, last = (submit(model, n) for n in range(1, 4))
        cancelled.job.cancel()
        late.job.deadline = 0.0
        model.gate.set()
        answers = await asyncio.gather(first, late, last)
        assert not cancelled.done()
        return answers

    answers, _ = scenario(play, model)
    assert (answers[0], answers[2]) == (0, 3)
    assert isinstance(answers[1], TooLate)
    assert model.batches == [[0], [3]]


def test_a_late_job_that_is_cancelled_gets_no_callback():
    model = Clock(best_rows=8)

    async def play(batcher, submit):
        first, late = await occupied(model, submit, 0), submit(model, 1)
        late.job.deadline = 0.0
        assert batcher._take(batcher.lines["clock"]) == []
        late.job.cancel()  # between the decision and the callback
        model.gate.set()
        await first
        await asyncio.sleep(0.01)
        return late.done()

    assert scenario(play, model)[0] is False


def test_a_job_cancelled_in_a_running_batch_does_not_affect_the_others():
    model = Clock(best_rows=8)

    async def play(_, submit):
        blocker = await occupied(model, submit, 0)
        futures = [submit(model, n) for n in (1, 2, 3)]
        model.gate.set()
        await blocker
        futures[1].job.cancel()  # its batch is on a slot now, or about to be
        answers = await asyncio.gather(futures[0], futures[2])
        await asyncio.sleep(0.05)
        assert not futures[1].done()
        return answers

    assert scenario(play, model)[0] == [1, 3]


def test_a_job_that_cannot_be_done_in_time_is_refused_at_once():
    model = Clock(best_rows=1, row_seconds=50.0)

    async def play(batcher, submit):
        model.gate.clear()
        accepted = [submit(model, n, seconds=220) for n in range(4)]
        with pytest.raises(Refusal, match="is busy") as refused:
            submit(model, "too much", seconds=220)
        assert refused.value.status == 503
        assert int(refused.value.headers[b"retry-after"]) == 250
        submit(model, "patient", seconds=6000)
        model.gate.set()
        return await asyncio.gather(*accepted)

    assert scenario(play, model)[0] == [0, 1, 2, 3]


def test_jobs_that_would_fill_the_memory_are_refused():
    model = Clock()

    async def play(batcher, submit):
        futures = [await occupied(model, submit, 0)] + [submit(model, n, size=MOST_BYTES // 2) for n in (1, 2)]
        with pytest.raises(Refusal) as refused:
            submit(model, "too much", size=1)
        assert refused.value.status == 429
        model.gate.set()
        await asyncio.gather(*futures)
        await submit(model, "again", size=MOST_BYTES)
        return batcher.waiting_bytes

    assert scenario(play, model)[0] == 0


def test_a_busy_model_does_not_starve_another(monkeypatch):
    busy, rare, now, order = Clock("busy", best_rows=1), Clock("rare", best_rows=1), [0.0], []
    for module in ("batcher", "jobs"):
        monkeypatch.setattr(f"loopline.server.{module}.time", SimpleNamespace(monotonic=lambda: now[0]))

    def run(payloads):
        now[0] += 0.01
        return list(payloads)

    busy.run = rare.run = run

    async def play(_, submit):
        futures = [submit(busy, n) for n in range(20)] + [submit(rare, n) for n in range(5)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: order.append("rare" if number >= 20 else "busy"))
        await asyncio.gather(*futures)

    scenario(play, busy, rare)
    assert order.index("rare") <= 2
    assert "busy" in order[: order.index("rare") + 3]
    assert max(index for index, name in enumerate(order) if name == "rare") <= 12


def test_the_time_of_a_row_is_learnt():
    model = Clock(best_rows=1, row_seconds=1.0, sleep=0.001)

    async def play(_, submit):
        for n in range(50):
            await submit(model, n)
        return model.row_seconds

    assert scenario(play, model)[0] < 0.2


def test_an_idle_batcher_sleeps():
    model = Clock()

    async def play(_, submit):
        await submit(model, 0)
        start = time.process_time()
        await asyncio.sleep(0.5)
        return time.process_time() - start

    assert scenario(play, model, slots=2)[0] < 0.05


def test_neither_a_pause_of_the_machine_nor_a_slow_hour_makes_the_server_refuse_for_ever(monkeypatch):
    """What is learnt from batches cannot be learnt anew while every request is refused."""
    model, now = Clock(best_rows=1, row_seconds=0.001), [100.0]
    for module in ("batcher", "jobs"):
        monkeypatch.setattr(f"loopline.server.{module}.time", SimpleNamespace(monotonic=lambda: now[0]))
    spent = [0.001]

    def run(payloads):
        now[0] += spent[0]
        return list(payloads)

    model.run = run

    async def play(batcher, _):
        async def asked(payload):
            future = asyncio.get_running_loop().create_future()
            batcher.submit(Job(model, payload, 1, 0, now[0] + 1.0, lambda job: future.set_result(job.result)))
            return await future

        for pause in (60.0, 3600.0):
            spent[0] = pause
            await asked("suspended")
            spent[0] = 0.001
            assert await asked("at once") == "at once"
        spent[0] = 3.0
        refused = 0
        for n in range(300):
            now[0] += 0.1
            with suppress(Refusal):
                await asked(n)
                continue
            refused += 1
        assert refused > 100, "the model is too slow for the deadline"
        spent[0], answered = 0.001, 0
        for n in range(600):
            now[0] += 0.1
            with suppress(Refusal):
                answered += await asked(n) == n
        assert answered > 300, "it is fast again"

    scenario(play, model, inline=10.0)


@given(
    st.lists(st.tuples(st.sampled_from(["x", "poison"]), st.integers(1, 6), st.booleans()), max_size=30),
    st.integers(1, 8),
    st.integers(1, 3),
    st.sampled_from([-1.0, 1.0]),
)
def test_every_item_is_answered_once_or_was_cancelled(items, best_rows, slots, inline):
    model = Clock(best_rows=best_rows)

    async def play(batcher, submit):
        futures = [submit(model, kind, rows=rows) for kind, rows, _ in items]
        for future, (_, _, gone) in zip(futures, items, strict=True):
            if gone:
                future.job.cancel()
        kept = [future for future, (_, _, gone) in zip(futures, items, strict=True) if not gone]
        answers = await asyncio.gather(*kept)
        while batcher.busy:
            await asyncio.sleep(0.001)
        line = batcher.lines["clock"]
        assert (line.rows, batcher.waiting_seconds, batcher.free) == (0, 0, slots)
        return answers

    answers, _ = scenario(play, model, slots=slots, inline=inline)
    kinds = [kind for kind, _, gone in items if not gone]
    assert [isinstance(answer, RuntimeError) for answer in answers] == [kind == "poison" for kind in kinds]
    for batch in model.batches:
        assert len(batch) <= best_rows or len(batch) == 1
