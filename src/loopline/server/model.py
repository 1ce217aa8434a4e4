"""A loaded bundle: its ONNX Runtime session, its inputs and outputs, and its speed. It is verified before it is loaded.

A payload is either `Tensors`, which go to the graph as they are, or `Encoded`: image files or texts, prepared with the
code that training used, and answered with labels, scores and boxes.
"""

from __future__ import annotations

import os
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
from loopline.server import warm_up
from loopline.server.messages import Refusal
from loopline.server.rows import DecodedRows, RowSink
from loopline.tasks import image

MOST_PIXELS = 25_000_000  # of an image, checked before it is decoded
MOST_FRAMES = 1  # of an image: no animations
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
MOST_TEXT = 100_000  # characters; the tokenizer cuts a text after max_tokens in any case
PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider")


@dataclass(slots=True)
class Tensors:
    """The graph's inputs by name, all with the same number of rows."""

    arrays: Arrays


@dataclass(slots=True)
class Encoded:
    """Image files or texts. probe: from the sentinel, so not counted as traffic. identity: the request's id."""

    items: list[bytes] | list[str]
    probe: bool = False
    identity: str = ""


@dataclass(slots=True)
class _Prepared:
    """A prepared `Encoded`. sizes: (n, 2), the width and height of the upright originals in pixels."""

    arrays: Arrays
    sizes: NDArray[np.int64]
    source: Encoded


class Model:
    """A bundle that is ready to run. Several threads may call `run` at once."""

    def __init__(self, folder: Path, *, threads: int = 1, verify_key: Path | None = None) -> None:
        """Verify and load the bundle at `folder`. verify_key: a public key that must have signed it. Raises LooplineError."""
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
        self.profile: warm_up.WarmUp | None = None
        self.reference = reference.read(folder / "drift.json")
        self.watch: RowSink | None = None
        self.loaded = self._on_disk()

    def _on_disk(self) -> dict[str, tuple[int, int]]:
        """The modification time (ns) and size (bytes) of each file of the bundle."""
        files = {}
        for path in self.bundle.folder.rglob("*"):
            stat = path.stat()
            files[str(path)] = stat.st_mtime_ns, stat.st_size
        return files

    def intact(self) -> bool:
        """Whether the bundle on disk is still the loaded one. The server keeps serving the loaded one in any case."""
        try:
            return self._on_disk() == self.loaded
        except OSError:
            return False

    def warm_up(self) -> None:
        """Find the best batch size, and what a row in it takes."""
        examples: dict[int, Arrays] = {}

        def run(rows: int) -> None:
            if rows not in examples:
                examples[rows] = self.example(rows)
            self.session.run(self.output_names, examples[rows])

        self.profile = warm_up.profile(run)
        self.best_rows, self.row_seconds = self.profile.best_rows, self.profile.row_seconds

    def example(self, rows: int) -> Arrays:
        """Valid inputs of the graph: zeros, with 16 as the length of a free dimension."""
        kinds = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32, "INT32": np.int32}
        return {
            tensor.name: np.zeros(
                [rows, *(16 if side < 0 else side for side in tensor.shape[1:])], kinds[tensor.datatype]
            )
            for tensor in self.inputs.values()
        }

    def run(self, payloads: Sequence[Tensors | Encoded | _Prepared]) -> list[Any]:
        """Run a batch. Returns per payload the outputs' arrays for `Tensors`, else a list of answers, or a Refusal."""
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
            named = {name: output[start:end] for name, output in zip(self.output_names, outputs, strict=True)}
            prepared = results[place]
            if isinstance(prepared, _Prepared):
                source, answers = prepared.source, self.task.answers(named, self.spec, prepared.sizes)
                if self.watch is not None and not source.probe and self.watch.open():
                    sizes = prepared.sizes if self.spec.image else None
                    self.watch.take(
                        DecodedRows(arrays, named, source.items, sizes, answers, source.identity, len(source.items))
                    )
                results[place] = answers
            else:
                if self.watch is not None and self.watch.open():
                    self.watch.take(DecodedRows(arrays, named))
                results[place] = named
            start = end
        return results

    def prepare(self, payload: Encoded) -> _Prepared:
        """Decode and resize images, or tokenize texts. Raises Refusal (400, 413, 415)."""
        if self._tokenize is not None:
            texts = [text for text in payload.items if isinstance(text, str)]
            return _Prepared(self._tokenize(texts), np.zeros((len(texts), 2), np.int64), payload)
        shape = self.spec.image
        assert shape is not None, "a model takes texts or images"
        pixels = np.empty((len(payload.items), shape.height, shape.width, shape.channels), np.uint8)
        sizes = np.empty((len(payload.items), 2), np.int64)
        for row, data in enumerate(payload.items):
            assert isinstance(data, bytes), "an image model gets bytes"
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
    """A runner for the queue that only prepares a model's large payloads, so that they do not delay small ones."""

    best_rows = 1

    def __init__(self, model: Model) -> None:
        """model: the model that the payloads are for."""
        self.model, self.name = model, f"{model.name} (decoding)"
        self.row_seconds = 0.005

    def run(self, payloads: Sequence[Encoded]) -> list[Any]:
        """Prepare each payload: the prepared payloads or the Refusals."""
        results: list[Any] = []
        for payload in payloads:
            try:
                results.append(self.model.prepare(payload))
            except Refusal as refusal:
                results.append(refusal)
        return results


def kind_of(data: bytes) -> str | None:
    """The format of an image by its first bytes: PNG, JPEG, WEBP, or None for any other."""
    kind = next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)
    return kind if kind != "WEBP" or data[8:12] == b"WEBP" else None  # a WAV file begins with RIFF too


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
    """The number of ids that the tokenizer can give. The graph fails on larger ids."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


def cpu_limit() -> int:
    """The number of cores that this process may use, by its affinity and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # there is no such quota
    return max(1, cores)
