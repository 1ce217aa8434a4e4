"""Train a model on `data/<model>/manifest.parquet`. Writes to `models/<model>/train/`, and a run to MLflow.

With a teacher, the same training without it follows, in `train/untaught/`, with its graph: `evaluate` compares the two.

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
    taught = teaching.of(name, model, train)
    run = tracking.Training(
        name,
        parameters={"seed": everything.seed, **model.model_dump(exclude={"expectations", "calibrate"})},
        dataset=model.dataset,
        data_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    try:
        trainer.train(
            train,
            val,
            model,
            seed=everything.seed,
            out=out,
            work=stage_files.scratch("work", name),
            log=run.log,
            **({"taught": taught} if taught else {}),
        )
        if taught:
            alone, folder = teaching.without(model), out / stage_files.UNTAUGHT
            work = stage_files.scratch("work", f"{name}-{stage_files.UNTAUGHT}")
            trainer.train(train, val, alone, seed=everything.seed, out=folder, work=work, log=lambda *_: None)
            trainer.export(folder, train, val, alone, out=folder / "model.onnx")
    except BaseException:  # an interrupt too: MLflow would show the run as running for ever
        run.fail()
        raise
    (out / "history.csv").replace(Path("models") / name / "history.csv")
    run.finish(weights_sha256=hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
