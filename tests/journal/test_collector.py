"""The collector: it turns servers' segments into parts, joins labels, keeps totals that only rise, and applies bounds."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import journals
import numpy as np
import prometheus
import pyarrow.parquet as pq
import pytest
from journals import entry, label, write

from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.journal import collector as collectors
from loopline.journal import index
from loopline.journal.collector import METRICS, Bounds, Collector
from loopline.journal.reader import JournalReader
from loopline.server import journal_writer as server
from loopline.server.metrics import Metrics

AT_ONCE = Bounds(part_rows=1, part_seconds=0)


@pytest.fixture
def keep(tmp_path):
    """keep(bounds) -> a collector for the test's folder."""
    opened = []

    def make(bounds=None, folder=tmp_path, **options):
        opened.append(Collector(folder, bounds=bounds, **options))
        return opened[-1]

    yield make
    for collector in opened:
        collector.close()


def totals(collector):
    rows, quality = (collector.series[f"loopline_labelled_{name}_total"] for name in ("rows", "quality"))
    return {key: (rows[key], quality[key]) for key in rows}


def test_a_sample_reads_the_same_before_and_after_it_is_in_a_part(keep, tmp_path):
    png = journals.png(7)
    write(tmp_path, entry("a", image=png, label="dark"), journals.text("t", "ein Wort"))
    collector = keep()
    assert collector.round() == 2
    (before,) = JournalReader(tmp_path).latest("classifier", 5)
    assert (before.id, before.input, before.prediction["label"], before.signals) == (
        "a",
        png,
        "dark",
        {"brightness": 130},
    )
    assert list((tmp_path / "parts").iterdir()) == []
    collector.bounds = AT_ONCE
    collector.round()
    assert JournalReader(tmp_path).latest("classifier", 5) == [before]
    assert JournalReader(tmp_path).latest("text", 5)[0].input == "ein Wort"
    table = pq.read_table(next((tmp_path / "parts").glob("classifier-*.parquet")))
    assert table.column("image").to_pylist() == [png]
    assert str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"


def test_the_latest_samples_come_first_by_version_and_without_refused_ones(keep, tmp_path):
    now = time.time()
    lines = [entry(str(number), time=now + number, version=f"v{number % 2}") for number in range(6)]
    write(
        tmp_path,
        *lines[:3],
        entry("broken", time=now + 9, status=400, reason="error", fair=False, prediction={"error": "x"}),
    )
    collector = keep(AT_ONCE)
    collector.round()
    write(tmp_path, *lines[3:])
    collector.bounds = Bounds()
    collector.round()
    store = JournalReader(tmp_path)
    assert [e.id for e in store.latest("classifier", 4)] == ["5", "4", "3", "2"]
    assert [e.id for e in store.latest("classifier", 9, version="v1")] == ["5", "3", "1"]
    assert [e.id for e in store.latest("classifier", 9, errors=True)] == ["broken"]
    assert store.latest("nobody", 9) == []


def test_labels_are_joined_if_they_come_before_with_or_after_their_sample(keep, tmp_path):
    write(tmp_path, label("early", "bright"))
    collector = keep(AT_ONCE)
    collector.round()
    assert collector.waiting == 1
    write(tmp_path, entry("early"), entry("with", label="dark"), label("with", "bright"), entry("late", version="v2"))
    collector.round()
    assert totals(collector) == {("classifier", "v1"): (2, 1.0)}
    write(tmp_path, label("late", "bright"))
    collector.round()
    assert totals(collector) == {("classifier", "v1"): (2, 1.0), ("classifier", "v2"): (1, 1.0)}
    assert collector.waiting == 0
    entries = JournalReader(tmp_path).labelled("classifier")
    assert {e.id: e.label for e in entries} == {"early": "bright", "with": "bright", "late": "bright"}
    assert JournalReader(tmp_path).label_counts("classifier") == {"bright": 3}
    assert JournalReader(tmp_path).labelled("classifier", since=time.time() + 1) == []


