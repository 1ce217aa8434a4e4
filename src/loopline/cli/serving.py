"""The server's verbs, and batch prediction."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from loopline.cli.verbs import Verbs, verb
from loopline.errors import LooplineError


def _serve(options: argparse.Namespace) -> int:
    from loopline.release import signature
    from loopline.server import journal_writer, run
    from loopline.server.inference import Limits

    if missing := [str(path) for path in options.bundle if not path.exists()]:
        raise LooplineError(f"{missing[0]} is not a bundle, there is nothing: `make repro` makes models/*/bundle")
    kept = None
    if options.journal:
        if not options.signals:
            raise LooplineError(
                "--journal takes its samples from those whose signals are counted: not with --signals 0"
            )
        kept = journal_writer.JournalOptions(
            folder=options.journal,
            sample=options.journal_sample,
            redact=options.journal_redact,
            seconds=options.journal_seconds,
        )

    limits = Limits(
        body_bytes=options.max_body_mb << 20,
        timeout_ms=options.timeout_ms,
        cache_bytes=options.cache_mb << 20,
        signals=options.signals,
    )
    return run.run(
        options.bundle,
        run.ServerOptions(
            host=options.host,
            port=options.port,
            share_port=options.share_port,
            metrics_port=options.metrics_port,
            slots=options.slots,
            grace=options.grace,
            drain=options.drain,
            limits=limits,
            demo=options.demo,
            log_requests=options.log_requests,
            journal=kept,
            verify_key=Path(key) if (key := options.verify_key or os.environ.get(signature.VERIFY_KEY)) else None,
        ),
    )


def _predict(options: argparse.Namespace) -> int:
    from loopline.batch import predict

    chosen = predict.BatchOptions(
        column=options.column, slots=options.slots, batch_rows=options.batch_rows, part_rows=options.part_rows
    )
    summary = predict.predict(options.bundle, options.input, options.output, chosen)
    print(f"{options.output}: {summary}")
    return summary.code


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    serve = verb(
        rooms, "serve", _serve, "serve bundles over HTTP: the Open Inference Protocol v2, and a route for people"
    )
    serve.add_argument("bundle", nargs="+", type=Path, help="a bundle, e.g. models/text/bundle, or a folder of them")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080, help="0: any free one")
    serve.add_argument(
        "--share-port",
        action="store_true",
        help="let other servers with this option listen on --port too: each gets a part of the connections",
    )
    serve.add_argument(
        "--metrics-port", type=int, help="answers as well; of this process alone where several share --port"
    )
    serve.add_argument("--slots", type=int, help="batches that run at once (default: the cores this process may use)")
    serve.add_argument("--timeout-ms", type=int, default=1000, help="of a request that sends no X-Request-Timeout-Ms")
    serve.add_argument(
        "--cache-mb", type=int, default=0, help="keep answers by the content of what was asked (default: off)"
    )
    serve.add_argument(
        "--signals", type=int, default=50, help="samples a second and model whose drift signals are counted (0: none)"
    )
    serve.add_argument("--journal", type=Path, metavar="FOLDER", help="keep samples and labels in it: docs/journal.md")
    serve.add_argument(
        "--journal-sample", type=float, default=0.1, help="share of ordinary samples that is kept (default: 0.1)"
    )
    serve.add_argument(
        "--journal-redact",
        choices=("nothing", "text", "inputs"),
        default="nothing",
        help="text: mask addresses and long numbers; inputs: keep none",
    )
    serve.add_argument("--journal-seconds", type=float, default=5.0, help="until `loopline journal` may fetch a sample")
    serve.add_argument("--max-body-mb", type=int, default=16, help="of a request")
    serve.add_argument(
        "--grace", type=float, default=1.0, help="seconds of answering after SIGTERM, not ready any more"
    )
    serve.add_argument("--drain", type=float, default=30.0, help="seconds to finish what is in flight")
    serve.add_argument(
        "--no-demo", dest="demo", action="store_false", help="without the demo page and the bundles' files"
    )

    serve.add_argument(
        "--verify-key",
        metavar="FILE",
        help="load bundles alone that the owner of this public key signed (LOOPLINE_VERIFY_KEY)",
    )
    serve.add_argument("--log-requests", action="store_true", help="a line for each answer, with its request id")

    batch = verb(
        rooms, "predict", _predict, "predict a whole file of texts, or a folder or list of images, into a file"
    )
    batch.add_argument("bundle", type=Path, help="a folder, e.g. models/text/bundle")
    batch.add_argument("input", help="CSV, TSV, JSON or Parquet; a folder of images or a list of them; any URL")
    batch.add_argument("output", help="a path or URL in .parquet, .csv or .jsonl")
    batch.add_argument("--column", help="column of the texts (default: text, else the first that ingest would take)")
    batch.add_argument("--slots", type=int, help="batches that run at once (default: the cores this process may use)")
    batch.add_argument("--batch-rows", type=int, help="items the model gets at once (default: the fastest number here)")
    batch.add_argument("--part-rows", type=int, help="items between two savings (default: 8192 texts, 1024 images)")
