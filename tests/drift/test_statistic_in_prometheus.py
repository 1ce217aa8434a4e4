"""The recording rules and numpy compute the same, through a real Prometheus that scrapes real exposition text."""

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
WINDOW = "1h"  # everything that the test counts is in it


class Replica:
    """A server's metrics, counted as `server.drift_counter` does, on a target of its own."""

    def __init__(self, reference, version="v1"):
        self.target, self.reference, self.version = prometheus.Target(), reference, version
        self.restart()

    def restart(self):
        """The counters start at 0, as those of a new process do."""
        model = types.SimpleNamespace(name="classifier", version=self.version, reference=self.reference)
        self.metrics = Metrics()
        self.metrics.value("model_info", "classifier", self.version, "bundle", "int8", "CPU").value = 1
        self.counts = Counts(model, self.metrics)
        self.show()

    def add(self, found):
        self.counts.add(found)
        self.show()

    def show(self):
        self.target.text = self.metrics.exposition()[0].decode()


@pytest.fixture(scope="module")
def reference():
    return test_drift.made()


@pytest.fixture
def watched(tmp_path, reference):
    """watched(replicas): a Prometheus that has seen each of them once."""
    made = []

    def start(*replicas):
        text = prometheus.quick(rules.text(WINDOW))
        server = prometheus.Prometheus(tmp_path, [one.target.address for one in replicas], text)
        made.extend([server, *(one.target for one in replicas)])
        prometheus.eventually(lambda: len(server.query("up == 1")) == len(replicas))
        # One sample before the first count, or Prometheus cannot know that there was an increase.
        prometheus.eventually(lambda: server.query("count_over_time(up[1h]) > 1"))
        return server

    yield start
    for one in made:
        one.close()


def scores(server, version="v1"):
    found = server.query(f'loopline:signal_score{{version="{version}"}}')
    return {labels["signal"]: value for labels, value in found}


def rows(server, reference, version="v1"):
    """What Prometheus saw: signal -> counts."""
    found = {name: np.zeros(len(signal.counts)) for name, signal in reference.signals.items()}
    for labels, value in server.query(f'loopline:signal_rows:window{{version="{version}"}}'):
        name = labels["signal"]
        found[name][reference.signals[name].bins.index(labels["bin"])] = value
    return found


def seen(server, number, version="v1"):
    """The rules have run on at least so many samples. Prometheus extrapolates, so it may think of a few more."""
    least = f'min(loopline:signal_samples:window{{version="{version}"}}) > {0.9 * number}'
    prometheus.eventually(lambda: server.query(least) and scores(server, version))


def test_both_say_the_same_of_a_window_over_three_replicas_one_of_which_restarts(watched, reference):
    replicas = [Replica(reference) for _ in range(3)]
    server = watched(*replicas)
    found, _ = test_drift.population(900, 11, brightness=0.3)
    parts = [{name: values[k::3] for name, values in found.items()} for k in range(3)]
    for replica, part in zip(replicas, parts, strict=True):
        replica.add({name: values[:150] for name, values in part.items()})
    seen(server, 450)
    replicas[0].restart()  # its counters fall to 0 in the middle of the window
    for replica, part in zip(replicas, parts, strict=True):
        replica.add({name: values[150:] for name, values in part.items()})
    seen(server, 900)

    counted = prometheus.eventually(lambda: _settled(server, reference))
    whole = test_drift.counted(found, reference)
    for name, counts in counted.items():
        # Prometheus extrapolates each series by up to half a scrape: much in a test of seconds, nothing in an hour.
        assert statistic.shift(counts, whole[name]) < 0.08, name
    expected = {mover.signal: mover for mover in statistic.movers(counted, reference)}
    given = scores(server)
    assert given.keys() == expected.keys() == reference.signals.keys()
    for name, value in given.items():
        assert value == pytest.approx(expected[name].score, rel=0.02, abs=0.02), name
    assert server.query("loopline:drift_score")[0][1] == pytest.approx(max(given.values()), rel=0.05)
    values = {labels["signal"]: value for labels, value in server.query("loopline:signal_value:window")}
    before = {labels["signal"]: value for labels, value in server.query("loopline:signal_value:reference")}
    assert values["brightness"] == pytest.approx(expected["brightness"].value, rel=0.02)
    assert before["brightness"] == pytest.approx(expected["brightness"].before, abs=1e-6)


def _settled(server, reference):
    """Counts that the rules and this query agree on: nothing was scraped in between."""
    first = rows(server, reference)
    shifts = {labels["signal"]: value for labels, value in server.query("loopline:signal_shift")}
    same = all(
        abs(statistic.shift(first[name], np.array(signal.counts)) - shifts[name]) < 1e-6
        for name, signal in reference.signals.items()
    )
    return first if same else None


def _agreed(server, reference, version):
    """The harm, where the rules and numpy say the same of it."""
    cost = harm.judge(rows(server, reference, version), reference)
    given = [
        server.query(f'{name}{{version="{version}"}}')[0][1]
        for name in ("loopline:quality_loss", "loopline:quality_limit")
    ]
    return cost if np.allclose(given, [cost.loss, cost.limit], atol=0.003) else None


def test_the_estimated_quality_is_the_same_and_versions_are_judged_apart(watched, reference):
    old, new = Replica(reference, "v1"), Replica(reference, "v2")
    server = watched(old, new)
    old.add(test_drift.population(600, 8)[0])
    new.add(test_drift.population(600, 9, sure=-0.25, brightness=2)[0] | {"predicted_class": np.zeros(600)})
    seen(server, 600, "v1")
    seen(server, 600, "v2")
    by_version = {labels["version"]: value for labels, value in server.query("loopline:drift_score")}
    assert by_version["v1"] < 1 < by_version["v2"]
    losses = {labels["version"]: value for labels, value in server.query("loopline:quality_loss")}
    assert abs(losses["v1"]) < 0.04 < 0.1 < losses["v2"]
    for version in ("v1", "v2"):
        cost = prometheus.eventually(lambda version=version: _agreed(server, reference, version))
        assert (cost.classes > 0) == (version == "v2"), "all is called the first class, and looks otherwise too"
    firing = {(labels["alertname"], labels["version"]) for labels, _ in server.query('ALERTS{alertname=~"Drift.*"}')}
    assert firing == {("DriftWarning", "v2")}


def test_too_few_samples_give_no_score_but_their_number(watched, reference):
    replica = Replica(reference)
    server = watched(replica)
    replica.add(test_drift.population(20, 1, brightness=5)[0])
    prometheus.eventually(lambda: server.query("loopline:drift_samples > 10"))
    assert server.query("loopline:drift_score") == []
    assert server.query("loopline:drift_samples")[0][1] < reference.least


def test_a_signal_that_is_no_number_for_every_request_is_an_alarm(watched, reference):
    replica = Replica(reference)
    server = watched(replica)
    found = test_drift.population(600, 1)[0]
    replica.add(found | {"contrast": np.full(600, np.nan)})
    seen(server, 600)
    assert scores(server)["contrast"] > 1
    assert scores(server)["brightness"] < 1
    assert "contrast" not in {labels["signal"] for labels, _ in server.query("loopline:signal_value:window")}


def test_the_tests_own_bundles_reference_is_exported_whole():
    spec = brightness.described().spec
    replica = Replica(test_drift.reference.Reference.from_dict(brightness.reference(spec)))
    replica.target.close()
    assert (
        'loopline_reference_share{bin="01",model="classifier",signal="brightness",version="v1"} 0.25'
        in replica.target.text
    )
