"""Stores that cannot be used: each gives one message with advice, or the spool if the server may come back by itself."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import brightness
import odd_servers
import pytest

from loopline.cli import main
from loopline.release import bundle, mlflow_store, tracking

LOGIN_PAGE = "<html><body>" + "Please sign in. " * 500 + "</body></html>"
# Case -> the answer of a server, a part of the message, and whether the failure may pass by itself.
ANSWERS = {
    "401 of MLflow": ((401, "You are not authenticated.", "text/plain"), "MLFLOW_TRACKING_USERNAME", False),
    "401 of a gateway": ((401, '{"detail": "Unauthorized"}'), "MLFLOW_TRACKING_PASSWORD", False),
    "403": ((403, '{"error_code": "PERMISSION_DENIED", "message": "no"}'), "this user may not use it", False),
    "403 of MLflow's host check": (
        (403, "Invalid Host header - possible DNS rebinding attack detected", "text/plain; charset=utf-8"),
        "possible DNS rebinding attack detected): start the server with `mlflow server --allowed-hosts HOST`",
        False,
    ),
    "403 in many words": ((403, "Blocked by rule 7.\n" * 99, "text/plain"), "(Blocked by rule 7. Blocked", False),
    "404": ((404, "Not Found", "text/html"), "check the address", False),
    "page of a proxy": ((200, LOGIN_PAGE, "text/html"), "answers with other content (text/html)", False),
    "a list": ((200, "[]"), "not MLflow's answer", False),
    "JSON of another service": ((200, '{"status": "ok"}'), "not MLflow's answer", False),
    "redirect in a circle": ((302, "", "text/html", [("Location", "/login")]), "redirect", False),
    "500": ((500, "Internal Server Error", "text/plain"), "answers 500", True),
    "502": ((502, LOGIN_PAGE, "text/html"), "answers 502 Bad Gateway", True),
    "503 for an hour": ((503, "", "text/plain", [("Retry-After", "3600")]), "answers 503", True),
    "429": ((429, "", "text/plain"), "answers 429", True),
}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """An MLflow database with empty tables, created once because that takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_store.client(f"sqlite:///{path}")
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch, empty_store):
    """A project with an empty store, an empty spool, and a bundle."""
    monkeypatch.chdir(tmp_path)
    # An absolute path, because MLflow keeps one engine for each address, whatever the working directory.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    mlflow_store.SPOOL.mkdir(parents=True)
    shutil.copyfile(empty_store, mlflow_store.SPOOL / "mlflow.db")
    (tmp_path / "params.yaml").write_text(brightness.params())
    model = brightness.onnx_model(tmp_path / "model.onnx", 130, labels=2)
    (tmp_path / "models/classifier").mkdir(parents=True)
    bundle.write(
        tmp_path / "models/classifier/bundle",
        brightness.described(),
        model=model,
        drift=_json(tmp_path / "drift.json", brightness.reference(brightness.described().spec)),
        card="# classifier\n",
        pictures=[],
    )
    return tmp_path


def _json(path, content):
    path.write_text(json.dumps(content))
    return path


def begin():
    return tracking.Training("classifier", parameters={"epochs": 2}, dataset="digits", data_sha256="d" * 64)


def spooled():
    store = mlflow_store.open_spool()
    return [run for experiment in store.search_experiments() for run in store.search_runs([experiment.experiment_id])]


def refused():
    """Return the message of a training that does not begin."""
    with pytest.raises(mlflow_store.StoreError) as caught:
        begin()
    assert not caught.value.away
    return str(caught.value)


def verbs(capfd):
    """Yield the message of every verb that needs the registry; each must fail, and without a traceback."""
    for words in (["register", "classifier"], ["promote", "classifier"], ["promote", "--dry-run", "classifier"]):
        capfd.readouterr()
        assert main(["release", *words]) == 1
        yield error_line(capfd)


def error_line(capfd):
    """Return the only message on standard error; one line before it may report what the verb is about to do."""
    *before, message = capfd.readouterr().err.splitlines()
    assert message.startswith("loopline: "), message
    assert len(before) <= 1, before
    return message


@pytest.mark.parametrize("case", ANSWERS)
def test_an_unusable_answer_of_a_server_gives_one_message_or_the_spool(folder, monkeypatch, capfd, case):
    answer, part, away = ANSWERS[case]
    with odd_servers.answering(*answer) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        if away:
            run = begin()
            run.log(1, {"val_loss": 0.5})
            run.finish("w" * 64)
            message = capfd.readouterr().err
            assert "loopline track sync" in message
            [spooled_run] = spooled()
            assert spooled_run.data.metrics["val_loss"] == 0.5
        else:
            message = refused()
            assert spooled() == []
        assert part in message
        assert len(message) < 600
        for line in verbs(capfd):
            assert part in line
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("scheme", "reason"), [("refused", "Connection refused"), ("name", "not known"), ("silence", "timed out")]
)
def test_an_unreachable_server_gives_a_training_the_spool_and_the_registry_a_message(
    folder, monkeypatch, capfd, scheme, reason
):
    with odd_servers.silent() as silence:
        addresses = {
            "refused": f"http://127.0.0.1:{odd_servers.free_port()}",
            "name": "http://no-such-host.invalid:5000",
            "silence": silence,
        }
        monkeypatch.setenv("MLFLOW_TRACKING_URI", addresses[scheme])
        run = begin()
        run.log(1, {"val_loss": 0.5})
        run.finish("w" * 64)
        message = capfd.readouterr().err
        assert reason in message
        assert message.count("\n") == 1
        assert len(spooled()) == 1
        for line in verbs(capfd):
            assert reason in line


