"""Every alert fires when it should and at no other time: promtool runs the committed rules on made-up series.

A case changes some series of a healthy fleet. At each listed minute exactly the listed alerts fire.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import series
import yaml

from loopline import cli
from loopline.drift.reference import Quality, Reference, ReferenceLabels, Signal
from loopline.observability import rules
from loopline.server.drift_counter import Counts
from loopline.server.metrics import CATALOGUE, PREFIX, Metrics

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks"
ALERTS = {alert.name: alert for group in rules.groups() for alert in group.alerts}
promtool = pytest.mark.skipif(
    not (shutil.which("promtool") or os.environ.get("LOOPLINE_REQUIRE_PROMETHEUS")),
    reason="no promtool on this machine: apt-get install prometheus",
)

# A fleet that is well: two replicas of one model and a sentinel, one value a minute

REST = "*"  # minutes: as long as a case lasts
SIGNALS = {  # the means differ, so that no two scores are equal; counts: samples by bin, the last for samples without a number
    "contrast": Signal(edges=(20, 40, 60), counts=(100, 100, 100, 100, 0), mean=0.5, sd=0.3),
    "top_probability": Signal(edges=(0.5, 0.9), counts=(10, 30, 360, 0), mean=0.7, sd=0.3),
    "brightness": Signal(edges=(50,), counts=(200, 200, 0), mean=0.9, sd=0.3),
    "predicted_class": Signal(edges=(0.5,), counts=(200, 200, 0), mean=1.1, sd=0.3),
}
USUAL = {name: tuple(count // 10 for count in signal.counts) for name, signal in SIGNALS.items()}  # 40 samples a minute
REFERENCE = Reference(
    samples=400,
    least=50,
    threshold=(5.0, 20.0, -1.0),
    promise={},
    signals=SIGNALS,
    quality=Quality(
        metric="accuracy",
        value=0.93,
        max_loss=0.035,
        signal="top_probability",
        weights={"confidence": (0.4, 0.7, 0.98, 0.0), "atc": (0.0, 0.0, 1.0, 0.0)},
    ),
    labels=ReferenceLabels(names=("a", "b")),
)


def named(full_name, instance="one", job="loopline", **labels):
    """A series in promtool's notation."""
    labels = {"job": job, "instance": instance} | labels
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{full_name}{{{pairs}}}"


def of_model(short_name, instance="one", version="v1", **labels):
    return named(PREFIX + short_name, instance, model="digits", version=version, **labels)


def checks(result):
    return named("loopline_sentinel_checks_total", "watch", "sentinel", model="digits", version="v1", result=result)


def retrainings(result):
    return named("loopline_retrain_runs_total", "loop", "retrainer", model="digits", result=result)


def labelled(more, right, version="v1"):
    """The journal's totals. more: labels a minute, from the first minute on. right: how many of these answers were right."""
    totals = {"rows": counter((REST, more)), "quality": counter((REST, right))}
    labels = {"instance": "kept", "job": "journal", "model": "digits", "version": version}
    return {named(f"loopline_labelled_{name}_total", **labels): values for name, values in totals.items()}


def constant(value):
    return f"{value}+0x{REST}"


def counter(*parts):
    """A counter's values from parts (minutes, increase a minute), the last of REST minutes. None is a restart from 0."""
    total, values = 0, ["0"]
    for minutes, more in parts:
        if more is None:
            total = 0
            values.append("0")
        elif minutes == REST:
            values.append(f"{total + more}+{more}x{REST}")
        else:
            values.append(f"{total + more}+{more}x{minutes - 1}")
            total += minutes * more
    return " ".join(values)


def always(more):
    return counter((REST, more))


def then(minute, before, after):
    return counter((minute, before), (REST, after))


def requests(code, **labels):
    return of_model("requests_total", route="predict", code=code, **labels)


