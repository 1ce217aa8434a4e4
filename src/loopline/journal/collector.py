"""`loopline journal FOLDER`: collect the lines of servers, join labels to predictions, and keep the journal within its bounds.

It exports the labelled quality by model and version. One process serves all servers that write to the folder; a second is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError
from loopline.journal import index, segments
from loopline.journal.storage import FOLDER, Parts
from loopline.lib import locks
from loopline.lib.exporter import exported

METRICS = {  # name -> kind, help, labels
    "loopline_labelled_rows_total": ("counter", "Answers whose truth became known.", ("model", "version")),
    "loopline_labelled_quality_total": ("counter", "Sum of their quality, 0 to 1 each.", ("model", "version")),
    "loopline_labels_waiting": ("gauge", "Labels of samples that the journal does not have.", ()),
    "loopline_journal_entries": ("gauge", "Samples in the journal.", ("model",)),
    "loopline_journal_bytes": ("gauge", "Size of its parts.", ()),
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a journal.

    part_rows, part_seconds: a part is written once this many samples wait, or one has waited this long. days: parts older than
    this are deleted. most: the bytes of all parts; beyond it the oldest are deleted, those without a label first.
    """

    part_rows: int = 1000
    part_seconds: float = 60.0
    days: float = 30.0
    most: int = 1 << 30


class Collector:
    """The collector of one journal folder."""

    def __init__(self, folder: Path, *, parts: str | None = None, bounds: Bounds | None = None) -> None:
        """parts: their URL (default: in the folder). Raises LooplineError if the folder has a collector or cannot be written."""
        try:
            for path in (folder, folder / segments.OPEN, folder / segments.CLOSED):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds what clients sent
            self.lock = ExitStack()
            self.lock.enter_context(locks.held(folder / "keeper.lock", wait=False))
        except BlockingIOError:
            raise LooplineError(
                f"{folder} already has a collector: run only one `loopline journal` for a folder"
            ) from None
        except OSError as error:
            raise LooplineError(f"{folder} cannot be written: {error}") from error
        self.folder, self.bounds = folder, bounds or Bounds()
        self.index = index.connect(folder, write=True)
        url = parts or str((folder / FOLDER).absolute())
        self.parts = Parts(url)
        self.index.execute("INSERT OR REPLACE INTO meta VALUES ('parts', ?)", (url,))
        self.series: dict[str, dict[tuple[str, ...], float]] = {}
        self.waiting = 0
        self._measure()

    def close(self) -> None:
        """Close the index and release the folder to another collector."""
        self.index.close()
        self.lock.close()

    def round(self) -> int:
        """Take the new segments, write parts, and apply the bounds once; return the number of new lines."""
        paths = segments.closed(self.folder)
        count = sum(index.take(self.index, path.name, segments.lines(path)) for path in paths)
        for path in paths:
            path.unlink()
        index.forget(self.index, [path.name for path in paths])
        self._write_parts()
        self._bound()
        self._measure()
        return count

    def _write_parts(self) -> None:
        for (model,) in self.index.execute("SELECT DISTINCT model FROM entry WHERE part IS NULL").fetchall():
            while self._write_part(model):
                pass

    def _write_part(self, model: str) -> bool:
        """Write one part and note it in the index; return False if it is too early for one.

        After a kill in between, the same part is written again under the same name.
        """
        waiting = self.index.execute(
            "SELECT id, time, content FROM entry WHERE model=? AND part IS NULL ORDER BY time, id LIMIT ?",
            (model, self.bounds.part_rows),
        ).fetchall()
        old = waiting and time.time() - waiting[0]["time"] >= self.bounds.part_seconds
        if not old and len(waiting) < self.bounds.part_rows:
            return False
        first = hashlib.sha256(waiting[0]["id"].encode()).hexdigest()
        name = f"{model}-{int(waiting[0]['time'] * 1e6):016}-{first:.8}.parquet"
        size = self.parts.write(name, [json.loads(row["content"]) for row in waiting])
        with index.transaction(self.index):
            self.index.executemany(
                "UPDATE entry SET part=?, content=NULL WHERE model=? AND id=?",
                [(name, model, row["id"]) for row in waiting],
            )
            self.index.execute("INSERT OR REPLACE INTO part VALUES (?,?,?)", (name, time.time(), size))
        return True

    def _bound(self) -> None:
        # Parts with labels are deleted last, because labelling is work.
        labelled = "EXISTS (SELECT 1 FROM entry WHERE entry.part = part.path AND label IS NOT NULL)"
        rows = self.index.execute(f"SELECT * FROM part ORDER BY {labelled} DESC, time DESC").fetchall()  # noqa: S608
        total = 0
        for row in rows:
            total += row["bytes"]
            if total > self.bounds.most or time.time() - row["time"] > self.bounds.days * 86400:
                self.parts.remove(row["path"])
                with index.transaction(self.index):
                    self.index.execute("DELETE FROM entry WHERE part=?", (row["path"],))
                    self.index.execute("DELETE FROM part WHERE path=?", (row["path"],))
        self.waiting = index.waiting_labels(self.index, self.bounds.days * 86400)

    def _measure(self) -> None:
        query = self.index.execute
        totals = query("SELECT model, version, rows, quality FROM total").fetchall()
        self.series = {
            "loopline_labelled_rows_total": {(r["model"], r["version"]): r["rows"] for r in totals},
            "loopline_labelled_quality_total": {(r["model"], r["version"]): r["quality"] for r in totals},
            "loopline_labels_waiting": {(): self.waiting},
            "loopline_journal_entries": {
                (model,): count for model, count in query("SELECT model, count(*) FROM entry GROUP BY model")
            },
            "loopline_journal_bytes": {(): query("SELECT coalesce(sum(bytes), 0) FROM part").fetchone()[0]},
        }

    def collect(self) -> Iterator[Any]:
        """The metrics for prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, (kind, text, labels) in METRICS.items():
            family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
            for key, value in self.series[name].items():
                family.add_metric(key, value)
            yield family

    def _try(self) -> None:
        try:
            self.round()
        # The disk may be full or the store unreachable, with any kind of error. The next round tries again.
        except Exception as error:
            logging.getLogger(__name__).warning("a round of the journal failed and will be repeated: %r", error)

    def run(self, every: float, port: int, stop: threading.Event, host: str = "127.0.0.1") -> None:
        """Do a round every `every` seconds until `stop` is set, and serve the metrics on `host` and `port`."""
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        with exported(registry, host, port):
            while not stop.wait(every):
                self._try()
            self._try()
