"""What users and their scripts rely on: the command line, metric names, the gateway's configuration, environment variables.

Each is compared with a file under tests/golden. To change one on purpose, run the tests with LOOPLINE_WRITE_GOLDEN=1, read the
difference, and tell users in CHANGELOG.md.
"""

import argparse
import os
import re
from pathlib import Path

import pytest

from loopline import cli, errors
from loopline.cli.verbs import VerbParser
from loopline.fleet import gateway
from loopline.server import metrics

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"


def command_line():
    """A line for each argument of each verb, with the number of its values and its default."""
    lines = []
    for verb, parser in parsers(cli.parser()):
        for action in arguments(parser):
            words = ", ".join(action.option_strings) or action.dest
            takes = action.nargs if action.nargs is not None else "" if action.const is not None else 1
            choices = f" of {', '.join(map(str, action.choices))}" if action.choices else ""
            default = "" if action.default in (None, argparse.SUPPRESS) else f" = {action.default}"
            needed = " (required)" if action.required and action.option_strings else ""
            lines.append(f"{verb}: {words} {takes}{choices}{default}{needed}")
        if not any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
            lines.append(f"{verb}: a verb")
    return sorted(line.replace(str(ROOT), "ROOT") for line in lines)


def parsers(parser, verb="loopline"):
    """This parser and those of the verbs under it, each with its verb."""
    if isinstance(parser, VerbParser):
        parser.fill()
    yield verb, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from parsers(child, f"{verb} {name}")


def arguments(parser):
    """The arguments that a user gives, without verbs, --help and --version."""
    others = argparse._SubParsersAction | argparse._HelpAction | argparse._VersionAction
    return [action for action in parser._actions if not isinstance(action, others)]


# First words of a half sentence: prepositions, conjunctions, question words and pronouns, and those that begin a mere note.
HALF = re.compile(
    r"(about|after|as|at|before|beside|between|beyond|by|during|for|from|in|into|like|of|off|on|onto|over|per|since|till|to"
    r"|under|until|up|upon|with|within|without|and|because|but|else|if|nor|or|so|than|unless|while|are|how|is|that|what|when"
    r"|where|whether|which|who|whom|whose|why|it|its|their|they|this|default|e\.g|even)\b",
    re.IGNORECASE,
)


def half_sentences(parser):
    """The help texts of a command line that are missing or begin in mid-sentence, each after its verb and argument."""
    texts = []
    for verb, child in parsers(parser):
        texts.append((verb, child.description))
        texts += [(f"{verb} {(action.option_strings or [action.dest])[0]}", action.help) for action in arguments(child)]
        texts += [(f"{verb} ({group.title})", group.title) for group in child._action_groups if group.title]
    return [(place, text) for place, text in texts if not text or HALF.match(text)]


def test_every_verb_and_argument_has_a_help_text_that_is_no_half_sentence():
    assert half_sentences(cli.parser()) == []


@pytest.mark.parametrize(
    "text", [None, "", "of the server", "As a file", "default: 9101", "e.g. 7e9", "where it stands"]
)
def test_a_half_sentence_in_a_help_text_is_seen(text):
    parser = argparse.ArgumentParser(description="serve")
    parser.add_argument("--replicas", help=text)
    verb = parser.add_subparsers().add_parser("up", description=text)
    verb.add_argument_group(text)
    seen = {place for place, _ in half_sentences(parser)}
    assert seen == {"loopline --replicas", "loopline up"} | ({f"loopline up ({text})"} if text else set())


def metric_names():
    return [
        f"{metrics.PREFIX}{metric.name} {metric.kind} {','.join(metric.labels)} {','.join(map(str, metric.buckets))}".rstrip()
        for metric in metrics.CATALOGUE.values()
    ]


def processes_gateway(tmp_path):
    text = gateway.write(tmp_path, port=8080, metrics_port=8081).read_text(encoding="utf-8")
    socket = gateway.socket_path(tmp_path)  # it is in another folder if the path of this one is long
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


def helps():
    """What --help says of each verb and argument; how it is laid out is Python's."""
    lines = []
    for verb, parser in parsers(cli.parser()):
        formatter = parser.formatter_class(parser.prog)
        lines.append(f"{verb}: {parser.description}")
        for action in arguments(parser):
            if not isinstance(action, argparse._SubParsersAction):
                words = ", ".join(action.option_strings) or action.dest
                lines.append(f"{verb} {words}: {formatter._expand_help(action)}")
    return [line.replace(str(ROOT), "ROOT") for line in lines]


INTERFACES = {
    "command-line.txt": lambda _: command_line(),
    "help.txt": lambda _: helps(),
    "metrics.txt": lambda _: metric_names(),
    "gateway-processes.cfg": processes_gateway,
    "gateway-containers.cfg": lambda _: gateway.containers("/shares").splitlines(),
    "environment.txt": lambda _: environment(),
    "exit-codes.txt": lambda _: exit_codes(),
}


@pytest.mark.parametrize("name", INTERFACES)
def test_a_public_interface_equals_its_golden_file(name, tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 2**20))  # machines differ in their limit of open files
    now, golden = INTERFACES[name](tmp_path), GOLDEN / name
    if os.environ.get("LOOPLINE_WRITE_GOLDEN"):
        golden.write_text("\n".join([*now, ""]), encoding="utf-8")
    assert now == golden.read_text(encoding="utf-8").splitlines()
