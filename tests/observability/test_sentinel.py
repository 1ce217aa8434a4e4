"""Golden inputs through the real route of a real server."""

import threading
import urllib.request

import brightness
import bundles
import prometheus
import pytest
from servers import Process, samples, total

from loopline.drift import golden
from loopline.errors import LooplineError
from loopline.observability import sentinel


@pytest.fixture
def served(tmp_path):
    """served(bundle, ...) -> the address of a server."""
    started = []

    def start(*arguments, **options):
        started.append(Process(*arguments, "--port", 0, **options))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0


def watching(folder, url, token=None):
    return sentinel.Sentinel(url, sentinel.load([folder]), token)


def test_the_released_bundle_answers_as_it_did_and_its_probes_are_no_traffic(tmp_path, served):
    made = bundles.classifier(tmp_path / "classifier")
    server = served(made.folder)
    watched = watching(made.folder, server.url)
    assert watched.round() == {"classifier": ["same", "same"]}
    with urllib.request.urlopen(
        urllib.request.Request(server.url + "/predict/classifier", brightness.png(20), {"Content-Type": "image/png"})
    ) as answer:
        assert answer.status == 200
    prometheus.eventually(lambda: total(samples(server), "signal_rows_total", signal="brightness") == 1)
    assert total(samples(server), "inference_rows_total") == 3


def test_another_answer_is_told_from_the_same(tmp_path, served):
    made = bundles.classifier(tmp_path / "classifier")
    server = served(made.folder)
    (watched,) = sentinel.load([made.folder])
    wrong = golden.GoldenSample(
        brightness.png(20), {"label": "bright", "probability": 1.0, "probabilities": {"bright": 1.0, "dark": 0.0}}
    )
    assert sentinel.check(server.url, watched, wrong) == ("different", 1.0)
    slightly = golden.GoldenSample(
        brightness.png(20), {"label": "dark", "probability": 0.97, "probabilities": {"dark": 0.97, "bright": 0.03}}
    )
    result, difference = sentinel.check(server.url, watched, slightly)
    assert result == "same"
    assert 0.02 < difference < 0.04


def test_another_version_is_no_difference_but_is_told(tmp_path, served):
    server = served(bundles.classifier(tmp_path / "old", threshold=100).folder)
    assert watching(bundles.classifier(tmp_path / "new").folder, server.url).round() == {
        "classifier": ["other_version"] * 2
    }


def test_a_server_that_is_away_or_wants_a_token_is_a_failure(tmp_path, served):
    made = bundles.classifier(tmp_path / "classifier")
    server = served(made.folder, env={"LOOPLINE_TOKEN": "open"})
    assert watching(made.folder, server.url).round() == {"classifier": ["failed"] * 2}
    assert watching(made.folder, server.url, "open").round() == {"classifier": ["same"] * 2}
    away = f"http://127.0.0.1:{prometheus.free_port()}"
    assert watching(made.folder, away).round() == {"classifier": ["failed"] * 2}


def test_its_metrics_are_exported_while_it_runs_and_it_ends_when_told(tmp_path, served):
    made = bundles.classifier(tmp_path / "classifier")
    watched, port, stop = watching(made.folder, served(made.folder).url), prometheus.free_port(), threading.Event()
    thread = threading.Thread(target=watched.run, args=(0.2, port, stop))
    thread.start()

    def text():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return answer.read().decode()

    line = f'loopline_sentinel_checks_total{{model="classifier",result="same",version="{made.version[:12]}"}} '
    try:
        prometheus.eventually(lambda: float(text().split(line)[1].split()[0]) >= 4)
        assert all(f"# HELP {name} {help_}" in text() for name, (help_, _) in sentinel.METRICS.items())
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_bundle_without_golden_inputs_is_refused(tmp_path):
    folder = bundles.detector(tmp_path / "detector").folder
    (folder / "golden.json").unlink()
    sums = [line for line in (folder / "SHA256SUMS").read_text().splitlines() if "golden.json" not in line]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    with pytest.raises(LooplineError, match=r"no golden\.json"):
        sentinel.load([folder])
    with pytest.raises(LooplineError, match="no address"):
        sentinel.Sentinel("ftp://x", [])
