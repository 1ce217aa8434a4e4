"""Beam: `beam deploy serving/serverless/beam_app.py:server`. The image's own entry point starts the server."""

from beam import Service

server = Service.from_registry(
    "registry.example.com/loopline:0.1.0",
    name="loopline",
    port=8080,
    cpu=2,
    memory=1024,
    min_replicas=0,
    max_replicas=10,
    keep_warm_seconds=300,
    authorized=True,  # callers need a token of Beam's
)
