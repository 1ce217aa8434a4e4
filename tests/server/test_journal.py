"""The server's journal: the kept samples, and the labels that come back."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import brightness
import jsonschema
import numpy as np
import prometheus
import pytest
import requests
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from servers import samples

from loopline.drift import reference
from loopline.errors import LooplineError
from loopline.journal import segments
from loopline.server import journal_writer
from loopline.server.metrics import Metrics
from loopline.server.model import Model

COMMAND = (sys.executable, "-m", "loopline.cli")


def lines(folder, kind="entry"):
    """All lines of a kind in open and closed segments."""
    parsed = [
        json.loads(line)
        for room in ("closed", "open")
        for path in sorted((folder / room).glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
    return [line for line in parsed if line["kind"] == kind]


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "journal"


def test_a_sample_is_kept_with_its_id_input_answer_and_signals(serve, folders, kept):
    server = serve(folders["classifier"], "--journal", kept, "--journal-sample", 1)
    png = brightness.png(130)
    answer = requests.post(
        server.url + "/predict/classifier", data=png, headers={"X-Request-Id": "one"}, timeout=60
    ).json()
    (line,) = prometheus.eventually(lambda: lines(kept))
    assert line["id"] == answer["id"] == "one"
    assert (line["model"], line["version"], line["status"]) == ("classifier", answer["version"], 200)
    assert base64.b64decode(line["image"]) == png
    assert line["prediction"] == answer["predictions"][0]
    assert line["signals"]["brightness"] == 130
    written = {k: v for k, v in samples(server).items() if k[0] == "loopline_journal_rows_total"}
    assert sum(written.values()) == 1


def test_answers_just_before_a_stop_are_kept(serve, folders, kept):
    server = serve(folders["classifier"], "--journal", kept, "--journal-sample", 1, "--grace", 0)
    for number in range(5):
        url, headers = server.url + "/predict/classifier", {"X-Request-Id": str(number)}
        requests.post(url, data=brightness.png(130 + number), headers=headers, timeout=60).raise_for_status()
    server.stop()
    assert sorted(line["id"] for line in lines(kept)) == list("01234")


def test_each_of_several_items_has_its_place_in_the_id_even_if_not_all_are_taken(serve, folders, kept):
    server = serve(folders["text"], "--journal", kept, "--journal-sample", 1, "--signals", 6)
    body = {"texts": ["good", "bad", "great", "poor"]}
    requests.post(server.url + "/predict/text", json=body, headers={"X-Request-Id": "many"}, timeout=60)
    entries = prometheus.eventually(lambda: len(lines(kept)) == 3 and lines(kept))
    assert {line["id"]: line["text"] for line in entries} == {"many#0": "good", "many#1": "bad", "many#2": "great"}


def test_only_a_share_of_ordinary_samples_is_kept_and_never_a_probe(serve, folders, kept):
    server = serve(folders["classifier"], "--journal", kept, "--journal-sample", 0)
    ask = server.url + "/predict/classifier"
    requests.post(ask, data=brightness.png(130), headers={"X-Request-Id": "plain"}, timeout=60)
    requests.post(ask, data=brightness.png(0), headers={"X-Request-Id": "probe", "X-Loopline-Probe": "1"}, timeout=60)
    requests.post(ask, data=b"\x89PNG\r\n\x1a\nbroken", headers={"X-Request-Id": "broken"}, timeout=60)
    (line,) = prometheus.eventually(lambda: lines(kept))
    assert (line["id"], line["reason"], line["status"]) == ("broken", "error", 400)
    assert "image" in line["prediction"]["error"]


def test_uncertain_and_drifted_samples_are_kept_whatever_the_share():
    counts = (0, 50, 50, 0, 0)
    sure = reference.Signal(edges=(0.2, 0.5, 1.0), counts=counts, mean=0, sd=1)
    moved = reference.Signal(edges=(0.0, 5.0, 10.0), counts=counts, mean=0, sd=1)
    quality = reference.Quality(metric="accuracy", value=1, max_loss=0.1, signal="top_probability", weights={})
    doubts = journal_writer.Doubts(
        reference.Reference(
            samples=100,
            least=1,
            threshold=(1, 0, 0),
            promise={},
            signals={"top_probability": sure, "brightness": moved},
            quality=quality,
            labels=reference.ReferenceLabels(names=()),
        )
    )
    reasons = doubts.reasons(
        {"top_probability": np.array([0.1, 0.9, 0.9, np.nan]), "brightness": np.array([5, 5, 20.0, 5])}, 4
    )
    assert reasons == ["uncertain", "", "drifted", "uncertain"]


def test_labels_are_on_disk_when_they_are_acknowledged(serve, folders, kept):
    server = serve(folders["classifier"], "--journal", kept)
    url = server.url + "/v2/models/classifier/feedback"
    answer = requests.post(url, json={"id": "one", "label": "bright", "source": "anna"}, timeout=60)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    answer = requests.post(url, json={"id": "two", "label": "bright", "source": None}, timeout=60)
    assert answer.status_code == 202, "null counts as a missing field"
    server.process.send_signal(signal.SIGKILL)
    line, other = lines(kept, "label")
    assert other["source"] == "feedback"
    assert (line["id"], line["label"], line["source"], line["model"]) == ("one", "bright", "anna", "classifier")


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ({"id": "one", "label": "purple"}, "'purple' is not a class of classifier"),
        ({"id": "one"}, "the label is missing"),
        ({"id": "one", "label": 7}, 'the label is 7, not a text: send a class\'s name in quotes, as "bright"'),
        ({"id": "one", "label": True}, "the label is true, not a text"),
        ({"id": "one", "label": ["bright"]}, 'the label is ["bright"], not a text'),
        ({"label": "bright"}, "id must be a text"),
        ({"id": "one", "label": "bright", "source": 3}, "source must be a text"),
        ({"id": "x" * 200, "label": "bright"}, "id must be a text"),
        ({"id": " one", "label": "bright"}, "no answer has the id ' one'"),
        ({"id": "n\u00e4chste", "label": "bright"}, "ids are ASCII without spaces"),
        ([], "the feedback has no labels"),
        ([{"id": "a", "label": "bright"}] * 1001, "1001 labels, at most 1000"),
        ([{"id": "a", "label": "bright"}, "b"], "feedback 1: send"),
        ("nothing", "feedback 0: send"),
    ],
)
def test_invalid_feedback_is_refused_with_the_reason(serve, folders, kept, feedback, message):
    server = serve(folders["classifier"], "--journal", kept)
    answer = requests.post(server.url + "/v2/models/classifier/feedback", json=feedback, timeout=60)
    assert answer.status_code in (400, 413)
    assert message in answer.json()["error"]
    assert lines(kept, "label") == []


def test_a_detectors_labels_are_boxes(serve, folders, kept):
    server = serve(folders["detector"], "--journal", kept)
    url = server.url + "/v2/models/detector/feedback"
    box = {"label": "spot", "x1": 1, "y1": 2, "x2": 3, "y2": 4}
    assert requests.post(url, json={"id": "a", "label": [box]}, timeout=60).status_code == 202
    assert requests.post(url, json={"id": "b", "label": []}, timeout=60).status_code == 202
    for bad in (
        "spot",
        [3],
        [box | {"x1": "1"}],
        [box | {"x1": True, "x2": 3}],
        [box | {"x1": 3}],
        [box | {"y1": None}],
        [box | {"label": "moon"}],
        [box | {"label": 7}],
    ):
        assert requests.post(url, json={"id": "a", "label": bad}, timeout=60).status_code == 400, bad
    assert [line["label"] for line in lines(kept, "label")] == [[box], []]


def test_the_route_for_labels_is_in_the_openapi_document_with_an_example_that_works(serve, folders, kept):
    server = serve(*folders.values(), "--journal", kept)
    document = requests.get(server.url + "/openapi.json", timeout=60).json()
    validate(document, cls=OpenAPIV31SpecValidator)
    routes = [path for path in document["paths"] if path.endswith("/feedback")]
    assert len(routes) == 2 * len(folders), "of each model, and of its version"
    for path in routes:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        answer = requests.post(server.url + path, json=content["example"], timeout=60)
        assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
        assert jsonschema.Draft202012Validator(content["schema"]).is_valid(content["example"])
    assert len(lines(kept, "label")) == len(routes)


def test_without_a_journal_there_is_no_route_for_labels(serve, folders):
    server = serve(folders["classifier"])
    assert requests.post(server.url + "/v2/models/classifier/feedback", json={}, timeout=60).status_code == 404


def test_a_journal_that_cannot_be_written_stops_the_start(folders, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [*COMMAND, "serve", folders["classifier"], "--port", "0", "--journal", tmp_path / "file"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "the journal cannot be written" in done.stderr
    done = subprocess.run(
        [*COMMAND, "serve", folders["classifier"], "--port", "0", "--journal", tmp_path, "--signals", "0"],
        capture_output=True,
        text=True,
    )
    assert "--signals 0 counts none" in done.stderr


@pytest.fixture
def own(folders, kept):
    """own(options) -> a journal in this process, and its model."""
    journals = []

    def make(**options):
        model = Model(folders["classifier"])
        journals.append(
            journal_writer.Journal(journal_writer.JournalOptions(folder=kept, **options), [model], Metrics())
        )
        return journals[-1], model

    yield make
    for journal in journals:
        journal.close()


def keep(journal, model, name="a", content=b"png"):
    journal.keep(model, {}, [name], [content], [{"label": "bright"}])


def test_a_segment_is_closed_when_it_is_old_and_the_next_one_begins(own, kept):
    journal, model = own(sample=1, seconds=0.05)
    keep(journal, model, "a")
    prometheus.eventually(lambda: len(list((kept / "closed").iterdir())) == 1)
    keep(journal, model, "b")
    prometheus.eventually(lambda: len(list((kept / "closed").iterdir())) == 2)
    assert [line["id"] for line in lines(kept)] == ["a", "b"]
    assert list((kept / "open").iterdir()) == []


def test_segments_that_are_not_fetched_do_not_fill_the_disk(own, kept):
    journal, model = own(sample=1, seconds=0.05, most=3000)
    for number in range(6):
        keep(journal, model, str(number), bytes(700))
        prometheus.eventually(lambda n=number: journal.written["classifier", "sampled"].value == n + 1)
        prometheus.eventually(lambda: not list((kept / "open").iterdir()))
    assert journal.dropped.value >= 2
    assert lines(kept)[-1]["id"] == "5"
    assert sum(path.stat().st_size for path in (kept / "closed").iterdir()) <= 3000


def test_a_failing_disk_loses_lines_with_a_log_line_and_is_used_again_later(own, kept, monkeypatch, capfd):
    journal, model = own(sample=1, seconds=60)
    keep(journal, model, "before")
    prometheus.eventually(lambda: len(lines(kept)) == 1)
    real = journal.segment.file

    class Full:
        def write(self, view):
            real.write(view[:10])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(real, name)

    journal.segment.file = Full()
    outcomes = []
    journal.label(model, "lost", "bright", "anna", outcomes.append)
    prometheus.eventually(lambda: outcomes)
    assert outcomes == [False]
    assert journal.lost.value == 1
    assert "No space left" in capfd.readouterr().err
    journal.segment.file = real
    journal.label(model, "after", "bright", "anna", outcomes.append)
    prometheus.eventually(lambda: len(outcomes) == 2)
    assert outcomes[1]
    assert [line["id"] for line in lines(kept) + lines(kept, "label")] == ["before", "after"]


@pytest.mark.parametrize("bound", ["WAITING", "WAITING_BYTES"])
def test_when_too_many_lines_wait_samples_are_lost_and_no_request_waits(own, kept, monkeypatch, bound):
    journal, model = own(sample=1)
    monkeypatch.setattr(journal_writer, bound, 0)
    keep(journal, model)
    assert journal.lost.value == 1
    outcomes = []
    journal.label(model, "a", "bright", "anna", outcomes.append)
    assert outcomes == ([False] if bound == "WAITING" else [])  # a label has no input, so no bytes
    monkeypatch.undo()
    prometheus.eventually(lambda: journal.waiting == 0)
    keep(journal, model, "later")
    prometheus.eventually(lambda: [line["id"] for line in lines(kept)] == ["later"])


def test_neither_drift_of_all_traffic_nor_errors_fill_the_journal(own, kept, monkeypatch):
    journal, model = own(sample=0)
    monkeypatch.setattr(journal.limits["classifier"], "reasons", lambda _, rows: ["drifted"] * rows)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    journal.keep(model, {}, [str(n) for n in range(50)], [b"png"] * 50, [{}] * 50)
    journal.refused(model, "broken", [b"png"] * 64, 400, "no image")
    journal.refused(model, "again", [b"png"], 400, "no image")
    monkeypatch.undo()
    prometheus.eventually(lambda: len(lines(kept)) == journal_writer.DOUBTFUL_A_SECOND + journal_writer.ERRORS_A_SECOND)


def test_a_refused_input_that_is_large_is_kept_without_its_bytes(own, kept):
    journal, model = own(sample=0)
    journal.refused(model, "large", [bytes(journal_writer.ERROR_BYTES + 1)], 413, "too large")
    (line,) = prometheus.eventually(lambda: lines(kept))
    assert line["image"] == ""


def test_masks_take_linear_time_for_a_long_word():
    for word in ("a" * 100_000, "1" * 100_000, "a@" * 50_000, "a." * 50_000):
        assert len(journal_writer.redacted(word, "text")) <= len(word)


def test_the_collector_never_takes_a_segment_of_a_running_writer(tmp_path):
    """If the collector saw a segment before it is locked, later lines would be lost."""
    for room in ("open", "closed"):
        (tmp_path / room).mkdir()
    stop, lost = threading.Event(), []

    def collector():
        while not stop.is_set():
            for path in segments.closed(tmp_path):
                path.unlink(missing_ok=True)

    taking = threading.Thread(target=collector)
    taking.start()
    for _ in range(300):
        segment = journal_writer.Segment(tmp_path)
        segment.write(b"{}\n")
        lost += [] if segment.path.exists() else [segment.name]
        with suppress(FileNotFoundError):
            segment.close()
    stop.set()
    taking.join()
    assert lost == []


def test_inputs_are_masked_or_left_out_as_asked(own, kept):
    assert journal_writer.redacted("call +49 30 901820 or write to a.b@example.org, 12 times", "text") == (
        "call +▇ or write to ▇, 12 times"
    )
    assert journal_writer.redacted("1234567", "nothing") == "1234567"
    assert journal_writer.redacted(b"png", "inputs") is None
    assert journal_writer.redacted("text", "inputs") is None
    journal, model = own(sample=1, redact="inputs")
    keep(journal, model)
    (line,) = prometheus.eventually(lambda: lines(kept))
    assert line["image"] is None


def test_a_journals_folder_must_be_writable(folders, tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "open").write_text("a file in the way")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(LooplineError, match="cannot be written"):
        journal_writer.Journal(
            journal_writer.JournalOptions(folder=tmp_path), [Model(folders["classifier"])], Metrics()
        )


def test_a_label_in_decomposed_characters_matches_the_bundles_class():
    from types import SimpleNamespace

    from loopline import tasks
    from loopline.server import feedback

    spec = SimpleNamespace(labels=("caf\u00e9",))
    model = SimpleNamespace(name="places", task=tasks.find("classification"), spec=spec)
    body = json.dumps({"id": "one", "label": "cafe\u0301"}).encode()
    assert feedback.read(body, model) == [("one", "caf\u00e9", "feedback")]
