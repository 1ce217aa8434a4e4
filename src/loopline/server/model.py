"""A bundle in memory: its session, what it takes, and how fast it is. Verified before it is loaded.

A payload is either `Tensors`, which go to the graph as they are, or `Encoded`: image files or texts, prepared here by the
code that training used, and answered in plain words.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopline import tasks
from loopline.drift import reference
from loopline.lib import sessions
from loopline.lib.arrays import Arrays, Pixels
from loopline.release import bundle, signature
from loopline.server.messages import Refusal
from loopline.server.rows import DecodedRows, RowSink
from loopline.tasks import image

MOST_PIXELS = 25_000_000  # of an image, checked before it is decoded
MOST_FRAMES = 1
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
MOST_TEXT = 100_000  # characters; the tokenizer cuts after max_tokens anyhow
PROFILE_ROWS = (1, 2, 4, 8, 16, 32)
PROFILE_SECONDS = 0.01  # a batch that takes longer is not doubled again
GOOD_ENOUGH = 0.97  # of the best rows a second: a smaller batch answers sooner
PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider")


@dataclass(slots=True)
class Tensors:
    """The graph's inputs by name, all with the same number of rows."""

    arrays: Arrays


@dataclass(slots=True)
class Encoded:
    """Image files or texts. probe: from the sentinel, and so no traffic. identity: of the request."""

    items: list[bytes] | list[str]
    probe: bool = False
    identity: str = ""


@dataclass(slots=True)
class _Prepared:
    """What `Encoded` becomes. sizes: width, height of the upright originals (n, 2)."""

    arrays: Arrays
    sizes: NDArray[np.int64]
    source: Encoded


class Model:
    """One bundle, ready to run. Many threads may call `run` at once."""

    def __init__(self, folder: Path, *, threads: int = 1, verify_key: Path | None = None) -> None:
        """Verify and load the bundle at `folder`, signed by the owner of a key if one is given. Raises LooplineError."""
        self.bundle = bundle.read(folder)
        if verify_key is not None:
            signature.verify(self.bundle, verify_key)
        manifest = self.bundle.manifest
        self.name, self.spec, self.version = manifest.name, manifest.spec, self.bundle.version[:12]
        self.task = tasks.find(self.spec.task)
        self.session = sessions.session(self.bundle.model, threads=threads, providers=PROVIDERS)
        self.provider = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        self.inputs = {tensor.name: tensor for tensor in manifest.inputs}
        self.outputs = {tensor.name: tensor for tensor in manifest.outputs}
        self.output_names = list(self.outputs)
        self._tokenize = self.task.preprocessor(self.spec, folder) if self.spec.text else None
        self.vocabulary = _vocabulary(folder) if self.spec.text else 0
        self.best_rows, self.row_seconds = 1, 0.001
        self.reference = reference.read(folder / "drift.json")
        self.watch: RowSink | None = None
        self.loaded = self._on_disk()

    def _on_disk(self) -> dict[str, tuple[int, int]]:
        """Time and size of each file of the bundle."""
        found = {}
        for path in self.bundle.folder.rglob("*"):
            stat = path.stat()
            found[str(path)] = stat.st_mtime_ns, stat.st_size
        return found

    def intact(self) -> bool:
        """Is the bundle on the disk still the one that was loaded? What is served stays as it was either way."""
        try:
            return self._on_disk() == self.loaded
        except OSError:
            return False

    def warm_up(self) -> dict[int, float]:
        """Run batches of growing size; keep the best size. Returns rows -> seconds a batch."""
        seconds: dict[int, float] = {}
        for rows in PROFILE_ROWS:
            arrays = self.example(rows)
            self.session.run(self.output_names, arrays)  # the first call allocates
            times = []
            for _ in range(3):
                start = time.perf_counter()
                self.session.run(self.output_names, arrays)
                times.append(time.perf_counter() - start)
            seconds[rows] = min(times)
            if seconds[rows] > PROFILE_SECONDS:
                break
        best = max(rows / spent for rows, spent in seconds.items())
        self.best_rows = next(rows for rows, spent in seconds.items() if rows / spent >= GOOD_ENOUGH * best)
        self.row_seconds = seconds[self.best_rows] / self.best_rows
        return seconds

    def example(self, rows: int) -> Arrays:
        """Inputs that the graph takes: zeros, of 16 along a free dimension."""
        kinds = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32, "INT32": np.int32}
        return {
            tensor.name: np.zeros(
                [rows, *(16 if side < 0 else side for side in tensor.shape[1:])], kinds[tensor.datatype]
            )
            for tensor in self.inputs.values()
        }

    def run(self, payloads: Sequence[Tensors | Encoded | _Prepared]) -> list[Any]:
        """Arrays of the outputs for `Tensors`, a list of plain answers for the others, a Refusal for what cannot be prepared."""
        results: list[Any] = []
        ready: list[tuple[int, Arrays]] = []
        for place, payload in enumerate(payloads):
            results.append(None)
            try:
                prepared = self.prepare(payload) if isinstance(payload, Encoded) else payload
                results[place] = prepared
                ready.append((place, prepared.arrays))
            except Refusal as refusal:
                results[place] = refusal
        if not ready:
            return results
        outputs = self.session.run(self.output_names, self._join([arrays for _, arrays in ready]))
        start = 0
        for place, arrays in ready:
            end = start + len(next(iter(arrays.values())))
            found = {name: output[start:end] for name, output in zip(self.output_names, outputs, strict=True)}
            prepared = results[place]
            if isinstance(prepared, _Prepared):
                source, answers = prepared.source, self.task.answers(found, self.spec, prepared.sizes)
                if self.watch is not None and not source.probe and self.watch.open():
                    sizes = prepared.sizes if self.spec.image else None
                    self.watch.take(
                        DecodedRows(arrays, found, source.items, sizes, answers, source.identity, len(source.items))
                    )
                results[place] = answers
            else:
                if self.watch is not None and self.watch.open():
                    self.watch.take(DecodedRows(arrays, found))
                results[place] = found
            start = end
        return results

    def prepare(self, payload: Encoded) -> _Prepared:
        """Decode and resize, or tokenize. Raises Refusal (400, 415) naming the item."""
        if self._tokenize is not None:
            texts = [text for text in payload.items if isinstance(text, str)]
            return _Prepared(self._tokenize(texts), np.zeros((len(texts), 2), np.int64), payload)
        shape = self.spec.image
        assert shape is not None, "a bundle's model takes texts or images"
        pixels = np.empty((len(payload.items), shape.height, shape.width, shape.channels), np.uint8)
        sizes = np.empty((len(payload.items), 2), np.int64)
        for row, data in enumerate(payload.items):
            assert isinstance(data, bytes), "the route of images hands over bytes"
            decoded = _decode(data, shape.channels)
            sizes[row] = decoded.shape[1], decoded.shape[0]
            pixels[row] = image.resize(decoded, shape)
        return _Prepared({"image": pixels}, sizes, payload)

    def _join(self, parts: list[Arrays]) -> Arrays:
        if len(parts) == 1:
            return parts[0]
        if self.spec.text is None:
            return {name: np.concatenate([part[name] for part in parts]) for name in self.inputs}
        longest = max(part["ids"].shape[1] for part in parts)
        joined = np.full((sum(len(part["ids"]) for part in parts), longest), self.spec.text.pad_id, np.int64)
        start = 0
        for part in parts:
            ids = part["ids"]
            joined[start : start + len(ids), : ids.shape[1]] = ids
            start += len(ids)
        return {"ids": joined}


