"""The decision log, `decisions/log.jsonl`: append-only, one JSON line a decision, with its reasons and its evidence.

"What was champion at 14:05?" is a question to this file alone. It is small and belongs in git; `LOOPLINE_DECISIONS`
names another file.
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

    action: `promote`, `refuse`, `rollback`, or `fail` where the registry could not be changed; of a retraining also `accept`, before
    its rollout begins; of a rollout also `shadow` and `canary`, for what passed them. bundle: the version that
    it is about. champion: the version that is champion from now on, or None. evidence: hashes and figures it rests on.
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
        """As `loopline release history` prints it."""
        champion = f"{self.champion:.12}" if self.champion else "none"
        head = f"{self.time[:19]}Z {self.model}: {self.action} {self.bundle:.12} by {self.actor}, champion {champion}"
        return "\n  ".join([head, *self.reasons])


@dataclass(frozen=True)
class DecisionLog:
    """What the file says. damaged: the numbers of the lines that a killed writer or an editor left unreadable."""

    records: tuple[DecisionRecord, ...]
    damaged: tuple[int, ...]


def path() -> Path:
    """Where the log is."""
    return Path(os.environ.get("LOOPLINE_DECISIONS") or DEFAULT)


def actor() -> str:
    """Who decides: `LOOPLINE_ACTOR`, the CI's user, or the one who is logged in."""
    named = os.environ.get("LOOPLINE_ACTOR") or os.environ.get("GITHUB_ACTOR")
    try:
        return named or getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return f"uid {os.getuid()}"


def stamp(moment: datetime) -> str:
    """As the log writes times: UTC, microseconds, Z. Two stamps compare as their moments do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> datetime:
    """A time as a person writes it: ISO 8601; without a zone it is local time. Raises LooplineError."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise LooplineError(
            f"{text!r} is not a time: write 2026-11-21T14:05, with +01:00 or Z if it is not local"
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
    """Write one decision, and return only when it is on the disk. Writers wait for each other."""
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
    """What a writer that was killed in mid-line left out: a line's end, so that the next line stands alone."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read() == b"\n" else b"\n"


def read(source: Path | None = None) -> DecisionLog:
    """Every decision in order of time; a missing file has none. A line that is no record is damaged, not fatal.

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
    """For each model that had a champion then (default: now), the decision that made it so."""
    found: dict[str, DecisionRecord] = {}
    for record in records:
        if at is not None and record.time > stamp(at):
            continue
        if record.champion is None:
            found.pop(record.model, None)
        elif record.model not in found or found[record.model].champion != record.champion:
            found[record.model] = record
    return found


def previous(records: Iterable[DecisionRecord], model: str) -> str | None:
    """The champion to go back to: the one before the present one. What was rolled back is not gone back to."""
    pile: list[str] = []
    for record in records:
        if record.model != model:
            continue
        if record.action in ("rollback", "fail"):
            while pile and pile[-1] != record.champion:
                pile.pop()
        elif record.champion is not None and pile[-1:] != [record.champion]:
            pile.append(record.champion)
    return pile[-2] if len(pile) > 1 else None


def withdrawn(records: Iterable[DecisionRecord], model: str, bundle: str) -> str | None:
    """When and why this bundle was last rolled back; None if it never was."""
    found = [r for r in records if (r.model, r.action, r.evidence.get("withdrawn")) == (model, "rollback", bundle)]
    return f"{found[-1].time[:19]}Z, {'; '.join(found[-1].reasons)}" if found else None
