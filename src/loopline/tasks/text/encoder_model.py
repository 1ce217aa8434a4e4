"""The text model of a pretrained encoder: what its fine-tuning starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from loopline.errors import LooplineError
from loopline.tasks.spec import TextInput
from loopline.tasks.text import encoder_files, encoder_sources
from loopline.tasks.text.start import Start

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loopline.data.manifest import Split
    from loopline.settings import Adopt
    from loopline.tasks.text.encoder import EncoderNetwork
    from loopline.tasks.text.parameters import TextSettings, TextTrain

NAME = "encoder"


def begin(train: Split, val: Split, settings: TextSettings, options: TextTrain) -> Start:
    """Return the encoder that `train.architecture` names, with a new head. Raises LooplineError if it cannot be used."""
    source = encoder_sources.find(options.architecture)
    pretrained = encoder_files.read(source, options.weights_sha256)
    if options.layers:
        pretrained = fewer_layers(pretrained, options.layers)
    shape = pretrained.shape
    if options.frozen_layers > shape.layers:
        raise LooplineError(
            f"train.frozen_layers is {options.frozen_layers}, but {source.name} has {shape.layers} layers"
        )
    config = _config(pretrained, settings, "mean")
    network = build(config, classes=len(train.labels), options=options)
    # All but head, projection and temperature: `read` has checked it.
    network.load_state_dict(pretrained.tensors, strict=False)
    return _start(pretrained, settings, network, config)


def fewer_layers(pretrained: encoder_files.Pretrained, count: int) -> encoder_files.Pretrained:
    """Return the encoder with `count` of its layers, evenly spaced, the last one among them. Raises LooplineError if it has fewer.

    Sanh et al., "DistilBERT", 2019, begin their student likewise.
    """
    if count > pretrained.shape.layers:
        raise LooplineError(f"train.layers is {count}, but the encoder has {pretrained.shape.layers} layers")
    kept = [(number + 1) * pretrained.shape.layers // count - 1 for number in range(count)]
    tensors = {}
    for name, tensor in pretrained.tensors.items():
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
            if int(match[1]) in kept:
                tensors[f"layers.{kept.index(int(match[1]))}.{match[2]}"] = tensor
        else:
            tensors[name] = tensor
    return replace(pretrained, tensors=tensors, shape=replace(pretrained.shape, layers=count))


def adopt(train: Split, settings: TextSettings, options: Adopt) -> Start:
    """Return a fine-tuned classifier as it is, its classes in the order of the data's. Raises LooplineError if the two differ."""
    source = encoder_sources.find(options.adopt)
    pretrained = encoder_files.read(source, options.weights_sha256)
    head = encoder_files.head(pretrained, source)
    if sorted(head.labels) != sorted(train.labels):
        raise LooplineError(
            f"adopt: {source.name} has the classes {_listed(head.labels)}, the data have {_listed(train.labels)}: "
            "give both the same names, in id2label of its config.json or in the labels of the data"
        )
    config = _config(pretrained, settings, head.pooling)
    network = build(config, classes=len(train.labels))
    order = [head.labels.index(label) for label in train.labels]
    of_head = {"head.weight": head.weight[order], "head.bias": head.bias[order]}
    network.load_state_dict(pretrained.tensors | head.pooler | of_head, strict=False)
    return _start(pretrained, settings, network, config)


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")


def _config(pretrained: encoder_files.Pretrained, settings: TextSettings, pooling: str) -> dict[str, Any]:
    return {
        "architecture": NAME,
        "embedding": settings.export.embedding,
        "shape": asdict(pretrained.shape),
        "pooling": pooling,
        "weights_sha256": pretrained.sha256,
    }


def _start(
    pretrained: encoder_files.Pretrained, settings: TextSettings, network: EncoderNetwork, config: dict[str, Any]
) -> Start:
    shape, tokenizer = pretrained.shape, pretrained.tokenizer
    if settings.input.max_tokens > shape.max_tokens:
        raise LooplineError(
            f"input.max_tokens is {settings.input.max_tokens}, but the encoder takes {shape.max_tokens} tokens at most: lower it"
        )
    padding = tokenizer.id_to_token(shape.pad_id)
    tokenizer.enable_truncation(settings.input.max_tokens)
    tokenizer.enable_padding(pad_id=shape.pad_id, pad_token=padding or "[PAD]")
    text = TextInput(
        max_tokens=settings.input.max_tokens, pad_id=shape.pad_id, unknown_id=unknown_id(tokenizer, pretrained.config)
    )
    return Start(tokenizer, network, text, config)


def unknown_id(tokenizer: Tokenizer, config: Mapping[str, Any]) -> int:
    """Return the id of tokens that the tokenizer does not know; -1, which no token has, if it knows every byte."""
    for token in ("[UNK]", "<unk>", config.get("unk_token")):
        if token and (number := tokenizer.token_to_id(token)) is not None:
            return int(number)
    return -1


def build(config: Mapping[str, Any], *, classes: int, options: TextTrain | None = None) -> EncoderNetwork:
    """Return the network that config.json describes, before its weights are loaded. options: for training."""
    from loopline.tasks.text.encoder import EncoderNetwork, EncoderShape

    network = EncoderNetwork(
        EncoderShape(**config["shape"]), classes=classes, embedding=config["embedding"], pooling=config["pooling"]
    )
    network.freeze(options.frozen_layers if options else 0)
    return network
