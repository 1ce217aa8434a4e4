"""What a request costs a server, piece by piece: microseconds a request, for requests of one row in the model's best batch.

Each piece is timed alone, many times over, in rounds that take all pieces in turn; the median of the rounds counts. Pieces of
Python depend on the processor as the engine does, so the last column gives each as a share of `run`.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from loopline.lib.machine import cpu_features, cpu_name
from loopline.server import messages, oip
from loopline.server.app import App
from loopline.server.exchange import TensorExchange
from loopline.server.heads import HeadCache
from loopline.server.http import Server
from loopline.server.jobs import Job
from loopline.server.messages import Request
from loopline.server.model import Model, Tensors

ROUNDS, REQUESTS, SOCKETS = 15, 256, 64
Piece = Callable[[], float]  # runs a piece some times, and returns seconds a request


class Quiet:
    """A transport that sends nothing."""

    def write(self, data: bytes) -> None:
        """Drop it."""

    def is_closing(self) -> bool:
        """It never does."""
        return False


def request(model: Model) -> bytes:
    """A binary request of one row, as a client sends it."""
    arrays = model.example(1)
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": model.inputs[name].datatype,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = head + b"".join(array.tobytes() for array in arrays.values())
    lines = [
        f"POST /v2/models/{model.name}/infer HTTP/1.1",
        "Host: 127.0.0.1:8080",
        f"Content-Length: {len(body)}",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
        "Accept: */*",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def pieces(model: Model, app: App) -> dict[str, Piece]:
    """Every piece of a request's way, in order."""
    data, rows = request(model), model.best_rows
    connection = Server(app).protocol()
    connection.transport = Quiet()
    taken: list[Request] = []
    app.answer = lambda asked, _: taken.append(asked)  # type: ignore[method-assign, assignment]
    connection.feed(data)
    asked, inference = taken[0], app.inference
    reader, batcher = oip.RequestReader(model.inputs, model.outputs), inference.batcher
    call = reader(asked.body, asked.headers)
    reader(asked.body, asked.headers)
    payloads = [Tensors(reader(asked.body, asked.headers).tensors) for _ in range(rows)]  # type: ignore[arg-type]
    batch = model._join([payload.arrays for payload in payloads])
    exchange = TensorExchange(inference, model, asked, lambda _: None, call)
    results = model.run(payloads)[0]
    answer = messages.encode(exchange.answer(results), None, None)
    pairs = [socket.socketpair() for _ in range(SOCKETS)]
    jobs = [Job(model, payload, 1, len(data), 1e18, lambda _: None) for payload in payloads]

    def parse(*, known: bool) -> None:
        if not known:
            connection.server.heads = HeadCache()  # type: ignore[misc]
        connection.begun = 0
        connection.slots.clear()
        taken.clear()
        connection.feed(data)

    def queue() -> None:
        batcher.due = True  # nothing is scheduled: this piece takes what it queues
        for job in jobs:
            batcher.submit(job)
        batcher._take(batcher.lines[model.name])

    def sockets(send: bytes, *, timed_send: bool) -> float:
        start = time.perf_counter()
        for here, _ in pairs:
            here.send(send)
        middle = time.perf_counter()
        for _, there in pairs:
            there.recv(1 << 17)
        return (middle - start if timed_send else time.perf_counter() - middle) / SOCKETS

    def many(call: Callable[[], Any], of: int = 1) -> Piece:
        times = max(1, REQUESTS // of)

        def timed() -> float:
            start = time.perf_counter()
            for _ in range(times):
                call()
            return (time.perf_counter() - start) / times / of

        return timed

    return {
        "receive": lambda: sockets(data, timed_send=False),
        "parse, head seen before": many(lambda: parse(known=True)),
        "parse, new head": many(lambda: parse(known=False)),
        "route": many(lambda: app.admit(asked.method, asked.path, asked.headers, time.monotonic())),
        "read the tensor header": many(lambda: reader(asked.body, asked.headers)),
        "begin": many(lambda: TensorExchange(inference, model, asked, lambda _: None, call)),
        "queue": many(queue, rows),
        "join": many(lambda: model._join([payload.arrays for payload in payloads]), rows),
        "run": many(lambda: model.session.run(model.output_names, batch), rows),
        "join, run, split": many(lambda: model.run(payloads), rows),
        "count": many(lambda: inference._observe(model, jobs), rows),
        "answer": many(lambda: exchange.answer(results)),
        "encode": many(lambda: messages.encode(exchange.answer(results), None, None)),
        "write": lambda: sockets(answer, timed_send=True),
    }


async def measured(folder: Path) -> dict[str, float]:
    """Microseconds a request of each piece, for one bundle."""
    model = Model(folder)
    model.warm_up()
    app = App([model], slots=1)
    every = pieces(model, app)
    times: dict[str, list[float]] = {name: [] for name in every}
    gc.freeze()
    for _ in range(ROUNDS):
        for name, piece in every.items():
            times[name].append(piece() * 1e6)
    app.inference.close()
    found = {name: median(values) for name, values in times.items()}
    found["split"] = found.pop("join, run, split") - found["join"] - found["run"]
    found["encode"] -= found.pop("answer")
    found["answer"] = median(times["answer"])
    return found


def main() -> int:
    """Print the table."""
    folders = [Path(name) for name in sys.argv[1:]] or sorted(Path("models").glob("*/bundle"))
    print(f"{cpu_name()} ({', '.join(cpu_features())}); microseconds a request, and the share of `run`")
    columns = {folder.parent.name: asyncio.run(measured(folder)) for folder in folders}
    for name in next(iter(columns.values())):
        print(
            f"{name:26}"
            + "".join(f"{column[name]:12.1f}{column[name] / column['run']:7.0%}" for column in columns.values())
        )
    print(f"{'':26}" + "".join(f"{name:>19}" for name in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
