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
    """A function that starts a server of a bundle: served(bundle, ...) -> Process."""
    started = []

    def start(*arguments, **options):
        started.append(Process(*arguments, "--port", 0, **options))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0


def watching(folder, url, token=None):
    return sentinel.Sentinel(url, sentinel.load([folder]), token)


def test_a_released_bundle_answers_the_same_and_probes_do_not_count_as_traffic(tmp_path, served):
    released = bundles.classifier(tmp_path / "classifier")
    server = served(released.folder)
    watched = watching(released.folder, server.url)
    assert watched.round() == {"classifier": ["same", "same"]}
    with urllib.request.urlopen(
        urllib.request.Request(server.url + "/predict/classifier", brightness.png(20), {"Content-Type": "image/png"})
    ) as answer:
        assert answer.status == 200
    prometheus.eventually(lambda: total(samples(server), "signal_rows_total", signal="brightness") == 1)
    assert total(samples(server), "inference_rows_total") == 3


def test_another_answer_is_told_from_the_same(tmp_path, served):
    released = bundles.classifier(tmp_path / "classifier")
    server = served(released.folder)
    (watched,) = sentinel.load([released.folder])
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


def test_another_version_is_reported_and_does_not_count_as_a_difference(tmp_path, served):
    server = served(bundles.classifier(tmp_path / "old", threshold=100).folder)
    assert watching(bundles.classifier(tmp_path / "new").folder, server.url).round() == {
        "classifier": ["other_version"] * 2
    }


def test_an_unreachable_server_or_a_missing_token_is_a_failure(tmp_path, served):
    released = bundles.classifier(tmp_path / "classifier")
    server = served(released.folder, env={"LOOPLINE_TOKEN": "open"})
    assert watching(released.folder, server.url).round() == {"classifier": ["failed"] * 2}
    assert watching(released.folder, server.url, "open").round() == {"classifier": ["same"] * 2}
    away = f"http://127.0.0.1:{prometheus.free_port()}"
    assert watching(released.folder, away).round() == {"classifier": ["failed"] * 2}


def test_the_sentinel_exports_metrics_until_it_is_stopped(tmp_path, served):
    released = bundles.classifier(tmp_path / "classifier")
    watched, port, stop = (
        watching(released.folder, served(released.folder).url),
        prometheus.free_port(),
        threading.Event(),
    )
    thread = threading.Thread(target=watched.run, args=(0.2, port, stop))
    thread.start()

    def text():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return answer.read().decode()

    line = f'loopline_sentinel_checks_total{{model="classifier",result="same",version="{released.version[:12]}"}} '
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
