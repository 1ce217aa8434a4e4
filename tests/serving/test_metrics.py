"""The metrics say what happened, and the log too where it is asked to."""

import brightness
import requests
from prometheus_client.parser import text_string_to_metric_families

from loopline.serving.metrics import CATALOGUE, PREFIX


def samples(server):
    """Name and labels -> value."""
    text = requests.get(server.url + "/metrics", timeout=5).text
    return {
        (s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }


def total(found, name, **labels):
    return sum(
        value for key, value in found.items() if key[0] == PREFIX + name and labels.items() <= dict(key[1:]).items()
    )


def test_what_is_exported_is_what_the_catalogue_says(server):
    text = requests.get(server.url + "/metrics", timeout=5).text
    families = {f.name: f for f in text_string_to_metric_families(text) if f.name.startswith(PREFIX)}
    assert families.keys() == {PREFIX + name for name in CATALOGUE}
    for name, metric in CATALOGUE.items():
        family = families[PREFIX + name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels)


def test_answers_and_refusals_are_counted_by_their_status(serve, folders):
    server = serve(folders["classifier"], "--log-requests")
    url = server.url + "/predict/classifier"
    for data in (brightness.png(200), brightness.png(20), b"no image", b""):
        requests.post(url, data=data, headers={"X-Request-Id": "mine"}, timeout=5)
    requests.get(server.url + "/nothing", timeout=5)
    requests.post(server.url + "/v2/models/classifier/infer", data=b"{", timeout=5)
    requests.post(url, data=brightness.png(9), headers={"X-Request-Timeout-Ms": "x"}, timeout=5)
    found = samples(server)
    counted = {
        (route, code): total(found, "requests_total", route=route, code=code)
        for route, code in (
            ("predict", "200"),
            ("predict", "415"),
            ("predict", "400"),
            ("infer", "400"),
            ("other", "404"),
        )
    }
    assert counted == {
        ("predict", "200"): 2,
        ("predict", "415"): 1,
        ("predict", "400"): 2,
        ("infer", "400"): 1,
        ("other", "404"): 1,
    }
    assert total(found, "inference_rows_total") == 2
    assert total(found, "in_flight") == 0
    assert total(found, "model_info", precision="fp32") == 1
    assert total(found, "ready") == 1
    assert server.stop() == 0
    lines = [line for line in server.log if line["message"] == "request"]
    assert [(line["id"], line["status"], line["rows"]) for line in lines] == [
        ("mine", 200, 1),
        ("mine", 200, 1),
        ("mine", 415, 1),
    ]


def test_a_batch_is_one_execution_of_many_rows(serve, folders):
    server = serve(folders["text"])
    requests.post(server.url + "/predict/text", json={"texts": ["good"] * 7}, timeout=5)
    found = samples(server)
    assert total(found, "inference_rows_total") == 7
    assert total(found, "executions_total") == 1
    assert total(found, "batch_rows_sum") == 7
    assert total(found, "compute_seconds_count") == total(found, "queue_seconds_count") == 1


def test_a_model_that_fails_is_a_500_that_is_counted_and_logged(serve, folders):
    server = serve(folders["text"])
    body = {"inputs": [{"name": "ids", "shape": [1, 1], "datatype": "INT64", "data": [9999]}]}
    answer = requests.post(server.url + "/v2/models/text/infer", json=body, timeout=5)
    assert answer.status_code == 500
    assert "failed on this input" in answer.json()["error"]
    found = samples(server)
    assert total(found, "execution_failures_total") == 1
    assert total(found, "requests_total", code="500") == 1
    assert requests.post(server.url + "/predict/text", json={"text": "good"}, timeout=5).status_code == 200
    server.stop()
    assert any(line["message"] == "inference failed" for line in server.log)
