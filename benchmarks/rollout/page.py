"""Write docs/rollout-benchmark.md and its picture from the figures of the simulations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rollout.simulation import ACCURACY, ERRORS, LOOKS, LUCK, PATIENCE, SPREAD, Fault

from loopline.lib.drawing import BLUE, GREEN, GREY, ORANGE, RED, sheet
from loopline.rollout.judge import RolloutPolicy

Figures = dict[str, Any]
SIZES = (100, 250, 500, 1000, 2000, 4000)
QUICK = (100, 2000)
LABELS = 5  # labelled answers for each request that a step demands, for a fault that only labels show
SAME = Fault("identical")
FAULTS = (
    SAME,
    Fault("errors +1 pt", errors=0.01),
    Fault("p95 +20 %", slower=0.20),
    Fault("accuracy -2 pt", accuracy=0.02),
    Fault("all of it broken", errors=0.9),
)
FOUND, FALSE = (
    0.95,
    0.02,
)  # targets: least share of faulty rollouts and largest share of identical ones that are rolled back
COLOURS = (GREY, RED, BLUE, ORANGE, GREEN)
SHIPPED = RolloutPolicy()


def runs(fault: Fault) -> int:
    """Return the number of rollouts to simulate."""
    return 500 if fault == SAME else 200


def policy(fault: Fault, requests: int) -> RolloutPolicy:
    """Return the shipped policy with another minimum of requests. The slices shrink with it, so that the points stay as many."""
    labels = LABELS * requests if fault.accuracy or fault == SAME else 0
    return replace(SHIPPED, requests=requests, slice=max(2, requests // SHIPPED.points), labels=labels)


def _of(results: Figures, fault: str) -> dict[int, Figures]:
    return {row["size"]: row for row in results["rows"] if row["fault"] == fault}


def missed(results: Figures) -> list[str]:
    """Return the targets that the shipped policy misses."""
    sentences = []
    for fault in FAULTS:
        rate = _of(results, fault.name)[SHIPPED.requests]["rolled_back"]
        if rate > FALSE if fault == SAME else rate < FOUND:
            sentences.append(f"{fault.name}: {rate:.1%} rolled back")
    return sentences


def enough(results: Figures, fault: Fault) -> int | None:
    """Return the least minimum that meets the target, as do all larger ones; None if there is none."""
    least = None
    for size, row in sorted(_of(results, fault.name).items(), reverse=True):
        if row["rolled_back"] > FALSE if fault == SAME else row["rolled_back"] < FOUND:
            break
        least = size
    return least


def page(results: Figures) -> str:
    """Return the text of docs/rollout-benchmark.md."""
    sizes = sorted({row["size"] for row in results["rows"]})
    head = ["challenger", *(f"{size:,}" for size in sizes)]
    table = [head, ["---"] * len(head)]
    spent = [
        [
            "challenger",
            "minimum that is enough",
            "requests of its lane until it is rolled back",
            "found by",
            "only by running out of time",
        ]
    ]
    spent.append(["---"] * 5)
    for fault in FAULTS:
        rows = _of(results, fault.name)
        table.append([fault.name, *(f"{rows[size]['rolled_back']:.1%}" for size in sizes)])
        least, row = enough(results, fault), rows[SHIPPED.requests]
        if fault != SAME:
            timed = f"{row['timed_out']:.1%}"
            by = {"95th": "latency", "held": "running out of time", "labelled": "labels", "errors": "errors"}.get(
                row["reason"], "a hard stop"
            )
            spent.append([fault.name, f"{least:,}" if least else "none of these", f"{row['requests']:,}", by, timed])
    lines, costs = ("\n".join(f"| {' | '.join(row)} |" for row in rows) for rows in (table, spent))
    verdict = "".join(f"- {line}\n" for line in missed(results)) or "Every target is met by the shipped policy.\n"
    shipped, labels, small = SHIPPED.requests, LABELS * SHIPPED.requests, SIZES[1]
    least_same = f"{enough(results, SAME) or 0:,}"
    few = _of(results, SAME.name).get(small, {}).get("rolled_back", 0.0)
    return f"""# How often is a rollout right?

The judge of `loopline rollout` decides simulated rollouts. One run of `make bench SUITE=rollout` wrote this page.
[rollout.md](rollout.md) explains the judge.

![Share rolled back by the requests that a step demands](pictures/rollout-benchmark.png)

## Rolled back, by the requests that a step demands of each lane

{lines}

A figure is of {runs(SAME)} rollouts of the identical challenger, or {runs(FAULTS[1])} of another one.
Targets at the shipped {shipped:,} requests: at most {FALSE:.0%} of the identical challengers are rolled back, and at least
{FOUND:.0%} of the faulty ones.
{verdict}
With fewer requests identical challengers are rolled back as well ({few:.1%} at {small}): a difference by chance stays unclear until
the time of the step runs out. Faults also slip through, because noise hides what separates them from harmless challengers.

## What each fault needs, at the shipped policy

{costs}

From {least_same} requests on, identical challengers pass. A smaller minimum above finds the fault, but it also rolls back
identical challengers too often. A canary of 5 % needs {shipped:,} requests in its lane, which are {shipped * 20:,} of the model.
With little traffic, take larger first steps (`--steps 25,50`), or fewer requests with the risk above (`--requests 500 --slice 10`).

A loss of 2 points of accuracy needs labels, not requests: {labels:,} of the challenger's answers (`--labels {labels}`).
Without labels the judge does not see it at all: the promotion's gate on the test split must find it, or monitoring afterwards.

## How it is simulated

A rollout has three steps. Latencies count from the beginning of the step; errors, classes and labels from that of the canary. The
judge looks {LOOKS} times until a step has its minimum, and goes on until {PATIENCE} times the minimum, when the step is rolled back.
The rate of errors is {ERRORS:.1%}, the accuracy {ACCURACY:.0%}, and there are ten classes.
Latencies are lognormal (sigma {SPREAD}) around 5 ms, times a load that wanders and that both lanes share, times what
one process is slower or faster by luck ({LUCK:.1%}); and 0.2 % of the requests meet a pause of 50 ms.

The simulation leaves out errors that come in bursts to one client, lanes on machines that differ, and faults that begin later. The
run took {results["minutes"]:.1f} minutes.
"""


def picture(results: Figures, path: Path) -> None:
    """Draw the share of rollouts that are rolled back over the minimum of requests."""
    with sheet(path, 6.4, 3.6) as (figure, axes):
        figure.suptitle("Rolled back, of simulated rollouts")
        axis = axes[0]
        for colour, fault in zip(COLOURS, FAULTS, strict=True):
            rows = sorted(_of(results, fault.name).items())
            axis.plot(
                [n for n, _ in rows],
                [row["rolled_back"] for _, row in rows],
                color=colour,
                marker="o",
                label=fault.name,
            )
        axis.axvline(SHIPPED.requests, color=GREY, linewidth=1, linestyle=":")
        axis.set_xscale("log")
        axis.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
        axis.minorticks_off()
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("requests of each lane that a step demands (dotted: as shipped)")
        axis.set_ylabel("share rolled back")
        axis.legend(fontsize=7, loc="center right")
