"""`loopline predict BUNDLE INPUT OUTPUT`: predict each row of a table of texts, or each image of a folder or list.

Items are predicted in parts, by an engine: threads of this process, or actors of Ray (`engines`). After a kill, a new run continues
after the last complete part: a part's metadata has its bundle, batch size and items, and a part with other metadata is predicted
again. Models run as in the server (`server.model`).
"""

from __future__ import annotations

import hashlib
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from loopline.batch import engines, inputs, texts
from loopline.batch.engines import Answer
from loopline.batch.inputs import Item
from loopline.batch.output import Output, schema
from loopline.errors import LooplineError
from loopline.lib.options import option
from loopline.server.model import Model, cpu_limit

PART_ROWS = {"text": 8192, "image": 1024}  # take a small model a second or less
EXAMPLES = 3  # errors that the summary shows
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is predicted."""

    column: str | None = option(None, "column of the texts (default: text, else the first that ingest would take)")
    engine: Literal["process", "ray"] = option(
        "process",
        "place where the model runs: this process, or Ray (the cluster of RAY_ADDRESS, else one on this machine)",
    )
    slots: int | None = option(
        None,
        "number of batches that run at once, or of Ray's actors (default: number of cores that this process may use)",
    )
    batch_rows: int | None = option(
        None, "number of samples that the model gets at once (default: the fastest number here)"
    )
    part_rows: int | None = option(None, "number of samples between two saves (default: 8192 texts, 1024 images)")


@dataclass
class Summary:
    """The result of a run. kept: rows of an earlier run. seconds: time without loading and warm-up. examples: errors to show."""

    rows: int = 0
    errors: int = 0
    kept: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    def look(self, table: pa.Table) -> None:
        """Count the rows and errors of a part."""
        self.rows += len(table)
        self.errors += len(table) - table["error"].null_count
        if len(self.examples) < EXAMPLES and table["error"].null_count < len(table):
            bad = table.filter(table["error"].is_valid()).slice(0, EXAMPLES - len(self.examples))
            self.examples += [f"{row['id']}: {row['error']}" for row in bad.to_pylist()]

    @property
    def code(self) -> int:
        """The exit code: 1 if there were items and none got an answer, else 0."""
        return 1 if self.rows and self.errors == self.rows else 0

    def __str__(self) -> str:
        """The text that `loopline predict` prints."""
        speed = (self.rows - self.kept) / max(self.seconds, 1e-9)
        head = f"{self.rows} rows, {self.errors} without an answer, {self.seconds:.1f} s, {speed:.0f} rows a second"
        more = [f"  and {self.errors - len(self.examples)} more"] if self.errors > len(self.examples) else []
        return "\n".join([head, *(f"  {line}" for line in self.examples), *more])


def predict(folder: Path, source: str, output: str, options: BatchOptions) -> Summary:
    """Predict all of `source` with the bundle at `folder` into `output`. Raises LooplineError."""
    model = Model(folder)
    image = model.spec.image is not None
    (fs, path), (to_fs, to_path) = inputs.locate(source), inputs.locate(output)
    if fs == to_fs and f"{to_path}/".startswith(f"{path.rstrip('/')}/"):
        raise LooplineError(f"{output} is the input or lies in it: write the output elsewhere")
    batch_input = inputs.images(source) if image else texts.texts(source, options.column)
    out = Output(output, schema(image=image, columns=model.task.batch_columns()))
    model.warm_up()
    rows = options.part_rows or PART_ROWS["image" if image else "text"]
    facts = _facts(out, model, options, rows)
    summary = Summary()
    start = time.monotonic()
    with engines.engine(options.engine, model, options.slots or cpu_limit()) as run:
        count = _parts(model, batch_input, out, facts, run, summary)
    out.join(count, {"model": model.name, "bundle": model.bundle.version}, summary.look)
    summary.seconds = time.monotonic() - start
    return summary


def answers(
    bundle: str | Path,
    samples: Iterable[str | bytes],
    *,
    engine: Literal["process", "ray"] = "process",
    slots: int | None = None,
    batch_rows: int | None = None,
) -> Iterator[Answer]:
    """Yield the answer to each sample in order: the columns of `loopline predict`, or `error` if there is none.

    samples: texts; for a model of images their encoded bytes, paths or URLs. engine, slots, batch_rows: as in BatchOptions. Raises
    LooplineError if the bundle cannot be opened.
    """
    if engine not in ("process", "ray"):
        raise LooplineError(f"engine: {engine!r} is not known: give process or ray")
    model = Model(Path(bundle))
    model.warm_up()
    text = model.spec.image is None
    facts = {"batch_rows": batch_rows or model.best_rows}
    rows = max(facts["batch_rows"], PART_ROWS["text" if text else "image"] // 8)
    items = (Item(number, _checked(sample, number, text=text)) for number, sample in enumerate(samples))
    parts = (_PartWork(chunk, facts, number, None, text=text) for number, chunk in enumerate(_chunks(items, rows)))
    early: dict[int, list[Answer]] = {}
    following = 0
    with engines.engine(engine, model, slots or cpu_limit()) as run:
        for part, predicted in run(parts):
            early[part.number] = part.rows(predicted)
            while following in early:
                yield from early.pop(following)
                following += 1


def _checked(sample: Any, number: int, *, text: bool) -> str | bytes:
    """Return the sample. Raises LooplineError if it cannot be one."""
    if isinstance(sample, str) or (isinstance(sample, bytes) and not text):
        return sample
    needed = "a text" if text else "an encoded image, a path or a URL"
    raise LooplineError(f"sample {number} is of the type {type(sample).__name__}: this model needs {needed}")


def _facts(out: Output, model: Model, options: BatchOptions, rows: int) -> dict[str, Any]:
    """The facts of each part without its items. An earlier run's batch size is kept, because an INT8 answer may depend on it."""
    facts = {"bundle": model.bundle.version, "column": options.column, "part_rows": rows}
    batch = options.batch_rows or model.best_rows
    earlier = out.any_facts()
    if earlier is None:
        return facts | {"batch_rows": batch}
    for name, value in (facts | ({"batch_rows": batch} if options.batch_rows else {})).items():
        if earlier.get(name) != value:
            _say(f"{out.url}.partial was made with another {name} ({earlier.get(name)}): starting anew")
            out.restart()
            return facts | {"batch_rows": batch}
    return facts | {"batch_rows": earlier["batch_rows"]}


