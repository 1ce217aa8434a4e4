"""A check that PromQL names only what is exported: it reads an expression and reports unknown metrics, labels and values.

problems("sum by (modle) (loopline_requests_total)", known()) == ["loopline_requests_total has no label modle"]
"""

import re
from typing import get_args

from loopline import retraining
from loopline.journal import collector
from loopline.observability import rules, sentinel
from loopline.server.metrics import CATALOGUE, PREFIX

TARGET = frozenset({"job", "instance"})  # labels that Prometheus adds
PROCESS = (
    "cpu_seconds_total",
    "max_fds",
    "open_fds",
    "resident_memory_bytes",
    "start_time_seconds",
    "virtual_memory_bytes",
)
GATEWAY = {  # metrics of HAProxy's own exporter, with their labels
    "haproxy_backend_http_requests_total": {"proxy"},
    "haproxy_backend_http_responses_total": {"proxy", "code"},
}
FROM_PROMETHEUS = ("up", "scrape_duration_seconds", "scrape_samples_scraped")
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}

AGGREGATIONS = {
    "sum",
    "avg",
    "min",
    "max",
    "count",
    "group",
    "stddev",
    "stdvar",
    "topk",
    "bottomk",
    "quantile",
    "count_values",
}
KEEP = {"topk", "bottomk"}  # aggregations whose results are some of the series, with all their labels
SCALARS = {"time", "pi", "scalar"}
SETS = {"and", "or", "unless"}
STRENGTH = {"or": 1, "and": 2, "unless": 2, "+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "atan2": 5, "^": 6}
STRENGTH |= dict.fromkeys(("==", "!=", "<", ">", "<=", ">="), 3)
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<range>\[[^\]]*\])
    |(?P<number>(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)(?:[smhdwy]+\d*)*|\$\{?\w+\}?)
    |(?P<name>[a-zA-Z_:][\w:]*)
    |(?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^=<>(){},@]))""",
    re.VERBOSE,
)


def exported():
    """The labels by metric, of servers, sentinel, journal, retrainer and Prometheus itself."""
    series = {
        PREFIX + metric.name + ending: TARGET | set(metric.labels) | ({"le"} if ending == "_bucket" else set())
        for metric in CATALOGUE.values()
        for ending in ENDINGS[metric.kind]
    }
    series |= {name: TARGET | set(labels) for name, (_, labels) in sentinel.METRICS.items()}
    series |= {name: TARGET | set(labels) for name, (_, _, labels) in collector.METRICS.items()}
    series |= {name: TARGET | set(labels) for name, (_, labels) in retraining.METRICS.items()}
    series |= {name: TARGET | labels for name, labels in GATEWAY.items()}
    return series | {f"process_{name}": TARGET for name in PROCESS} | dict.fromkeys(FROM_PROMETHEUS, TARGET)


def known(groups=None):
    """The labels by metric as in `exported`, with the series that the rules record and with ALERTS."""
    series, alerts = exported(), {"alertname", "alertstate", "severity"}
    for group in groups or rules.groups():
        for recording in group.recordings:
            series[recording.name] = labels(recording.expr, series)
        alerts |= {label for alert in group.alerts for label in labels(alert.expr, series)}
    return series | {"ALERTS": frozenset(alerts), "ALERTS_FOR_STATE": frozenset(alerts - {"alertstate"})}


def problems(expression, series):
    """The mistakes of an expression, in words. Grafana's variables may occur in strings, in ranges and in place of numbers."""
    reader = _Reader(expression, series)
    reader.whole()
    return list(dict.fromkeys(reader.problems))


def labels(expression, series):
    """The labels that the expression's result may have."""
    return frozenset(_Reader(expression, series).whole() or ())


def in_template(text, has, series):
    """The mistakes in an alert's text: labels that the alert lacks, and those of its queries."""
    reasons = [f"the text names the label {name}" for name in re.findall(r"\$labels\.(\w+)", text) if name not in has]
    for query in re.findall(r'printf "([^"]*loopline[^"]*)"', text):
        reasons += problems(query.replace("%q", '"x"'), series)
    return reasons


def values(metric, label):
    """All values of a label if the code lists them; else None."""
    if label == "le":
        bounds = CATALOGUE[metric.removeprefix(PREFIX).removesuffix("_bucket")].buckets
        return {*map(str, bounds), "+Inf"}
    return {*get_args(sentinel.Result), *retraining.RESULTS} if label == "result" else None


