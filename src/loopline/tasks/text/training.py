"""The text classifier, from a manifest's splits to `model.onnx`: n-grams trained from scratch, or a pretrained encoder fine-tuned.

Writes `tokenizer.json`, `model.safetensors` (weights, temperature and embedding), `config.json` and `history.csv` to the train
folder, and the ONNX graph to the export folder. Run by the stages `train` and `export`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loopline.errors import LooplineError
from loopline.lib import files
from loopline.lib.arrays import Arrays
from loopline.settings import Adopt, located
from loopline.tasks.base import Adoptable
from loopline.tasks.spec import ModelSpec, TextInput
from loopline.tasks.text import encoder_files, encoder_model, encoder_sources, ngram_model
from loopline.tasks.text.start import Start
from loopline.tasks.text.token_ids import encode
from loopline.training import checkpoint, loop, onnx_export, posthoc
from loopline.training.distillation import Taught, labelled

if TYPE_CHECKING:
    import onnx

    from loopline.data.manifest import Split
    from loopline.tasks.text.network import TextNetwork
    from loopline.tasks.text.parameters import TextSettings, TextTrain

QUANTIZATION: Literal["static", "dynamic"] = "dynamic"
EMBEDDING_SAMPLES = 8192  # enough for the principal components of some hundred features
EXAMPLE_ID = 2  # any token but padding, which is 0 or 1
# Texts in a batch without gradients: an encoder's attention takes memory by the square of the length
EVALUATION_BATCH = {ngram_model.NAME: 512, encoder_model.NAME: 64}
ARCHITECTURES: dict[str, Any] = {ngram_model.NAME: ngram_model, encoder_model.NAME: encoder_model}


def train(
    train: Split,
    val: Split,
    settings: TextSettings,
    *,
    seed: int,
    out: Path,
    work: Path,
    log: Callable[[int, dict[str, float]], None],
    taught: Taught | None = None,
) -> None:
    """Train on `train`; choose the tokenizer, the epoch and the temperature on `val`; write the files named above.

    Resumes from a checkpoint in `work` of the same settings, data, weights and seed. Raises LooplineError on a bad `pretrained` or
    `architecture`.
    """
    import torch

    loop.reproducible(seed)
    options = settings.train
    start = _start(train, val, settings)
    network, config = start.network, start.config
    encoded, val_encoded = (encode(start.tokenizer, split, start.text.pad_id) for split in (train, val))
    key = checkpoint.fingerprint(options, settings.input, settings.export.embedding, config, *loop.identity(train, val))
    batch = EVALUATION_BATCH[config["architecture"]]
    val_data = val_encoded.data(batch)
    if isinstance(options, Adopt):
        history = [loop.validate(network, val_data)]
        log(1, history[0])
    else:
        data = replace(encoded.data(batch), taught=taught)
        history = loop.fit(network, data, val_data, options, seed=seed, work=work, key=key, log=log)
    network.temperature.fill_(posthoc.temperature(loop.predict(network, val_data), torch.from_numpy(val_data.targets)))
    features = loop.predict(network.features, encoded.first(min(labelled(train), EMBEDDING_SAMPLES)).data(batch))
    network.embed(*posthoc.principal_components(features, settings.export.embedding))
    files.write(out / "tokenizer.json", start.tokenizer.to_str())
    loop.write(out, network, history, {"text": asdict(start.text), "labels": list(train.labels), **config})
    checkpoint.forget(work)


def _start(train: Split, val: Split, settings: TextSettings) -> Start:
    options = settings.train
    if isinstance(options, Adopt):
        return encoder_model.adopt(train, settings, options)
    if options.pretrained:
        return start_from(located(options.pretrained), settings, options, classes=len(train.labels))
    if options.architecture == ngram_model.NAME:
        return ngram_model.begin(train, val, settings, options)
    return encoder_model.begin(train, val, settings, options)


def start_from(pretrained: Path, settings: TextSettings, options: TextTrain, *, classes: int) -> Start:
    """Return the model of an earlier run, with a fresh head if the number of classes differs.

    pretrained: a model.safetensors, with the tokenizer.json and config.json that were written beside it. Raises
    LooplineError if one of them is missing or broken, or has another architecture than the settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load
    from tokenizers import Tokenizer

    try:
        tensors = load(pretrained.read_bytes())
        config = json.loads(pretrained.with_name("config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(pretrained.with_name("tokenizer.json").read_text(encoding="utf-8"))
        architecture, text = config["architecture"], TextInput(**config["text"])
        kept = {key: value for key, value in config.items() if key not in ("text", "labels")}
        kept["embedding"] = settings.export.embedding
        network: TextNetwork = ARCHITECTURES[architecture].build(kept, classes=classes, options=options)
        own = network.state_dict()
        fitting = {name: tensor for name, tensor in tensors.items() if own[name].shape == tensor.shape}
        network.load_state_dict(fitting, strict=False)
    except OSError as error:
        raise LooplineError(
            f"pretrained: no file {error.filename!r}. Give the path of a model.safetensors that an earlier training "
            "wrote (models/<name>/train/model.safetensors), its tokenizer.json and config.json beside it"
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LooplineError(
            f"pretrained: {pretrained} was not written by the training of a text model ({error})"
        ) from error
    if (architecture == ngram_model.NAME) != (options.architecture == ngram_model.NAME):
        raise LooplineError(
            f"pretrained: {pretrained} holds a model of the kind {architecture}, but train.architecture is "
            f"{options.architecture}: change one of the two"
        )
    if options.layers and options.layers != kept["shape"]["layers"]:
        raise LooplineError(
            f"pretrained: {pretrained} has {kept['shape']['layers']} layers, but train.layers is {options.layers}: change one of "
            "the two"
        )
    tokenizer.enable_truncation(settings.input.max_tokens)
    text = TextInput(max_tokens=settings.input.max_tokens, pad_id=text.pad_id, unknown_id=text.unknown_id)
    return Start(tokenizer, network, text, kept)


def _load(folder: Path) -> tuple[TextNetwork, ModelSpec]:
    from safetensors.torch import load

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    labels = tuple(config["labels"])
    network: TextNetwork = ARCHITECTURES[config["architecture"]].build(config, classes=len(labels))
    network.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    network.eval()
    text = TextInput(**config["text"])
    return network, ModelSpec(task="text", labels=labels, text=text, temperature=float(network.temperature))


def adoptable(source: str) -> Adoptable:
    """Return the most tokens that a finished model takes, and its weights' sha256.

    Raises LooplineError if it cannot be adopted: see `encoder_model.adopt`.
    """
    folder = encoder_sources.find(source)
    pretrained = encoder_files.read(folder)
    encoder_files.head(pretrained, folder)
    return Adoptable({"max_tokens": pretrained.shape.max_tokens}, pretrained.sha256)


def reference(folder: Path) -> Callable[[Arrays], Arrays]:
    """Return the network in torch: from `ids` int64 (n, l) to `probabilities` (n, classes) and `embedding` (n, d)."""
    network, _ = _load(folder)
    return onnx_export.reference(network.answer, takes="ids")


def export(folder: Path, train: Split, val: Split, settings: TextSettings, *, out: Path) -> ModelSpec:
    """Write the ONNX graph of the network in `folder` to `out`, with dynamic batch and length; return its specification."""
    import torch

    from loopline.training.classifier_network import Answers

    network, spec = _load(folder)
    example = torch.full((2, 7), EXAMPLE_ID)
    graph = onnx_export.to_onnx(
        Answers(network), example, takes="ids", gives=("probabilities", "embedding"), free=("n", "l")
    )
    onnx_export.save(graph, out)
    return spec


def nodes_to_exclude(model: onnx.ModelProto) -> list[str]:
    """Return head and embedding, which stay in FP32: they are so small that quantizing their input would take longer."""
    names = [node.name for node in model.graph.node if node.op_type == "Gemm"]
    return [
        *names,
        *[f"{name}_MatMul" for name in names],
    ]  # before it looks, the quantizer splits a Gemm into MatMul and Add
