"""The journal's verbs: keep it, and take labels out of it and into it."""

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
    """Those that the released model knows; none where there is no bundle."""
    from loopline.release import bundle

    folder = Path("models") / model / "bundle"
    return bundle.read(folder).manifest.spec.labels if folder.exists() else ()


def _export(options: argparse.Namespace) -> int:
    from loopline.journal import export, labels
    from loopline.journal.reader import JournalReader

    found = labels.worth(
        JournalReader(options.journal, options.parts).latest(options.model, options.pool), options.count
    )
    export.export(found, options.folder, _classes(options.model))
    print(f"{options.folder}: {len(found)} samples to label, the most useful first")
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
                    f"{options.file}: {identity} is {name!r}, which {options.model} does not know: correct it, or import "
                    "with --new-classes"
                )
    reasons = [f"{count} x {reason}" for reason, count in taken.passed_over.items()]
    if not taken.labels:
        raise LooplineError(f"{options.file}: no label can be taken: {'; '.join(reasons) or 'it is empty'}")
    common = {"kind": "label", "model": options.model, "source": options.source, "time": time.time(), "chosen": True}
    segments.write(options.journal, [common | {"id": key, "label": label} for key, label in taken.labels.items()])
    for reason in reasons:
        print(f"  passed over: {reason}")
    print(
        f"{len(taken.labels)} labels of {options.source} go to the journal; `loopline label batch` makes a data set of them"
    )
    return 0


def _consistent(model: str, entries: list[Entry]) -> tuple[list[Entry], dict[str, int]]:
    """Each content once, with one label here and in the data set: `data add` would refuse the whole batch for others.

    And of those left out how many, by reason.
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
    kept = {entry.content: entry for entry in reversed(agreed)}  # the oldest of each
    left_out = {"another label elsewhere": len(entries) - len(agreed), "the same as another": len(agreed) - len(kept)}
    return [entry for entry in agreed if kept[entry.content] is entry], left_out


def _batch(options: argparse.Namespace) -> int:
    from loopline.errors import LooplineError
    from loopline.journal import export, labels
    from loopline.journal.reader import JournalReader

    store = JournalReader(options.journal, options.parts)
    known = () if options.new_classes else _classes(options.model)
    trust = labels.Trust(max_share=options.max_share, known=known)
    found = labels.checked(store.labelled(options.model, since=options.since), store.conflicts(options.model), trust)
    entries, left_out = _consistent(options.model, found.entries)
    for reason, count in {**found.refused, **left_out}.items():
        if count:
            print(f"  left out: {count} x {reason}")
    if not entries:
        raise LooplineError(f"the journal has no label of {options.model} that may be used")
    export.batch(entries, options.folder)
    print(
        f"{options.folder}: {len(entries)} labelled samples; next: loopline data add {options.model} {options.folder}"
    )
    return 0


def add(rooms: Verbs) -> None:
    """Put this room's verbs into the command line."""
    keep = verb(
        rooms, "journal", _journal, "keep what servers wrote with --journal: Parquet, labels joined, within bounds"
    )
    keep.add_argument("folder", nargs="?", type=Path, default=JOURNAL, help=f"default: {JOURNAL}")
    keep.add_argument("--to", metavar="URL", help="keep the parts at s3://bucket/journal, say (default: in the folder)")
    keep.add_argument("--every", type=float, default=2.0, help="seconds between two rounds")
    keep.add_argument("--port", type=int, default=9102, help="of its metrics")
    keep.add_argument("--host", default="127.0.0.1", help="address that its metrics are on")
    keep.add_argument("--part-rows", type=int, default=1000, help="samples in a part")
    keep.add_argument("--part-seconds", type=float, default=60.0, help="until a smaller part is written")
    keep.add_argument("--days", type=float, default=30.0, help="that a part is kept")
    keep.add_argument("--max-mb", type=int, default=1024, help="of all parts; the oldest go")

    label = room(rooms, "label", "labels for what was served")
    out = verb(label, "export", _export, "write the samples that are most worth a label, as CSV and for Label Studio")
    out.add_argument("model")
    out.add_argument("folder", type=Path, help="a new one")
    out.add_argument("--count", type=int, default=100)
    out.add_argument("--pool", type=int, default=2000, help="latest samples to choose from")
    back = verb(label, "import", _import, "take labels back into the journal, from a CSV or Label Studio's JSON export")
    back.add_argument("model")
    back.add_argument("file", type=Path)
    back.add_argument("--source", required=True, help="who labelled: a person, a team, a tool")
    batch = verb(label, "batch", _batch, "write labelled samples as a data set for `loopline data add`")
    batch.add_argument("model")
    batch.add_argument("folder", type=Path, help="a new one")
    batch.add_argument("--since", type=float, default=0.0, help="labels that came after this time, seconds since 1970")
    batch.add_argument("--max-share", type=float, default=0.6, help="of one source, where there are several")
    for made in (out, back, batch):
        made.add_argument("--journal", type=Path, default=JOURNAL, help=f"its folder (default: {JOURNAL})")
        made.add_argument("--parts", metavar="URL", help="where its parts are, if not in the folder")
    for made in (back, batch):
        made.add_argument("--new-classes", action="store_true", help="accept classes that the model does not know")
