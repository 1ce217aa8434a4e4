"""Training in virtual shards, whose result does not depend on the number of processes.

    def body(team, log):                                       # runs in each process
        step = ShardedStep(model, team)
        loss = step(lambda shard: ...)                         # the loss of a part of the batch; gradients are then in the model

    run(body, log, workers=2, shards=4)

A batch is cut into a fixed number of shards. Each process computes those next to each other. What a shard gives (gradients, the
statistics of batch normalisation, the loss) is one vector, and the vectors are added by one fixed binary tree, so that the sum has
the same bits for 1, 2 or 4 processes. Each process then takes the same step. A shard has its own statistics of batch normalisation
(Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017); the running ones follow their mean.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from loopline.errors import LooplineError
from loopline.settings import LEAST_OF_A_SHARD

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Log = Callable[[int, dict[str, float]], None]
TRIES = 5  # starts of all processes, after one of them was killed
PATIENCE = timedelta(minutes=10)  # in which the slowest process must answer


@dataclass(frozen=True)
class Team:
    """The processes of a training, of which this is number `rank` of `size`."""

    rank: int = 0
    size: int = 1
    shards: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def own(self) -> range:
        """The shards of this process."""
        each = self.shards // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def total(self, vectors: list[torch.Tensor]) -> torch.Tensor:
        """Return the sum over all shards. vectors: of this process's shards, in order."""
        import torch

        mine = tree_sum(vectors)
        if self.size == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(parts, mine)
        return tree_sum(parts)


def tree_sum(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Add the first to the second, the third to the fourth, and so on, until one is left. Their number is a power of two."""
    while len(vectors) > 1:
        vectors = [vectors[place] + vectors[place + 1] for place in range(0, len(vectors), 2)]
    return vectors[0]


def seed(*parts: int) -> None:
    """Seed torch's random numbers with several numbers."""
    import torch

    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))