class _Reader:
    """A recursive descent over the expression. Each method returns the labels of the part it has read; None for a scalar."""

    def __init__(self, text, series):
        self.series, self.problems, self.tokens, place = series, [], [], 0
        text = text.strip()
        while place < len(text):
            match = TOKEN.match(text, place)
            assert match, f"cannot read {text[place : place + 40]!r}"
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            place = match.end()
        self.tokens.append(("end", ""))

    @property
    def next(self):
        return self.tokens[0][1]

    def take(self, expected=None):
        _, text = self.tokens.pop(0)
        assert expected in (None, text), f"{expected} expected, {text!r} found"
        return text

    def say(self, problem):
        self.problems.append(problem)

    def whole(self):
        result = self.operation(0)
        assert self.next == "", f"{self.next!r} is left over"
        return result

    def operation(self, least):
        left = self.part()
        while (strength := STRENGTH.get(self.next, -1)) > least:
            sign, on, group, extra = self.take(), None, None, set()
            if self.next == "bool":
                self.take()
            if self.next in ("on", "ignoring"):
                on = self.take(), self.names()
            if self.next in ("group_left", "group_right"):
                group = self.take()
                extra = self.names() if self.next == "(" else set()
            right = self.operation(strength - (sign == "^"))
            left = self.joined(sign, on, group, extra, left, right)
        return left

    def joined(self, sign, on, group, extra, left, right):
        if left is None or right is None:
            return right if left is None else left
        kind, names = on or ("ignoring", set())
        if kind == "on":
            for side, has in (("left", left), ("right", right)):
                for name in sorted(names - has):
                    self.say(f"{sign} on {name}: the {side} side does not have it")
        elif sign != "or" and not group and (lonely := (left - names) ^ (right - names)):
            self.say(f"{sign} matches on all labels, and only one side has {', '.join(sorted(lonely))}")
        if sign in SETS:
            return left | right if sign == "or" else left
        if group:
            many, single = (left, right) if group == "group_left" else (right, left)
            for name in sorted(extra - single):
                self.say(f"{group} {name}: nobody has it")
            return many | extra
        return frozenset(names) if kind == "on" else left - names

    def names(self):
        names_read = set()
        self.take("(")
        while self.next != ")":
            names_read.add(self.take())
            if self.next == ",":
                self.take()
        self.take(")")
        return names_read

    def part(self):
        kind, text = self.tokens[0]
        if text in ("-", "+"):
            self.take()
            return self.operation(STRENGTH["*"])
        if text == "(":
            self.take()
            result = self.operation(0)
            self.take(")")
        elif kind in ("number", "string"):
            self.take()
            return None
        elif text == "{":
            result = self.selector("")
        else:
            self.take()
            result = self.aggregation(text) if text in AGGREGATIONS else self.named(text)
        return self.moved(result)

    def moved(self, result):
        """Skip ranges and offsets, and return `result`."""
        while self.tokens[0][0] == "range" or self.next in ("offset", "@"):
            if self.take() in ("offset", "@"):
                self.part()
        return result

    def named(self, name):
        if self.next != "(":
            return None if name.lower() in ("inf", "nan") else self.selector(name)
        operands, words = self.arguments()
        vectors = [operand for operand in operands if operand is not None]
        if name in SCALARS:
            return None
        if name in ("absent", "absent_over_time", "vector") or not vectors:
            return frozenset()
        if name in ("label_replace", "label_join"):
            return vectors[0] | {words[0]}
        return vectors[0] - {"le"} if name == "histogram_quantile" else vectors[0]

    def arguments(self):
        operands, words = [], []
        self.take("(")
        while self.next != ")":
            if self.tokens[0][0] == "string":
                words.append(self.next[1:-1])
            operands.append(self.operation(0))
            if self.next == ",":
                self.take()
        self.take(")")
        return operands, words

    def aggregation(self, name):
        clause = (self.take(), self.names()) if self.next in ("by", "without") else None
        first = next((text for kind, text in self.tokens if kind == "name" and text in self.series), "the expression")
        operands, words = self.arguments()
        if clause is None and self.next in ("by", "without"):
            clause = self.take(), self.names()
        has = operands[-1] or frozenset()
        kind, names = clause or ("by", set())
        for label in sorted(names - has):
            self.say(f"{first} has no label {label}")
        if name in KEEP:
            return has
        return frozenset(names if kind == "by" else has - names) | set(words if name == "count_values" else ())

    def selector(self, name):
        matchers = self.matchers() if self.next == "{" else []
        name = name or next((value for label, _, value in matchers if label == "__name__"), "")
        if name not in self.series:
            self.say(f"{name or 'a selector without a name'} is exported by nobody")
            return frozenset()
        for label, sign, value in matchers:
            if label not in self.series[name] and label != "__name__":
                self.say(f"{name} has no label {label}")
            elif not _possible(name, label, sign, value):
                self.say(f"{name} never has {label}={value!r}")
        return frozenset(self.series[name])

    def matchers(self):
        matchers = []
        self.take("{")
        while self.next != "}":
            matchers.append((self.take(), self.take(), self.take()[1:-1]))
            if self.next == ",":
                self.take()
        self.take("}")
        return matchers


def _possible(metric, label, sign, value):
    all_values = values(metric, label)
    if all_values is None or sign in ("!=", "!~") or "$" in value:
        return True
    return any(re.fullmatch(value if sign == "=~" else re.escape(value), candidate) for candidate in all_values)
