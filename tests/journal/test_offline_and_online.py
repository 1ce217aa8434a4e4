"""A model's accuracy before its release is its accuracy in service."""

from contextlib import closing

import brightness
import bundles
import journals
import prometheus
import requests
from servers import Process

from loopline.journal.collector import Collector
from loopline.release import bundle, promotion_evidence

SHOWN = range(5, 256, 10)  # every tenth of the 256 brightnesses in the test split


def offline(folder, manifest):
    """Accuracy on the test split, as the promotion gate measures it."""
    measured, _ = promotion_evidence.gather(bundle.read(folder), None, manifest)
    return measured.scorer()["accuracy"]


def online(folder, journal):
    """Accuracy of a live server, from the labels that came back by the feedback route."""
    server = Process(
        folder, "--port", 0, "--signals", 10_000, "--journal", journal, "--journal-sample", 1, "--journal-seconds", 0.1
    )
    try:
        for value in SHOWN:
            answer = requests.post(server.url + "/predict/classifier", data=journals.png(value), timeout=60).json()
            truth = {"id": answer["id"], "label": "bright" if value > 127 else "dark", "source": "anna"}
            sent = requests.post(server.url + "/v2/models/classifier/feedback", json=truth, timeout=60)
            assert sent.status_code == 202
        with closing(Collector(journal)) as collector:
            return prometheus.eventually(lambda: labelled_accuracy(collector))
    finally:
        server.stop()


def labelled_accuracy(collector):
    """The accuracy from the exported totals; False until all labels are joined."""
    collector.round()
    rows, right = (collector.series[f"loopline_labelled_{name}_total"] for name in ("rows", "quality"))
    return sum(rows.values()) == len(SHOWN) and sum(right.values()) / len(SHOWN)


def test_test_split_and_labelled_traffic_give_the_same_accuracy_for_good_and_bad_models(tmp_path):
    brightness.write_manifest(tmp_path / "manifest.parquet")
    before, after = [], []
    for threshold in (127.5, 170, 220):  # right, wrong on a sixth of all inputs, wrong on a third
        folder = tmp_path / f"{threshold:.0f}"
        bundles.classifier(folder, threshold)
        before.append(offline(folder, tmp_path / "manifest.parquet"))
        after.append(online(folder, tmp_path / f"journal-{threshold:.0f}"))
    assert before[0] == 1 > before[1] > before[2] > 0.6
    assert all(abs(a - b) < 0.05 for a, b in zip(before, after, strict=True)), (before, after)
