"""The pipeline's verbs: stages, data, tracking."""

from __future__ import annotations

import argparse
import atexit
import gc
import time
from importlib import import_module

from loopline.cli.verbs import Verbs, room, verb

STAGES = ("ingest", "validate", "train", "export", "quantize", "evaluate", "calibrate", "package")


def _stage(options: argparse.Namespace) -> int:
    from loopline import settings
    from loopline.cli import memory, results

    # The libraries create a million objects at import, which live as long as the process. Without these settings, the garbage
    # collector scans them repeatedly and once more at exit, which takes a third of a short stage's time.
    gc.set_threshold(50_000, 20, 50)
    atexit.register(gc.freeze)
    start = time.monotonic()
    if line := memory.warning(options.stage, options.model, settings.model(options.model)[1]):
        print(line, flush=True)
    import_module(f"loopline.stages.{options.stage}").main(options.model)
    results.keep_seconds(options.model, options.stage, time.monotonic() - start)
    if line := results.line(options.stage, options.model):
        print(line)
    return 0


def _results(options: argparse.Namespace) -> int:
    from loopline import settings
    from loopline.cli import results

    for name in options.model:
        settings.model(name)
    print(results.table(options.model or list(settings.load().models)))
    return 0


def _data_list(_: argparse.Namespace) -> int:
    from loopline.data import catalog

    print(catalog.listing())
    return 0


def _data_fetch(options: argparse.Namespace) -> int:
    from loopline.data import catalog, download

    for name in options.dataset:
        print(download.fetch(catalog.find(name)))
    return 0


def _data_add(options: argparse.Namespace) -> int:
    from loopline.data import versions

    print(versions.add(options.model, options.folder, remote=options.remote))
    return 0


def _data_unlabelled(options: argparse.Namespace) -> int:
    from loopline.data import unlabelled

    print(unlabelled.collect(options.model, options.folder))
    return 0


def _data_prepare(options: argparse.Namespace) -> int:
    from loopline import settings
    from loopline.data import sources

    settings.model(options.model)
    keep = sources.BATCHES / options.model / ".gitkeep"  # git does not store an empty folder
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.write_text("Labelled batches: see docs/data.md\n", encoding="utf-8")  # DVC warns about an empty file
    return 0


def _track_sync(_: argparse.Namespace) -> int:
    from loopline.release import spool

    print("\n".join(spool.sync()) or "nothing to send")
    return 0


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    stage = verb(verbs, "stage", _stage, "run one stage of the pipeline for one model, as dvc.yaml does")
    stage.add_argument("stage", choices=STAGES, help="stage to run")
    stage.add_argument("model", help="name under models: in params.yaml")

    results = verb(verbs, "results", _results, "print a table of all trained models, as at the end of `make repro`")
    results.add_argument("model", nargs="*", help="names under models: in params.yaml (default: all)")

    data = room(verbs, "data", "list the catalogue, fetch data sets, add samples")
    prepare = verb(data, "prepare", _data_prepare, "make the folder of a model's batches, as dvc.yaml does")
    prepare.add_argument("model", help="name under models: in params.yaml")
    verb(data, "list", _data_list, "list the catalogue, and show which data sets are on this machine")
    fetch = verb(data, "fetch", _data_fetch, "download data sets of the catalogue now")
    fetch.add_argument("dataset", nargs="+", help="names of data sets, as `loopline data list` shows them")
    add = verb(data, "add", _data_add, "validate a labelled batch and make it the model's next data version")
    add.add_argument("model", help="name under models: in params.yaml")
    add.add_argument("folder", help="folder with the labelled batch")
    add.add_argument("--remote", help="DVC remote that stores this batch (default: the repository's)")
    unlabelled = verb(data, "unlabelled", _data_unlabelled, "collect samples without labels, which a teacher answers")
    unlabelled.add_argument("model", help="name of the model to teach")
    unlabelled.add_argument("folder", help="folder of images, or of tables of texts, or one table")

    track = room(verbs, "track", "send runs to the experiment tracking server")
    verb(track, "sync", _track_sync, "send the runs that were kept while the tracking server was unreachable")
