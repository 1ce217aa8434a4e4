"""Compare what `loopline plan` predicts of a replica with what a real replica does: `python -m benchmarks.capacity BUNDLE ...`.

Profiles each bundle, then sends requests on a Poisson schedule at two shares of the predicted capacity. The figures are medians over
the repeats. Prints a table in Markdown; `--docs` writes it, and fresh output of the commands, to docs/capacity.md and its picture.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.serving import load
from benchmarks.serving.asks import Ask
from benchmarks.serving.figures import table
from benchmarks.serving.servers import cores

from loopline.lib import files
from loopline.observability import sentinel
from loopline.planning import measure
from loopline.planning.plan_files import Profile
from loopline.planning.queueing import Service

SHARES = (0.3, 0.6)
CONNECTIONS = 64
QUIET = 0.25  # load of each core that does not count as other work: a shell, an editor, what `make setup` left
TRAFFIC = "base: 20\npeak: 900\nhours: 8-20\ndays: mon-fri\n"
PLAN = "loopline plan .loopline/profiles/{}.json --prices prices.yaml --traffic traffic.yaml --p99-ms 200 --spare 1 --plot plan.png"


def compare(folder: Path, *, rounds: int, seconds: float, repeats: int) -> list[list[str]]:
    """Return a row for each share: the predicted and the measured figures. Each load runs `repeats` times for `seconds`.

    rounds: repeats of each batch in the profile.
    """
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
            loads = [
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
            cells = [
                f"{rate:,.0f}",
                f"{median(figures['answered'] for figures in loads):,.0f}",
                *(
                    f"{value:.2f}"
                    for quantile, name in ((0.5, "p50"), (0.99, "p99"))
                    for value in (service.latency(rate, quantile) * 1e3, median(figures[name] for figures in loads))
                ),
            ]
            rows.append([watched.name, f"{share:.0%}", *cells])
    return rows


def busy(average: float, cpus: int) -> str:
    """Return why a measurement now would include other work; empty on a quiet machine. average: load of the last minute."""
    least = QUIET * cpus
    return (
        f"the load average is {average:.2f}, over {least:.2f}: other work runs on these {cpus} cores"
        if average > least
        else ""
    )


def write(page: Path, folders: list[Path], check: str) -> None:
    """Put fresh output between the page's marks: <!-- name --> ... <!-- end -->."""
    with tempfile.TemporaryDirectory() as scratch:
        traffic = Path(scratch, "traffic.yaml")
        traffic.write_text(TRAFFIC, encoding="utf-8")
        names = {"prices.yaml": "serving/prices.example.yaml", "traffic.yaml": str(traffic)}
        profiles = [_shown(f"loopline profile {folder}", {}) for folder in folders]
        parts = {
            "profile": profiles[-1],
            "plan": _shown(PLAN.format(folders[-1].parent.name), names | {"plan.png": "docs/pictures/capacity.png"}),
            "memory": _shown("loopline memory 7e9 --prices prices.yaml --profile .loopline/profiles/*.json", names),
            "traffic": f"```yaml\n{TRAFFIC}```\n",
            "check": check,
        }
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda mark, part=part: mark[1] + part + mark[2],
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            sys.exit(f"{page} must have one <!-- {name} --> with its <!-- end -->")
    files.write(page, text, shared=True)


def _shown(command: str, names: dict[str, str]) -> str:
    """Return a command with its output. names: shown name of a file -> the file to use."""
    words = []
    for word in command.split()[1:]:
        words += sorted(map(str, Path().glob(word))) if "*" in word else [names.get(word, word)]
    done = subprocess.run([sys.executable, "-m", "loopline.cli", *words], check=True, stdout=subprocess.PIPE, text=True)
    return f"```\n$ {command}\n{done.stdout.rstrip()}\n```\n"


def main() -> int:
    """Run the benchmark and return the exit code: 1 on a busy machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("bundle", nargs="+", type=Path, help="folder of a bundle")
    parser.add_argument("--rounds", type=int, default=300, help="repeats of each batch in the profile")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each load")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each load")
    parser.add_argument("--docs", type=Path, help="page to update: docs/capacity.md")
    parser.add_argument(
        "--busy", action="store_true", help="measure although other work runs, and say so beside the figures"
    )
    options = parser.parse_args()
    start = os.getloadavg()[0]
    other_work = busy(start, os.cpu_count() or 1)
    if other_work and not options.busy:
        print(f"{other_work}. Wait until it has ended, or measure all the same with --busy", file=sys.stderr)
        return 1
    sized = {"rounds": options.rounds, "seconds": options.seconds, "repeats": options.repeats}
    rows = [row for folder in options.bundle for row in compare(folder, **sized)]
    head = "model, of its capacity, requests/s, answered/s, p50 predicted, measured ms, p99 predicted, measured ms"
    loads = f"The load average was {start:.1f} at its start and {os.getloadavg()[0]:.1f} at its end (it makes about 2 itself)."
    warning = f"\n**Measured on a busy machine: {other_work}.**\n" if other_work else ""
    check = f"{table(head.split(', '), rows)}\n{loads}\n{warning}"
    print(check, end="")
    if options.docs:
        write(options.docs, options.bundle, check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
