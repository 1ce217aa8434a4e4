"""Make the manifest from a dataset and its labelled batches: `loopline stage ingest MODEL`.

Reads the dataset that `models.<name>.dataset` in params.yaml names, and `data/batches/<name>/`. Writes in `data/<name>/`:
`manifest.parquet`, `ingest.json` (counts, and what was set aside and why) and `classes.csv` (class, split, count).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loopline import settings, tasks
from loopline.data import ingest_report, manifest
from loopline.data.clean import clean
from loopline.data.raw import RawSample
from loopline.data.sources import ambiguity, open_batches, open_dataset
from loopline.errors import LooplineError
from loopline.stages import stage_files

SHOWN = 10  # reasons and classes in an error


def main(name: str) -> None:
    """Ingest the data of model `name`. Raises LooplineError if no model can be trained on it."""
    _, model = settings.model(name)
    task = tasks.find(model.task)
    if note := ambiguity(model.dataset):
        print(note)
    cleaned = clean(_sources(name, model), task=model.task, split=model.split)
    if obstacles := ingest_report.obstacles(cleaned, task):
        raise LooplineError(_message(model.dataset, obstacles, ingest_report.reasons(cleaned)))
    folder = stage_files.manifest(name).parent
    manifest.write(
        stage_files.manifest(name),
        cleaned.samples,
        task=model.task,
        labels=ingest_report.labels(cleaned.samples) if task.has_classes else (),
    )
    stage_files.write_json(folder / "ingest.json", ingest_report.summary(cleaned, task))
    rows = [
        [label, split, count]
        for label, counts in (ingest_report.classes(cleaned.samples) if task.has_classes else {}).items()
        for split, count in counts.items()
    ]
    stage_files.write_csv(folder / "classes.csv", ["class", "split", "count"], rows)


def _sources(name: str, model: settings.ModelSettings) -> Iterator[tuple[str, Iterable[RawSample]]]:
    """Yield the dataset under its own or its folder's name, then the batches."""
    dataset = settings.located(model.dataset).resolve().name
    column = model.split.column
    yield dataset, _progress(open_dataset(model.dataset, model.task, unused=True, group=column), dataset)
    for batch, samples in open_batches(name, model.task, unused=True, group=column):
        yield batch, _progress(samples, batch)


def _progress(samples: Iterable[RawSample], name: str) -> Iterable[RawSample]:
    from tqdm import tqdm

    return tqdm(samples, desc=f"ingest {name}", unit=" samples", disable=None, delay=1)


def _message(dataset: str, obstacles: list[str], set_aside: list[str]) -> str:
    lines = [f"dataset {dataset} cannot be trained on:", *_few(obstacles)]
    if set_aside:
        lines += ["Set aside or left out:", *_few(set_aside)]
    return "\n".join([*lines, "See docs/bring-your-own-data.md."])


def _few(lines: list[str]) -> list[str]:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"  {line}" for line in lines[:SHOWN] + more]