class ShardedStep:
    """Computes the gradients of a batch, shard by shard."""

    def __init__(self, model: torch.nn.Module, team: Team) -> None:
        """model: in training mode; its parameters and buffers are the same in each process."""
        from torch.nn.modules.batchnorm import _BatchNorm

        self.team = team
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.norms: list[Any] = [
            each
            for each in model.modules()
            if isinstance(each, _BatchNorm) and each.training and each.track_running_stats
        ]

    def batch(
        self,
        rows: torch.Tensor,
        loss_at: Callable[[torch.Tensor], torch.Tensor],
        weight: Callable[[torch.Tensor], float],
        *,
        seeds: tuple[int, ...],
    ) -> torch.Tensor:
        """Do what `__call__` does for a batch of rows that is cut into shards.

        loss_at: the mean loss of some rows. weight: what it counts in that of the batch. seeds: with the shard's number they seed
        dropout and augmentation.
        """
        import torch

        shards = torch.tensor_split(rows, self.team.shards)
        weights = [weight(shard) for shard in shards]

        def loss_of(shard: int) -> torch.Tensor:
            seed(*seeds, shard)
            return loss_at(shards[shard]) * (weights[shard] / sum(weights))

        return self(loss_of)

    def __call__(self, loss_of: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """Leave the batch's gradients in the parameters, and return its loss.

        loss_of: from the number of a shard to its part of the batch's loss, so that the sum over the shards is that of the batch.
        """
        before = [
            (norm.running_mean, norm.running_var, norm.momentum, norm.num_batches_tracked.clone())
            for norm in self.norms
        ]
        vectors = [self._shard(loss_of, shard) for shard in self.team.own]
        total = self.team.total(vectors)
        place = 0
        for parameter in self.parameters:
            parameter.grad = _shaped(total[place : place + parameter.numel()], parameter)
            place += parameter.numel()
        for norm, (mean, variance, momentum, count) in zip(self.norms, before, strict=True):
            norm.running_mean, norm.running_var, norm.momentum = mean, variance, momentum
            norm.num_batches_tracked.copy_(count + 1)  # not the number of shards of this process
            for running in (mean, variance):
                running.lerp_(total[place : place + running.numel()] / self.team.shards, momentum)
                place += running.numel()
        return total[-1]

    def _shard(self, loss_of: Callable[[int], torch.Tensor], shard: int) -> torch.Tensor:
        import torch

        for parameter in self.parameters:
            parameter.grad = None
        for norm in self.norms:
            # With this momentum the running statistics are those of the shard.
            norm.momentum = 1.0
            norm.running_mean, norm.running_var = (
                torch.zeros_like(norm.running_mean),
                torch.zeros_like(norm.running_var),
            )
        loss = loss_of(shard)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [
            _flat(torch.zeros_like(each) if each.grad is None else each.grad, each) for each in self.parameters
        ]
        statistics = [tensor for norm in self.norms for tensor in (norm.running_mean, norm.running_var)]
        return torch.cat([*gradients, *statistics, loss.detach().reshape(1)])


def _last(parameter: torch.Tensor) -> bool:
    """Whether a parameter's channels are last in memory: in another order, all of it would be copied twice a step."""
    import torch

    return (
        parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
    )


def _flat(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return (gradient.permute(0, 2, 3, 1) if _last(parameter) else gradient).reshape(-1)


def _shaped(flat: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not _last(parameter):
        return flat.view_as(parameter)
    n, c, h, w = parameter.shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)


def check(samples: int, team: Team) -> None:
    """Raise LooplineError if a batch has too few samples for its shards. samples: of the smallest batch."""
    if team.shards > 1 and samples < LEAST_OF_A_SHARD * team.shards:
        raise LooplineError(
            f"train.shards: a batch of {samples} samples cannot have {team.shards} shards: give fewer shards"
        )


def fit(body: Callable[[Team, Log], T], log: Log, *, workers: int, shards: int) -> T:
    """Run `body` in `workers` processes, then here, where it finds the finished training in its checkpoint, and return its result."""
    if workers > 1:
        run(body, log, workers=workers, shards=shards)
        return body(Team(shards=shards), lambda *_: None)
    return body(Team(shards=shards), log)


def run(body: Callable[[Team, Log], object], log: Log, *, workers: int, shards: int) -> None:
    """Run `body` in `workers` processes. What the first of them logs, this process logs.

    If one is killed, all begin again: `body` must continue from its checkpoint, and leave its result there. Raises LooplineError if
    the processes die again and again, or with the message of a LooplineError in `body`.
    """
    import torch

    if torch.cuda.is_available() or torch.get_num_threads() > 1:
        raise LooplineError(
            "train.workers: several processes train on the CPU only, with OMP_NUM_THREADS=1: set workers to 1"
        )
    logged = 0
    for _ in range(TRIES):
        with _processes(body, workers, shards) as (processes, messages):
            while (message := _next(processes, messages)) is not None:
                kind, content = message
                if kind == "done":
                    return
                if kind == "failed":
                    raise LooplineError(content)
                epoch, row = content
                if epoch > logged:
                    log(epoch, row)
                    logged = epoch
    raise LooplineError(
        f"a process of this training died {TRIES} times, perhaps for its memory; what it printed is above"
    )


@contextmanager
def _processes(body: Callable[[Team, Log], object], workers: int, shards: int) -> Iterator[tuple[list[Any], Any]]:
    """Fork the processes, and end them. Yields them, and the connection to the first one.

    All are forked, and this process computes no gradient, because torch allows no gradient after a fork in which the parent had one.
    """
    forking = multiprocessing.get_context("fork")  # imports and data are shared
    receiving, sending = forking.Pipe(duplex=False)
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="loopline-team-") as folder:
        teams = [Team(rank, workers, shards) for rank in range(workers)]
        processes = [
            forking.Process(target=_process, args=(body, team, f"file://{folder}/meeting", sending), daemon=True)
            for team in teams
        ]
        try:
            for process in processes:
                process.start()
            sending.close()
            yield processes, receiving
        finally:
            for process in processes:
                if process.pid:
                    process.kill()
                    process.join()
            receiving.close()


def _next(processes: list[Any], messages: Any) -> tuple[str, Any] | None:
    """Wait for a message; None if a process has died."""
    while not messages.poll(0):
        multiprocessing.connection.wait([messages, *(each.sentinel for each in processes if each.exitcode is None)])
        if messages.poll(0):
            break
        if any(process.exitcode for process in processes):
            return None
    try:
        message: tuple[str, Any] = messages.recv()
    except EOFError:
        return None
    return message


def _follow() -> None:
    """End this process when its parent has ended, by whatever."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _process(body: Callable[[Team, Log], object], team: Team, meeting: str, messages: Any) -> None:
    """The whole life of a process. It ends without what its parent does at its exit."""
    import torch

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if Path("/sys/class/net/lo").exists() else "lo0")
    send = messages.send if team.leads else lambda _: None
    threading.Thread(target=_follow, daemon=True).start()
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=team.rank, world_size=team.size, timeout=PATIENCE
        )
        body(team, lambda epoch, row: send(("row", (epoch, row))))
        send(("done", None))
    except (LooplineError, OSError) as error:  # such as a full disk
        send(("failed", str(error)))
    except KeyboardInterrupt:  # its parent was interrupted, too
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