def test_no_server_is_waited_for_longer_than_a_minute():
    seconds, retries, factor = (
        int(mlflow_store.ENVIRONMENT[f"MLFLOW_HTTP_REQUEST_{name}"])
        for name in ("TIMEOUT", "MAX_RETRIES", "BACKOFF_FACTOR")
    )
    pauses = sum(factor * 2**number + 1 for number in range(retries))  # with one second of jitter
    assert seconds * (1 + retries) + pauses < 60
    assert mlflow_store.ENVIRONMENT["MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER"] == "false"


def test_a_self_signed_certificate_gives_a_message(folder, monkeypatch, capfd):
    certificate = odd_servers.self_signed(folder / "server.pem")
    with odd_servers.answering(200, "{}", certificate=certificate) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refused()
        for line in verbs(capfd):
            assert "certificate verify failed" in line
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("127.0.0.1", "localhost"))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refused()  # signed for another name
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow_store.client()
    with odd_servers.answering(200, "{}") as uri:
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("http:", "https:"))
        assert "begins with http://" in refused()


@pytest.mark.parametrize("uri", ["file:./mlruns", "./mlruns", "mlruns", "file:///tmp/mlruns"])
def test_a_folder_of_runs_gives_a_message_that_names_sqlite(folder, monkeypatch, capfd, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "MLFLOW_TRACKING_URI=sqlite:///mlflow.db" in refused()
    for line in verbs(capfd):
        assert "sqlite:///mlflow.db" in line


NO_ADDRESSES = ["http://h:notaport", "http://127.0.0.1:99999", "http://127.0.0.1:0", "http://", "http://my host:5000"]
NO_ADDRESSES += ["http://[::1", "http://a..b:5000", "http://*:5000", "http://me:ge#heim@h", "http://me:ge/heim@h:5000"]
NO_ADDRESSES += ["127.0.0.1:5000", "localhost:5000", "databricks", '"http://127.0.0.1:5000"']


@pytest.mark.parametrize("uri", NO_ADDRESSES)
def test_an_impossible_address_gives_a_message_with_a_possible_one(folder, monkeypatch, uri):
    """The spool is not used, because its runs would never be sent."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    message = refused()
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000" in message
    assert not {"'ge'", "heim"} & set(re.findall(r"[\w']+", message)), "no message may hold a password"
    assert spooled() == []


def test_white_space_around_an_address_is_ignored(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f" sqlite:///{folder}/mlflow.db\n")
    assert mlflow_store.client().tracking_uri == f"sqlite:///{folder}/mlflow.db"


@pytest.mark.parametrize("broken", ["folder", "database"])
def test_a_spool_that_fails_as_well_gives_a_message_before_the_training(folder, monkeypatch, capfd, broken):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{odd_servers.free_port()}")
    if broken == "folder":
        shutil.rmtree(".loopline")
        Path(".loopline").write_text("")
    else:
        (mlflow_store.SPOOL / "mlflow.db").write_text("no database")
    message = refused()
    assert "Connection refused. .loopline/spool cannot keep the run: " in message
    assert {"folder": "Not a directory", "database": "file is not a database"}[broken] in message
    assert "the run is kept in" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("sqlite:///file:mlflow.db?mode=ro&uri=true", "make it writable"),
        ("sqlite:///params.yaml", "file is not a database"),
        ("postgresql://nobody@127.0.0.1:1/mlflow", "driver"),
        ("gopher://127.0.0.1", "gopher"),
    ],
)
def test_an_unusable_database_gives_a_message(folder, monkeypatch, capfd, uri, part):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert part in refused()
    capfd.readouterr()
    assert main(["release", "register", "classifier"]) == 1
    assert part in error_line(capfd)


def test_an_older_database_gives_a_message_with_the_command_that_mends_it(folder, monkeypatch, capfd, empty_store):
    shutil.copyfile(empty_store, folder / "old.db")
    with sqlite3.connect(folder / "old.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")  # MLflow 1.0's
    database.close()
    uri = f"sqlite:///{folder}/old.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for message in [refused(), next(verbs(capfd))]:
        assert "out-of-date database schema" in message
        assert f"`mlflow db upgrade {uri}`" in message


def test_a_deleted_experiment_gives_a_message_with_the_command_that_mends_it(folder, capfd):
    begin().finish("w" * 64)
    store = mlflow_store.client()
    store.delete_experiment(mlflow_store.experiment(store, "classifier"))
    message = refused()
    for line in [message, next(verbs(capfd))]:
        assert "mlflow experiments restore --experiment-id 1" in line
    with pytest.raises(mlflow_store.StoreError, match="experiments restore"):
        package("w" * 64)
    shell(message)
    begin().finish("x" * 64)


def shell(message):
    """Run the command that a message names, as the user would."""
    line = message.split("`")[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def package(weights):
    tracking.package(
        "classifier",
        weights_sha256=weights,
        bundle=Path("models/classifier/bundle"),
        bundle_version="b" * 64,
        metrics={"accuracy": 0.9},
        pictures=[],
        reports=[],
    )


def test_no_message_holds_a_password(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:geheim@127.0.0.1:1/mlflow")
    assert "geheim" not in refused()
