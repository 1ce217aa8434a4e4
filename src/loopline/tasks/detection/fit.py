"""The detector's training loop: AdamW, warm-up and cosine, a running average of the weights, early stopping.

Order and augmentation of an epoch are functions of (seed, epoch) alone, so a training that resumes from its checkpoint ends
with the same bits as one that was never killed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopline.errors import LooplineError
from loopline.tasks.detection import suppression, task
from loopline.tasks.spec import ModelSpec
from loopline.training import checkpoint, loop, parallel
from loopline.training.parallel import Team
from loopline.training.progress_bar import Progress

if TYPE_CHECKING:
    import torch

    from loopline.data.manifest import Split
    from loopline.tasks.detection.mosaic import Scenes
    from loopline.tasks.detection.parameters import DetectionTrain
    from loopline.tasks.detection.yolo_network import Detector

LARGEST_GRADIENT = 10.0  # norm
MOST_INERTIA = 0.99  # of the running average: about the last hundred steps
NMS_IOU = 0.6  # during training; the value that serves is chosen on the validation split afterwards
EVALUATION_BATCH = 32
Batch = tuple[Any, list[Any]]  # images, and the boxes of each


class Average:
    """A running average of a network's weights that forgets quickly at first (TensorFlow's ExponentialMovingAverage)."""

    def __init__(self, network: Detector) -> None:
        self.network = copy.deepcopy(network).eval()
        self.steps = 0
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        # `update` changes the averages in place
        self._pairs = [(mean, live) for mean, live in pairs if mean.is_floating_point()]

    def update(self) -> None:
        """Move towards the network's weights."""
        import torch

        self.steps += 1
        inertia = min(MOST_INERTIA, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_([mean for mean, _ in self._pairs], [live for _, live in self._pairs], 1 - inertia)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])


