"""`loopline data add MODEL FOLDER`, or `make data-add`: turn a labelled batch into the model's next dataset version.

Reads the batch, the dataset and the earlier batches. Writes `data/batches/<model>/vN/` (the files unchanged), its `.dvc`
file, a commit of only that, the tag `data/<model>/vN`, and the picture `reports/<model>/classes-vN.png`.
`git checkout data/<model>/vN && dvc checkout` restores a version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from loopline import settings, tasks
from loopline.data import distribution, formats, ingest_report, repository, sources
from loopline.data.clean import Cleaned, clean, same_truth
from loopline.data.manifest import Sample
from loopline.data.raw import RawSample
from loopline.errors import LooplineError
from loopline.lib import locks


def add(model: str, folder: str | Path, *, remote: str | None = None) -> str:
    """Validate and add the batch in `folder`; return a report to print.

    remote: the DVC remote that stores this batch, None for the default remote. Raises LooplineError, with nothing changed, if
    the batch is refused (nothing usable, too much set aside, labels that contradict the dataset, nothing new, a class without
    a training sample) or if the repository is not ready for a commit.
    """
    _, config = settings.model(model)
    source, home = Path(folder).expanduser(), sources.BATCHES / model
    if not source.is_dir():
        raise LooplineError(f"{source} is not a folder: give the folder of the labelled batch")
    if source.resolve().is_relative_to(home.resolve()):
        raise LooplineError(f"{source} is inside {home}, the folder of added batches: move it out first")
    with locks.held(repository.INCOMING / "lock"):
        return _add(model, source, home, config, remote)


def _add(model: str, source: Path, home: Path, config: settings.ModelSettings, remote: str | None) -> str:
    repository.check_ready(home)
    if remote is not None:
        repository.check_remote(remote)
    tag = next_tag(model)
    version = tag.rpartition("/")[2]

    column = config.split.column
    batch = _clean([(version, formats.read(source, config.task, group=column))], config)
    _refuse_bad(batch, source, config.expectations.max_set_aside)
    dataset = sources.open_dataset(config.dataset, config.task, group=column)
    stored = _clean([("dataset", dataset), *sources.open_batches(model, config.task, group=column)], config)
    fresh = _refuse_contradictions(batch.samples, stored.samples, source)

    if obstacles := ingest_report.obstacles(replace(stored, samples=stored.samples + fresh), tasks.find(config.task)):
        raise LooplineError(
            f"{source} is refused, because no model could be trained with it:\n" + "\n".join(_indented(obstacles))
        )

    before = distribution.count(stored.samples)
    after = before + distribution.count(fresh)
    new_classes = sorted(set(after) - set(before))
    summary = f"{model} {version}: {len(fresh)} new samples"
    summary += f", new classes {', '.join(new_classes)}" if new_classes else ""
    picture = Path("reports") / model / f"classes-{version}.png"
    distribution.draw(picture, before, after, title=f"{model}, data version {version}")
    repository.add_folder(
        source, home / version, remote=remote, tag=tag, base_tag=_base_tag(model), message=f"Data: {summary}"
    )
    copies = len(batch.samples) - len(fresh)
    already = [f"{copies:,} x already in the dataset, counted once"] if copies else []
    return "\n".join([
        summary,
        *_indented(already + ingest_report.reasons(batch)),
        "",
        distribution.table(before, after),
        "",
        f"committed and tagged {tag}; picture: {picture}",
        "next: `make repro` to train on it, `dvc push` and `git push --follow-tags` to share it",
    ])  # fmt: skip


def next_tag(model: str) -> str:
    """The tag of the next version: one above the highest of all tags and batches; the dataset alone is v1."""
    tags = repository.git("tag", "--list", f"data/{model}/v*").splitlines()
    numbers = [int(number) for tag in tags if (number := tag.rpartition("/v")[2]).isdecimal()]
    return f"data/{model}/v{max([1, *numbers, *sources.batch_numbers(sources.BATCHES / model)]) + 1}"


def _base_tag(model: str) -> str | None:
    """The tag v1 for the commit before the first batch, None if it is already set."""
    tag = f"data/{model}/v1"
    first = not sources.batch_numbers(sources.BATCHES / model)
    return tag if first and not repository.git("tag", "--list", tag) else None


def _clean(named: Iterable[tuple[str, Iterable[RawSample]]], config: settings.ModelSettings) -> Cleaned:
    return clean(named, task=config.task, split=config.split)


def _refuse_bad(batch: Cleaned, source: Path, most: float) -> None:
    left_out = batch.seen - len(batch.samples)
    if batch.samples and left_out <= most * batch.seen:
        return
    why = "\n".join(_indented(ingest_report.reasons(batch) or ["it holds no samples"]))
    raise LooplineError(
        f"{source} is refused: {left_out} of {batch.seen} samples would be set aside, but at most {most:.0%} may be "
        f"(max_set_aside in params.yaml).\n{why}\nCorrect the files and add the folder again."
    )


def _refuse_contradictions(batch: list[Sample], dataset: list[Sample], source: Path) -> list[Sample]:
    """The samples that the dataset lacks. Raises LooplineError if it lacks none, or has one with another label."""
    by_id = {sample.id: sample for sample in dataset}
    wrong = [sample for sample in batch if sample.id in by_id and not same_truth(sample, by_id[sample.id])]
    if wrong:
        lines = [f"{s.path} is {_truth(s)}, but {_truth(by_id[s.id])} as {by_id[s.id].path}" for s in wrong[:5]]
        examples = "\n".join(_indented(lines))
        raise LooplineError(
            f"{source} is refused: {len(wrong)} of its samples are in the dataset with another label, so ingest would "
            f"set both aside.\n{examples}\nCorrect the labels or take the samples out, then add the folder again."
        )
    fresh = [sample for sample in batch if sample.id not in by_id]
    if not fresh:
        raise LooplineError(f"{source} is refused: the dataset already has all its {len(batch)} samples")
    return fresh


def _truth(sample: Sample) -> object:
    if sample.boxes is None:
        return sample.label
    return sorted((box.label, box.x1, box.y1, box.x2, box.y2) for box in sample.boxes)


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
