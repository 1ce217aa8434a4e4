"""Loopline: from data to a monitored service and back again.

Importing it switches telemetry off in every library that has it, before any of them is imported.
"""

import os

__version__ = "0.1.0"

for _name, _value in {
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "YOLO_OFFLINE": "1",
    "YOLO_AUTOINSTALL": "False",
    # Not telemetry: what CUDA's matrix products need to give the same sums each time.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}.items():
    os.environ.setdefault(_name, _value)