def test_a_corrected_label_replaces_the_first_and_the_totals_count_a_sample_once(keep, tmp_path):
    write(tmp_path, entry("a"), label("a", "dark"))
    collector = keep()
    collector.round()
    write(tmp_path, label("a", "bright"))
    collector.round()
    assert totals(collector) == {("classifier", "v1"): (1, 0.0)}
    assert JournalReader(tmp_path).labelled("classifier")[0].label == "bright"
    assert JournalReader(tmp_path).conflicts("classifier") == {}
    assert JournalReader(tmp_path).label_counts("classifier") == {"bright": 1}
    write(tmp_path, label("a", "dark", source="ben"), entry("b"), label("b", "dark"), label("b", "dark", source="ben"))
    collector.round()
    assert JournalReader(tmp_path).conflicts("classifier") == {"a": {"anna": "bright", "ben": "dark"}}
    assert JournalReader(tmp_path).label_counts("classifier") == {"dark": 1}, "a disputed sample counts for no class"


def test_sources_that_send_the_same_boxes_in_another_order_agree(keep, tmp_path):
    boxes = [journals.box(), journals.box(x1=50.0, x2=60.0)]
    write(tmp_path, entry("a", prediction={"boxes": []}), label("a", boxes), label("a", boxes[::-1], source="ben"))
    keep().round()
    assert JournalReader(tmp_path).conflicts("classifier") == {}
    assert JournalReader(tmp_path).label_counts("classifier") == {"spot": 2}


def test_only_a_fair_sample_counts_for_the_labelled_quality(keep, tmp_path):
    """Samples kept or labelled because they were doubtful would make the model look worse than it is."""
    write(tmp_path, entry("fair"), entry("doubtful", fair=False, reason="uncertain"), entry("chosen"))
    write(tmp_path, label("fair", "bright"), label("doubtful", "dark"), label("chosen", "dark", chosen=True))
    collector = keep()
    collector.round()
    assert totals(collector) == {("classifier", "v1"): (1, 1.0)}
    assert JournalReader(tmp_path).label_counts("classifier") == {"bright": 1, "dark": 2}


def test_partial_and_malformed_lines_are_skipped(keep, tmp_path):
    collector = keep()
    (tmp_path / "closed/1.jsonl").write_text(
        json.dumps(entry("a"))
        + '\n[]\n3\n{"kind": "entry"}\n{"kind": "label", "id": 3}\n{}\n'
        + json.dumps(entry("b"))[:50]
    )
    assert collector.round() == 1
    assert [e.id for e in JournalReader(tmp_path).latest("classifier", 9)] == ["a"]


def test_only_open_segments_of_dead_servers_are_taken(keep, tmp_path):
    collector = keep()
    living = server.Segment(tmp_path)
    living.write(json.dumps(entry("living")).encode() + b"\n")
    (tmp_path / "open/0.jsonl").write_text(json.dumps(entry("dead")) + "\n")
    collector.round()
    assert [e.id for e in JournalReader(tmp_path).latest("classifier", 9)] == ["dead"]
    living.close()
    collector.round()
    assert {e.id for e in JournalReader(tmp_path).latest("classifier", 9)} == {"dead", "living"}


def test_parts_over_the_bounds_are_deleted_with_their_samples(keep, tmp_path):
    collector = keep(AT_ONCE)
    for number in range(4):
        write(tmp_path, entry(str(number), image=random.randbytes(30_000)))
        collector.round()
    assert collector.series["loopline_journal_entries"] == {("classifier",): 4}
    collector.bounds = Bounds(part_rows=1, part_seconds=0, most=80_000)
    collector.round()
    assert [e.id for e in JournalReader(tmp_path).latest("classifier", 9)] == ["3", "2"]
    assert collector.series["loopline_journal_bytes"][()] <= 80_000
    assert len(list((tmp_path / "parts").iterdir())) == 2
    collector.bounds = Bounds(part_rows=1, part_seconds=0, days=0)
    collector.round()
    assert JournalReader(tmp_path).latest("classifier", 9) == []


def test_parts_with_labels_are_deleted_last(keep, tmp_path):
    collector = keep(AT_ONCE)
    for number in range(4):
        write(tmp_path, entry(str(number), image=random.randbytes(30_000)))
        collector.round()
    write(tmp_path, label("0", "bright"))
    collector.bounds = Bounds(part_rows=1, part_seconds=0, most=80_000)
    collector.round()
    assert {e.id for e in JournalReader(tmp_path).latest("classifier", 9)} == {"0", "3"}