def gauges(instance, version="v1"):
    """The gauges that a server's own code exports of a bundle's drift reference."""
    metrics = Metrics()
    Counts(SimpleNamespace(name="digits", version=version, reference=REFERENCE), metrics)
    return {
        named(PREFIX + name, instance, **dict(zip(CATALOGUE[name].labels, labels, strict=True))): constant(value.value)
        for name, by_labels in metrics.series.items()
        for labels, value in by_labels.items()
        if CATALOGUE[name].kind == "gauge"
    }


def traffic(*parts, instance="one", version="v1"):
    """Drift counters from parts (minutes, {signal: samples a minute by bin}). Other signals are as usual; None is a restart."""
    return {
        of_model("signal_rows_total", instance, version, signal=name, bin=bin_): counter(
            *((minutes, None if rates is None else rates.get(name, USUAL[name])[number]) for minutes, rates in parts)
        )
        for name, signal in SIGNALS.items()
        for number, bin_ in enumerate(signal.bins)
    }


def replica(instance, version="v1"):
    """One healthy server: 1 % of its requests are unreadable, and 0.5 % are slow."""
    of = {"instance": instance, "version": version}
    return {
        named("up", instance): constant(1),
        named("loopline_ready", instance): constant(1),
        of_model("model_info", bundle="b", precision="int8", provider="CPU", **of): constant(1),
        of_model("bundle_written_timestamp_seconds", **of): constant(0),
        of_model("bundle_intact", **of): constant(1),
        requests("200", **of): always(594),
        requests("415", **of): always(6),
        requests("503", **of): always(0),
        of_model("request_seconds_bucket", route="predict", le="0.25", **of): always(597),
        of_model("request_seconds_count", route="predict", **of): always(600),
        of_model("shed_total", reason="deadline", **of): always(0),
        of_model("execution_failures_total", **of): always(0),
        of_model("constant_rows_total", **of): always(0),
        **gauges(instance, version),
        **traffic((REST, {}), **of),
    }


WELL = {
    **replica("one"),
    **replica("two"),
    checks("same"): always(4),
    **{checks(result): always(0) for result in ("different", "other_version", "failed")},
    **{retrainings(result): always(0) for result in ("succeeded", "refused", "failed")},
}


def both(make):
    """The same change on both replicas."""
    return make("one") | make("two")


# The cases


@dataclass(frozen=True)
class Case:
    """Change `change` in the fleet (None takes a series away), and at each minute of `fires` exactly these alerts fire.

    alert: the alert whose labels and text are compared, at the first minute at which it fires. words: the figure in that text, or
    the whole text if the template queries more than the figure.
    """

    name: str
    change: dict
    fires: dict
    alert: str = ""
    labels: dict = field(default_factory=dict)
    words: str = ""
    fleet: dict = field(default_factory=lambda: WELL)
    every: str = "1m"

    def series(self):
        return {name: values for name, values in (self.fleet | self.change).items() if values is not None}


DIGITS = {"model": "digits"}
V1 = DIGITS | {"version": "v1"}
ONE = {"instance": "one", "job": "loopline"}
NOBODY = ()
FAST_ERRORS, SLOW_ERRORS = "ErrorBudgetBurnFast", "ErrorBudgetBurnSlow"
FAST_ANSWERS, SLOW_ANSWERS = "LatencyBudgetBurnFast", "LatencyBudgetBurnSlow"


def errors(minute, share):
    """From that minute on, both replicas answer a share of their 600 requests a minute with 503."""
    bad = round(600 * share)
    return both(
        lambda i: {
            requests("200", instance=i): then(minute, 594, 594 - bad),
            requests("503", instance=i): then(minute, 0, bad),
        }
    )


def slow(minute, share):
    fast = of_model("request_seconds_bucket", route="predict", le="0.25")
    return both(lambda i: {fast.replace("one", i): then(minute, 597, round(600 * (1 - share)))})


