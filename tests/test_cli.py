"""The command line: its answers, its exit codes, and how long it keeps one waiting is for `make bench` to say."""

import subprocess
import sys

import pytest

from loopline import cli


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "loopline.cli", *arguments], capture_output=True, text=True)


def test_help_loads_no_heavy_library():
    """`loopline --help` must answer in well under half a second; these imports are what would keep it."""
    heavy = "torch mlflow dvc pandas sklearn onnx onnxruntime great_expectations numpy pydantic"
    code = (
        f"import sys; from loopline import cli; cli.parser(); print([m for m in {heavy.split()} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_names_every_room():
    out = run("--help").stdout
    assert all(room in out for room in ("stage", "data", "track", "release"))


def test_a_users_mistake_is_one_message_and_exit_code_1():
    done = run("stage", "ingest", "nobody")
    assert done.returncode == 1
    assert done.stderr.startswith("loopline: no model 'nobody'")
    assert "Traceback" not in done.stderr


def test_an_unknown_verb_is_refused():
    with pytest.raises(SystemExit) as stopped:
        cli.main(["stage", "bake", "classifier"])
    assert stopped.value.code == 2


def test_telemetry_is_off_before_any_library_is_imported():
    code = "import loopline, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["1", "true"]