class Decoder:
    """Prepares large payloads of a model in a line of their own, so that they do not hold up small ones."""

    best_rows = 1

    def __init__(self, model: Model) -> None:
        """model: whose payloads they are."""
        self.model, self.name = model, f"{model.name} (decoding)"
        self.row_seconds = 0.005

    def run(self, payloads: Sequence[Encoded]) -> list[Any]:
        """The prepared payload, or the Refusal."""
        results: list[Any] = []
        for payload in payloads:
            try:
                results.append(self.model.prepare(payload))
            except Refusal as refusal:
                results.append(refusal)
        return results


def kind_of(data: bytes) -> str | None:
    """PNG, JPEG or WEBP, by its first bytes; None for what is not accepted."""
    found = next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)
    return found if found != "WEBP" or data[8:12] == b"WEBP" else None  # a sound begins with RIFF too


def _decode(data: bytes, channels: int) -> Pixels:
    kind = kind_of(data)
    if kind is None:
        raise Refusal(415, "not an image: JPEG, PNG and WebP are accepted")
    try:
        return image.decode(data, channels, max_pixels=MOST_PIXELS, formats=(kind,), max_frames=MOST_FRAMES)
    except image.TooLarge as error:
        raise Refusal(413, str(error)) from None
    except image.TooManyFrames as error:
        raise Refusal(415, str(error)) from None
    except image.UnreadableImage as error:
        raise Refusal(400, str(error)) from None


def _vocabulary(folder: Path) -> int:
    """How many ids the tokenizer can give; a graph fails on others."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


def cpu_limit() -> int:
    """Cores that this process may use: of its affinity and its container's quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no such limit here
    return max(1, cores)