SERVICE = (
    Case(
        "a server that does not answer for 2 minutes is down",
        {named("up"): f"1+0x9 0+0x9 {constant(1)}"},
        {11: NOBODY, 12: ("ServerDown",), 19: ("ServerDown",), 20: NOBODY},
        "ServerDown",
        ONE,
    ),
    Case(
        "no data at all: that there are no servers, and nothing else",
        dict.fromkeys(WELL),
        {4: NOBODY, 5: ("NoServers",), 60: ("NoServers",)},
        "NoServers",
        {"job": "loopline"},
    ),
    Case("no data for a day", dict.fromkeys(WELL), {1440: ("NoServers",)}, every="1h"),
    Case(
        "a server that is up and takes nothing for 5 minutes is not ready",
        {named("loopline_ready"): f"1+0x9 {constant(0)}"},
        {14: NOBODY, 15: ("ServerNotReady",)},
        "ServerNotReady",
        ONE,
    ),
    Case(
        "a tenth of errors pages when an hour's share of the budget has burnt",
        errors(60, 0.1),
        {60: NOBODY, 68: (SLOW_ERRORS,), 69: (FAST_ERRORS, SLOW_ERRORS)},
        "ErrorBudgetBurnFast",
        DIGITS,
        "1.5%",
    ),
    Case(
        "errors that are over page nobody any more, though the hour is still bad",
        both(
            lambda i: {
                requests("200", instance=i): counter((60, 594), (10, 534), (REST, 594)),
                requests("503", instance=i): counter((60, 0), (10, 60), (REST, 0)),
            }
        ),
        {70: (FAST_ERRORS, SLOW_ERRORS), 75: (FAST_ERRORS, SLOW_ERRORS), 80: (SLOW_ERRORS,), 120: NOBODY},
        every="5m",
    ),
    Case(
        "one percent of errors burns slowly and pages nobody",
        errors(60, 0.01),
        {145: NOBODY, 155: (SLOW_ERRORS,)},
        "ErrorBudgetBurnSlow",
        DIGITS,
        "0.6129%",
        every="5m",
    ),
    Case(
        "three tenths of slow answers page",
        slow(60, 0.3),
        {73: NOBODY, 74: (SLOW_ANSWERS,), 88: (SLOW_ANSWERS,), 89: (FAST_ANSWERS, SLOW_ANSWERS)},
        "LatencyBudgetBurnFast",
        DIGITS,
        "14.76%",
    ),
    Case(
        "a tenth of slow answers pages nobody",
        slow(60, 0.1),
        {140: NOBODY, 145: (SLOW_ANSWERS,)},
        "LatencyBudgetBurnSlow",
        DIGITS,
        "6.069%",
        every="5m",
    ),
    Case(
        "servers that refuse 2 % because they are full are saturated",
        {of_model("shed_total", reason="deadline"): counter((10, 0), (20, 30), (REST, 0))},
        {14: NOBODY, 15: ("Saturated",), 37: ("Saturated",), 38: NOBODY},
        "Saturated",
        DIGITS,
        "2.5%",
    ),
    Case(
        "three items that the model failed on are told for half an hour",
        {of_model("execution_failures_total"): counter((20, 0), (1, 3), (REST, 0))},
        {20: NOBODY, 21: ("ModelFailures",), 50: ("ModelFailures",), 51: NOBODY},
        "ModelFailures",
        V1,
        "3",
    ),
    Case(
        "a tenth of unreadable bodies is bad input",
        both(lambda i: {requests("415", instance=i): then(20, 6, 60)}),
        {32: NOBODY, 33: ("BadInputs",)},
        "BadInputs",
        DIGITS,
        "8.163%",
    ),
    Case(
        "images of one colour, from one of two servers",
        {of_model("constant_rows_total"): then(20, 0, 10)},
        {31: NOBODY, 32: ("ConstantInputs",)},
        "ConstantInputs",
        V1,
        "10%",
    ),
    Case(
        "an hour without a request is no traffic",
        both(
            lambda i: {
                requests(code, instance=i): then(10, more, 0) for code, more in (("200", 594), ("415", 6), ("503", 0))
            }
        ),
        {70: NOBODY, 80: ("NoTraffic",)},
        "NoTraffic",
        DIGITS,
        every="5m",
    ),
    Case(
        "two versions side by side for 6 hours",
        {
            of_model("model_info", "two", bundle="b", precision="int8", provider="CPU"): "1+0x9",
            of_model("model_info", "two", "v2", bundle="c", precision="int8", provider="CPU"): f"_x10 {constant(1)}",
        },
        {365: NOBODY, 370: ("MixedVersions",)},
        "MixedVersions",
        DIGITS,
        "2",
        every="5m",
    ),
    Case(
        "a bundle that changed under its server",
        {of_model("bundle_intact", "two"): f"1+0x20 {constant(0)}"},
        {21: NOBODY, 22: ("BundleChanged",)},
        "BundleChanged",
        V1 | {"instance": "two", "job": "loopline"},
    ),
    Case(
        "a bundle of 90 days is old",  # promtool's clock starts in 1970
        both(lambda i: {of_model("bundle_written_timestamp_seconds", i): constant(600 - 90 * 86400)}),
        {10: NOBODY, 11: ("StaleModel",)},
        "StaleModel",
        V1,
    ),
    Case(
        "one golden input with another answer is skew",
        {
            checks("same"): counter((20, 4), (1, 3), (REST, 4)),
            checks("different"): counter((20, 0), (1, 1), (REST, 0)),
        },
        {20: NOBODY, 21: ("Skew",), 40: ("Skew",), 41: NOBODY},
        "Skew",
        V1,
        "1",
    ),
    Case(
        "a sentinel that gets no answer is silent",
        {checks("same"): then(20, 4, 0), checks("failed"): then(20, 0, 4)},
        {34: NOBODY, 35: ("SentinelSilent",)},
        "SentinelSilent",
        DIGITS,
    ),
    Case(
        "a sentinel that is gone is silent too",
        {checks("same"): f"0+4x20 {'stale'}"},
        {31: NOBODY, 40: ("SentinelSilent",)},
    ),
    Case(
        "a sentinel that meets another version is silent",
        {checks("same"): then(20, 4, 0), checks("other_version"): then(20, 0, 4)},
        {34: NOBODY, 35: ("SentinelSilent",)},
    ),
    Case(
        "a retraining that breaks down",
        {retrainings("failed"): counter((20, 0), (1, 1), (REST, 0))},
        {20: NOBODY, 21: ("RetrainingFailed",), 130: ("RetrainingFailed",), 145: NOBODY},
        "RetrainingFailed",
        DIGITS,
    ),
    Case(
        "a candidate that was refused is no failure",
        {retrainings("refused"): counter((20, 0), (1, 1), (REST, 0))},
        {30: NOBODY},
    ),
    Case(
        "labels that show a loss, once they are enough",  # .93 on the reference, .8 here: under .895 is harm
        labelled(10, 8),
        {10: NOBODY, 60: ("LabelledHarm",)},
        "LabelledHarm",
        V1,
        "6.785%",
    ),
    Case("labels that show what the reference says", labelled(10, 9.3), {60: NOBODY, 300: NOBODY}, every="10m"),
    Case("a handful of wrong answers is no proof", labelled(0.1, 0), {60: NOBODY}),
    Case("a fleet that is well", {}, dict.fromkeys((0, 1, 2, 5, 30, 70), NOBODY)),
    Case("a fleet that is well all day", {}, dict.fromkeys((10, 200, 400, 600), NOBODY), every="10m"),
)

