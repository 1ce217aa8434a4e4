"""`loopline VERB`: the verbs that the Makefile and dvc.yaml call. A verb imports its libraries only when it runs."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys

from loopline import __version__
from loopline.cli import (
    adoption,
    deploy,
    drill,
    journal,
    monitoring,
    pipeline,
    plan,
    releases,
    retraining,
    rollout,
    serving,
    tuning,
    whoami,
)
from loopline.cli.verbs import VerbParser
from loopline.errors import LooplineError


def parser() -> argparse.ArgumentParser:
    """Build the command line. It imports no heavy library, so that `--help` answers fast: `tests/test_cli.py` checks this."""
    top = VerbParser(prog="loopline", description="Train, serve, monitor and retrain models.")
    top.add_argument("--version", action="version", version=f"loopline {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    for module in (
        pipeline,
        adoption,
        tuning,
        serving,
        journal,
        monitoring,
        retraining,
        releases,
        rollout,
        deploy,
        whoami,
        drill,
        plan,
    ):
        module.add(verbs)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a verb and return its exit code. A user's mistake prints one message and no traceback."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a label may hold characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except LooplineError as error:
        print(f"loopline: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # the reader has closed the pipe, as in `loopline data list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit would fail too
        return 128 + signal.SIGPIPE
    except OSError as error:  # such as a full disk or another user's folder: the system's message names the file
        print(f"loopline: {error}", file=sys.stderr)
        return LooplineError.code
    except KeyboardInterrupt:
        print("loopline: interrupted", file=sys.stderr)
        return 130
    return code
