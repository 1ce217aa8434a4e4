"""The warm-up: it finds the best batch although timings are noisy, in bounded time, and says when it could not decide."""

import random

import pytest

from loopline.server import warm_up


class Engine:
    """A model with a clock of its own. seconds: rows -> time of a batch. noise: share by which a timing may be longer."""

    def __init__(self, seconds, noise=0.0, seed=0):
        self.seconds, self.noise, self.now, self.random = seconds, noise, 0.0, random.Random(seed)

    def run(self, rows):
        self.now += self.seconds(rows) * (1 + self.noise * self.random.random() ** 4)

    def clock(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (lambda rows: 50e-6 * rows, 1),
        (lambda rows: 100e-6 + 10e-6 * rows, 32),
        (lambda rows: 1e-3 * rows, 1),
        (lambda rows: 20e-6 * rows + (rows > 8) * 40e-6 * (rows - 8) + 20e-6, 8),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_best_batch_is_found_although_timings_are_noisy(seconds, best, noise):
    for seed in range(20):
        engine = Engine(seconds, noise, seed)
        pick = warm_up.profile(engine.run, engine.clock).best_rows
        assert pick == best or (noise and pick / seconds(pick) >= 0.88 * best / seconds(best)), pick


@pytest.mark.parametrize("row_seconds", [1e-6, 1e-4, 3e-3, 0.2])
def test_the_time_is_bounded_and_a_slow_model_is_not_run_with_large_batches(row_seconds):
    engine = Engine(lambda rows: row_seconds * rows, noise=50.0)
    profile = warm_up.profile(engine.run, engine.clock)
    longest = max(profile.seconds) * row_seconds * 51
    assert engine.now <= warm_up.MOST_SECONDS + 6 * longest
    assert len(profile.seconds) == 1 or max(profile.seconds) / 2 * row_seconds <= warm_up.LONGEST_SECONDS


def test_it_says_whether_the_choice_was_stable():
    steady = Engine(lambda rows: 50e-6 * rows)
    profile = warm_up.profile(steady.run, steady.clock)
    assert (profile.stable, profile.rounds) == (True, warm_up.STABLE_ROUNDS)
    slow = Engine(lambda rows: 0.09 * rows)
    profile = warm_up.profile(slow.run, slow.clock)
    assert (profile.stable, profile.rounds) == (False, 1)