DIM = {"contrast": (0, 0, 0, 40, 0)}
UNSURE = {"top_probability": (40, 0, 0, 0)}
NO_NUMBER = {"contrast": (0, 0, 0, 0, 40)}
LOW, HIGH = {"contrast": (20, 20, 0, 0, 0)}, {"contrast": (0, 0, 20, 20, 0)}  # together they are as usual
HALF_A_ROW = {name: (0,) * (len(counts) - 2) + (0.5, 0) for name, counts in USUAL.items()}
TWO_VERSIONS = {**replica("one"), **replica("two", "v2"), checks("same"): always(4)}
NOTICE, WARNING, RETRAIN = ("DriftNotice",), ("DriftWarning",), ("DriftWarning", "RetrainCandidate")


def drifting(*parts):
    return both(lambda i: traffic(*parts, instance=i))


def drift(name, change, fires, alert="", words="", labels=V1, fleet=WELL):
    return Case(name, change, fires, alert, labels, words, fleet, every="5m")


DRIFT = (
    drift(
        "drift without an estimated loss is a notice, until its window is clean",
        drifting((120, {}), (30, DIM), (REST, {})),
        {120: NOBODY, 130: NOTICE, 215: NOTICE, 235: NOBODY},
        "DriftNotice",
        "Version v1, score 2.04 (alarm over 1), estimated loss 0.8 points."
        " Moved most: contrast (score 2.0, mean 40 to 43.33)",
    ),
    drift(
        "drift with an estimated loss is a warning and no notice",
        drifting((120, {}), (REST, UNSURE)),
        {120: NOBODY, 130: WARNING, 185: WARNING},
        "DriftWarning",
        "Version v1, score 3.25 (alarm over 1), estimated loss 12.8 points."
        " Moved most: top_probability (score 3.3, mean 0.875 to 0.8125)",
    ),
    drift(
        "when it lasts for more than a window a retraining is to be considered",
        drifting((120, {}), (REST, UNSURE)),
        {185: WARNING, 240: WARNING, 255: RETRAIN, 300: RETRAIN},
        "RetrainCandidate",
        "Version v1, score 8.58 (alarm over 1), estimated loss 73.0 points."
        " Moved most: top_probability (score 8.6, mean 0.875 to 0.5)",
    ),
    drift(
        "an hour of it is a warning and no reason to retrain",
        drifting((120, {}), (60, UNSURE), (REST, {})),
        {130: WARNING, 180: WARNING, 230: WARNING, 360: NOBODY},
    ),
    drift(
        "a signal that is no number any more is drift, and has no value now",
        drifting((120, {}), (REST, NO_NUMBER)),
        {180: NOTICE},
        "DriftNotice",
        "Version v1, score 8.89 (alarm over 1), estimated loss 0.8 points. Moved most: contrast (score 8.9, mean 40)",
    ),
    drift(
        "under the least number of samples there is no verdict, whatever they are",
        traffic((REST, HALF_A_ROW)) | dict.fromkeys(traffic(instance="two")),
        {5: NOBODY, 360: NOBODY, 365: ("DriftNoVerdict",)},
        "DriftNoVerdict",
        "30",
    ),
    drift(
        "counters that fall to 0 in the middle of a window are no drift",
        traffic((150, {}), (1, None), (REST, {})),
        dict.fromkeys((150, 155, 160, 180, 205, 215), NOBODY),
    ),
    drift(
        "what two replicas of a version see is one window",
        traffic((REST, LOW)) | traffic((REST, HIGH), instance="two"),
        {180: NOBODY},
    ),
    drift(
        "what two versions see is two",
        traffic((REST, LOW)) | traffic((REST, HIGH), instance="two", version="v2"),
        {180: NOTICE * 2},
        fleet=TWO_VERSIONS,
    ),
    drift(
        "of two versions side by side the one that drifts is named",
        traffic((120, {}), (REST, UNSURE), instance="two", version="v2"),
        {120: NOBODY, 130: WARNING, 180: WARNING},
        "DriftWarning",
        "Version v2, score 3.11 (alarm over 1), estimated loss 12.8 points."
        " Moved most: top_probability (score 3.1, mean 0.875 to 0.8125)",
        DIGITS | {"version": "v2"},
        TWO_VERSIONS,
    ),
)


