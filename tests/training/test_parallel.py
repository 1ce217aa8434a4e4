"""Training in shards: the number of processes changes no bit, and neither do kills."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from loopline import settings
from loopline.errors import LooplineError
from loopline.training import parallel
from loopline.training.parallel import ShardedStep, Team, tree_sum

SCRIPT = Path(__file__).with_name("sharded.py")
SHAPES = SCRIPT.parents[1] / "tasks/shapes.py"  # a project without detection does not have it
TASKS = ("classification", "text", *(["detection"] if SHAPES.exists() else []))


def train(*lines, code=0):
    """Run trainings, each given as TASK,FOLDER,WORKERS[,kill|stop,EPOCH]."""
    done = subprocess.run([sys.executable, SCRIPT, *lines], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr


def bits(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "train").iterdir()}


@pytest.mark.parametrize("name", TASKS)
def test_weights_have_the_same_bits_for_any_number_of_processes_and_after_kills(tmp_path, name):
    runs = {"killed": "2,kill,1", "late": "4,kill,2", "two": "2", "four": "4", "one": "1"}
    train(*(f"{name},{tmp_path / folder},{words}" for folder, words in runs.items()))
    expected = bits(tmp_path / "one")
    assert "model.safetensors" in expected
    for folder in runs:
        assert bits(tmp_path / folder) == expected, folder


def test_a_training_that_stopped_goes_on_with_another_number_of_processes(tmp_path):
    train(f"text,{tmp_path / 'moved'},2,stop,2", code=9)
    (path,) = (tmp_path / "moved").rglob("checkpoint.pt")
    assert torch.load(path, weights_only=True)["state"]["epoch"] == 2
    train(f"text,{tmp_path / 'moved'},4", f"text,{tmp_path / 'whole'},1")
    assert bits(tmp_path / "moved") == bits(tmp_path / "whole")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))


def test_without_normalisation_the_gradients_are_those_of_the_whole_batch():
    whole = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    inputs, targets = torch.randn(20, 12, dtype=torch.float64), torch.arange(20) % 3
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    loss_of = nn.CrossEntropyLoss(weight, label_smoothing=0.1)
    loss = loss_of(whole(inputs), targets)
    loss.backward()
    expected = [parameter.grad.clone() for parameter in whole.parameters()]
    rows = torch.tensor_split(torch.arange(20), 4)
    sums = [weight[targets[part]].sum() for part in rows]
    step = ShardedStep(whole, Team(shards=4))
    found = step(lambda shard: loss_of(whole(inputs[rows[shard]]), targets[rows[shard]]) * sums[shard] / sum(sums))
    assert found == pytest.approx(loss.item())
    for parameter, gradient in zip(whole.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_running_statistics_follow_the_mean_of_the_shards_once_a_step(memory):
    model = network().train().to(memory_format=memory)
    inputs = torch.randn(16, 3, 6, 6)
    rows = torch.tensor_split(torch.arange(16), 4)
    norm = model[1]
    live = norm.running_mean
    means = torch.stack([model[0](inputs[part]).detach().mean((0, 2, 3)) for part in rows]).mean(0)
    ShardedStep(model, Team(shards=4))(lambda shard: model(inputs[rows[shard]]).sum())
    assert norm.running_mean is live  # others hold it: an average of the weights, an optimizer
    assert torch.allclose(live, 0.1 * means, atol=1e-6)
    assert int(norm.num_batches_tracked) == 1
    assert norm.momentum == 0.1
    assert model[0].weight.grad.is_contiguous(memory_format=memory)


def test_a_frozen_normalisation_keeps_its_statistics():
    model = network().train()
    frozen = nn.BatchNorm2d(3).eval()
    frozen.running_mean.fill_(0.5)
    inputs = torch.randn(16, 3, 6, 6)
    rows = torch.tensor_split(torch.arange(16), 4)
    seen = []
    ShardedStep(nn.Sequential(frozen, model), Team(shards=4))(
        lambda shard: (seen.append(frozen.running_mean.clone()), model(frozen(inputs[rows[shard]])).sum())[1]
    )
    assert all(torch.equal(each, torch.full((3,), 0.5)) for each in [*seen, frozen.running_mean])


def test_the_sum_is_a_fixed_tree():
    random = np.random.default_rng(0)
    vectors = [torch.from_numpy(random.normal(size=1000).astype(np.float32) * 10.0**exponent) for exponent in range(8)]
    halves = [tree_sum(vectors[:4]), tree_sum(vectors[4:])]
    assert torch.equal(tree_sum(vectors), tree_sum(halves))
    assert not torch.equal(tree_sum(vectors), sum(vectors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shards": 3}, "shards must be 1, 2, 4, 8"),
        ({"shards": 4, "workers": 3}, "workers must be 1, 2, 4, 8"),
        ({"shards": 2, "workers": 4}, "4 processes cannot share 2 shards"),
        ({"shards": 64}, "a batch of 64 is too small"),
    ],
)
def test_impossible_shards_are_refused_with_the_reason(change, words):
    _, model = settings.model("classifier", Path(__file__).parents[1] / "params.yaml")
    with pytest.raises(ValueError, match=words):
        type(model.train).model_validate(model.train.model_dump() | change)


def test_more_shards_than_samples_are_an_error():
    with pytest.raises(LooplineError, match="a batch of 3 samples cannot have 4 shards"):
        parallel.check(3, Team(shards=4))


def test_processes_that_die_each_time_end_the_training_with_a_message(tmp_path):
    code = (
        "import os\nfrom loopline.training import parallel\n"
        "parallel.run(lambda team, log: os.kill(os.getpid(), 9), print, workers=2, shards=2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "a process of this training died 5 times" in done.stderr


def test_an_error_of_the_training_has_its_own_message(tmp_path):
    code = (
        "from loopline.errors import LooplineError\nfrom loopline.training import parallel\n"
        "def body(team, log): raise LooplineError('the loss is not a number')\n"
        "try: parallel.run(body, print, workers=2, shards=2)\n"
        "except LooplineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "the loss is not a number\n"


def test_the_number_of_workers_is_no_part_of_what_made_a_model():
    from loopline.stages import stage_files

    _, model = settings.model("classifier", Path(__file__).parents[1] / "params.yaml")
    many = model.model_copy(update={"train": model.train.model_copy(update={"shards": 4, "workers": 4})})
    one = model.model_copy(update={"train": model.train.model_copy(update={"shards": 4})})
    assert stage_files.parameters(0, many) == stage_files.parameters(0, one) != stage_files.parameters(0, model)
