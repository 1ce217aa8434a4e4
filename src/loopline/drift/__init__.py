"""Detect drift and estimate its harm. Numpy only, because the calibration stage, the server and the reports share it."""
