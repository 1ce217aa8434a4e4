"""The files that a plan is made from: a measured profile, the traffic and a price table. No price is in the code."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator

from loopline.errors import LooplineError
from loopline.settings import Strict

WEEK = 168  # hours
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_BYTES = 1 << 20  # largest size of any of these files
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Read = TypeVar("Read", bound=Strict)


class Memory(Strict):
    """MiB of a server with only this bundle. growth: private memory that loading and running the model added; file: model.onnx."""

    private: Positive
    resident: Positive
    growth: Amount
    file: Positive


class Profile(Strict):
    """One bundle on one core, as `loopline profile` measured it.

    starts: seconds from a process's start to its first right answer. batches: seconds until all are answered, by the number of
    requests sent together. spread: (share of requests, seconds above the typical one) of single requests. engines: rows a second
    of one process, by the number of processes that run at once with a core each.
    """

    schema_: Literal[1] = Field(alias="schema")
    model: str
    version: str
    processor: str
    starts: tuple[Positive, ...] = Field(min_length=1)
    batches: dict[int, Positive] = Field(min_length=1)
    spread: tuple[tuple[Amount, Amount], ...] = Field(min_length=1)
    engines: dict[int, Positive] = Field(min_length=1)
    memory: Memory
    rounds: int = Field(ge=1)
    load_average: Amount

    @model_validator(mode="after")
    def _whole(self) -> Profile:
        if 1 not in self.batches or 1 not in self.engines or min(self.batches) < 1 or min(self.engines) < 1:
            raise ValueError("batches and engines must have the entry 1, and none below")
        if max(self.batches) > 1024:
            raise ValueError("batches must have no entry above 1024")
        if abs(sum(weight for weight, _ in self.spread) - 1) > 1e-6:
            raise ValueError("the shares of spread must add up to 1")
        return self

    def efficiency(self, processes: int) -> float:
        """The speed of a process among `processes` on as many cores, as a share of its speed alone.

        Between and beyond the measured numbers of processes, the next smaller one counts.
        """
        measured = max(count for count in self.engines if count <= processes)
        return min(1.0, self.engines[measured] / self.engines[1])


class Machine(Strict):
    """A machine that is paid by the hour, used or not. speed: that of its cores, as a multiple of the profiled ones'."""

    vcpu: int = Field(ge=1)
    memory_gib: Positive
    per_hour: Amount
    speed: Positive = 1.0


class Serverless(Strict):
    """A service that scales to zero, in instances of one core. start_seconds: time that the platform adds to a cold start.

    bills: `uptime` charges instances until `idle_seconds` after their last request; `requests` charges the requests' own time, each
    rounded up to whole `rounding_seconds`.
    """

    bills: Literal["uptime", "requests"]
    memory_gib: Positive
    per_second: Amount
    per_million_requests: Amount
    idle_seconds: Amount
    start_seconds: Amount
    rounding_seconds: Positive = 0.001
    speed: Positive = 1.0


class Prices(Strict):
    """The price table that the user edits: docs/capacity.md."""

    currency: str = Field(min_length=1, max_length=8)
    machines: dict[str, Machine] = Field(min_length=1)
    serverless: dict[str, Serverless] = Field(default={})

    @model_validator(mode="after")
    def _once(self) -> Prices:
        if both := self.machines.keys() & self.serverless.keys():
            raise ValueError(f"{', '.join(sorted(both))}: a name may stand in one row only: rename the other row")
        return self


