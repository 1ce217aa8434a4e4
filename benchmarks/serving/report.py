"""From a run's figures to docs/benchmarks.md and its picture. The words about where we lose follow from the figures."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.serving.figures import DEADLINE, OURS, Figures, Medians, normal_after, number, table
from benchmarks.serving.goals import goals_of, losses
from benchmarks.serving.servers import HERE, KINDS

from loopline import __version__
from loopline.lib.machine import cpu_features, cpu_name

TITLES = {"classifier": "Classifier (digits, 28 x 28)", "detector": "Detector (scenes, 128 x 128 x 3)"}


def machine() -> Figures:
    """What it ran on, and with what."""
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", (HERE / "requirements.lock").read_text(), re.MULTILINE))
    versions = {"Loopline": __version__, "mlflow": version("mlflow")}
    versions |= {name: locked[name] for name in ("fastapi", "uvicorn", "mlserver", "litserve", "bentoml")}
    return {
        "cpu": cpu_name(),
        "features": cpu_features(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "engine": version("onnxruntime"),
        "versions": versions,
        "busy": os.getloadavg()[2],
    }


def _closed(of: Medians, model: str, connections: Sequence[int]) -> str:
    many = [count for count in connections if count > 1]
    head = ["server", "p50 ms, 1 connection", "p99"]
    for count in many:
        head += [f"answers/s, {count} connections", "Loopline does", "p99 ms"]
    rows = [["the engine alone", number(of(f"engine/{model}", "p50"), 2), number(of(f"engine/{model}", "p99"), 2)]]
    rows[0] += [number(of.limit(model)), "", ""] * len(many)
    for name in of.names:
        if of(f"{name}/{model}/{many[0]}", "rate") is None:
            continue
        row = [name, *(number(of(f"{name}/{model}/1", field), 2) for field in ("p50", "p99"))]
        for count in many:
            rate, ours = of(f"{name}/{model}/{count}", "rate"), of(f"{OURS}/{model}/{count}", "rate")
            more = f"{ours / rate:.1f}x" if ours and rate and name != OURS else ""
            failed = of(f"{name}/{model}/{count}", "failed")
            row += [number(rate) + (f" ({failed:.0f} failed)" if failed else ""), more]
            row.append(number(of(f"{name}/{model}/{count}", "p99"), 1))
        rows.append(row)
    return table(head, rows)


def _open(of: Medians) -> str:
    rows = []
    for model in of.models:
        for name in of.names:
            for share in (0.5, 0.8):
                key = f"{name}/{model}/open/{share}"
                if of(key, "p50") is not None:
                    lost = (of(key, "refused") or 0.0) + (of(key, "failed") or 0.0)
                    row = [model, name, f"{share:.0%}", number(of(key, "answered")), number(of(key, "p50"), 2)]
                    rows.append([*row, number(of(key, "p99"), 2), number(lost)])
    return table(["model", "server", "of its peak", "answers/s", "p50 ms", "p99 ms", "not answered/s"], rows)


def _flood(of: Medians) -> str:
    rows = []
    for model in of.models:
        for name in of.names:
            for flood in of.raw.get(f"{name}/{model}/flood", []):
                said, peak = flood["flood"], flood["peak"]
                back = normal_after(flood)
                row = [
                    model,
                    name,
                    f"{said['offered'] / peak:.1f}x",
                    number(said["answered"]),
                    number(said["within"][DEADLINE]),
                ]
                row += [f"{said['within'][DEADLINE] / peak:.2f}", number(said["p99"]), number(said["refused"])]
                row += [number(said["refused_p50"], 1), "not within 3 s" if back is None else f"{back:.1f} s"]
                rows.append(row)
    head = [
        "model",
        "server",
        "load",
        "answers/s",
        f"within {DEADLINE} ms",
        "of peak",
        "p99 ms",
        "refused/s",
        "refused in ms",
    ]
    return table([*head, "normal after"], rows)


def _process(of: Medians) -> str:
    rows = []
    for name in of.names:
        alone = any(kind.models for kind in KINDS if kind.name == name)
        both = (
            [number(of(f"{name}/memory")), "–"]
            if alone
            else [number(of(f"{name}/{key}")) for key in ("memory_one", "memory")]
        )
        rows.append(
            [
                name,
                number(of(f"{name}/start"), 2),
                *both,
                number(of(f"{name}/idle"), 1),
                number(of(f"{name}/file", "rate")),
            ]
        )
    head = ["server", "start to right answers, s", "MB, one bundle", "MB, three", "idle, % of a core", "image files/s"]
    return table(head, rows)


def page(results: Figures, connections: Sequence[int]) -> str:
    """docs/benchmarks.md."""
    of = Medians(results)
    goals, missed = goals_of(of)
    lost = [*missed, *losses(of, connections)] or ["In no figure of this run."]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    sends = ", ".join(f"{kind.name}: {kind.sends}" for kind in KINDS if kind.name in of.names)
    first = "\n> ".join(
        f"**{name}** is not in every table: {reason.splitlines()[0]}" for name, reason in results["absent"].items()
    )
    parts = [
        "# How fast is it?",
        "Loopline's server beside those that people would pick instead, in one run of "
        "`make bench SUITE=serving`, which wrote this page.",
        "![Answers a second of each server](pictures/benchmarks.png)",
        f"{results['cpu']} ({', '.join(results['features'])}), {results['cores']} cores, Python {results['python']}, ONNX Runtime "
        f"{results['engine']}. {versions}. The run took {results['minutes']:.0f} minutes; the load average over its last 15 was "
        f"{results['busy']:.1f} (it makes about 1.5 itself: more means that others were at work, and the figures are low).",
        *([f"> {first}"] if first else []),
        "## How it is measured",
        "The server has one core to itself, the load generator another. All run the same INT8 models on ONNX Runtime with one "
        "thread. Rounds are interleaved over the servers; figures are medians over three. Before it is timed, each server's answer is "
        "compared with the bare engine's. Closed loops are made by wrk. Peers are in "
        "[benchmarks/serving/peers](../benchmarks/serving/peers), each as its documentation says, with batching where it has it, and "
        "each "
        f"is sent what it takes fastest over HTTP: {sends}. "
        "FastAPI is the newest that MLServer can share an environment with. "
        "The engine alone is `session.run` in a loop at its best batch: the limit of any server.",
        *(part for model in of.models for part in (f"## {TITLES[model]}", _closed(of, model, connections))),
        "## Requests on a schedule",
        "Requests leave when they are due, over 64 connections; time counts from when a request was due. Loopline and the "
        "fastest peer, each at shares of its own peak, so the faster one has more to do.",
        _open(of),
        "## Four times too much",
        "Four times its own peak for 20 s over 2,048 connections, then half its peak; what finds no free connection "
        f"within 10 ms is not sent and counts as lost. An answer after {DEADLINE} ms is worth nothing here; Loopline is "
        "told by `X-Request-Timeout-Ms: 200`, the peers know of no deadline.",
        _flood(of),
        "## The process",
        "Start: from the process's start to right answers by all bundles. Memory is resident, after the first answers; "
        "what processes of one server share is counted once. Image files: PNG to answer at 16 connections. mlflow serves one "
        "model a process.",
        _process(of),
        "## Our own goals",
        goals,
        "## Where we lose",
        "\n".join(f"- {line}" for line in lost),
        "What the tables do not show: there is no gRPC and no HTTP/2; one process uses one core well, and two cores need two "
        "processes; tensors sent as JSON cost Loopline several times a binary one; models other than ONNX are not served at all.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