def gone(fleet, minute):
    """The fleet with series that end at that minute without a stale marker, as if Prometheus had ended with the servers."""
    return {name: values.replace(f"x{REST}", f"x{minute}") for name, values in fleet.items()}


def removed(fleet, minute):
    """The fleet with series that end at that minute with a stale marker, as if Prometheus had seen the servers end."""
    return {name: f"{values} stale" for name, values in gone(fleet, minute).items()}


OTHER = {  # another model takes over the ports
    name.replace('"digits"', '"names"').replace('"v1"', '"w1"'): values for name, values in WELL.items()
}
HARMED = WELL | drifting((REST, UNSURE))
GONE = (
    Case(
        "harm from the first minute on rises to a retraining after two windows",
        {},
        {0: NOBODY, 1: WARNING, 120: WARNING, 121: RETRAIN},
        fleet=HARMED,
    ),
    Case(
        "of a model that another one replaces no alert rises, and what fired ends within a quarter of its window",
        removed(HARMED, 117) | OTHER,
        {117: WARNING, 122: WARNING, 140: NOBODY, 240: NOBODY},
        fleet={},
    ),
    Case(
        "of a model that ended together with Prometheus no alert rises, though its last figures are still seen",
        gone(HARMED, 117) | OTHER,
        {117: WARNING, 121: WARNING, 122: WARNING, 140: NOBODY},
        fleet={},
    ),
    Case(
        "a model whose last scrape is older than two minutes has no alert",
        gone(WELL, 22) | OTHER | {of_model("bundle_intact", "two"): "1+0x19 0+0x2"},
        {20: NOBODY, 21: ("BundleChanged",), 24: ("BundleChanged",), 25: NOBODY, 26: NOBODY},
        fleet={},
    ),
)
CASES = SERVICE + DRIFT + GONE