class Shape(Strict):
    """A traffic file: `rate` alone, or `base` outside and `peak` inside `hours` (from-to, 24-hour) on `days` (from-to)."""

    rate: Amount | None = None
    base: Amount | None = None
    peak: Amount | None = None
    hours: str | None = None
    days: str = "mon-sun"

    @field_validator("hours", "days")
    @classmethod
    def _span(cls, text: str | None) -> str | None:
        if text is not None and text.count("-") != 1:
            raise ValueError("write it as from-to, e.g. 9-18 or mon-fri")
        return text

    @model_validator(mode="after")
    def _one_form(self) -> Shape:
        shaped = [self.base, self.peak, self.hours]
        if (self.rate is None) == (None in shaped) or (self.rate is not None and shaped != [None] * 3):
            raise ValueError("give either `rate`, or all of `base`, `peak` and `hours`")
        return self

    def week(self) -> NDArray[np.float64]:
        """The requests a second in each hour of the week, from Monday 00:00: (168,)."""
        if self.rate is not None:
            return np.full(WEEK, self.rate)
        assert self.hours is not None, "`_one_form` demands it if there is no rate"
        try:
            first, last = (int(hour) for hour in self.hours.split("-"))
            since, until = (DAYS.index(day.strip().lower()) for day in self.days.split("-"))
        except ValueError as error:
            raise LooplineError(f"hours: {self.hours}, days: {self.days}: write 9-18 and mon-fri") from error
        if not (0 <= first <= 24 and 0 <= last <= 24 and first != last):
            raise LooplineError(f"hours: {self.hours}: write two different hours from 0 to 24")
        clock, day = np.arange(WEEK) % 24, np.arange(WEEK) // 24
        # A span from a later to an earlier hour or day goes over midnight or Sunday.
        busy = (clock >= first) & (clock < last) if first < last else (clock >= first) | (clock < last)
        at_work = (day >= since) & (day <= until) if since <= until else (day >= since) | (day <= until)
        rates: NDArray[np.float64] = np.where(busy & at_work, float(self.peak or 0), float(self.base or 0))
        return rates


def profile(path: Path) -> Profile:
    """Read a measured profile. Raises LooplineError."""
    return _read(path, Profile, "measure one with `loopline profile BUNDLE`")


def prices(path: Path) -> Prices:
    """Read the price table. Raises LooplineError."""
    return _read(path, Prices, "serving/prices.example.yaml shows the format")


def traffic(path: Path) -> NDArray[np.float64]:
    """Read the requests a second in each hour of the week, from Monday 00:00: (168,). Raises LooplineError.

    A YAML file is a `Shape`; a CSV has the columns `hour` (0 to 167 of the week, or 0 to 23 of every day) and
    `requests_per_second`.
    """
    if path.suffix != ".csv":
        return _read(path, Shape, "docs/capacity.md shows the forms").week()
    try:
        rows = list(csv.DictReader(_text(path).splitlines()))
        by_hour = {int(row["hour"]): float(row["requests_per_second"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise LooplineError(
            f"{path}: it needs the columns hour and requests_per_second, all numbers: {error!r}"
        ) from error
    if len(by_hour) != len(rows) or sorted(by_hour) not in (list(range(24)), list(range(WEEK))):
        raise LooplineError(f"{path}: hours must be each of 0 to 23 or each of 0 to {WEEK - 1}, once")
    rates = np.array([by_hour[hour] for hour in sorted(by_hour)])
    if not np.isfinite(rates).all() or rates.min() < 0:
        raise LooplineError(f"{path}: requests_per_second must be 0 or more")
    return np.resize(rates, WEEK)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise LooplineError(
                f"{path} has more than {MOST_BYTES >> 20} MiB, which no profile, traffic or price table has"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LooplineError(f"{path} cannot be read: {error}") from error


def _read(path: Path, kind: type[Read], advice: str) -> Read:
    try:
        content: Any = yaml.safe_load(_text(path))  # a JSON file is YAML too
        return kind.model_validate(content)
    except yaml.YAMLError as error:
        raise LooplineError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        details = "\n".join(
            f"  {'.'.join(map(str, detail['loc'])) or 'the file'}: {detail['msg']}" for detail in error.errors()[:8]
        )
        raise LooplineError(f"{path}: {advice}\n{details}") from error
