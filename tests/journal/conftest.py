"""Fixtures: a live server and an object store."""

import bundles
import pytest
from servers import Process


@pytest.fixture
def serve_one(tmp_path):
    """serve_one(options) -> a server process with the brightness classifier."""
    started = []

    def start(*options):
        bundles.classifier(tmp_path / "classifier")
        started.append(Process(tmp_path / "classifier", "--port", 0, *options))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0


@pytest.fixture
def s3(monkeypatch):
    """The name of a bucket in an S3 store."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "bucket"
    server.stop()
