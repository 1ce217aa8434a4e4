"""`loopline watch` and its queries on a real Prometheus, whose store is filled in advance with an hour of traffic."""

import io
import json
import re
import subprocess
import time
import types

import numpy as np
import prometheus
import pytest
import rich.console
import test_drift
from answering import Server

from loopline.errors import LooplineError
from loopline.observability import prometheus_api, rules, watch
from loopline.server.drift_counter import Counts
from loopline.server.metrics import Metrics

HOUR = 3600
OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def lines(model, version, reference, signals, now, parts=20):
    """The OpenMetrics lines of a server that counted the samples with these `signals` during the 50 minutes before `now`."""
    metrics = Metrics()
    metrics.value("model_info", model, version, "bundle", "int8", "CPU").value = 1
    counts = Counts(types.SimpleNamespace(name=model, version=version, reference=reference), metrics)
    rows = len(next(iter(signals.values())))
    for part in range(parts + 1):
        if part:
            start, end = rows * (part - 1) // parts, rows * part // parts
            counts.add({name: values[start:end] for name, values in signals.items()})
        at = now - (parts - part) * 150
        for line in metrics.exposition()[0].decode().splitlines():
            if line.startswith("loopline_"):
                yield f"{line} {at:.3f}"


def fill(folder, reference):
    """Fill a store for Prometheus: clean and drifted classifiers, a text model with little traffic, a detector with none.

    Returns the gauges that a server that is still up exports of them.
    """
    now, clean = time.time(), test_drift.population(600, 1)[0]
    drifted = test_drift.population(600, 2, sure=-0.25, brightness=2)[0]
    few = {name: values[:20] for name, values in clean.items()}
    none = {name: values[:0] for name, values in clean.items()}
    served = [("classifier", OLD, clean), ("classifier", NEW, drifted), ("text", OLD, few), ("detector", OLD, none)]
    text = [line for model, version, signals in served for line in lines(model, version, reference, signals, now)]
    past = f'loopline:drift_score{{model="classifier",version="{NEW}"}}'
    text += [f"{past} {1.5 if age > 4 * HOUR else 0.2} {now - age:.3f}" for age in range(5 * HOUR, HOUR, -300)]
    (folder / "past.txt").write_text("\n".join([*text, "# EOF\n"]))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "past.txt", "data"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    last = [line.rpartition(" ")[0] for line in text if line.endswith(f" {now:.3f}")]
    return "\n".join([line for line in last if re.match(r"loopline_\w+(?<!_total)\{", line)] + [""])


@pytest.fixture(scope="module")
def reference():
    return test_drift.made()


@pytest.fixture(scope="module")
def server(tmp_path_factory, reference):
    """A Prometheus with Loopline's rules, evaluated twice a second."""
    folder = tmp_path_factory.mktemp("prometheus")
    target = prometheus.Target()
    target.text = fill(folder, reference)
    started = prometheus.Prometheus(folder, [target.address], prometheus.quick(rules.text()), every="2s")
    try:
        prometheus.eventually(lambda: started.query("ALERTS{alertname='DriftWarning'}"))
        yield started
    finally:
        started.close()
        target.close()


class Answering(Server):
    """A server that gives the same answer to every request."""

    def __init__(self, status, body, wait=0.0):
        def answer(*_):
            time.sleep(wait)
            return status, body

        super().__init__(answer)


@pytest.fixture
def answering():
    servers = []

    def start(*answer_arguments):
        servers.append(Answering(*answer_arguments))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


def drawn(state, width=80, **options):
    console = rich.console.Console(file=io.StringIO(), width=width, highlight=False, **options)
    console.print(watch.picture(state))
    return console.file.getvalue()


def state(**changes):
    fields = {
        "model": "classifier",
        "version": OLD,
        "samples": 400.0,
        "least": 50.0,
        "score": 0.4,
        "history": (None, 0.1, 1.4, 0.4),
        "metric": "accuracy",
        "reference": 0.99,
        "estimates": {"confidence": 0.97, "atc": 0.98},
        "loss": 0.015,
        "classes": None,
        "labelled": (),
        "max_loss": 0.03,
        "alerts": (),
        "movers": (
            watch.RecordedMover("brightness", 0.4, 80.0, 91.0),
            watch.RecordedMover("predicted_class", -0.1, None, None),
        ),
    }
    return watch.ModelState(**fields | changes)


# What Prometheus recorded


