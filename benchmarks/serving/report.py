"""From a run's figures to docs/benchmarks.md. The sentences about what is missed and lost follow from the figures."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.serving import goals, machines
from benchmarks.serving.figures import (
    DEADLINE,
    FLOODS,
    LOOPLINE,
    PEAKS,
    SHARES,
    Figures,
    Medians,
    goodput,
    load_sent,
    normal_after,
    number,
    refused_in_time,
    scheduled_p50,
    scheduled_p99,
    table,
    unanswered,
)
from benchmarks.serving.servers import HERE, KINDS, Kind

from loopline import __version__
from loopline.lib.machine import cpu_features, cpu_name

TITLES = {"classifier": "Classifier (digits, 28 x 28)", "detector": "Detector (scenes, 128 x 128 x 3)"}


def setting(kinds: Sequence[Kind]) -> Figures:
    """The machine, the versions of what ran, and the load average over the run. kinds: the servers that ran."""
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", (HERE / "requirements.lock").read_text(), re.MULTILINE))
    locked["mlflow"] = version("mlflow")  # the one peer that runs in Loopline's environment
    packages = dict.fromkeys(kind.package for kind in kinds if kind.package)
    if "fastapi" in packages:
        packages["uvicorn"] = None
    versions = {"Python": platform.python_version(), "ONNX Runtime": version("onnxruntime"), "Loopline": __version__}
    return {
        "processor": cpu_name(),
        "features": cpu_features(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions | {package: locked[package] for package in packages},
        "busy": os.getloadavg()[2],
    }


def _closed(of: Medians, model: str, connections: Sequence[int]) -> str:
    many = [count for count in connections if count > 1]
    head = ["server", "p50 ms, 1 connection", "p99 ms"]
    for count in many:
        head += [f"answers/s, {count} connections", "Loopline's rate", "p99 ms"]
    rows = [["the engine alone", number(of(f"engine/{model}", "p50"), 2), number(of(f"engine/{model}", "p99"), 2)]]
    rows[0] += [number(of.limit(model)), "", ""] * len(many)
    for name in of.names:
        if of(f"{name}/{model}/{many[0]}", "rate") is None:
            continue
        row = [name, *(number(of(f"{name}/{model}/1", field), 2) for field in ("p50", "p99"))]
        for count in many:
            rate, loopline = of(f"{name}/{model}/{count}", "rate"), of(f"{LOOPLINE}/{model}/{count}", "rate")
            times = f"{loopline / rate:.1f}x" if loopline and rate and name != LOOPLINE else ""
            failed = of(f"{name}/{model}/{count}", "failed")
            row += [number(rate) + (f" ({failed:.0f} failed)" if failed else ""), times]
            row.append(number(of(f"{name}/{model}/{count}", "p99"), 1))
        rows.append(row)
    return table(head, rows)


def _open(of: Medians) -> str:
    rows = []
    for model in of.models:
        for label, peak in PEAKS.items():
            for share in SHARES:
                for name in of.names:
                    key = f"{name}/{model}/open/{label}/{share}"
                    if key in of.raw:
                        row = [model, f"{share:.0%} of {peak}", number(of(key, "rate")), name]
                        row.append(number(of(key, "answered")))
                        row += [number(of(key, percentile), 2) for percentile in (scheduled_p50, scheduled_p99)]
                        rows.append([*row, number(of(key, unanswered))])
    head = ["model", "load", "requests/s", "server", "answers/s", "p50 ms", "p99 ms", "without an answer/s"]
    return table(head, rows)


def _flood(of: Medians, seconds: float) -> str:
    """seconds: how long normal traffic was sent after a flood."""
    rows = []
    for model in of.models:
        for times in FLOODS:
            for name in of.names:
                for measured in of.raw.get(f"{name}/{model}/flood/{times}", []):
                    flood, normal = measured["flood"], normal_after(measured)
                    row = [model, name, f"{times}x", f"{load_sent(measured):.1f}x", number(flood["answered"])]
                    row += [number(flood["within"][DEADLINE]), f"{goodput(measured):.2f}", number(flood["p99"])]
                    share = f"{refused_in_time(measured):.1%}" if flood["refused"] else "–"
                    row += [number(flood["refused"]), number(flood["refused_p50"], 1), share]
                    rows.append([*row, f"{normal:.1f} s" if normal < seconds else f"not within {seconds:g} s"])
    head = ["model", "server", "due", "sent", "answers/s", f"within {DEADLINE} ms", "share of peak", "p99 ms"]
    head += ["refused/s", "refusal, p50 ms", f"refusals within {DEADLINE} ms", "normal after"]
    return table(head, rows)


def _signals(of: Medians) -> str:
    rows = []
    for model in of.models:
        row = [model]
        for field in ("p50", "p99"):
            with_, without = (of(f"signals/{state}/{model}", field) for state in ("on", "off"))
            row += [number(with_, 2), number(without, 2), number(with_ / without if with_ and without else None, 2)]
        rows.append(row)
    fields = [f"{field}{what}" for field in ("p50", "p99") for what in (" ms with", " ms without", ", ratio")]
    return table(["model", *fields], rows)


def _process(of: Medians) -> str:
    head = ["server", "start s, one bundle", "start s, three", "MB, one bundle", "MB, three", "idle, % of a core"]
    rows = []
    for name in of.names:
        row = [name, *(number(of(f"{name}/start/{count}"), 2) for count in (1, 3))]
        row += [number(of(f"{name}/memory/{count}")) for count in (1, 3)]
        rows.append([*row, number(of(f"{name}/idle"), 1), number(of(f"{name}/file", "rate"))])
    return table([*head, "PNG files/s"], rows)


def page(results: Figures, compared: Sequence[Figures]) -> str:
    """docs/benchmarks.md. compared: the machines with a column in the table of goals, this run's first."""
    of, size, here = Medians(results), results["size"], compared[0]
    connections = size["connections"]
    missed, lost = goals.missed(here["goals"]), goals.losses(of, connections)
    losses = [*missed, *lost] or [
        "Nowhere: this run meets every goal that it measured, and no other server is better in a figure."
    ]
    formats = "; ".join(f"{kind.name} gets {kind.sends}" for kind in KINDS if kind.name in of.names)
    remarks = [
        f"**{name}** is not in every table: {reason.splitlines()[0]}" for name, reason in results["absent"].items()
    ]
    if not size["complete"]:
        remarks.append("**This was a quick run, which only shows that everything works. Its figures mean nothing.**")
    others = [f"- {machines.title(other)}: {machines.setting(other)}" for other in compared[1:]]
    parts = [
        "# How fast is it?",
        "This page compares Loopline's server with other servers for models. `make bench SUITE=serving` measured everything in one "
        "run and wrote the page.",
        "![Answers a second of each server](pictures/benchmarks.png)",
        f"{machines.title(here)}: {machines.setting(here)}. The run took {results['minutes']:.0f} minutes. The load average over its "
        f"last 15 minutes was {results['busy']:.1f}; the benchmark itself makes about 1.5. If it was higher, other programs ran too, "
        "and the figures are too low.",
        *(f"> {remark}" for remark in remarks),
        "## How it is measured",
        "The server has one core to itself, and the load generator another. All servers run the same INT8 models on ONNX Runtime "
        "with one thread. The servers take turns in each round, and a figure is the median of the rounds. "
        "Before a server is measured, its answers are compared with those of the engine alone. In a closed loop, wrk sends the next "
        "request on a connection as soon as the last one is answered.",
        "The other servers are in [benchmarks/serving/peers](../benchmarks/serving/peers). Each is written as its documentation says, "
        f"with batching if it offers that, and gets requests in the format that it answers fastest over HTTP: {formats}. The version "
        "of FastAPI is the newest one that can be installed beside MLServer. The engine alone is `session.run` in a loop, with the "
        "batch size that gives most answers a second: no server can be faster. A column \"Loopline's rate\" gives Loopline's rate as "
        "a multiple of that server's.",
        *(part for model in of.models for part in (f"## {TITLES[model]}", _closed(of, model, connections))),
        "## Requests on a schedule",
        "Here a request is sent when it is due, whether or not earlier ones are answered, over 64 connections. Latency counts from "
        "when the request was due; without an answer, it counts as infinite. Loopline and the fastest peer get the same loads: "
        "shares of the fastest peer's peak, then shares of Loopline's. A peak is a server's highest rate in a closed loop.",
        _open(of),
        "## Floods",
        f"A flood sends {' or '.join(map(str, FLOODS))} times the server's own peak for {size['flood']:g} s over 2,048 connections. "
        f"Half the peak follows for {size['after']:g} s. A request that finds no free connection within 10 ms is not sent and not "
        'answered. "Sent" is the load that the load generator managed to send, in multiples of the peak. An answer is of use within '
        f"{DEADLINE} ms of when its request was due. Loopline learns this from the header `X-Request-Timeout-Ms: 200`; the other "
        "servers have no such deadline. A server is normal again when it answers all requests of 0.1 s and their median is at most "
        "three times the one before the flood, or 5 ms.",
        _flood(of, size["after"]),
        "## What drift signals cost",
        "Loopline counts drift signals of the samples that it answers, unless it is started with `--signals 0`. Both variants take "
        "turns in each round, at one connection.",
        _signals(of),
        "## The process",
        "The start lasts from the start of the process to right answers by all bundles. Memory is resident memory after the first "
        "answers; memory that processes of one server share counts once. PNG files are sent over 16 connections to servers with a "
        "route for image files. mlflow serves one model in a process.",
        _process(of),
        "## Goals",
        "Most goals are ratios within one run, so that they hold on slow and fast machines. FastAPI is the variant that gets raw "
        "bytes. A missed goal is in bold. A dash marks a goal that was not measured. The first machine is the one of this page; each "
        "column is a file in [benchmarks](benchmarks).",
        machines.goals_table(compared),
        *(["\n".join(["The other machines ran:", "", *others])] if others else []),
        "## Where we lose",
        "\n".join(f"- {sentence}" for sentence in losses),
        "The tables leave some limits out. Loopline speaks neither gRPC nor HTTP/2. One process uses one core well, so two cores "
        "need two processes. A tensor in JSON costs Loopline several times as much as a binary one. Loopline serves ONNX models only.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
