"""Loopline: from data to a monitored service and back again.

Importing it switches telemetry off in every library that has it, sets OpenMP's threads and keeps proxies away from this machine's own
servers, before any of them is imported.
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
    # Nor these: another number of threads gives weights with other last bits, so it follows neither the machine's cores nor its load.
    # One: steps of small networks are too short to share. A second thread that sleeps between them makes a training slower, one that
    # spins (OpenMP's default) gains a fifth on idle cores and loses several times that beside other work.
    "OMP_NUM_THREADS": "1",
    "MKL_DYNAMIC": "FALSE",  # or it lowers the number to that of the cores
    "OMP_WAIT_POLICY": "passive",
}.items():
    os.environ.setdefault(_name, _value)

# What listens on this machine is never asked by way of a proxy. `[::1]` is how urllib compares it.
if any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in os.environ):
    _hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    _value = ",".join(dict.fromkeys([*filter(None, _hosts), "127.0.0.1", "localhost", "::1", "[::1]"]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = _value
