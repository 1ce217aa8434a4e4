"""A flood over two thousand connections, with a cheap model on one core: the model keeps its pace, whatever its best batch is.

Before reading and the models shared the core by time, a flooded server answered a twentieth of its peak.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from servers import Process, until

ROOT = Path(__file__).parents[2]
SENDER = ROOT / "benchmarks/serving/sender.py"
CONNECTIONS, SECONDS, PATIENCE_MS = 2048, 3.0, 200
LEAST = 0.4  # share of the peak; the benchmark's goal is .9, on an idle machine
# A server whose warm-up tries a single size, which is then the best one.
SERVE = "import sys; from loopline.server import warm_up; warm_up.SIZES = ({},); from loopline.cli import main; sys.exit(main())"
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sender uses epoll"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the sender needs a core of its own"),
]


def request(tmp_path):
    """A file with a binary request of one row."""
    pixels = np.full((1, 8, 8, 1), 200, np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape}
    head = orjson.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": pixels.nbytes}}],
            "parameters": {"binary_data_output": True},
        },
    )
    lines = ["POST /v2/models/classifier/infer HTTP/1.1", "Host: x", f"Content-Length: {len(head) + pixels.nbytes}"]
    lines += [f"Inference-Header-Content-Length: {len(head)}", f"X-Request-Timeout-Ms: {PATIENCE_MS}"]
    path = tmp_path / "request"
    path.write_bytes("\r\n".join([*lines, "", ""]).encode() + head + pixels.tobytes())
    return path


def send(core, port, path, phases, connections):
    """What became of the requests of each phase: (rate a second, seconds)."""
    order = {
        "port": port,
        "request": str(path),
        "phases": phases,
        "connections": connections,
        "patience": 0.01,
        "seed": None,
    }
    command = ["taskset", "--cpu-list", str(core), sys.executable, str(SENDER), json.dumps(order)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)


@pytest.mark.parametrize("best_rows", [1, 2, 16])
def test_a_flooded_server_answers_at_its_pace_and_in_time(folders, tmp_path, best_rows):
    first, *_, last = sorted(os.sched_getaffinity(0))
    pinned = ["taskset", "--cpu-list", str(first), sys.executable, "-c", SERVE.format(best_rows)]
    server = Process(folders["classifier"], command=[*pinned, "serve"])
    try:
        assert server.log[-2]["best_batch_rows"] == best_rows
        path, shares = request(tmp_path), []

        def kept():
            """Whether the server kept its pace. The machine may be busy with other tests, so there are several rounds."""
            (peak,) = send(last, server.port, path, [(1e5, 1.0)], 32)
            (flood,) = send(last, server.port, path, [(4e5, SECONDS)], CONNECTIONS)
            shares.append(flood["within"]["250"] / peak["answered"])
            return shares[-1] >= LEAST

        until(kept, 60)
        print(f"best batch {best_rows}: {shares[-1]:.2f} of the peak in time")  # noqa: T201 - the share is worth seeing
    finally:
        assert server.stop() == 0