def unserved(case):
    """The case, at the first minute at which its alert fires, without the model_info of any server: then it must not fire."""
    served = [name for name in case.fleet | case.change if name.startswith("loopline_model_info{")]
    minute = next(minute for minute, names in case.fires.items() if case.alert in names)
    return replace(case, change=case.change | dict.fromkeys(served), fires={minute: NOBODY}, alert="")


UNSERVED = [unserved(case) for case in SERVICE + DRIFT if case.alert and "model" in case.labels]


def expected(case):
    """The alert that promtool should see."""
    alert = ALERTS[case.alert]

    def filled_in(template):
        for label, value in case.labels.items():
            template = template.replace(f"{{{{ $labels.{label} }}}}", value)
        if "range query" in template:
            return case.words + "."
        return re.sub(r"\{\{[^}]*\$value[^}]*\}\}", case.words, template)

    texts = {"summary": filled_in(alert.summary), "description": filled_in(alert.description)}
    return {
        "exp_labels": case.labels | {"severity": alert.severity},
        "exp_annotations": texts | {"runbook_url": f"docs/runbooks/{case.alert}.md"},
    }


def unit(case, rules_file):
    """One promtool test."""
    last = max(case.fires)
    looks = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [
                {"labels": f'{{alertname="{name}"}}', "value": number} for name, number in Counter(names).items()
            ],
        }
        for minute, names in case.fires.items()
    ]
    group = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": values.replace(f"x{REST}", f"x{last}")} for name, values in case.series().items()
        ],
        "promql_expr_test": looks,
    }
    if case.alert:
        first = next(minute for minute, names in case.fires.items() if case.alert in names)
        look = {"eval_time": f"{first}m", "alertname": case.alert, "exp_alerts": [expected(case)]}
        group["alert_rule_test"] = [look]
    return {"rule_files": [str(rules_file)], "evaluation_interval": case.every, "tests": [group]}


