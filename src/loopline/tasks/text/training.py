"""The text classifier: n-grams of words or of characters, from a manifest's splits to `model.onnx`.

Writes `tokenizer.json`, `model.safetensors` (weights, n-grams, temperature and embedding), `config.json` and
`history.csv` to the train folder, and the ONNX graph to the export folder. Run by the stages `train` and `export`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from loopline.errors import LooplineError
from loopline.lib import files
from loopline.lib.arrays import Arrays
from loopline.settings import located
from loopline.tasks.spec import ModelSpec, TextInput
from loopline.tasks.text import tokenizing
from loopline.training import checkpoint, loop, onnx_export, posthoc

if TYPE_CHECKING:
    import onnx
    from tokenizers import Tokenizer

    from loopline.data.manifest import Split
    from loopline.tasks.text.ngrams import TextNetwork
    from loopline.tasks.text.parameters import TextSettings

QUANTIZATION: Literal["static", "dynamic"] = "dynamic"
EMBEDDING_SAMPLES = 8192  # enough for the principal components of some hundred features
BATCH = 512  # texts whose n-grams are counted at a time


@dataclass(frozen=True)
class View:
    """Settings of the network for a kind of token.

    longest: most tokens in an n-gram. informed: whether to start from naive Bayes, which helps where texts are few and words
    say much; with overlapping n-grams of characters it costs 2 points. convolve: see `ngrams.TextNetwork`; with words the
    convolution only memorises the training texts.
    """

    longest: int
    informed: bool
    convolve: bool


VIEWS: dict[tokenizing.Kind, View] = {
    "words": View(longest=2, informed=True, convolve=False),
    "characters": View(longest=5, informed=False, convolve=True),
}


@dataclass(frozen=True)
class _Encoded:
    """The token ids of one split's texts, ragged."""

    ids: list[NDArray[np.int64]]
    targets: NDArray[np.int64]

    def padded(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        block = np.full((len(rows), max(len(self.ids[row]) for row in rows)), tokenizing.PAD, np.int64)
        for line, row in enumerate(rows):
            block[line, : len(self.ids[row])] = self.ids[row]
        return block

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for start in range(0, len(self.ids), BATCH):
            rows = np.arange(start, min(start + BATCH, len(self.ids)))
            yield self.padded(rows), self.targets[rows]

    def data(self) -> loop.Data:
        import torch

        lengths = np.array([len(ids) for ids in self.ids])
        return loop.Data(
            inputs=lambda rows: torch.from_numpy(self.padded(rows.numpy())), targets=self.targets, lengths=lengths
        )


def _texts(split: Split) -> list[str]:
    return [text.encode("utf-8", "replace").decode() for text in split.inputs if isinstance(text, str)]


def _encode(tokenizer: Tokenizer, split: Split) -> _Encoded:
    tokenizer.no_padding()
    ids = [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(_texts(split))]
    tokenizer.enable_padding(pad_id=tokenizing.PAD)
    return _Encoded(ids, np.asarray(split.targets, np.int64))


def train(
    train: Split,
    val: Split,
    settings: TextSettings,
    *,
    seed: int,
    out: Path,
    work: Path,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train on `train`; choose the tokenizer, the epoch and the temperature on `val`; write the files named above.

    Resumes from a checkpoint in `work` of the same settings, data and seed. Raises LooplineError on a bad `pretrained`.
    """
    import torch

    loop.reproducible(seed)
    options, count = settings.train, len(train.labels)
    kind, tokenizer, network = (
        start_from(located(options.pretrained), settings, classes=count)
        if options.pretrained
        else _fresh(train, val, settings)
    )
    encoded, val_encoded = _encode(tokenizer, train), _encode(tokenizer, val)
    key = checkpoint.fingerprint(options, settings.input, settings.export.embedding, *loop.identity(train, val))
    val_data = val_encoded.data()
    history = loop.fit(network, encoded.data(), val_data, options, seed=seed, work=work, key=key, log=log)
    network.temperature.fill_(posthoc.temperature(loop.predict(network, val_data), torch.from_numpy(val_data.targets)))
    sample = _Encoded(encoded.ids[:EMBEDDING_SAMPLES], encoded.targets[:EMBEDDING_SAMPLES])
    features = loop.predict(network.features, sample.data())
    network.embed(*posthoc.principal_components(features, settings.export.embedding))
    files.write(out / "tokenizer.json", tokenizer.to_str())
    text = {"max_tokens": settings.input.max_tokens, "pad_id": tokenizing.PAD, "unknown_id": tokenizing.UNKNOWN}
    config = {"text": text, "labels": list(train.labels), "tokens": kind, "rows": network.table.num_embeddings}
    loop.write(out, network, history, config | {"embedding": settings.export.embedding})
    checkpoint.forget(work)


def _fresh(train: Split, val: Split, settings: TextSettings) -> tuple[tokenizing.Kind, Tokenizer, TextNetwork]:
    """Return the kind of tokens, their tokenizer and an untrained network.

    `auto` takes words, unless characters are clearly better with naive Bayes on `val`: a network on words takes a ninth of
    the time, and without the margin the next batch of labels could reverse the choice.
    """
    from loopline.tasks.text import ngrams

    choice = settings.train.tokenizer
    kinds: list[tokenizing.Kind] = list(VIEWS) if choice == "auto" else [choice]
    candidates = []
    for kind in kinds:
        tokenizer = tokenizing.learn(
            _texts(train), kind, vocabulary=settings.train.vocabulary, max_tokens=settings.input.max_tokens
        )
        longest = VIEWS[kind].longest
        dictionary = ngrams.count(_encode(tokenizer, train).batches(), longest, len(train.labels))
        val_batches = _encode(tokenizer, val).batches()
        right = np.concatenate([dictionary.classify(ids, longest) == targets for ids, targets in val_batches])
        candidates.append((right, kind, tokenizer, dictionary))
    place = len(candidates) - 1 if clearly_better(candidates[-1][0], candidates[0][0]) else 0
    _, kind, tokenizer, dictionary = candidates[place]
    network = _network(
        kind,
        rows=len(dictionary.keys),
        classes=len(train.labels),
        embedding=settings.export.embedding,
        word_dropout=settings.train.word_dropout,
    )
    network.know(dictionary, informed=VIEWS[kind].informed)
    return kind, tokenizer, network


def clearly_better(right: NDArray[np.bool_], than: NDArray[np.bool_]) -> bool:
    """Return whether the gain in accuracy is over two standard errors (McNemar, 1947). right, than: (n,), each one's hits."""
    gain = right.astype(float) - than
    return bool(gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))


def _network(
    kind: tokenizing.Kind, *, rows: int, classes: int, embedding: int, word_dropout: float = 0.0
) -> TextNetwork:
    from loopline.tasks.text.ngrams import TextNetwork

    view = VIEWS[kind]
    sizes = {"rows": rows, "longest": view.longest, "classes": classes, "embedding": embedding}
    return TextNetwork(convolve=view.convolve, word_dropout=word_dropout, **sizes)


def start_from(
    pretrained: Path, settings: TextSettings, *, classes: int
) -> tuple[tokenizing.Kind, Tokenizer, TextNetwork]:
    """Return tokens, tokenizer and network of an earlier run, with a fresh head if the number of classes differs.

    pretrained: a model.safetensors, with the tokenizer.json and config.json that were written beside it. Raises
    LooplineError if one of them is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load
    from tokenizers import Tokenizer

    try:
        tensors = load(pretrained.read_bytes())
        config = json.loads(pretrained.with_name("config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(pretrained.with_name("tokenizer.json").read_text(encoding="utf-8"))
        kind, rows = config["tokens"], config["rows"]
        network = _network(
            kind,
            rows=rows,
            classes=classes,
            embedding=settings.export.embedding,
            word_dropout=settings.train.word_dropout,
        )
        own = network.state_dict()
        fitting = {name: tensor for name, tensor in tensors.items() if own[name].shape == tensor.shape}
        network.load_state_dict(fitting, strict=False)
    except OSError as error:
        raise LooplineError(
            f"pretrained: no file {error.filename!r}. Give the path of a model.safetensors that an earlier training "
            "wrote (models/<name>/train/model.safetensors), its tokenizer.json and config.json beside it"
        ) from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise LooplineError(
            f"pretrained: {pretrained} was not written by the training of a text model ({error})"
        ) from error
    tokenizer.enable_truncation(settings.input.max_tokens)
    return kind, tokenizer, network


def _load(folder: Path) -> tuple[TextNetwork, ModelSpec]:
    from safetensors.torch import load

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = tuple(config["labels"])
    network = _network(config["tokens"], rows=config["rows"], classes=len(labels), embedding=config["embedding"])
    network.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    network.eval()
    text = TextInput(**config["text"])
    return network, ModelSpec(task="text", labels=labels, text=text, temperature=float(network.temperature))


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """Return the network in torch: from `ids` int64 (n, l) to `probabilities` (n, classes) and `embedding` (n, d)."""
    network, _ = _load(folder)
    return onnx_export.reference(network.answer, takes="ids")


def export(folder: Path, train: Split, val: Split, settings: TextSettings, *, out: Path) -> ModelSpec:
    """Write the ONNX graph of the network in `folder` to `out`, with dynamic batch and length; return its specification."""
    import torch

    from loopline.tasks.text.ngrams import TextAnswers

    network, spec = _load(folder)
    example = torch.full((2, 7), tokenizing.EDGE)
    graph = onnx_export.to_onnx(
        TextAnswers(network), example, takes="ids", gives=("probabilities", "embedding"), free=("n", "l")
    )
    onnx_export.save(graph, out)
    return spec


def nodes_to_exclude(model: onnx.ModelProto) -> list[str]:
    """Return head and embedding, which stay in FP32: they are so small that quantizing their input would take longer."""
    return [node.name for node in model.graph.node if node.op_type == "Gemm"]
