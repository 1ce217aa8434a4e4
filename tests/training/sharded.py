"""Train small models in shards, one after the other, in a process of its own, because the trainings fork.

python sharded.py TASK,FOLDER,WORKERS[,kill|stop,EPOCH] ...
"""

import os
import sys
from pathlib import Path

import psutil

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "tasks")]
import reviews  # noqa: E402
import test_classification_training as images  # noqa: E402

from loopline import settings  # noqa: E402
from loopline.tasks import find  # noqa: E402

SHARDS = 4


def settings_and_data(name):
    """The settings, and the splits that train and validate."""
    if name == "classification":
        return images.tiny(epochs=3), images.stripes(120, seed=0), images.stripes(45, seed=1)
    if name == "detection":
        import shapes  # a project without detection does not have it

        return shapes.small(epochs=3, batch_size=16), shapes.shapes(48, seed=0), shapes.shapes(16, seed=1)
    _, model = settings.model("text", TESTS / "params.yaml")
    small = {"epochs": 3, "batch_size": 32, "tokenizer": "words"}
    model = model.model_copy(update={"train": model.train.model_copy(update=small)})
    return model, reviews.split(300, 0), reviews.split(80, 1)


def main(name, folder, workers, after="", epoch=0):
    """Train in four shards. after: `kill` to kill the last process after this epoch, `stop` to end this one."""
    model, train, val = settings_and_data(name)
    sharded = {"shards": 4, "workers": int(workers)}
    model = model.model_copy(update={"train": model.train.model_copy(update=sharded)})
    seen = []

    def log(number, _):
        seen.append(number)
        if number == int(epoch):
            if after == "stop":
                os._exit(9)
            psutil.Process().children()[-1].kill()

    out = Path(folder)
    find(name).trainer().train(train, val, model, seed=0, out=out / "train", work=out / "work", log=log)
    assert seen == [1, 2, 3]


if __name__ == "__main__":
    for line in sys.argv[1:]:  # the last may have one worker: after its gradients, this process cannot fork
        main(*line.split(","))