def test_the_number_of_labels_without_a_sample_is_bounded(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MOST_WAITING", 3)
    collector = keep()
    write(tmp_path, *(label(str(n), "bright", when=time.time() + n) for n in range(5)))
    collector.round()
    assert collector.waiting == 3
    write(tmp_path, entry("0"), entry("4"))
    collector.round()
    assert {e.id for e in JournalReader(tmp_path).labelled("classifier")} == {"4"}


def test_a_missing_signal_is_nan_before_and_after_it_is_in_a_part(keep, tmp_path):
    write(tmp_path, entry("a", signals={"mean_score": None, "boxes": 0.0}))
    collector = keep()
    collector.round()
    assert np.isnan(JournalReader(tmp_path).latest("classifier", 1)[0].signals["mean_score"])
    collector.bounds = AT_ONCE
    collector.round()
    assert np.isnan(JournalReader(tmp_path).latest("classifier", 1)[0].signals["mean_score"])


def test_one_folder_has_one_collector(keep, tmp_path):
    keep()
    with pytest.raises(LooplineError, match="already has a collector"):
        Collector(tmp_path)


def test_parts_may_be_in_an_object_store(keep, tmp_path, s3):
    write(tmp_path, entry("a", image=b"\x89PNG"))
    collector = keep(AT_ONCE, parts=f"s3://{s3}/journal")
    collector.round()
    assert not (tmp_path / "parts").exists()
    (sample,) = JournalReader(tmp_path).latest("classifier", 5)  # the collector noted the URL in the index
    assert sample.input == b"\x89PNG"


def test_nothing_is_lost_while_the_store_is_unreachable(keep, tmp_path, monkeypatch, caplog):
    write(tmp_path, entry("a"))
    collector = keep(AT_ONCE)
    real = collector.parts.write

    def away(*_):
        raise OSError("the network is unreachable")

    collector.parts.write = away
    with pytest.raises(OSError, match="unreachable"):
        collector.round()
    assert [e.id for e in JournalReader(tmp_path).latest("classifier", 5)] == ["a"]
    collector.parts.write = real
    collector.round()
    assert len(list((tmp_path / "parts").iterdir())) == 1
    assert [e.id for e in JournalReader(tmp_path).latest("classifier", 5)] == ["a"]


def test_a_failed_round_does_not_end_the_collector(keep, tmp_path, caplog):
    write(tmp_path, entry("a"))
    collector = keep(AT_ONCE)
    collector.index.execute("ALTER TABLE part RENAME TO elsewhere")
    collector._try()
    assert "failed and will be repeated: OperationalError" in caplog.text
    assert not collector.index.in_transaction
    collector.index.execute("ALTER TABLE elsewhere RENAME TO part")
    collector._try()
    assert [e.id for e in JournalReader(tmp_path).latest("classifier", 5)] == ["a"]


def test_a_missing_part_is_named(keep, tmp_path):
    write(tmp_path, entry("a"))
    keep(AT_ONCE).round()
    next((tmp_path / "parts").iterdir()).unlink()
    with pytest.raises(LooplineError, match=r"part .*parquet cannot be read"):
        JournalReader(tmp_path).latest("classifier", 1)


def test_reading_a_part_or_a_manifest_does_not_start_pyarrows_scanner(keep, tmp_path):
    """A thread of the scanner that outlives the reading aborts the process at exit, about once in 40 times."""
    write(tmp_path, entry("a"), entry("b"))
    keep(AT_ONCE).round()
    manifest.write(tmp_path / "m.parquet", [], task="text", labels=("x",))
    script = (
        "import sys; from pathlib import Path; from loopline.data import manifest; from loopline.journal.reader import JournalReader\n"
        "assert JournalReader(Path()).answered('classifier', ['b', 'c']).keys() == {'b'}\n"
        "assert manifest.table(Path('m.parquet'), ['split', 'id']).column_names == ['split', 'id']\n"
        "assert 'pyarrow.parquet' in sys.modules and 'pyarrow._dataset' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_a_folder_without_a_journal_is_refused_with_the_command_to_start(tmp_path):
    with pytest.raises(LooplineError, match="start `loopline journal"):
        JournalReader(tmp_path)


def started(folder, *more):
    port = prometheus.free_port()
    command = [sys.executable, "-m", "loopline.cli", "journal", str(folder), "--port", str(port), *map(str, more)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True), f"127.0.0.1:{port}"


def test_kills_at_any_time_neither_lose_nor_duplicate_samples(tmp_path):
    ids, rng, process = set(), random.Random(0), None
    for number in range(12):
        lines = [entry(f"{number}-{k}", image=rng.randbytes(500)) for k in range(40)]
        write(tmp_path, *lines, *(label(line["id"], "bright") for line in lines))
        ids |= {line["id"] for line in lines}
        process, _ = started(tmp_path, "--every", 0.01, "--part-rows", 30, "--part-seconds", 0)
        prometheus.eventually(lambda: not list((tmp_path / "closed").glob("*.jsonl")) or rng.random() < 0.3)
        process.kill()
        process.communicate()
    collector = Collector(tmp_path, bounds=AT_ONCE)
    collector.round()
    labelled = JournalReader(tmp_path).labelled("classifier")
    assert {e.id for e in labelled} == ids
    assert totals(collector) == {("classifier", "v1"): (len(ids), float(len(ids)))}
    rows = [row for part in (tmp_path / "parts").glob("*.parquet") for row in pq.read_table(part)["id"].to_pylist()]
    assert sorted(rows) == sorted(ids)
    collector.close()


@prometheus.needed
def test_a_real_prometheus_reads_the_labelled_accuracy(tmp_path):
    write(tmp_path, entry("a"), entry("b"), label("a", "bright"), label("b", "dark"))
    process, address = started(tmp_path, "--every", 0.1)
    (tmp_path / "prometheus").mkdir()
    watching = prometheus.Prometheus(tmp_path / "prometheus", [address], "groups: []")
    quality = "loopline_labelled_quality_total / loopline_labelled_rows_total"
    series = prometheus.eventually(lambda: watching.query(quality))
    assert [(labels["model"], labels["version"], value) for labels, value in series] == [("classifier", "v1", 0.5)]
    names = {labels["__name__"] for labels, _ in watching.query('{__name__=~"loopline_.*"}')}
    assert names == set(METRICS)
    watching.close()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


def test_every_metric_is_documented():
    page = (collectors.Path(__file__).parents[2] / "docs/journal.md").read_text()
    for name, (kind, text, labels) in METRICS.items():
        assert f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text} |" in page


def test_a_live_server_s_sample_is_joined_to_its_feedback(tmp_path, serve_one):
    """A real request, its label by the feedback route, and both joined in the journal."""
    import requests

    live = serve_one("--journal", tmp_path / "journal", "--journal-sample", 1, "--journal-seconds", 0.1)
    headers = {"X-Request-Id": "one"}
    answer = requests.post(live.url + "/predict/classifier", data=journals.png(250), headers=headers, timeout=60).json()
    truth = {"id": answer["id"], "label": "dark", "source": "anna"}
    assert requests.post(live.url + "/v2/models/classifier/feedback", json=truth, timeout=60).status_code == 202
    collector = Collector(tmp_path / "journal")

    def joined():
        collector.round()
        return JournalReader(tmp_path / "journal").labelled("classifier")

    (sample,) = prometheus.eventually(joined)
    assert (sample.id, sample.label, sample.source, sample.input) == ("one", "dark", "anna", journals.png(250))
    assert totals(collector) == {("classifier", answer["version"]): (1, 0.0)}
    collector.close()
    assert os.listdir(tmp_path / "journal/closed") == []  # noqa: PTH208


@pytest.mark.parametrize("writer", ["collector", "server"])
def test_no_other_user_of_the_machine_can_read_the_journal(tmp_path, keep, writer):
    folder = tmp_path / "new/journal"
    old = os.umask(0)
    try:
        if writer == "collector":
            keep(folder=folder)
        else:
            server.Journal(server.JournalOptions(folder=folder), [], Metrics()).close()
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o077 for path in (folder, folder / "open", folder / "closed")} == {0}