def fit(
    network: Detector,
    train: Scenes,
    val: Scenes,
    truth: Split,
    spec: ModelSpec,
    recipe: DetectionTrain,
    *,
    seed: int,
    work: Path,
    key: str,
    log: Callable[[int, dict[str, float]], None],
    teacher: Detector | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place and leave the averaged weights of the epoch with the best validation map50_95 in it.

    truth: the validation split that `val` was made from. work: the checkpoint's folder, named after the model; a checkpoint with
    the same `key` and seed is resumed. log: called with each epoch and its metrics, first for the epochs that an earlier, killed
    process finished. teacher: its feature maps are learnt too, and it stays as it is. Returns a row for each epoch: train_loss,
    val_loss, map50, map50_95. Raises LooplineError if the loss is not a number.
    """

    def body(team: Team, log: parallel.Log) -> list[dict[str, float]]:
        return _fit(
            network, train, val, truth, spec, recipe, team, seed=seed, work=work, key=key, log=log, teacher=teacher
        )

    return parallel.fit(body, log, workers=recipe.workers, shards=recipe.shards)


def _fit(
    network: Detector,
    train: Scenes,
    val: Scenes,
    truth: Split,
    spec: ModelSpec,
    recipe: DetectionTrain,
    team: Team,
    *,
    seed: int,
    work: Path,
    key: str,
    log: Callable[[int, dict[str, float]], None],
    teacher: Detector | None = None,
) -> list[dict[str, float]]:
    """Do what `fit` says, in one process of the team."""
    import torch

    network.to(device=loop.device(), memory_format=torch.channels_last)  # type: ignore[call-overload] # a third faster
    average = Average(network)
    trained: torch.nn.Module = network.network
    parts: dict[str, Any] = {"model": network, "average": average}
    if recipe.teacher and teacher:
        trained = network.distillation(teacher, recipe.teacher.gain)
        parts["projector"] = trained.projector
    parts["optimizer"] = optimizer = _optimizer(trained, recipe)
    state = checkpoint.load(work, checkpoint.fingerprint(key, seed), **parts)
    if team.size > 1 and team.leads and not state.epoch:  # all begin here again if another process is killed
        checkpoint.save(work, checkpoint.fingerprint(key, seed), state, **parts)
    for epoch, row in enumerate(state.history if team.leads else [], 1):
        log(epoch, row)
    steps = _steps(train, recipe)
    parallel.check(len(train.boxes) // steps, team)
    shown = Progress(work.name, epochs=recipe.epochs, steps=steps, done=state.epoch, silent=not team.leads)
    train_epoch = partial(_sharded_epoch, team=team) if team.shards > 1 else _train_epoch
    while state.epoch < recipe.epochs and state.epoch - state.best_epoch < recipe.patience:
        train_loss = train_epoch(
            network, trained, train, recipe, optimizer, average, seed=seed, epoch=state.epoch, shown=shown
        )
        state.epoch += 1
        row = {"train_loss": train_loss, **validate(average.network, val, truth, spec)}
        if not math.isfinite(row["train_loss"]):
            raise LooplineError(
                f"the loss of epoch {state.epoch} is not a number: lower learning_rate ({recipe.learning_rate})"
            )
        state.history.append(row)
        if not state.best or -row["map50_95"] < state.best_loss:
            state.best_loss, state.best_epoch = -row["map50_95"], state.epoch
            state.best = {name: tensor.cpu().clone() for name, tensor in average.network.state_dict().items()}
        if team.leads:
            checkpoint.save(work, checkpoint.fingerprint(key, seed), state, **parts)
            shown.epoch(state.epoch, row)
            log(state.epoch, row)
    shown.close()
    network.load_state_dict(state.best)
    network.eval()
    return state.history


def learning_rate(epoch: float, recipe: DetectionTrain) -> float:
    """Return the learning rate: linear from 0 up in `warmup_epochs`, then a cosine down to `final_learning_rate` of the peak."""
    if epoch < recipe.warmup_epochs:
        return recipe.learning_rate * epoch / recipe.warmup_epochs
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    low = recipe.final_learning_rate
    return recipe.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


def predict(network: Detector, scenes: Scenes) -> tuple[list[Any], float]:
    """Return boxes, scores and features of every image, as a list with three arrays for each batch; and the mean loss."""
    import torch

    network.eval()
    batches, total = [], 0.0
    with torch.inference_mode():
        for start in range(0, len(scenes.boxes), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            raw = network.raw(torch.from_numpy(scenes.pixels[rows]).to(loop.device()))
            total += float(network.loss(raw, [torch.from_numpy(b) for b in scenes.boxes[rows]], _size(scenes.pixels)))
            batches.append([tensor.float().cpu().numpy() for tensor in network.decode(raw)])
    return batches, total / len(scenes.boxes)


def validate(network: Detector, val: Scenes, truth: Split, spec: ModelSpec) -> dict[str, float]:
    """Return val_loss, map50 and map50_95."""
    batches, loss = predict(network, val)
    parts = [suppression.suppress(boxes, scores, iou=NMS_IOU) for boxes, scores, _ in batches]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    figures = task.TASK.scorer(outputs, truth, spec)(None)
    return {"val_loss": loss, "map50": figures["map50"], "map50_95": figures["map50_95"]}


def _train_epoch(
    network: Detector,
    trained: torch.nn.Module,
    train: Scenes,
    recipe: DetectionTrain,
    optimizer: torch.optim.Optimizer,
    average: Average,
    *,
    seed: int,
    epoch: int,
    shown: Progress,
) -> float:
    """Train for one epoch and return the mean loss of its images. epoch: number of the epochs before it.

    trained: `network.network`, or its distillation.
    """
    import torch

    trained.train()
    total, steps = 0.0, _steps(train, recipe)
    for number, (pixels, boxes) in enumerate(_ahead(_batches(train, recipe, seed=seed, epoch=epoch))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch + number / steps, recipe)
        loss = _loss(network, trained, pixels, boxes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        average.update()
        total += loss.item()
        shown.step()
    return total / len(train.boxes)


def _sharded_epoch(
    network: Detector,
    trained: torch.nn.Module,
    train: Scenes,
    recipe: DetectionTrain,
    optimizer: torch.optim.Optimizer,
    average: Average,
    *,
    team: Team,
    seed: int,
    epoch: int,
    shown: Progress,
) -> float:
    """Do what `_train_epoch` does in shards: order and augmentation are functions of seed, epoch, step and shard.

    The loss of a shard is divided by the sum of its own targets' scores, as that of a batch is.
    """
    import torch

    trained.train()
    step, total, steps = parallel.ShardedStep(trained, team), 0.0, _steps(train, recipe)
    order = np.random.default_rng([seed, epoch]).permutation(len(train.boxes))
    mosaic = epoch < recipe.epochs - recipe.close_mosaic
    for number, batch in enumerate(np.array_split(order, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch + number / steps, recipe)
        shards = np.array_split(batch, team.shards)

        def shard_loss(shard: int, number: int = number, shards: Any = shards) -> torch.Tensor:
            random = np.random.default_rng([seed, epoch, number, shard])
            augmented = [train.augmented(int(row), recipe, random, mosaic=mosaic) for row in shards[shard]]
            return _loss(
                network, trained, np.stack([pixels for pixels, _ in augmented]), [boxes for _, boxes in augmented]
            )

        total += step(shard_loss).item()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        average.update()
        shown.step()
    return total / len(train.boxes)


def _steps(train: Scenes, recipe: DetectionTrain) -> int:
    """Return the number of steps in an epoch."""
    return math.ceil(len(train.boxes) / recipe.batch_size)


def _size(pixels: Any) -> tuple[int, int]:
    return pixels.shape[2], pixels.shape[1]


def _loss(network: Detector, trained: torch.nn.Module, pixels: Any, boxes: list[Any]) -> torch.Tensor:
    import torch

    images, targets = torch.from_numpy(pixels).to(loop.device()), [torch.from_numpy(b) for b in boxes]
    mixed = images.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
        if trained is not network.network:
            return network.taught_loss(trained, images, targets)
        raw = network.raw(images)
    return network.loss(raw, targets, _size(pixels))


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches. A second thread makes each one while the previous one is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while batch := following.result():
            following = pool.submit(next, batches, None)
            yield batch


def _batches(train: Scenes, recipe: DetectionTrain, *, seed: int, epoch: int) -> Iterator[Batch]:
    """Yield every image once, augmented, in batches of nearly equal size."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(train.boxes))
    mosaic = epoch < recipe.epochs - recipe.close_mosaic
    for rows in np.array_split(order, math.ceil(len(order) / recipe.batch_size)):
        augmented = [train.augmented(int(row), recipe, random, mosaic=mosaic) for row in rows]
        yield np.stack([pixels for pixels, _ in augmented]), [boxes for _, boxes in augmented]


def _optimizer(trained: torch.nn.Module, recipe: DetectionTrain) -> torch.optim.Optimizer:
    """Return AdamW with one fused step, without weight decay for biases and normalisation."""
    import torch

    matrices = [p for p in trained.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in trained.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
