"""The server's metrics, request log and spans."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brightness
import bundles
import requests
from prometheus_client.parser import text_string_to_metric_families
from servers import samples, total

from loopline.server import app
from loopline.server.metrics import CATALOGUE, PREFIX


def test_the_exported_metrics_are_those_of_the_catalogue(server):
    text = requests.get(server.url + "/metrics", timeout=60).text
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
        requests.post(url, data=data, headers={"X-Request-Id": "mine"}, timeout=60)
    requests.get(server.url + "/nothing", timeout=60)
    requests.post(server.url + "/v2/models/classifier/infer", data=b"{", timeout=60)
    requests.post(url, data=brightness.png(9), headers={"X-Request-Timeout-Ms": "x"}, timeout=60)
    values = samples(server)
    counted = {
        (route, code): total(values, "requests_total", route=route, code=code)
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
    assert total(values, "inference_rows_total") == 2
    assert total(values, "in_flight") == 0
    assert total(values, "model_info", precision="fp32") == 1
    assert total(values, "ready") == 1
    assert total(values, "connections") >= 1
    assert server.stop() == 0
    lines = [line for line in server.log if line["message"] == "request"]
    assert [(line["id"], line["status"], line["rows"]) for line in lines] == [
        ("mine", 200, 1),
        ("mine", 200, 1),
        ("mine", 415, 1),
    ]


def test_a_batch_is_one_execution_of_many_rows(serve, folders):
    server = serve(folders["text"])
    requests.post(server.url + "/predict/text", json={"texts": ["good"] * 7}, timeout=60)
    values = samples(server)
    assert total(values, "inference_rows_total") == 7
    assert total(values, "executions_total") == 1
    assert total(values, "batch_rows_sum") == 7
    assert total(values, "compute_seconds_count") == total(values, "queue_seconds_count") == 1


def test_a_model_that_fails_is_a_500_that_is_counted_and_logged(serve, tmp_path):
    server = serve(bundles.text(tmp_path / "text", rows=5).folder)
    body = {"inputs": [{"name": "ids", "shape": [1, 1], "datatype": "INT64", "data": [5]}]}
    answer = requests.post(server.url + "/v2/models/text/infer", json=body, timeout=60)
    assert answer.status_code == 500
    assert "failed on this input" in answer.json()["error"]
    values = samples(server)
    assert total(values, "execution_failures_total") == 1
    assert total(values, "requests_total", code="500") == 1
    assert requests.post(server.url + "/predict/text", json={"text": "good"}, timeout=60).status_code == 200
    server.stop()
    assert any(line["message"] == "inference failed" for line in server.log)


def test_a_request_becomes_a_span_of_the_caller_s_trace(serve, folders):
    """The test's own collector uses the real protocol."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            received.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{collector.server_port}"
        server = serve(folders["classifier"], env={"OTEL_EXPORTER_OTLP_ENDPOINT": address})
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Id": "mine"}
        url = server.url + "/predict/classifier"
        requests.post(url, data=brightness.png(200), headers=headers, timeout=60)
        requests.post(url, data=b"no image", headers=headers, timeout=60)
        assert server.stop() == 0
        collector.shutdown()
    spans = [span for batch in received for r in batch.resource_spans for s in r.scope_spans for span in s.spans]
    assert [span.name for span in spans] == ["predict classifier"] * 2
    assert {span.trace_id.hex() for span in spans} == {trace}
    assert {span.parent_span_id.hex() for span in spans} == {"00f067aa0ba902b7"}
    attributes = [{a.key: a.value.string_value or a.value.int_value for a in span.attributes} for span in spans]
    assert [a["http.response.status_code"] for a in attributes] == [200, 415]
    assert attributes[0]["request.id"] == "mine"
    assert 0 < spans[0].end_time_unix_nano - spans[0].start_time_unix_nano < 5e9


def test_an_internal_error_is_a_500_without_details(capfd):
    route = app.Route(lambda *_: None, name="predict")
    refusal = app._about(route, ZeroDivisionError("secret"))
    assert refusal.status == 500
    assert "secret" not in refusal.message
    assert refusal.about == (None, "predict")
    assert "secret" in capfd.readouterr().err


def test_a_bundle_damaged_on_disk_is_logged_and_the_loaded_one_is_served(serve, tmp_path):
    bundles.classifier(tmp_path / "bundle")
    server = serve(tmp_path / "bundle")
    assert total(samples(server), "bundle_intact") == 1
    (tmp_path / "bundle/model.onnx").write_bytes(b"damaged")
    assert total(samples(server), "bundle_intact") == 0
    assert total(samples(server), "bundle_intact") == 0
    answer = requests.post(server.url + "/predict/classifier", data=brightness.png(250), timeout=60)
    assert answer.json()["predictions"][0]["label"] == "bright"
    assert server.stop() == 0
    assert [line["message"] for line in server.log if line["level"] == "error"] == [
        "the bundle on disk has changed; the server keeps serving the loaded one"
    ]
