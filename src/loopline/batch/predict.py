"""`loopline predict BUNDLE INPUT OUTPUT`: predict each row of a table of texts, or each image of a folder or list.

Items are predicted in parts. While one part is predicted, the part before it is written, so at most two are in memory. After a
kill, a new run continues after the last complete part: a part's metadata has its bundle, batch size and items, and a part with
other metadata is predicted again. Models run as in the server (`server.model`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from loopline.batch import inputs, texts
from loopline.batch.inputs import Item
from loopline.batch.output import Output, schema
from loopline.errors import LooplineError
from loopline.lib.options import option
from loopline.server.messages import Refusal
from loopline.server.model import Encoded, Model, Tensors, cpu_limit

PART_ROWS = {"text": 8192, "image": 1024}  # take a small model a second or less
EXAMPLES = 3  # errors that the summary shows
T = TypeVar("T")
Answer = dict[str, Any]  # the columns of one row without its id


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is predicted."""

    column: str | None = option(None, "column of the texts (default: text, else the first that ingest would take)")
    slots: int | None = option(
        None, "number of batches that run at once (default: number of cores that this process may use)"
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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a slot is one core
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
    count = _parts(model, batch_input, out, facts, options.slots or cpu_limit(), summary)
    out.join(count, {"model": model.name, "bundle": model.bundle.version}, summary.look)
    summary.seconds = time.monotonic() - start
    return summary


def _facts(out: Output, model: Model, options: BatchOptions, rows: int) -> dict[str, Any]:
    """The facts of each part without its items. An earlier run's batch size is kept, because an INT8 answer may depend on it."""
    facts = {"bundle": model.bundle.version, "column": options.column, "part_rows": rows}
    batch = options.batch_rows or model.best_rows
    earlier = out.facts(0)
    if earlier is None:
        return facts | {"batch_rows": batch}
    for name, value in (facts | ({"batch_rows": batch} if options.batch_rows else {})).items():
        if earlier.get(name) != value:
            _say(f"{out.url}.partial was made with another {name} ({earlier.get(name)}): starting anew")
            out.restart()
            return facts | {"batch_rows": batch}
    return facts | {"batch_rows": earlier["batch_rows"]}


def _parts(
    model: Model, source: inputs.BatchInput, out: Output, facts: dict[str, Any], slots: int, summary: Summary
) -> int:
    """Predict every part that an earlier run has not written. Returns the number of all parts."""
    from tqdm import tqdm

    count, waiting = 0, deque[_Work]()
    pool = ThreadPoolExecutor(slots, "slot")
    with tqdm(total=source.total, unit=" rows", disable=None) as bar:
        try:
            for count, items in enumerate(_chunks(source.items, facts["part_rows"]), start=1):
                work = _Work(model, items, facts | {"items": _fingerprint(items)}, count - 1)
                earlier = out.facts(work.number)
                if earlier == work.facts:
                    summary.kept += len(items)
                    bar.update(len(items))
                    continue
                if earlier is not None:
                    _say(f"part {work.number} was made from other items than the input now has: predicting it again")
                work.start(pool, source.fs)
                waiting.append(work)
                if len(waiting) > 1:
                    bar.update(waiting.popleft().finish(out))
            while waiting:
                bar.update(waiting.popleft().finish(out))
        finally:
            pool.shutdown(cancel_futures=True)
    if summary.kept:
        _say(f"{summary.kept} rows are kept from an earlier run")
    return count


class _Work:
    """A part that is being predicted."""

    def __init__(self, model: Model, items: list[Item], facts: dict[str, Any], number: int) -> None:
        self.model, self.items, self.facts, self.number = model, items, facts, number
        self.order = [place for place, item in enumerate(items) if item.error is None]
        if model.spec.text:
            self.order.sort(key=lambda place: len(items[place].content))  # similar lengths together need less padding
        self.futures: list[Future[list[Answer]]] = []

    def start(self, pool: ThreadPoolExecutor, fs: Any) -> None:
        for batch in _chunks(iter(self.order), self.facts["batch_rows"]):
            contents = [self.items[place].content for place in batch]
            self.futures.append(pool.submit(_answers, self.model, contents, fs))

    def finish(self, out: Output) -> int:
        answers: list[Answer] = [{"error": item.error} for item in self.items]
        predicted = itertools.chain.from_iterable(future.result() for future in self.futures)
        for place, answer in zip(self.order, predicted, strict=True):
            answers[place] = answer
        rows = ({"id": item.id, **answer} for item, answer in zip(self.items, answers, strict=True))
        out.write_part(self.number, rows, self.facts)
        return len(self.items)


def _answers(model: Model, contents: list[str], fs: Any) -> list[Answer]:
    """An answer or an error for each text, or for the image at each path. If a batch fails, its items are run one by one."""
    try:
        return _batch(model, contents, fs)
    except Exception as error:  # onnxruntime's errors have no common base
        if len(contents) == 1:
            return [{"error": f"the model failed on it: {inputs.reason(error)}"}]
        return [answer for content in contents for answer in _answers(model, [content], fs)]


def _batch(model: Model, contents: list[str], fs: Any) -> list[Answer]:
    if model.spec.text:
        prepared: list[Any] = [model.prepare(Encoded(contents))]
    else:
        prepared = [
            data if isinstance(data, Exception) else _decoded(model, data) for data in inputs.contents(contents, fs)
        ]
    ready = [item for item in prepared if not isinstance(item, Exception)]
    answers = iter(_run(model, ready) if ready else [])
    if model.spec.text:
        return list(answers)
    return [{"error": inputs.reason(item)} if isinstance(item, Exception) else next(answers) for item in prepared]


def _decoded(model: Model, data: bytes) -> Any:
    try:
        return model.prepare(Encoded([data]))
    except Refusal as refusal:
        return refusal


def _run(model: Model, prepared: list[Any]) -> list[Answer]:
    results = model.run([Tensors(item.arrays) for item in prepared])
    outputs = {name: np.concatenate([result[name] for result in results]) for name in model.output_names}
    return model.task.batch_answers(outputs, model.spec, np.concatenate([item.sizes for item in prepared]))


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
