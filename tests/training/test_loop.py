"""The training loop is reproducible, can be resumed, stops early and weighs classes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.errors import LooplineError
from loopline.tasks.classification.parameters import ClassificationTrain
from loopline.training import checkpoint, loop

SETTINGS = ClassificationTrain(
    epochs=5, patience=5, batch_size=16, learning_rate=0.01, width=4, weight_decay=0.01, label_smoothing=0.05,
    class_weights=True, rotate=0, shift=0, scale=0, flip=False, erase=0,
)  # fmt: skip


def clouds(*, n: int, seed: int, flipped: bool = False, share: float = 0.5, kill_at: int | None = None) -> loop.Data:
    """Return two overlapping clouds of points. Augmentation adds noise, and kills the process at its `kill_at`-th batch."""
    random = np.random.default_rng(seed)
    targets = (random.random(n) < share).astype(np.int64)
    points = torch.from_numpy((random.normal(size=(n, 6)) + targets[:, None] * 1.0).astype(np.float32))
    calls = iter(range(10_000))

    def augment(batch: torch.Tensor) -> torch.Tensor:
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch + torch.randn_like(batch) * 0.1

    return loop.Data(inputs=lambda rows: points[rows], targets=1 - targets if flipped else targets, augment=augment)


def train(
    work: Path,
    settings: ClassificationTrain = SETTINGS,
    *,
    seed: int = 0,
    data: loop.Data | None = None,
    val: loop.Data | None = None,
    logged: list[int] | None = None,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train a small network with batch normalisation and dropout; return its weights and history."""
    loop.reproducible(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2)
    )
    history = loop.fit(
        model, data or clouds(n=150, seed=1), val or clouds(n=60, seed=2), settings,
        seed=seed, work=work, key="clouds", log=lambda epoch, _: (logged if logged is not None else []).append(epoch),
    )  # fmt: skip
    return model.state_dict(), history


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    first, history = train(tmp_path / "a")
    second, again = train(tmp_path / "b")
    other, _ = train(tmp_path / "c", seed=1)
    assert same(first, second)
    assert history == again
    assert not same(first, other)


def test_a_training_killed_in_the_middle_of_an_epoch_resumes_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    uninterrupted, history = train(tmp_path / "uninterrupted")
    code = (  # ten batches an epoch: the 34th is in the fourth
        "from pathlib import Path; import test_loop as t; "
        f"t.train(Path({str(tmp_path / 'killed')!r}), data=t.clouds(n=150, seed=1, kill_at=34))"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert killed.returncode == -signal.SIGKILL
    logged: list[int] = []
    resumed, resumed_history = train(tmp_path / "killed", logged=logged, data=clouds(n=150, seed=1, kill_at=21))
    assert same(uninterrupted, resumed), "the 21st batch of the resumed process was never reached: two epochs were left"
    assert resumed_history == history
    assert logged == [1, 2, 3, 4, 5], "the curve of the new run is complete"


@pytest.mark.parametrize("change", [{"epochs": 6}, {"learning_rate": 0.02}])
def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path: Path, change: dict[str, float]) -> None:
    data = clouds(n=150, seed=1)
    logged: list[int] = []
    for recipe in (SETTINGS, SETTINGS.model_copy(update=change)):
        key = checkpoint.fingerprint(recipe, ["id"])
        logged.clear()
        loop.fit(
            torch.nn.Linear(6, 2), data, data, recipe,
            seed=0, work=tmp_path, key=key, log=lambda epoch, _: logged.append(epoch),
        )  # fmt: skip
        assert logged == list(range(1, recipe.epochs + 1))
    assert checkpoint.load(tmp_path, "no such key").epoch == 0


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"key": "k", "state": os.system}, tmp_path / checkpoint.NAME)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.load(tmp_path, "k")


def test_training_stops_when_validation_gets_worse_and_returns_the_best_weights(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 40, "patience": 3})
    contrary = clouds(n=60, seed=2, flipped=True)
    weights, history = train(tmp_path, settings, val=contrary)
    losses = [row["val_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + settings.patience < settings.epochs
    kept = checkpoint.load(tmp_path, _key(tmp_path))
    assert kept.best_epoch == best + 1
    assert same(weights, kept.best)


def _key(work: Path) -> str:
    return str(torch.load(work / checkpoint.NAME, weights_only=True)["key"])


def test_class_weights_find_more_of_a_rare_class(tmp_path: Path) -> None:
    data, val = clouds(n=400, seed=1, share=0.06), clouds(n=400, seed=2, share=0.06)
    recall = {}
    for weighted in (True, False):
        settings = SETTINGS.model_copy(update={"class_weights": weighted})
        loop.reproducible(0)
        model = torch.nn.Linear(6, 2)
        loop.fit(model, data, val, settings, seed=0, work=tmp_path / str(weighted), key="", log=lambda *_: None)
        predicted = loop.predict(model, val).argmax(1).numpy()
        recall[weighted] = (predicted[val.targets == 1] == 1).mean()
    assert recall[True] > recall[False] + 0.2


def test_with_class_weights_every_class_has_the_same_total_weight() -> None:
    targets = np.array([0] * 6 + [2] * 2)
    weights = loop.class_weights(targets, 4)
    assert weights.tolist() == pytest.approx([8 / 12, 1, 2, 1])


def test_a_loss_that_is_not_a_number_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    data = clouds(n=32, seed=1)
    broken = loop.Data(inputs=lambda rows: data.inputs(rows) * float("nan"), targets=data.targets)
    with pytest.raises(LooplineError, match="lower learning_rate"):
        train(tmp_path, data=broken)


def test_predictions_come_in_the_order_of_the_samples_whatever_their_lengths() -> None:
    values = torch.arange(10.0)
    lengths = np.random.default_rng(0).integers(1, 5, 10)
    data = loop.Data(inputs=lambda rows: values[rows], targets=np.zeros(10, np.int64), lengths=lengths)
    assert loop.predict(lambda batch: batch * 2, data).tolist() == (values * 2).tolist()


@settings(deadline=None)
@given(n=st.integers(1, 200), size=st.integers(1, 64), epoch=st.integers(0, 5), by_length=st.booleans())
def test_an_epoch_has_every_sample_once_in_batches_of_nearly_one_size(
    n: int, size: int, epoch: int, by_length: bool
) -> None:
    lengths = np.arange(n) % 7 if by_length else None
    data = loop.Data(inputs=lambda rows: rows, targets=np.zeros(n, np.int64), lengths=lengths)
    batches = loop._batches(data, size, seed=3, epoch=epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(steps=st.integers(5, 500), peak=st.floats(1e-5, 1))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_nothing(steps: int, peak: float) -> None:
    rates = [loop.one_cycle(step, steps, peak) for step in range(steps)]
    top = int(np.argmax(rates))
    assert all(0 < rate <= peak for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < peak
