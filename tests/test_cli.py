"""The command line's answers and exit codes. `make bench` measures how fast it answers."""

import io
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loopline import cli
from loopline.errors import LooplineError
from loopline.observability import sentinel

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "loopline.cli", *arguments], capture_output=True, text=True)


def test_help_loads_no_heavy_library():
    """`loopline --help` must answer in well under half a second; importing one of these libraries takes longer."""
    heavy = "torch mlflow dvc pandas sklearn onnx onnxruntime great_expectations numpy pydantic"
    code = (
        f"import sys; from loopline import cli; cli.parser(); print([m for m in {heavy.split()} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_names_verbs_of_every_kind():
    out = run("--help").stdout
    assert all(verb in out for verb in ("stage", "data", "track", "release"))


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


def test_a_closed_pipe_causes_no_traceback():
    reads, writes = os.pipe()
    os.close(reads)  # as `head` does after its lines
    command = [sys.executable, "-m", "loopline.cli", "data", "list"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_server_without_a_bundle_says_where_bundles_come_from():
    done = run("serve", "models/*/bundle")
    assert done.returncode == 1
    assert "`make repro` makes models/*/bundle" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("sharing", "options"),
    [(False, ()), (True, ()), (False, ("--share-port",)), (True, ("--metrics-port", "0"))],
)
def test_a_server_refuses_a_port_that_another_program_holds(sharing, host, options):
    """It refuses it even if the other program shares the port: half of that program's clients would get our answers."""
    with socket.create_server((host, 0), reuse_port=sharing) as other:
        port = str(other.getsockname()[1])
        done = run("serve", str(Path(__file__).parent), "--port", port, *options)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"loopline: 127.0.0.1:{port} is taken: another program listens there. Choose another port"
    )
    assert done.stderr.count("\n") == 1


def test_a_taken_port_for_metrics_gives_one_message(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("journal", str(tmp_path), "--port", str(port))
        with pytest.raises(LooplineError, match=f"cannot listen on 127.0.0.1:{port}"):
            sentinel.Sentinel("http://127.0.0.1:1", [], None).run(1.0, port, threading.Event())
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


def test_data_prepare_makes_a_folder_of_batches_that_git_keeps(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("  classifier:", "  shapes:", 1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "prepare", "shapes"]) == 0
    assert [path.parent.name for path in tmp_path.glob("data/batches/*/.gitkeep")] == ["shapes"]
    assert cli.main(["data", "prepare", "../other"]) == 1
    assert "no model '../other'" in capsys.readouterr().err
    assert not (tmp_path / "data/other").exists()


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize("own", [{}, {"NO_PROXY": "corp.example"}, {"no_proxy": "corp.example"}])
def test_a_proxy_is_not_asked_for_this_machines_own_servers(name, own):
    code = (
        "import loopline, urllib.request as u, requests.utils as r\n"
        "print(*(bool(u.proxy_bypass(h)) for h in ('127.0.0.1:80', 'localhost', '[::1]:80', 'corp.example', 'a.example')),"
        " r.should_bypass_proxies('http://127.0.0.1:80/x', None))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment = clean | {name: "http://127.0.0.1:9"} | own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["True", "True", "True", str(bool(own)), "False", "True"], done.stderr


def test_an_error_of_the_operating_system_gives_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").write_text("a file where a folder is wanted")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert cli.main(["data", "prepare", "text"]) == 1
    assert capsys.readouterr().err.startswith("loopline: [Errno 20] Not a directory: 'data/batches/text'")


def test_a_terminal_that_lacks_a_character_shows_its_escape(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("loopline.data.catalog.listing", lambda: "Grün")
    assert cli.main(["data", "list"]) == 0
    assert screen.buffer.getvalue() == b"Gr\\xfcn\n"
