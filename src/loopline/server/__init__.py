"""Serve bundles: an HTTP server, a queue that batches requests, and ONNX Runtime."""
