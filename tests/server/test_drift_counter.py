"""The drift signals of served samples, counted in the bundle's bins."""

import io
import json
import queue
import time

import brightness
import numpy as np
import prometheus
import requests
from PIL import Image
from servers import samples, total

from loopline.server import drift_counter
from loopline.server.metrics import Metrics
from loopline.server.model import Model


def counts(server, signal, model="classifier"):
    """Bin -> number of samples."""
    values = samples(server)
    return {
        dict(key[1:])["bin"]: value
        for key, value in values.items()
        if key[0] == "loopline_signal_rows_total"
        and {"signal": signal, "model": model}.items() <= dict(key[1:]).items()
        and value
    }


def test_samples_of_both_routes_are_counted_in_their_bins(serve, folders):
    server = serve(folders["classifier"])
    array = np.full((2, 8, 8, 1), 130, np.uint8)
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": array.shape, "data": array.ravel().tolist()}]}
    assert requests.post(server.url + "/v2/models/classifier/infer", json=body, timeout=60).status_code == 200
    sent = 2
    for value in (10, 70, 70, 250):
        # One at a time: after an expensive round, the next one counts fewer rows.
        prometheus.eventually(lambda sent=sent: sum(counts(server, "brightness").values()) == sent)
        answer = requests.post(server.url + "/predict/classifier", data=brightness.png(value), timeout=60)
        assert answer.status_code == 200
        sent += 1
    prometheus.eventually(lambda: sum(counts(server, "brightness").values()) == 6)
    assert counts(server, "brightness") == {"01": 1, "02": 2, "03": 2, "04": 1}
    assert counts(server, "predicted_class") == {"00": 3, "01": 3}
    assert total(samples(server), "constant_rows_total") == 6


def test_samples_of_a_text_model_are_counted_too(serve, folders):
    server = serve(folders["text"])
    texts = ["good", "a bad film", "a very poor film indeed"]
    requests.post(server.url + "/predict/text", json={"texts": texts}, timeout=60)
    prometheus.eventually(lambda: sum(counts(server, "characters", "text").values()) == 3)
    assert counts(server, "characters", "text") == {"00": 1, "02": 2}


def test_an_image_without_boxes_is_counted_as_nan(serve, folders):
    server = serve(folders["detector"])
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "black").save(content, "PNG")
    requests.post(server.url + "/predict/detector", data=content.getvalue(), timeout=60)
    prometheus.eventually(lambda: counts(server, "mean_score", "detector") == {"nan": 1})


def test_the_reference_is_exported_for_the_rules(serve, folders):
    server = serve(folders["classifier"])
    values = samples(server)
    reference = json.loads((folders["classifier"] / "drift.json").read_text())
    for name, signal in reference["signals"].items():
        shares = [v for k, v in values.items() if k[0] == "loopline_reference_share" and dict(k[1:])["signal"] == name]
        np.testing.assert_allclose(sum(shares), 1)
        assert total(values, "signal_mean", signal=name) == signal["mean"]
    assert total(values, "drift_threshold", term="constant") == 4
    assert total(values, "quality_max_loss") == 0.05
    assert total(values, "signal_rows_total") == 0


def test_counting_stops_at_the_rate_and_is_off_if_the_rate_is_0(serve, folders):
    some, none = serve(folders["classifier"], "--signals", 4), serve(folders["classifier"], "--signals", 0)
    for server in (some, none):
        with requests.Session() as session:
            start = time.monotonic()
            for _ in range(200):
                session.post(server.url + "/predict/classifier", data=brightness.png(9), timeout=60)
            seconds = time.monotonic() - start
        if server is some:
            prometheus.eventually(lambda: counts(some, "brightness"))
            time.sleep(2 * drift_counter.PAUSE)
            assert sum(counts(some, "brightness").values()) <= 4 * (seconds + 1)
        else:
            assert counts(none, "brightness") == {}


def test_an_error_in_counting_is_logged_and_counting_goes_on(folders, capfd):
    model, metrics = Model(folders["classifier"]), Metrics()
    watcher = drift_counter.Watcher([model], metrics)
    watcher.inbox.put((model.watch, drift_counter.DecodedRows({}, {})))
    prometheus.eventually(lambda: "could not be counted" in capfd.readouterr().err)
    pixels = np.full((3, 8, 8, 1), 130, np.uint8)
    assert model.watch.open()
    outputs = {"probabilities": np.eye(2)[[0, 1, 1]], "embedding": np.zeros((3, 1))}
    model.watch.take(drift_counter.DecodedRows({"image": pixels}, outputs))
    counted = metrics.value("signal_rows", "classifier", model.version, "brightness", "03")
    prometheus.eventually(lambda: counted.value == 3)
    watcher.close()
    prometheus.eventually(lambda: not watcher.thread.is_alive())


def test_expensive_signals_are_counted_for_fewer_samples(folders):
    watch = drift_counter.Watch(Model(folders["classifier"]), 50, queue.SimpleQueue())
    assert watch.left == 25, "50 a second, and the shortest pause is half a second"
    watch.learn(25, 0.05)
    watch.begin(5.0)
    assert watch.left == 5, "a round of 10 ms holds five rows of 2 ms"
    for _ in range(30):
        watch.learn(watch.left, 1e-3)
        watch.begin(5.0)
    assert watch.left == 250, "50 a second, in five seconds"


def test_a_round_of_few_samples_leaves_room_for_more_in_the_next(folders):
    watch = drift_counter.Watch(Model(folders["classifier"]), 50, queue.SimpleQueue())
    for _ in range(10):
        watch.learn(1, 0.005)  # nearly all of it for the first row
        watch.begin(0.5)
    assert watch.left == 25


PAUSES = (2, 60, 0)  # seconds that a round's cost demands before the next


def test_an_expensive_round_delays_the_next(folders, monkeypatch):
    rounds = []

    class Expensive(drift_counter.Counts):
        def add(self, sampled):
            rounds.append(time.monotonic())
            end = time.thread_time() + PAUSES[len(rounds) - 1] * drift_counter.SHARE
            while time.thread_time() < end:
                pass

    monkeypatch.setattr(drift_counter, "Counts", Expensive)
    monkeypatch.setattr(drift_counter, "MOST_PAUSE", 60.0)
    model = Model(folders["classifier"])
    watcher = drift_counter.Watcher([model], Metrics())
    pixels = np.full((1, 8, 8, 1), 130, np.uint8)
    rows = drift_counter.DecodedRows({"image": pixels}, {"probabilities": np.eye(2)[:1], "embedding": np.zeros((1, 1))})
    for number in (1, 2):
        model.watch.take(rows)
        prometheus.eventually(lambda number=number: len(rounds) == number)
    assert rounds[1] - rounds[0] >= 2.0
    model.watch.take(rows)
    watcher.close()
    assert len(rounds) == 3, "the last rows are counted, and the end does not wait for the pause of a minute"


def test_no_more_samples_are_taken_than_a_round_allows(folders):
    watch = drift_counter.Watch(Model(folders["classifier"]), 50, queue.SimpleQueue())
    pixels = {"image": np.zeros((20, 8, 8, 1), np.uint8)}
    while watch.open():
        watch.take(drift_counter.DecodedRows(pixels, pixels))
    assert [watch.inbox.get()[1].rows for _ in range(2)] == [20, 5]
    assert watch.inbox.empty()
