"""The recording rules and numpy compute the same figures: a real Prometheus scrapes real exposition text."""

import types

import brightness
import numpy as np
import prometheus
import pytest
import test_drift

from loopline.drift import harm, statistic
from loopline.observability import rules
from loopline.server.drift_counter import Counts
from loopline.server.metrics import Metrics

pytestmark = prometheus.needed
WINDOW = "1h"  # longer than any test, so all counts are in it
LAST = "loopline:quality_limit"  # the last recording of the drift rules that every bundle has


class Replica:
    """The metrics of one server, counted by `server.drift_counter`, on a scrape target of its own."""

    def __init__(self, reference, version="v1"):
        self.target, self.reference, self.version = prometheus.Target(), reference, version
        self.restart()

    def restart(self):
        """Start the counters at 0, as a new process does."""
        model = types.SimpleNamespace(name="classifier", version=self.version, reference=self.reference)
        self.metrics = Metrics()
        self.metrics.value("model_info", "classifier", self.version, "bundle", "int8", "CPU").value = 1
        self.counts = Counts(model, self.metrics)
        self.show()

    def add(self, signals):
        self.counts.add(signals)
        self.show()

    def show(self):
        self.target.text = self.metrics.exposition()[0].decode()


@pytest.fixture(scope="module")
def reference():
    return test_drift.made()


@pytest.fixture
def watched(tmp_path, reference):
    """watched(replicas): a Prometheus that has scraped each of them at least twice."""
    started = []

    def start(*replicas):
        text = prometheus.quick(rules.text(WINDOW))
        server = prometheus.Prometheus(tmp_path, [replica.target.address for replica in replicas], text)
        started.extend([server, *(replica.target for replica in replicas)])
        prometheus.eventually(lambda: len(server.query("up == 1")) == len(replicas))
        # Prometheus sees the first increase only if it has a sample from before it.
        prometheus.eventually(lambda: server.query("count_over_time(up[1h]) > 1"))
        return server

    yield start
    for process in started:
        process.close()


def scores(server, version="v1"):
    rows = server.query(f'loopline:signal_score{{version="{version}"}}')
    return {labels["signal"]: value for labels, value in rows}


def rows(server, reference, version="v1"):
    """The counts that Prometheus has: signal -> counts."""
    counts = {name: np.zeros(len(signal.counts)) for name, signal in reference.signals.items()}
    for labels, value in server.query(f'loopline:signal_rows:window{{version="{version}"}}'):
        name = labels["signal"]
        counts[name][reference.signals[name].bins.index(labels["bin"])] = value
    return counts


def seen(server, number, version="v1"):
    """Wait until the rules have run on about this many samples; 90 % is enough, because Prometheus extrapolates."""
    least = f'min(loopline:signal_samples:window{{version="{version}"}}) > {0.9 * number}'
    prometheus.eventually(lambda: server.query(least) and scores(server, version))


def test_rules_and_numpy_agree_on_a_window_over_three_replicas_one_of_which_restarts(watched, reference):
    replicas = [Replica(reference) for _ in range(3)]
    server = watched(*replicas)
    signals, _ = test_drift.population(900, 11, brightness=0.3)
    parts = [{name: values[k::3] for name, values in signals.items()} for k in range(3)]
    for replica, part in zip(replicas, parts, strict=True):
        replica.add({name: values[:150] for name, values in part.items()})
    seen(server, 450)
    replicas[0].restart()  # its counters fall to 0 in the middle of the window
    for replica, part in zip(replicas, parts, strict=True):
        replica.add({name: values[150:] for name, values in part.items()})
    seen(server, 900)

    server = server.frozen(LAST)
    counted = rows(server, reference)
    expected_counts = test_drift.counted(signals, reference)
    for name, counts in counted.items():
        # Prometheus extrapolates each series by up to half a scrape, which matters in a test of seconds.
        assert statistic.shift(counts, expected_counts[name]) < 0.08, name
    expected = {mover.signal: mover for mover in statistic.movers(counted, reference)}
    recorded = scores(server)
    assert recorded.keys() == expected.keys() == reference.signals.keys()
    for name, value in recorded.items():
        assert value == pytest.approx(expected[name].score, rel=0.02, abs=0.02), name
    assert server.query("loopline:drift_score")[0][1] == pytest.approx(max(recorded.values()), rel=0.05)
    values = {labels["signal"]: value for labels, value in server.query("loopline:signal_value:window")}
    before = {labels["signal"]: value for labels, value in server.query("loopline:signal_value:reference")}
    assert values["brightness"] == pytest.approx(expected["brightness"].value, rel=0.02)
    assert before["brightness"] == pytest.approx(expected["brightness"].before, abs=1e-6)


def test_the_estimated_quality_is_the_same_and_versions_are_judged_apart(watched, reference):
    old, new = Replica(reference, "v1"), Replica(reference, "v2")
    server = watched(old, new)
    old.add(test_drift.population(600, 8)[0])
    new.add(test_drift.population(600, 9, sure=-0.25, brightness=2)[0] | {"predicted_class": np.zeros(600)})
    seen(server, 600, "v1")
    seen(server, 600, "v2")
    server = server.frozen(LAST)
    by_version = {labels["version"]: value for labels, value in server.query("loopline:drift_score")}
    assert by_version["v1"] < 1 < by_version["v2"]
    losses = {labels["version"]: value for labels, value in server.query("loopline:quality_loss")}
    assert abs(losses["v1"]) < 0.04 < 0.1 < losses["v2"]
    for version in ("v1", "v2"):
        cost = harm.judge(rows(server, reference, version), reference)
        for name, value in (("loopline:quality_loss", cost.loss), ("loopline:quality_limit", cost.limit)):
            assert server.query(f'{name}{{version="{version}"}}')[0][1] == pytest.approx(value, abs=0.003), name
        assert (cost.classes > 0) == (version == "v2"), (
            "all of v2 is predicted as the first class, and its images look different"
        )
    firing = {(labels["alertname"], labels["version"]) for labels, _ in server.query('ALERTS{alertname=~"Drift.*"}')}
    assert firing == {("DriftWarning", "v2")}


def test_too_few_samples_give_their_number_and_no_score(watched, reference):
    replica = Replica(reference)
    server = watched(replica)
    replica.add(test_drift.population(20, 1, brightness=5)[0])
    prometheus.eventually(lambda: server.query("loopline:drift_samples > 10"))
    assert server.query("loopline:drift_score") == []
    assert server.query("loopline:drift_samples")[0][1] < reference.least


def test_a_signal_that_is_nan_for_every_request_is_an_alarm(watched, reference):
    replica = Replica(reference)
    server = watched(replica)
    signals = test_drift.population(600, 1)[0]
    replica.add(signals | {"contrast": np.full(600, np.nan)})
    seen(server, 600)
    assert scores(server)["contrast"] > 1
    assert scores(server)["brightness"] < 1
    assert "contrast" not in {labels["signal"] for labels, _ in server.query("loopline:signal_value:window")}


def test_the_reference_of_the_bundle_in_the_tests_is_exported():
    spec = brightness.described().spec
    replica = Replica(test_drift.reference.Reference.from_dict(brightness.reference(spec)))
    replica.target.close()
    assert (
        'loopline_reference_share{bin="01",model="classifier",signal="brightness",version="v1"} 0.25'
        in replica.target.text
    )