@prometheus.needed
def test_the_state_comes_from_the_series_that_the_rules_record(server, reference):
    _, states, others = watch.states(server.url)
    by_version = {(state.model, state.version): state for state in states}
    assert by_version.keys() == {("classifier", OLD), ("classifier", NEW), ("text", OLD), ("detector", OLD)}
    assert (states[0].model, states[0].version) == ("classifier", NEW), "what drifts comes first"
    calm, moved = by_version["classifier", OLD], by_version["classifier", NEW]
    assert calm.verdict[0] == "no drift"
    assert moved.verdict[0] == "drift, and the model is worse on it"
    assert moved.samples == pytest.approx(600, rel=0.03)
    assert (moved.least, moved.metric) == (reference.least, "accuracy")
    assert moved.reference == reference.quality.value
    assert moved.max_loss > reference.quality.max_loss, "600 samples leave some doubt"
    assert moved.estimates.keys() == {"confidence", "atc"}
    assert moved.loss == pytest.approx(moved.reference - np.mean(list(moved.estimates.values())))
    assert moved.alerts[0] == ("DriftWarning", "warning")
    assert calm.alerts == ()
    assert len(moved.movers) == len(reference.signals)
    first = moved.movers[0]
    assert first.score == pytest.approx(moved.score) == max(mover.score for mover in moved.movers)
    bright = next(mover for mover in moved.movers if mover.signal == "brightness")
    assert bright.before == pytest.approx(0, abs=0.2)
    assert bright.now > 1
    assert {"NoServers"}.isdisjoint(others)  # it waits for five minutes


@prometheus.needed
def test_too_little_or_no_traffic_gives_no_verdict(server):
    _, states, _ = watch.states(server.url, models=["text", "detector"])
    detector, text = states
    assert re.fullmatch(r"no verdict yet: 2\d of 50 samples", text.verdict[0])
    assert (text.score, text.movers) == (None, ())
    assert detector.verdict[0] == "no traffic in the window"


@prometheus.needed
def test_the_time_line_places_past_scores_and_leaves_gaps_without_records(server):
    _, states, _ = watch.states(server.url, since="6h")
    history = next(state.history for state in states if state.version == NEW)
    assert len(history) == watch.CELLS  # a cell is 450 s
    assert set(history[:7]) == {None}
    assert set(history[9:15]) == {1.5}
    assert set(history[18:38]) == {0.2}
    assert history[-1] > 1


@prometheus.needed
def test_a_time_before_the_first_record_has_no_series(server):
    with pytest.raises(LooplineError, match="has no Loopline series"):
        watch.states(server.url, at=time.time() - 24 * HOUR)


@prometheus.needed
def test_the_time_line_and_the_report_take_the_window_of_the_rules(server):
    assert prometheus_api.rules_window(server.url) == "1h"
    assert watch.span(server.url) == "6h"


def test_a_prometheus_without_the_rules_gives_no_window(answering):
    empty = json.dumps({"data": {"groups": [{"rules": [{"name": "other", "query": "up[5m]"}]}]}}).encode()
    with pytest.raises(LooplineError, match="no Loopline rules, which tell the traffic window"):
        watch.span(answering(200, empty))
    with pytest.raises(LooplineError, match="not as Prometheus does"):
        prometheus_api.rules_window(answering(200, b"{}"))


@prometheus.needed
def test_the_error_for_a_missing_model_names_the_recorded_ones(server):
    with pytest.raises(LooplineError, match="no drift records of speech: it has classifier, detector, text"):
        watch.states(server.url, models=["speech"])


@prometheus.needed
def test_once_prints_a_picture_without_colours_and_without_moving_the_cursor(server, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    watch.run(server.url, once=True)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    for words in ("drift, and the model is worse on it", "firing", "DriftWarning", "no verdict yet", "brightness"):
        assert words in text


@prometheus.needed
def test_in_a_pipe_each_picture_follows_the_last_until_it_is_interrupted(server, capsys, monkeypatch):
    naps = []

    def sleep(_):
        naps.append(1)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    watch.run(server.url, models=["text"])
    assert capsys.readouterr().out.count("text aaaaaaaaaaaa") == 3


@prometheus.needed
def test_an_unreachable_prometheus_is_reported_and_watching_continues(server, capsys, monkeypatch):
    naps = []

    def sleep(_):
        naps.append(1)
        if len(naps) == 2:
            raise KeyboardInterrupt
        monkeypatch.setattr(watch, "view", gone)

    def gone(*_, **__):
        raise LooplineError("it cannot be reached")

    monkeypatch.setattr(watch.time, "sleep", sleep)
    watch.run(server.url, models=["text"])
    assert capsys.readouterr().out.endswith("it cannot be reached\n")


# The picture


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": None, "samples": 31.0}, "no verdict yet: 31 of 50 samples"),
        ({"score": None, "samples": 0.0, "history": (None,), "estimates": {}, "movers": ()}, "no traffic"),
        ({"score": None, "samples": None, "movers": ()}, "nothing recorded yet: check that the rules are loaded"),
        ({"score": 1.0}, "no drift"),
        ({"score": 1.2}, "drift, no harm estimated"),
        ({"score": 1.2, "loss": None, "estimates": {}}, "drift, no harm estimated"),
        ({"score": 1.2, "loss": 0.2}, "drift, and the model is worse on it"),
    ],
)
def test_every_state_has_its_verdict_and_fits_into_eighty_columns(change, words):
    text = drawn(state(alerts=(("DriftNotice", "notice"),) * 5, **change))
    assert words in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "0.975 by their mean: loses 1.5 points, harm is over 3.0"),
        ({"loss": -0.004}, "0.994 by their mean: gains 0.4 points, harm"),
        ({"loss": 0.12, "classes": 0.12}, "0.870 by the classes' shift: loses 12.0 points, harm"),
        ({"labelled": (0.91, 0.042, 1234.0)}, "0.910 ± 0.042 by 1,234 labels: loses 8.0 points"),
    ],
)
def test_the_loss_is_shown_with_the_estimate_that_it_comes_from_and_the_parts_add_up(change, line):
    text = drawn(state(**change))
    assert "0.990 on the reference; estimated 0.970 by confidence, 0.980 by atc" in text
    assert line in " ".join(text.split())


