"""The journal's verbs: collect samples, export them for labelling, import labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loopline.cli.verbs import JOURNAL, Verbs, room, verb

if TYPE_CHECKING:
    from loopline.journal.reader import Entry


def _journal(options: argparse.Namespace) -> int:
    import signal
    import threading

    from loopline.journal.collector import Bounds, Collector

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    bounds = Bounds(
        part_rows=options.part_rows, part_seconds=options.part_seconds, days=options.days, most=options.max_mb << 20
    )
    collector = Collector(options.folder, parts=options.to, bounds=bounds)
    collector.run(options.every, options.port, stop, options.host)
    collector.close()
    return 0


def _classes(model: str) -> tuple[str, ...]:
    """The classes of the released model; empty if there is no bundle."""
    from loopline.release import bundle

    folder = Path("models") / model / "bundle"
    return bundle.read(folder).manifest.spec.labels if folder.exists() else ()


def _export(options: argparse.Namespace) -> int:
    from loopline.journal import label_files, labels
    from loopline.journal.reader import JournalReader

    latest = JournalReader(options.journal, options.parts).latest(options.model, options.pool)
    entries = labels.worth(latest, options.count)
    label_files.export(entries, options.folder, _classes(options.model))
    print(f"{options.folder}: {len(entries)} samples to label, the most useful first")
    return 0


def _import(options: argparse.Namespace) -> int:
    import time

    from loopline.errors import LooplineError
    from loopline.journal import annotations, segments
    from loopline.journal.reader import JournalReader

    returned, classes = annotations.read(options.file), _classes(options.model)
    entries = JournalReader(options.journal, options.parts).answered(options.model, returned.labels)
    taken = annotations.take(returned, entries)
    for identity, label in taken.labels.items():
        for name in [label] if isinstance(label, str) else [box["label"] for box in label]:
            if classes and name not in classes and not options.new_classes:
                raise LooplineError(
                    f"{options.file}: sample {identity} has the label {name!r}, which is not a class of "
                    f"{options.model}: correct the label, or import with --new-classes"
                )
    reasons = [f"{count} x {reason}" for reason, count in taken.passed_over.items()]
    if not taken.labels:
        raise LooplineError(f"{options.file}: no label can be taken: {'; '.join(reasons) or 'it is empty'}")
    common = {"kind": "label", "model": options.model, "source": options.source, "time": time.time(), "chosen": True}
    segments.write(options.journal, [common | {"id": key, "label": label} for key, label in taken.labels.items()])
    for reason in reasons:
        print(f"  passed over: {reason}")
    print(f"{len(taken.labels)} labels of {options.source} go to the journal; next: `loopline label batch`")
    return 0


def _consistent(model: str, entries: list[Entry]) -> tuple[list[Entry], dict[str, int]]:
    """The entries that `data add` will accept, and the number of those left out, by reason.

    `data add` refuses a whole batch if a content occurs in it twice, or with a label that differs from one in the data set.
    """
    from loopline import tasks
    from loopline.data import manifest

    path = Path("data") / model / "manifest.parquet"
    truths: dict[str, set[object]] = {}
    if path.exists() and tasks.find(manifest.task(path)).truth == "label":
        for row in manifest.table(path, ["id", "label"]).to_pylist():
            truths[row["id"]] = {row["label"]}

    for entry in entries:
        truths.setdefault(entry.content, set()).add(str(entry.label))
    agreed = [entry for entry in entries if len(truths[entry.content]) == 1]
    kept = {entry.content: entry for entry in reversed(agreed)}  # the oldest entry of each content
    left_out = {"another label elsewhere": len(entries) - len(agreed), "the same as another": len(agreed) - len(kept)}
    return [entry for entry in agreed if kept[entry.content] is entry], left_out


def _batch(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.journal import label_files, labels
    from loopline.journal.reader import JournalReader

    store = JournalReader(options.journal, options.parts)
    classes = () if options.new_classes else _classes(options.model)
    trust = labels.Trust(max_share=options.max_share, known=classes)
    checked = labels.checked(store.labelled(options.model, since=options.since), store.conflicts(options.model), trust)
    entries, left_out = _consistent(options.model, checked.entries)
    for reason, count in {**checked.refused, **left_out}.items():
        if count:
            print(f"  left out: {count} x {reason}")
    if not entries:
        raise LooplineError(f"the journal has no label of {options.model} that may be used")
    label_files.batch(entries, options.folder)
    print(
        f"{options.folder}: {len(entries)} labelled samples; next: loopline data add {options.model} {options.folder}"
    )
    return 0


def add(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    text = "collect what servers wrote with --journal, join labels to it, and keep it as Parquet parts of bounded size"
    journal = verb(verbs, "journal", _journal, text)
    journal.add_argument("folder", nargs="?", type=Path, default=JOURNAL, help="folder that servers write to")
    journal.add_argument(
        "--to", metavar="URL", help="address to store the parts at, e.g. s3://bucket/journal (default: the folder)"
    )
    journal.add_argument("--every", type=float, default=2.0, help="seconds between two rounds")
    journal.add_argument("--port", type=int, default=9102, help="port of the collector's metrics")
    journal.add_argument("--host", default="127.0.0.1", help="address of the collector's metrics")
    journal.add_argument("--part-rows", type=int, default=1000, help="number of samples in a part")
    journal.add_argument("--part-seconds", type=float, default=60.0, help="seconds until a smaller part is written")
    journal.add_argument("--days", type=float, default=30.0, help="delete parts older than this many days")
    journal.add_argument("--max-mb", type=int, default=1024, help="delete the oldest parts beyond this size in MiB")

    label = room(verbs, "label", "choose journal samples to label, and import their labels")
    out = verb(label, "export", _export, "write the samples that are most worth a label, as CSV and for Label Studio")
    back = verb(label, "import", _import, "import labels into the journal from a CSV or Label Studio's JSON export")
    batch = verb(label, "batch", _batch, "write labelled samples as a data set for `loopline data add`")
    for command in (out, back, batch):
        command.add_argument("model", help="name of the model")
    for command in (out, batch):
        command.add_argument("folder", type=Path, help="new folder to write to")
    out.add_argument("--count", type=int, default=100, help="number of samples to write")
    out.add_argument("--pool", type=int, default=2000, help="number of latest samples to choose from")
    back.add_argument("file", type=Path, help="file with the labels: CSV, or Label Studio's JSON export")
    back.add_argument("--source", required=True, help="name of the labeller: a person, a team or a tool")
    batch.add_argument("--since", type=float, default=0.0, help="time of the oldest label, in seconds since 1970")
    batch.add_argument(
        "--max-share",
        type=float,
        default=0.6,
        help="largest share of the labels, 0 to 1, that one of several sources may give",
    )
    for command in (out, back, batch):
        command.add_argument("--journal", type=Path, default=JOURNAL, help="journal's folder")
        command.add_argument("--parts", metavar="URL", help="address of the journal's parts (default: its folder)")
    for command in (back, batch):
        command.add_argument("--new-classes", action="store_true", help="accept classes that the model does not have")
