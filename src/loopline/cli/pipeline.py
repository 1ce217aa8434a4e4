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

    # Libraries make a million objects while they are imported, which live as long as the process. To look at them again and again, and
    # once more at its end, takes a third of a short stage.
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


def _data_prepare(options: argparse.Namespace) -> int:
    from loopline import settings
    from loopline.data import sources

    settings.model(options.model)
    kept = sources.BATCHES / options.model / ".gitkeep"  # git keeps no empty folder
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("Labelled batches: see docs/data.md\n", encoding="utf-8")  # DVC warns of an empty file
    return 0


def _track_sync(_: argparse.Namespace) -> int:
    from loopline.release import spool

    print("\n".join(spool.sync()) or "nothing to send")
    return 0


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    stage = verb(rooms, "stage", _stage, "run one stage of the pipeline for one model, as dvc.yaml does")
    stage.add_argument("stage", choices=STAGES)
    stage.add_argument("model", help="a name under models: in params.yaml")

    results = verb(
        rooms, "results", _results, "a table of the models that the pipeline has made, as `make repro` ends with"
    )
    results.add_argument("model", nargs="*", help="names under models: in params.yaml (default: all)")

    data = room(rooms, "data", "datasets: list the catalogue, fetch, add a labelled batch")
    prepare = verb(data, "prepare", _data_prepare, "make the folder of a model's batches, as dvc.yaml does")
    prepare.add_argument("model", help="a name under models: in params.yaml")
    verb(data, "list", _data_list, "the catalogue, and what of it is on this machine")
    fetch = verb(data, "fetch", _data_fetch, "download datasets of the catalogue now")
    fetch.add_argument("dataset", nargs="+")
    add = verb(data, "add", _data_add, "validate a labelled batch and make it the model's next dataset version")
    add.add_argument("model")
    add.add_argument("folder")
    add.add_argument("--remote", help="the DVC remote that keeps this batch (default: the repository's)")

    track = room(rooms, "track", "experiment tracking")
    verb(track, "sync", _track_sync, "send the runs that were kept while the tracking server was away")