def test_the_bar_has_its_mark_at_one():
    assert watch.bar(0, 8) == "····│····"
    assert watch.bar(0.5, 8) == "██··│····"
    assert watch.bar(1.5, 8) == "████│██··"
    assert watch.bar(9, 8) == "████│████"
    assert watch.bar(-1, 8) == watch.bar(0, 8)


def test_a_score_over_one_is_taller_than_every_score_up_to_one():
    assert "".join(map(watch.spark, (None, -3, 0, 0.3, 1.0, 1.001, 1.6, 99))) == " ▁▁▂▄▅▇█"


def test_only_a_terminal_with_colours_gets_them():
    bad = state(score=1.5)
    assert "\x1b[31m" in drawn(bad, force_terminal=True, color_system="standard")
    assert "\x1b[31m" not in drawn(bad, force_terminal=True, color_system="standard", no_color=True)
    assert "\x1b" not in drawn(bad)


def test_a_label_cannot_command_the_terminal():
    rows = [
        prometheus_api.Series({"__name__": "loopline:signal_score", "signal": "\x1b[2Jbright"}, ((0.0, 1.0),)),
        prometheus_api.Series({"__name__": "loopline:drift_score"}, ((0.0, 1.0),)),
    ]
    state = watch._state(("evil\x1b]0;\x07", "v"), rows, (), ())
    assert state.model == "evil?]0;?"
    assert state.movers[0].signal == "?[2Jbright"


# Errors of the client


@prometheus.needed
def test_a_wrong_query_gives_the_message_of_prometheus(server):
    with pytest.raises(LooplineError, match=r"refuses the query \(bad_data\)"):
        prometheus_api.instant(server.url, "sum by (")


@prometheus.needed
def test_a_query_that_gives_a_number_is_an_error(server):
    with pytest.raises(LooplineError, match="not as Prometheus does"):
        prometheus_api.instant(server.url, "1")


def test_an_unreachable_address_is_an_error():
    with pytest.raises(LooplineError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
        prometheus_api.instant(f"http://127.0.0.1:{prometheus.free_port()}", "up")


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "file:///etc/passwd", "http://[", "http://host:port"])
def test_a_malformed_address_is_an_error(url):
    with pytest.raises(LooplineError, match=r"no address|cannot be reached"):
        prometheus_api.instant(url, "up")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b"<html>not here</html>", "answers 404"),
        (200, b"<html>welcome</html>", "not as Prometheus does"),
        (200, b'{"data": {"result": [{}]}}', "not as Prometheus does"),
        (200, b"[]", "not as Prometheus does"),
        (503, json.dumps({"errorType": "timeout", "error": "expanding series"}).encode(), "took over 10 s"),
        (200, b"x" * 2000, "more than 0 MB"),
    ],
)
def test_an_unexpected_answer_is_an_error_with_a_reason(answering, monkeypatch, status, body, message):
    monkeypatch.setattr(prometheus_api, "LARGEST", 1000)
    with pytest.raises(LooplineError, match=message):
        prometheus_api.instant(answering(status, body), "up")


def test_a_slow_answer_is_given_up(answering, monkeypatch):
    monkeypatch.setattr(prometheus_api, "TIMEOUT", 0.2)
    with pytest.raises(LooplineError, match=r"did not answer within 0\.2 s"):
        prometheus_api.instant(answering(200, b"{}", 60.0), "up")
