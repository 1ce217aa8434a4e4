"""The server's verbs, and batch prediction."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from loopline.cli.verbs import Verbs, chosen, verb
from loopline.errors import LooplineError


def _serve(options: argparse.Namespace) -> int:
    from loopline.release import signature
    from loopline.server import journal_writer, run
    from loopline.server.limits import Limits

    if missing := [str(path) for path in options.bundle if not path.exists()]:
        raise LooplineError(f"there is no bundle at {missing[0]}: `make repro` makes models/*/bundle")
    journal = None
    if options.journal:
        if not options.signals:
            raise LooplineError(
                "--journal keeps only samples whose drift signals are counted, but --signals 0 counts none: raise it"
            )
        journal = chosen(journal_writer.JournalOptions, options, folder=options.journal)
    sizes = {"body_bytes": options.max_body_mb << 20, "cache_bytes": options.cache_mb << 20}
    key = options.verify_key or os.environ.get(signature.VERIFY_KEY)
    server = chosen(
        run.ServerOptions,
        options,
        limits=chosen(Limits, options, **sizes),
        journal=journal,
        demo=options.demo,
        verify_key=Path(key) if key else None,
    )
    return run.run(options.bundle, server)


def _predict(options: argparse.Namespace) -> int:
    from loopline.batch import predict

    batch = chosen(predict.BatchOptions, options)
    summary = predict.predict(options.bundle, options.input, options.output, batch)
    print(f"{options.output}: {summary}")
    return summary.code


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    serve = verb(
        verbs, "serve", _serve, "serve bundles over HTTP: the Open Inference Protocol v2, and POST /predict/MODEL"
    )
    serve.add_argument("bundle", nargs="+", type=Path, help="bundles, e.g. models/text/bundle, or folders of bundles")
    serve.options_of("loopline.server.run:ServerOptions")
    serve.options_of("loopline.server.limits:Limits")
    serve.add_argument(
        "--cache-mb", type=int, default=0, help="size in MiB of a cache of answers by content; 0: no cache"
    )
    serve.add_argument("--max-body-mb", type=int, default=16, help="largest body of a request in MiB")
    serve.add_argument(
        "--journal", type=Path, metavar="FOLDER", help="folder for samples and labels: docs/journal.md (default: none)"
    )
    serve.options_of("loopline.server.journal_writer:JournalOptions")
    serve.add_argument(
        "--no-demo", dest="demo", action="store_false", help="serve neither the demo page nor the bundles' files"
    )
    serve.add_argument(
        "--verify-key",
        metavar="FILE",
        help="file with a public key, to load only bundles that its owner signed (default: LOOPLINE_VERIFY_KEY)",
    )

    text = "predict all texts of a file, or all images of a folder or list, and write the answers to a file"
    batch = verb(verbs, "predict", _predict, text)
    batch.add_argument("bundle", type=Path, help="bundle folder, e.g. models/text/bundle")
    batch.add_argument("input", help="CSV, TSV, JSON or Parquet file, folder of images or list of images; path or URL")
    batch.add_argument("output", help="path or URL of the result, ending in .parquet, .csv or .jsonl")
    batch.options_of("loopline.batch.predict:BatchOptions")
