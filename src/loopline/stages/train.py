"""Train a model on `data/<model>/manifest.parquet`. Writes to `models/<model>/train/`, and a run to MLflow.

Run by `dvc repro train@<model>`. A killed training resumes after its last finished epoch at the next run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from loopline import settings, tasks
from loopline.data import manifest
from loopline.release import tracking
from loopline.stages import stage_files, teaching


def main(name: str) -> None:
    """Train `name`. Raises LooplineError on bad settings or a missing manifest."""
    everything, model = settings.model(name)
    path = stage_files.manifest(name)
    trainer = tasks.find(model.task).trainer()
    out = stage_files.stage(name, "train")
    train, val = (manifest.load_split(path, split) for split in ("train", "val"))
    lesson = teaching.of(name, model, train)
    run = tracking.Training(
        name,
        parameters={"seed": everything.seed, **model.model_dump(exclude={"expectations", "calibrate", "tune"})},
        dataset=model.dataset,
        data_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    try:
        trainer.train(
            lesson.train,
            val,
            model,
            seed=everything.seed,
            out=out,
            work=stage_files.scratch("work", name),
            log=run.log,
            **lesson.more,
        )
        teaching.train_without(name, trainer, train, val, model, lesson, seed=everything.seed)
    except BaseException:  # an interrupt too: MLflow would show the run as running for ever
        run.fail()
        raise
    (out / "history.csv").replace(Path("models") / name / "history.csv")
    run.finish(weights_sha256=hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
