"""Which samples of the journal a drift report shows, and how."""

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


def entries(found=MOVED, count=200, **more):
    common = {"time": 0.0, "model": "m", "version": "v", "status": 200, "reason": "sampled", "source": None}
    common |= {"input": b"\x89PNG", "prediction": {"label": "<b>"}, "label": None} | more
    rows = [{name: float(values[row]) for name, values in found.items()} for row in range(count)]
    return [Entry(id=str(row), signals=signals, **common) for row, signals in enumerate(rows)]


def movers(reference, found=MOVED):
    return statistic.movers(test_drift.counted(found, reference), reference)


def test_examples_are_where_the_share_grew_and_each_stands_once():
    reference = test_drift.made()
    found = outliers.chosen(entries(), movers(reference), reference)
    assert list(found) == [mover.signal for mover in movers(reference)][: len(found)]
    assert {"brightness", "contrast"} <= set(found)
    last = reference.signals["brightness"].edges[-2]
    assert all(entry.signals["brightness"] > last for entry in found["brightness"])
    shown = [entry.id for some in found.values() for entry in some]
    assert len(shown) == len(set(shown)) >= 8


def test_without_drift_or_inputs_there_is_nothing_to_show():
    reference = test_drift.made()
    clean = test_drift.population(600, 1)[0]
    assert outliers.chosen(entries(clean), movers(reference, clean), reference) == {}
    assert outliers.shown(outliers.chosen(entries(input=None), movers(reference), reference)) == []
    assert outliers.shown(outliers.chosen([], movers(reference), reference)) == []


def test_images_are_in_the_page_and_what_clients_sent_is_no_markup(tmp_path):
    reference = test_drift.made()
    counts = test_drift.counted(MOVED, reference)
    one = test_drift_report.made(tmp_path / "bundle", reference)

    def page(**sent):
        shown = outliers.shown(outliers.chosen(entries(**sent), movers(reference), reference))
        return drift_report.html(one, reference, counts, "here", entries(**sent)), shown

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
    kept = ("--journal", tmp_path / "journal", "--journal-sample", 1, "--journal-seconds", 0.1)
    server = Process(tmp_path / "classifier", "--port", 0, *kept)
    collector = Collector(tmp_path / "journal")

    def there():
        """Some more, until there are enough for a verdict: only so many a second are looked at."""
        for _ in range(20):
            requests.post(server.url + "/predict/classifier", data=brightness.png(254), timeout=60)
        collector.round()
        return collector.series["loopline_journal_entries"].get(("classifier",), 0) >= 80

    prometheus.eventually(there)
    command = [sys.executable, "-m", "loopline.cli", "drift", "report", str(tmp_path / "classifier")]
    command += ["--url", server.url, "--journal", str(tmp_path / "journal"), "--out", str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    collector.close()
    assert server.stop() == 0
    assert done.returncode == 0, done.stderr
    assert "data:image/png;base64," in (tmp_path / "page.html").read_text()
