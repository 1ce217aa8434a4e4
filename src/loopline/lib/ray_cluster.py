"""Join a Ray cluster: that of RAY_ADDRESS, or one on this machine for as long as a block lasts. Only this module imports Ray.

A local Ray listens on every network interface, whatever address it is given. So it gets a random token, without which nobody can use
it. A cluster's own settings decide who may use that one.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from loopline.errors import LooplineError

TRIES = (
    3  # on a busy machine Ray gives up after 15 s, see https://github.com/ray-project/ray: `raylet_start_wait_time_s`
)
REACH_SECONDS = 10.0
ADDRESS, MODE, TOKEN = "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


@contextmanager
def joined(cpus: int) -> Iterator[Any]:
    """Yield the module `ray` while connected. cpus: of a local cluster.

    Raises LooplineError if Ray is not installed, does not start, or the cluster cannot be used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", "2")  # else a task that is too large is repeated for ever
    if not os.environ.get(ADDRESS):
        os.environ.setdefault(MODE, "token")
        if os.environ[MODE] == "token":
            os.environ.setdefault(TOKEN, secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise LooplineError("--engine ray needs Ray: make ray, or pip install 'loopline[ray]'") from error
    if ray.is_initialized():  # by the program that calls this
        yield ray
        return
    _connect(ray, cpus)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, cpus: int) -> None:
    address = os.environ.get(ADDRESS)
    if address:
        try:
            _reach(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # a wrong address, another version, a wrong token: they have no common base
            raise LooplineError(
                f"the Ray cluster at {ADDRESS}={address} cannot be used: {_line(error.__cause__ or error)}"
            ) from error
        return
    before, reason = _descendants(), ""
    for _ in range(TRIES):
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            reason = _line(error)
            ray.shutdown()
            _kill(_descendants() - before)  # Ray leaves some of its processes behind
        else:
            return
    raise LooplineError(f"Ray does not start on this machine, in {TRIES} tries: {reason}")


def _reach(address: str) -> None:
    """Raise OSError at once if nothing listens at HOST:PORT, for which Ray would wait a minute."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _descendants() -> set[Any]:
    import psutil

    return set(psutil.Process().children(recursive=True))


def _kill(processes: set[Any]) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
