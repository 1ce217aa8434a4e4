"""The examples of a drift report: which samples of the journal it shows, and how."""

import re
import subprocess
import sys

import test_drift
import test_drift_report

from loopline.drift import statistic
from loopline.journal.collector import Collector
from loopline.journal.reader import Entry
from loopline.observability import drift_report, outliers

MOVED = test_drift.population(600, 2, brightness=2)[0]


def entries(population=MOVED, count=200, **more):
    common = {"time": 0.0, "model": "m", "version": "v", "status": 200, "reason": "sampled", "source": None}
    common |= {"input": b"\x89PNG", "prediction": {"label": "<b>"}, "label": None} | more
    rows = [{name: float(values[row]) for name, values in population.items()} for row in range(count)]
    return [Entry(id=str(row), signals=signals, **common) for row, signals in enumerate(rows)]


def movers(reference, signals=MOVED):
    return statistic.movers(test_drift.counted(signals, reference), reference)


def test_examples_come_from_the_bins_that_grew_and_none_occurs_twice():
    reference = test_drift.made()
    examples = outliers.chosen(entries(), movers(reference), reference)
    assert list(examples) == [mover.signal for mover in movers(reference)][: len(examples)]
    assert {"brightness", "contrast"} <= set(examples)
    last = reference.signals["brightness"].edges[-2]
    assert all(entry.signals["brightness"] > last for entry in examples["brightness"])
    shown = [entry.id for entries_of_signal in examples.values() for entry in entries_of_signal]
    assert len(shown) == len(set(shown)) >= 8


def test_without_drift_or_inputs_there_is_nothing_to_show():
    reference = test_drift.made()
    clean = test_drift.population(600, 1)[0]
    assert outliers.chosen(entries(clean), movers(reference, clean), reference) == {}
    assert outliers.shown(outliers.chosen(entries(input=None), movers(reference), reference)) == []
    assert outliers.shown(outliers.chosen([], movers(reference), reference)) == []


def test_images_are_embedded_and_client_texts_are_escaped(tmp_path):
    reference = test_drift.made()
    counts = test_drift.counted(MOVED, reference)
    released = test_drift_report.made(tmp_path / "bundle", reference)

    def page(**sent):
        shown = outliers.shown(outliers.chosen(entries(**sent), movers(reference), reference))
        return drift_report.html(released, reference, counts, "here", entries(**sent)), shown

    html, shown = page(label="<i>")
    assert shown[0]["image"].startswith("data:image/png;base64,iVBORw") and shown[0]["image"] in html
    assert "&lt;b&gt;, in truth &lt;i&gt;" in html
    text, shown = page(input="<script>" + "x" * 999)
    assert "&lt;script&gt;" in text and shown[0]["text"].endswith("…")
    assert not re.search(r"<script|https?://", html + text)
    assert "2 boxes" in page(prediction={"boxes": [1, 2]})[0]


def test_a_report_takes_its_examples_from_a_journal(tmp_path):
    import brightness
    import bundles
    import prometheus
    import requests
    from servers import Process

    bundles.classifier(tmp_path / "classifier")
    options = ("--journal", tmp_path / "journal", "--journal-sample", 1, "--journal-seconds", 0.1)
    server = Process(tmp_path / "classifier", "--port", 0, *options)
    collector = Collector(tmp_path / "journal")

    def enough():
        """Send 20 samples and tell whether there are enough for a verdict. A server counts only some samples a second."""
        for _ in range(20):
            requests.post(server.url + "/predict/classifier", data=brightness.png(254), timeout=60)
        collector.round()
        return collector.series["loopline_journal_entries"].get(("classifier",), 0) >= 80

    prometheus.eventually(enough)
    command = [sys.executable, "-m", "loopline.cli", "drift", "report", str(tmp_path / "classifier")]
    command += ["--url", server.url, "--journal", str(tmp_path / "journal"), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    collector.close()
    assert server.stop() == 0
    assert done.returncode == 0, done.stderr
    assert "data:image/png;base64," in (tmp_path / "page.html").read_text()
