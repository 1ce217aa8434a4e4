"""What is drift, and does it hurt? Numpy only: the calibration stage, the server and the reports share it."""
