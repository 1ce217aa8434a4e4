"""`python -m benchmarks.capacity BUNDLE ...`: what `loopline plan` predicts of a replica, beside what a real one does.

Profiles each bundle, then sends requests on a Poisson schedule at two shares of the predicted capacity. In turn with
rounds; figures are medians over them. Writes a table in Markdown to standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.serving import load
from benchmarks.serving.asks import Ask
from benchmarks.serving.figures import table
from benchmarks.serving.servers import cores

from loopline.monitoring import sentinel
from loopline.planning import measure
from loopline.planning.inputs import Profile
from loopline.planning.queueing import Service

SHARES = (0.3, 0.6)
CONNECTIONS = 64


def compare(folder: Path, *, rounds: int, seconds: float, repeats: int) -> list[list[str]]:
    """A row for each share: predicted and measured. rounds: of the profile's batches. repeats: of the load, each `seconds` long."""
    profile = Profile.model_validate(measure.measure(folder, starts=1, rounds=rounds))
    service = Service.measured(profile.batches, profile.spread)
    (watched,) = sentinel.load([folder])
    head, _, body = measure.request(watched.name, watched.samples[0].given).partition(b"\r\n\r\n")
    kind = head.decode().partition("Content-Type: ")[2].partition("\r\n")[0]
    ask = Ask(f"/predict/{watched.name}", {"Content-Type": kind}, body, lambda *_: {})
    rows = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        measure.running(folder, watched, cores(), Path(scratch)) as (process, _),
    ):
        port = int(process.address.rpartition(":")[2])
        for share in SHARES:
            rate = share * service.capacity
            found = [
                load.scheduled(
                    port,
                    ask,
                    [(rate, 0.5), (rate, seconds)],
                    connections=CONNECTIONS,
                    scratch=Path(scratch),
                    seed=repeat,
                )[1]
                for repeat in range(repeats)
            ]
            said = [
                f"{rate:,.0f}",
                f"{median(one['answered'] for one in found):,.0f}",
                *(
                    f"{value:.2f}"
                    for quantile, name in ((0.5, "p50"), (0.99, "p99"))
                    for value in (service.latency(rate, quantile) * 1e3, median(one[name] for one in found))
                ),
            ]
            rows.append([watched.name, f"{share:.0%}", *said])
    return rows


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("bundle", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sized = {"rounds": options.rounds, "seconds": options.seconds, "repeats": options.repeats}
    rows = [row for folder in options.bundle for row in compare(folder, **sized)]
    head = "model, of its capacity, requests/s, answered/s, p50 predicted, measured ms, p99 predicted, measured ms"
    print(table(head.split(", "), rows))
    print(f"load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
