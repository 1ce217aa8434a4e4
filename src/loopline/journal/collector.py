"""`loopline journal FOLDER`: takes what servers wrote, joins labels to predictions, keeps the journal within its bounds.

Exports the labelled quality by model and version. One process for all servers that write to the folder; a second one is refused.
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
    """part_rows, part_seconds: a part is written when so many samples wait, or one so long. days, most (bytes): older parts go."""

    part_rows: int = 1000
    part_seconds: float = 60.0
    days: float = 30.0
    most: int = 1 << 30


class Collector:
    """Of one folder."""

    def __init__(self, folder: Path, *, parts: str | None = None, bounds: Bounds | None = None) -> None:
        """parts: where to keep them, if not in the folder. Raises LooplineError where another collector has it."""
        try:
            for path in (folder, folder / segments.OPEN, folder / segments.CLOSED):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)  # it is what clients sent
            self.lock = ExitStack()
            self.lock.enter_context(locks.held(folder / "keeper.lock", wait=False))
        except BlockingIOError:
            raise LooplineError(f"{folder} has a collector already: one `loopline journal` for a folder") from None
        except OSError as error:
            raise LooplineError(f"{folder} cannot be written: {error}") from error
        self.folder, self.bounds = folder, bounds or Bounds()
        self.index = index.connect(folder, write=True)
        where = parts or str((folder / FOLDER).absolute())
        self.parts = Parts(where)
        self.index.execute("INSERT OR REPLACE INTO meta VALUES ('parts', ?)", (where,))
        self.series: dict[str, dict[tuple[str, ...], float]] = {}
        self.waiting = 0
        self._measure()

    def close(self) -> None:
        """Let another one have the folder."""
        self.index.close()
        self.lock.close()

    def round(self) -> int:
        """Everything once; how many lines were new."""
        found = segments.closed(self.folder)
        count = sum(index.take(self.index, path.name, segments.lines(path)) for path in found)
        for path in found:
            path.unlink()
        index.forget(self.index, [path.name for path in found])
        self._write_parts()
        self._bound()
        self._measure()
        return count

    def _write_parts(self) -> None:
        for (model,) in self.index.execute("SELECT DISTINCT model FROM entry WHERE part IS NULL").fetchall():
            while self._write_part(model):
                pass

    def _write_part(self, model: str) -> bool:
        """A part first, then the index says so: whoever is killed in between writes it again, under the same name."""
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
        # What has labels stays longest: it was work.
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
        ask = self.index.execute
        totals = ask("SELECT model, version, rows, quality FROM total").fetchall()
        self.series = {
            "loopline_labelled_rows_total": {(r["model"], r["version"]): r["rows"] for r in totals},
            "loopline_labelled_quality_total": {(r["model"], r["version"]): r["quality"] for r in totals},
            "loopline_labels_waiting": {(): self.waiting},
            "loopline_journal_entries": {
                (model,): count for model, count in ask("SELECT model, count(*) FROM entry GROUP BY model")
            },
            "loopline_journal_bytes": {(): ask("SELECT coalesce(sum(bytes), 0) FROM part").fetchone()[0]},
        }

    def collect(self) -> Iterator[Any]:
        """What prometheus_client asks for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, (kind, text, labels) in METRICS.items():
            family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
            for key, value in self.series[name].items():
                family.add_metric(key, value)
            yield family

    def _try(self) -> None:
        try:
            self.round()
        # A disk that is full or a store that is away, in whatever words: the next round may do
        except Exception as error:
            logging.getLogger(__name__).warning("the journal could not be kept: %r", error)

    def run(self, every: float, port: int, stop: threading.Event, host: str = "127.0.0.1") -> None:
        """Rounds every so many seconds until `stop`, metrics on `port` of the address `host`."""
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        with exported(registry, host, port):
            while not stop.wait(every):
                self._try()
            self._try()