def _parts(
    model: Model, source: inputs.BatchInput, out: Output, facts: dict[str, Any], run: engines.Engine, summary: Summary
) -> int:
    """Predict every part that an earlier run has not written. Returns the number of all parts."""
    from tqdm import tqdm

    count = 0
    with tqdm(total=source.total, unit=" rows", disable=None) as bar:

        def parts() -> Iterator[_PartWork]:
            nonlocal count
            for count, items in enumerate(_chunks(source.items, facts["part_rows"]), start=1):
                part = _PartWork(
                    items, facts | {"items": _fingerprint(items)}, count - 1, source.fs, text=bool(model.spec.text)
                )
                earlier = out.facts(part.number)
                if earlier == part.facts:
                    summary.kept += len(items)
                    bar.update(len(items))
                    continue
                if earlier is not None:
                    _say(f"part {part.number} was made from other items than the input now has: predicting it again")
                yield part

        for part, answers in run(parts()):
            out.write_part(part.number, part.rows(answers), part.facts)
            bar.update(len(part.items))
    if summary.kept:
        _say(f"{summary.kept} rows are kept from an earlier run")
    return count


class _PartWork:
    """A part that is being predicted, as `engines.Work`."""

    def __init__(self, items: list[Item], facts: dict[str, Any], number: int, fs: Any, *, text: bool) -> None:
        self.items, self.facts, self.number, self.fs = items, facts, number, fs
        self.order = [place for place, item in enumerate(items) if item.error is None]
        if text:
            self.order.sort(key=lambda place: len(items[place].content))  # similar lengths together need less padding
        self.batches: list[engines.Contents] = [
            [items[place].content for place in batch] for batch in _chunks(iter(self.order), facts["batch_rows"])
        ]

    def rows(self, predicted: list[Answer]) -> list[Answer]:
        """The rows in the order of the items. predicted: what the engine gave."""
        answers: list[Answer] = [{"error": item.error} for item in self.items]
        for place, answer in zip(self.order, predicted, strict=True):
            answers[place] = answer
        return [{"id": item.id, **answer} for item, answer in zip(self.items, answers, strict=True)]


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _fingerprint(items: list[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(tuple(item)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"loopline: {message}", file=sys.stderr)
