"""`loopline VERB`: the verbs that the Makefile and dvc.yaml call. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys

from loopline import __version__
from loopline.cli import (
    deploy,
    drill,
    journal,
    lineage,
    monitoring,
    pipeline,
    plan,
    releases,
    retraining,
    rollout,
    serving,
)
from loopline.errors import LooplineError


def parser() -> argparse.ArgumentParser:
    """The command line; `tests/test_cli.py` checks that it answers fast."""
    top = argparse.ArgumentParser(prog="loopline", description="From data to a monitored service and back again.")
    top.add_argument("--version", action="version", version=f"loopline {__version__}")
    rooms = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    for part in (pipeline, serving, journal, monitoring, retraining, releases, rollout, deploy, lineage, drill, plan):
        part.add(rooms)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code. A user's mistake is one message, never a traceback."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a label may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except LooplineError as error:
        print(f"loopline: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # who reads has seen enough: `loopline data list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to say at the end either
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a folder of another user: the system's own words name it
        print(f"loopline: {error}", file=sys.stderr)
        return LooplineError.code
    except KeyboardInterrupt:
        print("loopline: interrupted", file=sys.stderr)
        return 130
    return code