def run(cases, rules_file, folder):
    """The output of promtool by the case's name; empty if the case passed."""
    paths = {folder / f"{number}.yml": case.name for number, case in enumerate(cases)}
    for path, case in zip(paths, cases, strict=True):
        path.write_text(yaml.safe_dump(unit(case, rules_file)))
    command = ["promtool", "test", "rules", *map(str, paths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    parts = re.split(r"Unit Testing:\s+(\S+)\n", done.stdout)[1:]
    assert len(parts) == 2 * len(cases), done.stdout
    outputs = dict(zip(map(Path, parts[::2]), parts[1::2], strict=True))
    return {name: "" if outputs[path].strip() == "SUCCESS" else outputs[path] for path, name in paths.items()}


def broken(change, folder):
    """A rule file in which each rule is replaced by `change(rule)`, or left out if that is false."""
    content = rules.prometheus()
    for group in content["groups"]:
        group["rules"] = [kept for rule in group["rules"] if (kept := change(rule))]
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(content))
    return path


# The rules


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    return run(CASES, ROOT / "monitoring/prometheus/rules.yml", tmp_path_factory.mktemp("promtool"))


@promtool
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_these_alerts_fire_and_no_other(name, verdicts):
    assert not verdicts[name], verdicts[name]


@promtool
def test_no_alert_fires_for_a_model_that_no_server_exports(tmp_path):
    """Increases of its counters and its last figures still exist for a while."""
    assert {case.alert for case in SERVICE + DRIFT if case.alert and "model" in case.labels} == {
        name for name, alert in ALERTS.items() if "$labels.model" in alert.summary
    }
    outputs = run(UNSERVED, ROOT / "monitoring/prometheus/rules.yml", tmp_path)
    assert {name: problem for name, problem in outputs.items() if problem} == {}


def test_every_alert_has_a_case_in_which_it_fires_and_a_time_before_at_which_it_does_not():
    covered = set()
    for case in filter(lambda case: case.alert, CASES):
        fires = [case.alert in case.fires[minute] for minute in sorted(case.fires)]
        if True in fires[1:] and not fires[0]:
            covered.add(case.alert)
    assert covered == ALERTS.keys()


@promtool
def test_an_alert_that_never_fires_fails_its_case(tmp_path):
    cases = [case for case in CASES if any(case.fires.values())]
    outputs = run(cases, broken(lambda rule: "alert" in rule and rule | {"expr": "vector(0) > 1"}, tmp_path), tmp_path)
    assert [name for name, problem in outputs.items() if not problem] == []


@promtool
def test_an_alert_that_does_not_wait_fails_its_case(tmp_path):
    cases = [case for case in CASES if case.alert and ALERTS[case.alert].hold != "0s"]
    outputs = run(cases, broken(lambda rule: {key: rule[key] for key in rule if key != "for"}, tmp_path), tmp_path)
    assert [name for name, problem in outputs.items() if not problem] == []


@promtool
def test_an_alert_that_always_fires_fails_a_fleet_that_is_well(tmp_path):
    cases = [case for case in CASES if case.name == "a fleet that is well"]
    outputs = run(cases, broken(lambda rule: "alert" in rule and rule | {"expr": "vector(1)"}, tmp_path), tmp_path)
    assert all(f'alertname="{name}"' in outputs[cases[0].name] for name, alert in ALERTS.items() if alert.hold == "0s")


@pytest.mark.parametrize("name", sorted(WELL | TWO_VERSIONS))
def test_the_fleet_of_these_tests_exports_what_a_real_one_does(name):
    assert series.problems(name, series.exported()) == []
    assert set(re.findall(r'(\w+)="', name)) == series.exported()[name.partition("{")[0]]


def test_the_committed_rules_are_current():
    assert (ROOT / "monitoring/prometheus/rules.yml").read_text(encoding="utf-8") == rules.text()


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_how_bad_it_is_and_where_to_read_on(name):
    (rule,) = (rule for group in rules.prometheus()["groups"] for rule in group["rules"] if rule.get("alert") == name)
    assert rule["labels"]["severity"] in ("info", "notice", "warning", "critical", "retrain")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert all(rule["annotations"].values())
    assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


# The series they ask for

KNOWN = series.known()
RULES = [rule for group in rules.groups() for rule in group.recordings + group.alerts]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_queries_only_exported_series(rule):
    assert series.problems(rule.expr, KNOWN) == []
    if rule.name in ALERTS:
        has = series.labels(rule.expr, KNOWN)
        assert series.in_template(rule.summary + rule.description, has, KNOWN) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("rate(loopline_requests[5m])", "loopline_requests is exported by nobody"),
        ("loopline:drift_scores > 1", "loopline:drift_scores is exported by nobody"),
        ('loopline_ready{jop="loopline"}', "loopline_ready has no label jop"),
        ("sum by (modle) (loopline_shed_total)", "loopline_shed_total has no label modle"),
        ("sum(loopline:drift_score) by (signal)", "loopline:drift_score has no label signal"),
        ("loopline_ready and on (model) loopline_model_info", "and on model: the left side does not have it"),
        (
            "loopline:drift_score > loopline_drift_least_samples",
            "> matches on all labels, and only one side has instance, job",
        ),
        (
            'sum(rate(loopline_request_seconds_bucket{le="0.3"}[5m]))',
            "loopline_request_seconds_bucket never has le='0.3'",
        ),
        (
            'increase(loopline_sentinel_checks_total{result=~"differs"}[10m])',
            "loopline_sentinel_checks_total never has result='differs'",
        ),
    ],
)
def test_a_missing_name_in_an_expression_is_detected(expression, problem):
    assert series.problems(expression, KNOWN) == [problem]


