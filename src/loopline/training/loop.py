"""The training loop that the classifier and the text model share.

    loop.reproducible(seed)                                    # before the model is made
    key = checkpoint.fingerprint(settings.train, *loop.identity(train, val))
    history = loop.fit(model, data, val_data, settings.train, seed=seed, work=work, key=key, log=log)
    loop.write(out, model, history, config)                    # model.safetensors, history.csv, config.json
    checkpoint.forget(work)

`model(batch)` gives logits (n, classes); the splits come as `Data`. AdamW, one-cycle learning rate, early stopping on
the validation loss (the best weights come back in `model`), mixed precision where there is a GPU.

Order, dropout and augmentation of an epoch are functions of (seed, epoch) alone, so a training that resumes from its
checkpoint ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib import files
from loopline.training import checkpoint, parallel
from loopline.training.distillation import UNLABELLED, Taught
from loopline.training.parallel import Team
from loopline.training.progress_bar import Progress

if TYPE_CHECKING:
    import torch

    from loopline.data.manifest import Split
    from loopline.settings import ClassifierFit

    Tensors = Callable[[torch.Tensor], torch.Tensor]

WARM_UP = 0.15  # share of the steps in which the learning rate rises
LARGEST_GRADIENT = 1.0  # norm


@dataclass(frozen=True, kw_only=True)
class Data:
    """One split, as tensors.

    inputs: from int64 indices (b,) to the batch that the model takes. targets: int64 (n,) class indices, or UNLABELLED.
    augment: changes a batch, on the model's device, with torch's global random numbers; training only.
    lengths: (n,) or None; if set, samples of similar length share a batch, so that little of it is padding.
    evaluation_batch: samples in a batch without gradients. taught: what a teacher answers; training only.
    """

    inputs: Tensors
    targets: NDArray[np.int64]
    augment: Tensors | None = None
    lengths: NDArray[Any] | None = None
    evaluation_batch: int = 512
    taught: Taught | None = None


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def reproducible(seed: int) -> None:
    """Seed torch and allow deterministic algorithms only. Call it before the model is made."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    import torch

    # `use_deterministic_algorithms` does the same, but takes 2 s to import the compiler
    torch.set_deterministic_debug_mode("error")
    # Filling memory that is overwritten at once would take 8 % of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(seed)


def identity(*splits: Split) -> list[Any]:
    """What a checkpoint's key says of the data: each split's ids and targets. A corrected label starts a training anew."""
    return [part for split in splits for part in (split.ids, np.asarray(split.targets))]


def fit(
    model: torch.nn.Module,
    train: Data,
    val: Data,
    settings: ClassifierFit,
    *,
    seed: int,
    work: Path,
    key: str,
    log: Callable[[int, dict[str, float]], None],
) -> list[dict[str, float]]:
    """Train `model` in place and leave the weights of the epoch with the least validation loss in it.

    work: the checkpoint's folder, named after the model. A checkpoint with the same `key`, seed and tensor shapes is
    resumed; any other is replaced. With `train.shards`, `train.workers` processes share each batch, see `parallel`.
    log: called with each epoch and its metrics, first for the epochs that an earlier, killed process finished.
    Returns a row for each epoch: train_loss, val_loss, val_accuracy. Raises LooplineError if the loss is not a number.
    """

    def body(team: Team, log: parallel.Log) -> list[dict[str, float]]:
        return _fit(model, train, val, settings, team, seed=seed, work=work, key=key, log=log)

    return parallel.fit(body, log, workers=settings.workers, shards=settings.shards)


