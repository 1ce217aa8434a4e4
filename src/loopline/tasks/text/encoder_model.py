"""The text model of a pretrained encoder: what its fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loopline.errors import LooplineError
from loopline.tasks.spec import TextInput
from loopline.tasks.text import encoder_files
from loopline.tasks.text.start import Start

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from loopline.data.manifest import Split
    from loopline.tasks.text.encoder import EncoderNetwork
    from loopline.tasks.text.parameters import TextSettings, TextTrain

NAME = "encoder"


def begin(train: Split, val: Split, settings: TextSettings) -> Start:
    """Return the encoder that `train.architecture` names, with a new head. Raises LooplineError if it cannot be used."""
    options = settings.train
    source = encoder_files.find(options.architecture)
    pretrained = encoder_files.read(source)
    shape = pretrained.shape
    if settings.input.max_tokens > shape.max_tokens:
        raise LooplineError(
            f"input.max_tokens is {settings.input.max_tokens}, but {source.name} takes {shape.max_tokens} tokens at most: lower it"
        )
    if options.frozen_layers > shape.layers:
        raise LooplineError(
            f"train.frozen_layers is {options.frozen_layers}, but {source.name} has {shape.layers} layers"
        )
    config = {
        "architecture": NAME,
        "embedding": settings.export.embedding,
        "shape": asdict(shape),
        "pooling": "mean",
        "weights_sha256": pretrained.sha256,
    }
    network = build(config, classes=len(train.labels), options=options)
    network.load_state_dict(
        pretrained.tensors, strict=False
    )  # all but head, projection and temperature: `read` checks it
    tokenizer = pretrained.tokenizer
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
