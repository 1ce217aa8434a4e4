"""The decision log, `decisions/log.jsonl`: append-only, with one JSON line for each decision, its reasons and its evidence.

This file alone answers which version was champion at 14:05. It is small and belongs in git. `LOOPLINE_DECISIONS` names another
file.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loopline.errors import LooplineError

SCHEMA_VERSION = 1
DEFAULT = Path("decisions/log.jsonl")


@dataclass(frozen=True, kw_only=True)
class DecisionRecord:
    """One decision.

    action: `promote`, `refuse`, `rollback`, or `fail` if the registry could not be changed. A retraining adds `accept` before its
    rollout begins; a rollout adds `shadow` and `canary` when the challenger has passed them. bundle: version that the decision is
    about. champion: version that is champion from now on, or None. evidence: hashes and figures behind the decision.
    time: UTC, ISO 8601 with microseconds, ending in Z.
    """

    model: str
    action: str
    bundle: str
    champion: str | None
    reasons: tuple[str, ...]
    evidence: dict[str, Any] = field(default_factory=dict)
    time: str
    actor: str

    def __str__(self) -> str:
        """Return the text that `loopline release history` prints."""
        champion = f"{self.champion:.12}" if self.champion else "none"
        head = f"{self.time[:19]}Z {self.model}: {self.action} {self.bundle:.12} by {self.actor}, champion {champion}"
        return "\n  ".join([head, *self.reasons])


@dataclass(frozen=True)
class DecisionLog:
    """The content of the log. damaged: numbers of the lines that cannot be read, e.g. because a writer was killed."""

    records: tuple[DecisionRecord, ...]
    damaged: tuple[int, ...]


def path() -> Path:
    """Return the path of the log."""
    return Path(os.environ.get("LOOPLINE_DECISIONS") or DEFAULT)


def actor() -> str:
    """Return who decides: `LOOPLINE_ACTOR`, the user of the CI, or the user who is logged in."""
    name = os.environ.get("LOOPLINE_ACTOR") or os.environ.get("GITHUB_ACTOR")
    try:
        return name or getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def stamp(moment: datetime) -> str:
    """Format a time as in the log: UTC, microseconds, Z. Stamps sort in the order of their times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> datetime:
    """Parse a time in ISO 8601, local if it has no zone. Raises LooplineError if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise LooplineError(
            f"{text!r} is not a time: write it like 2026-11-21T14:05, with +01:00 or Z if it is not local"
        ) from error


def append(
    model: str,
    action: str,
    *,
    bundle: str,
    champion: str | None,
    reasons: Iterable[str],
    evidence: dict[str, Any] | None = None,
    to: Path | None = None,
) -> DecisionRecord:
    """Append a decision to the log and return it when it is on the disk. Writers wait for each other."""
    to = to or path()
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record = DecisionRecord(
            model=model,
            action=action,
            bundle=bundle,
            champion=champion,
            reasons=tuple(reasons),
            evidence=evidence or {},
            time=stamp(datetime.now(UTC)),  # under the lock: the lines are in order of time
            actor=actor(),
        )
        line = json.dumps({"schema": SCHEMA_VERSION, **asdict(record)}, ensure_ascii=False, allow_nan=False) + "\n"
        file.write(_end_of_last_line(file) + line.encode())
        file.flush()
        os.fsync(file.fileno())
    return record


def _end_of_last_line(file: Any) -> bytes:
    """Return the line break that the file lacks if its last writer was killed in mid-line; empty if the file is complete."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read() == b"\n" else b"\n"


def read(source: Path | None = None) -> DecisionLog:
    """Return all decisions in the order of time, none if the file is missing. An unreadable line is reported as damaged.

    Raises LooplineError on a line of another schema.
    """
    source = source or path()
    records, damaged = [], []
    lines = source.read_bytes().split(b"\n") if source.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            schema = content.pop("schema")
            if schema != SCHEMA_VERSION:
                raise LooplineError(f"{source}, line {number}: schema {schema}, this version reads {SCHEMA_VERSION}")
            records.append(DecisionRecord(**content | {"reasons": tuple(content["reasons"])}))
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged.append(number)
    records.sort(key=lambda record: record.time)  # a merge of two branches may have shuffled them
    return DecisionLog(tuple(records), tuple(damaged))


def champions(records: Iterable[DecisionRecord], *, at: datetime | None = None) -> dict[str, DecisionRecord]:
    """Return for each model that had a champion at that time (default: now) the decision that made it champion."""
    champion_of: dict[str, DecisionRecord] = {}
    for record in records:
        if at is not None and record.time > stamp(at):
            continue
        if record.champion is None:
            champion_of.pop(record.model, None)
        elif record.model not in champion_of or champion_of[record.model].champion != record.champion:
            champion_of[record.model] = record
    return champion_of


def previous(records: Iterable[DecisionRecord], model: str) -> str | None:
    """Return the champion before the present one, to roll back to. Versions that were rolled back themselves are skipped."""
    history: list[str] = []
    for record in records:
        if record.model != model:
            continue
        if record.action in ("rollback", "fail"):
            while history and history[-1] != record.champion:
                history.pop()
        elif record.champion is not None and history[-1:] != [record.champion]:
            history.append(record.champion)
    return history[-2] if len(history) > 1 else None


def withdrawn(records: Iterable[DecisionRecord], model: str, bundle: str) -> str | None:
    """Return when and why this bundle was last rolled back; None if it never was."""
    rollbacks = [r for r in records if (r.model, r.action, r.evidence.get("withdrawn")) == (model, "rollback", bundle)]
    return f"{rollbacks[-1].time[:19]}Z, {'; '.join(rollbacks[-1].reasons)}" if rollbacks else None
