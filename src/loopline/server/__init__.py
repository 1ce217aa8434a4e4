"""Serve bundles: HTTP in front, a queue without a timer in the middle, ONNX Runtime at the back."""
