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
        raise LooplineError(f"there is no bundle at {missing[0]}: `make repro` makes models/*/bundle")
    journal = None
    if options.journal:
        if not options.signals:
            raise LooplineError(
                "--journal keeps only samples whose drift signals are counted, but --signals 0 counts none: raise it"
            )
        journal = journal_writer.JournalOptions(
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
            journal=journal,
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


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    serve = verb(
        verbs, "serve", _serve, "serve bundles over HTTP: the Open Inference Protocol v2, and POST /predict/MODEL"
    )
    serve.add_argument("bundle", nargs="+", type=Path, help="bundles, e.g. models/text/bundle, or folders of bundles")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=int, default=8080, help="port to listen on; 0 takes any free one")
    serve.add_argument(
        "--share-port",
        action="store_true",
        help="let other servers with this option listen on --port too; each gets a part of the connections",
    )
    serve.add_argument(
        "--metrics-port",
        type=int,
        help="second port to answer on, which reaches this process even if several share --port (default: none)",
    )
    slots = "number of batches that run at once (default: number of cores that this process may use)"
    serve.add_argument("--slots", type=int, help=slots)
    serve.add_argument(
        "--timeout-ms",
        type=int,
        default=1000,
        help="milliseconds to answer a request that sends no X-Request-Timeout-Ms",
    )
    serve.add_argument(
        "--cache-mb", type=int, default=0, help="size in MiB of a cache of answers by content; 0: no cache"
    )
    serve.add_argument(
        "--signals",
        type=int,
        default=50,
        help="number of samples a second and model whose drift signals are counted; 0: none",
    )
    serve.add_argument(
        "--journal", type=Path, metavar="FOLDER", help="folder for samples and labels: docs/journal.md (default: none)"
    )
    serve.add_argument(
        "--journal-sample", type=float, default=0.1, help="share of ordinary samples that the journal keeps, 0 to 1"
    )
    serve.add_argument(
        "--journal-redact",
        choices=("nothing", "text", "inputs"),
        default="nothing",
        help="parts to redact; text: mail addresses and long numbers in texts; inputs: all inputs",
    )
    serve.add_argument(
        "--journal-seconds", type=float, default=5.0, help="seconds until `loopline journal` may fetch a sample"
    )
    serve.add_argument("--max-body-mb", type=int, default=16, help="largest body of a request in MiB")
    serve.add_argument(
        "--grace", type=float, default=1.0, help="seconds after SIGTERM in which the server answers but is not ready"
    )
    serve.add_argument("--drain", type=float, default=30.0, help="seconds after the grace to finish requests in flight")
    serve.add_argument(
        "--no-demo", dest="demo", action="store_false", help="serve neither the demo page nor the bundles' files"
    )
    serve.add_argument(
        "--verify-key",
        metavar="FILE",
        help="file with a public key, to load only bundles that its owner signed (default: LOOPLINE_VERIFY_KEY)",
    )
    serve.add_argument("--log-requests", action="store_true", help="log a line for each answer, with its request id")

    text = "predict all texts of a file, or all images of a folder or list, and write the answers to a file"
    batch = verb(verbs, "predict", _predict, text)
    batch.add_argument("bundle", type=Path, help="bundle folder, e.g. models/text/bundle")
    batch.add_argument("input", help="CSV, TSV, JSON or Parquet file, folder of images or list of images; path or URL")
    batch.add_argument("output", help="path or URL of the result, ending in .parquet, .csv or .jsonl")
    batch.add_argument("--column", help="column of the texts (default: text, else the first that ingest would take)")
    batch.add_argument("--slots", type=int, help=slots)
    batch.add_argument(
        "--batch-rows",
        type=int,
        help="number of samples that the model gets at once (default: the fastest number here)",
    )
    batch.add_argument(
        "--part-rows", type=int, help="number of samples between two saves (default: 8192 texts, 1024 images)"
    )
