"""What users and their scripts rely on: the command line, metric names, the gateway's configuration, variables of the environment.

Each is compared with a file under tests/golden. To change one on purpose, run the tests with LOOPLINE_WRITE_GOLDEN=1, read the
difference, and tell users in CHANGELOG.md.
"""

import argparse
import os
import re
from pathlib import Path

import pytest

from loopline import cli, errors
from loopline.fleet import gateway
from loopline.server import metrics

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"


def command_line():
    """A line for each argument of each verb: what it takes, and what it is if it is not given."""
    lines = []

    def walk(parser, verb):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    walk(child, [*verb, name])
            elif not isinstance(action, argparse._HelpAction | argparse._VersionAction):
                words = ", ".join(action.option_strings) or action.dest
                takes = action.nargs if action.nargs is not None else "" if action.const is not None else 1
                choices = f" of {', '.join(map(str, action.choices))}" if action.choices else ""
                default = "" if action.default in (None, argparse.SUPPRESS) else f" = {action.default}"
                needed = " (required)" if action.required and action.option_strings else ""
                lines.append(f"{' '.join(verb)}: {words} {takes}{choices}{default}{needed}")
        if not any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
            lines.append(f"{' '.join(verb)}: a verb")

    walk(cli.parser(), ["loopline"])
    return sorted(line.replace(str(ROOT), "ROOT") for line in lines)


def metric_names():
    return [
        f"{metrics.PREFIX}{metric.name} {metric.kind} {','.join(metric.labels)} {','.join(map(str, metric.buckets))}".rstrip()
        for metric in metrics.CATALOGUE.values()
    ]


def processes_gateway(tmp_path):
    text = gateway.write(tmp_path, port=8080, metrics_port=8081).read_text(encoding="utf-8")
    socket = gateway.socket_path(tmp_path)  # in another folder where the path of this one is long
    return text.replace(str(socket), "SOCKET").replace(str(socket.parent), "FOLDER").splitlines()


def environment():
    """The variables that the package reads."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    return sorted({name for text in texts for name in re.findall(r'"(LOOPLINE_[A-Z_]+)"', text)})


def exit_codes():
    kinds = [errors.LooplineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return sorted({f"{kind.__name__} {kind.code}" for kind in kinds if kind.__module__ == errors.__name__})


INTERFACES = {
    "command-line.txt": lambda _: command_line(),
    "metrics.txt": lambda _: metric_names(),
    "gateway-processes.cfg": processes_gateway,
    "gateway-containers.cfg": lambda _: gateway.containers("/shares").splitlines(),
    "environment.txt": lambda _: environment(),
    "exit-codes.txt": lambda _: exit_codes(),
}


@pytest.mark.parametrize("name", INTERFACES)
def test_it_is_as_it_was(name, tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 2**20))  # of open files: machines differ
    now, golden = INTERFACES[name](tmp_path), GOLDEN / name
    if os.environ.get("LOOPLINE_WRITE_GOLDEN"):
        golden.write_text("\n".join([*now, ""]), encoding="utf-8")
    assert now == golden.read_text(encoding="utf-8").splitlines()