def _fit(
    model: torch.nn.Module,
    train: Data,
    val: Data,
    settings: ClassifierFit,
    team: Team,
    *,
    seed: int,
    work: Path,
    key: str,
    log: Callable[[int, dict[str, float]], None],
) -> list[dict[str, float]]:
    """Do what `fit` says, in one process of the team."""
    import torch

    model.to(device())
    key = checkpoint.fingerprint(key, seed, {name: list(tensor.shape) for name, tensor in model.state_dict().items()})
    optimizer = _optimizer(model, settings)
    scaler = torch.amp.GradScaler(device().type, enabled=_precision() is torch.float16)
    state = checkpoint.load(work, key, model=model, optimizer=optimizer, scaler=scaler)
    if team.size > 1 and team.leads and not state.epoch:  # all begin here again if another process is killed
        checkpoint.save(work, key, state, model=model, optimizer=optimizer, scaler=scaler)
    for epoch, row in enumerate(state.history if team.leads else [], 1):
        log(epoch, row)
    loss_of = _loss(model, train, settings)
    steps = _steps(train, settings)
    parallel.check(len(train.targets) // steps, team)
    if team.shards > 1 and scaler.is_enabled():
        raise LooplineError("train.shards: this GPU has no bfloat16, whose gradients need no scale: set shards to 1")
    shown = Progress(work.name, epochs=settings.epochs, steps=steps, done=state.epoch, silent=not team.leads)
    while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
        train_loss = _train_epoch(
            model, train, settings, loss_of, optimizer, scaler, team, seed=seed, epoch=state.epoch, shown=shown
        )
        state.epoch += 1
        row = {"train_loss": train_loss, **validate(model, val)}
        if not math.isfinite(row["train_loss"] + row["val_loss"]):
            raise LooplineError(
                f"the loss of epoch {state.epoch} is not a number: lower learning_rate ({settings.learning_rate})"
            )
        state.history.append(row)
        if row["val_loss"] < state.best_loss:
            state.best_loss, state.best_epoch = row["val_loss"], state.epoch
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if team.leads:
            checkpoint.save(work, key, state, model=model, optimizer=optimizer, scaler=scaler)
            shown.epoch(state.epoch, row)
            log(state.epoch, row)
    shown.close()
    model.load_state_dict(state.best)
    model.eval()
    return state.history


def predict(function: Tensors, data: Data) -> torch.Tensor:
    """Return `function` of every sample in order, without gradients: float32 (n, ...) on the CPU.

    It takes batches of `data.inputs`. Set the model to `eval()` first.
    """
    import torch

    lengths = np.zeros(len(data.targets)) if data.lengths is None else data.lengths
    order = torch.from_numpy(np.argsort(lengths, kind="stable"))
    with torch.inference_mode():
        chunks = torch.split(order, data.evaluation_batch)
        outputs = torch.cat([function(data.inputs(chunk).to(device())).float().cpu() for chunk in chunks])
        return outputs[torch.argsort(order)]


def write(out: Path, model: torch.nn.Module, history: list[dict[str, float]], config: dict[str, Any]) -> None:
    """Write `out/model.safetensors` (the state dict), `history.csv` and `config.json`, each whole or not at all."""
    from safetensors.torch import save

    lines = [",".join(["epoch", *history[0]])]
    lines += [f"{epoch}," + ",".join(f"{value:.6g}" for value in row.values()) for epoch, row in enumerate(history, 1)]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    contents = {
        "model.safetensors": save(tensors),
        "history.csv": "\n".join([*lines, ""]).encode(),
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for name, content in contents.items():
        files.write(out / name, content)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Return the learning rate at `step` of `steps`: by cosines from peak/25 up to peak, then down to nearly zero.

    Smith and Topin, "Super-convergence", 2018, with fast.ai's cosines.
    """
    top = WARM_UP * steps
    if step < top:
        return peak / 25 + (peak - peak / 25) * (1 - math.cos(math.pi * step / top)) / 2
    return peak * (1 + math.cos(math.pi * (step - top) / (steps - top))) / 2


def class_weights(targets: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Return n / (classes present * count) for each class, so that all weigh the same in sum; 1 for a class without samples."""
    counts = np.bincount(targets, minlength=classes)
    weights = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def _train_epoch(
    model: torch.nn.Module,
    train: Data,
    settings: ClassifierFit,
    loss_of: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    team: Team,
    *,
    seed: int,
    epoch: int,
    shown: Progress,
) -> float:
    """Train for one epoch and return the mean loss of its samples. epoch: number of the epochs before it."""
    import torch

    batches, steps = _batches(train, settings.batch_size, seed=seed, epoch=epoch), _steps(train, settings)
    taught, targets_of = train.taught, torch.from_numpy(train.targets)
    parallel.seed(seed, epoch)
    model.train()

    def loss_at(rows: torch.Tensor) -> torch.Tensor:
        inputs, targets = train.inputs(rows).to(device()), targets_of[rows].to(device())
        inputs = train.augment(inputs) if train.augment else inputs
        with torch.autocast(device().type, _precision(), enabled=_precision() is not torch.float32):
            logits = model(inputs)
            return taught.mixed(logits, rows, targets, loss_of) if taught else loss_of(logits, targets)

    def weight(rows: torch.Tensor) -> float:
        """What the mean loss of these samples counts in that of their batch."""
        weights: Any = loss_of.weight
        return float(len(rows) if weights is None or taught else weights.cpu()[targets_of[rows]].sum())

    sharded = parallel.ShardedStep(model, team)
    total = torch.zeros((), device=device())
    for number, indices in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(epoch * steps + number, settings.epochs * steps, settings.learning_rate)
        if team.shards > 1:
            loss = sharded.batch(indices, loss_at, weight, seeds=(seed, epoch, number))
        else:
            loss = loss_at(indices)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach() * len(indices)
        shown.step()
    return total.item() / len(train.targets)


def _steps(train: Data, settings: ClassifierFit) -> int:
    """Return the number of steps in an epoch."""
    return math.ceil(len(train.targets) / settings.batch_size)


def _loss(model: torch.nn.Module, train: Data, settings: ClassifierFit) -> torch.nn.Module:
    import torch

    weight = None
    if settings.class_weights:
        model.eval()
        with torch.inference_mode():
            classes = model(train.inputs(torch.zeros(1, dtype=torch.int64)).to(device())).shape[1]
        weight = torch.from_numpy(class_weights(train.targets[train.targets != UNLABELLED], classes))
    return torch.nn.CrossEntropyLoss(weight, label_smoothing=settings.label_smoothing).to(device())


def _optimizer(model: torch.nn.Module, settings: ClassifierFit) -> torch.optim.Optimizer:
    """Return AdamW, without weight decay for biases and normalisation, where it would only do harm."""
    import torch

    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _precision() -> torch.dtype:
    """Return bfloat16 on GPUs that have it, float16 on older ones, float32 on the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _batches(data: Data, size: int, *, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return every sample once, in ceil(n / size) batches of nearly equal size: a tiny last one would upset normalisation."""
    import torch

    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(data.targets))
    count = math.ceil(len(order) / size)
    if data.lengths is not None:  # neighbours have similar lengths and change from epoch to epoch
        order = order[np.argsort(data.lengths[order] * random.uniform(0.9, 1.1, len(order)), kind="stable")]
    parts = np.array_split(order, count)
    if data.lengths is not None:
        parts = [parts[number] for number in random.permutation(count)]
    return [torch.from_numpy(part) for part in parts]


def validate(model: torch.nn.Module, val: Data) -> dict[str, float]:
    """Return val_loss and val_accuracy."""
    import torch

    model.eval()
    logits, targets = predict(model, val), torch.from_numpy(val.targets)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    return {"val_loss": loss.item(), "val_accuracy": (logits.argmax(1) == targets).double().mean().item()}