def test_a_missing_name_in_an_alerts_text_is_detected():
    text = '{{ $labels.model }} {{ $labels.pod }} {{ range query (printf "loopline:quality{model=%q}" .Labels.model) }}'
    assert series.in_template(text, {"model"}, KNOWN) == [
        "the text names the label pod",
        "loopline:quality is exported by nobody",
    ]


# The runbooks

PAGES = sorted(RUNBOOKS.glob("*.md"))
HEADINGS = ["What it means", "How to look", "What to do", "When it is a false alarm"]


def blocks(page, kind):
    """The lines of a page's code blocks of a kind."""
    texts = re.findall(rf"^ *```{kind}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in texts for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def words(parser):
    """The verbs and options of a command line."""
    parser.fill()
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for verb, under in action.choices.items():
                yield from (verb, *words(under))


WORDS = set(words(cli.parser()))


def test_alerts_and_runbooks_match_one_to_one():
    assert {page.stem for page in PAGES} - {"README"} == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_is_short_and_answers_four_questions(name):
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert 15 <= len(text.splitlines()) <= 35
    assert blocks(RUNBOOKS / f"{name}.md", "promql")


def test_the_table_of_alerts_is_complete():
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", (RUNBOOKS / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == [target for _, target, _ in rows]
    assert {name: severity for name, _, severity in rows} == {a.name: a.severity for a in ALERTS.values()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_everything_that_a_runbook_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"a link to {target}"
    for name in re.findall(r"\bloopline[_:][\w:]+", text):
        assert name in KNOWN, name
    for expression in blocks(page, "promql"):
        assert series.problems(expression, KNOWN) == [], expression
    for option, verb in re.findall(r"`(--[a-z-]+)|`loopline (\w+)", text):
        assert option + verb in WORDS
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in blocks(page, "sh"):
        words = shlex.split(line, comments=True)
        if words[0] == "loopline":
            cli.parser().parse_args(words[1:])  # argparse exits if it does not understand them
        elif words[0] == "make":
            assert words[1] in targets


def test_the_words_in_angles_in_the_rules_are_exactly_the_constants():
    files = [path.read_text(encoding="utf-8") for path in Path(rules.__file__).parent.glob("*.yml")]
    lines = [line for text in files for line in text.splitlines() if not line.startswith("#")]
    assert set(re.findall(r"<(\w+)>", "\n".join(lines))) == set(rules._constants("1h"))
