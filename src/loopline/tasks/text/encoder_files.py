"""Read an encoder that somebody trained: config.json, model.safetensors and tokenizer.json, as Hugging Face's tools save them.

Only numbers and JSON are read: a pickle or code that comes with the weights is refused.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline.errors import LooplineError
from loopline.tasks.packaged import sha256

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from loopline.tasks.text.encoder import Activation, EncoderShape, Pooling

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# model_type of config.json -> prefix of the weights' names; all of them are BERT's graph
BERT_LIKE = {"bert": "bert.", "camembert": "roberta.", "roberta": "roberta.", "xlm-roberta": "roberta."}
MODEL_TYPES = (*sorted(BERT_LIKE), "distilbert")
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# Parts of a layer's names in the file -> in `encoder.Layer`
BERT_PARTS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "mix",
    "attention.output.LayerNorm": "norm",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.LayerNorm": "last_norm",
}
DISTILBERT_PARTS = {
    "attention.q_lin": "query",
    "attention.k_lin": "key",
    "attention.v_lin": "value",
    "attention.out_lin": "mix",
    "sa_layer_norm": "norm",
    "ffn.lin1": "inner",
    "ffn.lin2": "outer",
    "output_layer_norm": "last_norm",
}


@dataclass(frozen=True)
class Pretrained:
    """An encoder's files. tensors: names as in `encoder.EncoderNetwork`, float32. others: tensors outside the encoder, by their own
    names. sha256: of the weights' file.
    """

    shape: EncoderShape
    tensors: dict[str, torch.Tensor]
    others: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True)
class ClassifierHead:
    """A classifier's head. labels: by row of weight (classes, width) and bias (classes,). pooler: the tensors of the pooler."""

    labels: list[str]
    pooling: Pooling
    pooler: dict[str, torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor


# Prefix of the weights' names -> pooling, the pooler's name and the head's
HEADS: dict[str, tuple[Pooling, str, str]] = {
    "bert.": ("first tanh", "pooler.dense", "classifier"),
    "roberta.": ("first tanh", "classifier.dense", "classifier.out_proj"),
    "distilbert.": ("first relu", "pre_classifier", "classifier"),
}


def read(folder: Path, expected: str | None = None) -> Pretrained:
    """Read the encoder in `folder`. Raises LooplineError that says what is missing or what cannot be used.

    expected: sha256 of the weights; None for any.
    """
    from tokenizers import Tokenizer

    config = _config(folder)
    shape = _shape(config, folder)
    if not (folder / "tokenizer.json").is_file():
        raise LooplineError(
            f"architecture: {folder} has no tokenizer.json. transformers writes it: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no narrower kind
        raise LooplineError(f"architecture: {folder / 'tokenizer.json'} cannot be read: {error}") from error
    if tokenizer.get_vocab_size() > shape.vocabulary:
        raise LooplineError(
            f"architecture: {folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} tokens, but config.json says that the "
            f"weights have {shape.vocabulary}: they do not belong together"
        )
    raw = _weights(folder)
    tensors, others = _renamed(raw, config["model_type"], shape)
    _check(tensors, shape, folder)
    digest = sha256(folder / "model.safetensors")
    if expected and digest != expected:
        raise LooplineError(
            f"architecture: the weights in {folder} have sha256 {digest}, but params.yaml says weights_sha256: {expected}. "
            "If you mean the new ones, write their hash there"
        )
    return Pretrained(shape, tensors, others, tokenizer, config, digest)


def head(pretrained: Pretrained, folder: Path) -> ClassifierHead:
    """Return the head of a fine-tuned classifier. Raises LooplineError if it has none, or one without names of classes."""
    pooling, pooler, last = HEADS[BERT_LIKE.get(pretrained.config["model_type"], "distilbert.")]
    others = pretrained.others
    needed = [f"{name}.{kind}" for name in (pooler, last) for kind in ("weight", "bias")]
    if missing := [name for name in needed if name not in others]:
        raise LooplineError(
            f"adopt: {folder / 'model.safetensors'} has no {missing[0]}, so it is no fine-tuned classifier. "
            "To fine-tune the encoder, set train.architecture to this folder"
        )
    problem = pretrained.config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise LooplineError(f"adopt: {folder / 'config.json'} has problem_type {problem}: only one class a text works")
    names = pretrained.config.get("id2label")
    classes = len(others[f"{last}.weight"])
    named = [names.get(str(number)) for number in range(classes)] if isinstance(names, dict) else []
    labels = [unicodedata.normalize("NFC", label) for label in named if isinstance(label, str)]
    if classes < 2 or len(set(labels)) < classes:
        raise LooplineError(
            f"adopt: {folder / 'config.json'} does not name each of the {classes} classes in id2label, as "
            '{"0": "negative", "1": "positive"}: write it'
        )
    tensors = {f"pooler.{kind}": others[f"{pooler}.{kind}"] for kind in ("weight", "bias")}
    return ClassifierHead(labels, pooling, tensors, others[f"{last}.weight"], others[f"{last}.bias"])


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LooplineError(f"architecture: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LooplineError(f"architecture: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise LooplineError(f"architecture: {path} is not an object with an encoder's settings")
    if config.get("auto_map"):
        raise LooplineError(
            f"architecture: {path} names code that comes with the weights (auto_map). Such code is never run"
        )
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise LooplineError(f"architecture: {path} has model_type {kind!r}. These work: {', '.join(MODEL_TYPES)}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise LooplineError(
            f"architecture: {path} has position_embedding_type {config['position_embedding_type']!r}: only absolute works"
        )
    return config


def _shape(config: Mapping[str, Any], folder: Path) -> EncoderShape:
    from loopline.tasks.text.encoder import EncoderShape

    distil = config["model_type"] == "distilbert"
    names = {
        "width": "dim" if distil else "hidden_size",
        "layers": "n_layers" if distil else "num_hidden_layers",
        "heads": "n_heads" if distil else "num_attention_heads",
        "inner": "hidden_dim" if distil else "intermediate_size",
        "positions": "max_position_embeddings",
        "vocabulary": "vocab_size",
    }
    sizes = {}
    for our_name, their_name in names.items():
        value = config.get(their_name)
        if type(value) is not int or value < 1:
            raise LooplineError(
                f"architecture: {folder / 'config.json'} has no {their_name}, a whole number of at least 1"
            )
        sizes[our_name] = value
    if sizes["width"] % sizes["heads"]:
        raise LooplineError(
            f"architecture: {folder / 'config.json'}: width {sizes['width']} is no multiple of {sizes['heads']} heads"
        )
    activation = config.get("activation" if distil else "hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise LooplineError(
            f"architecture: {folder / 'config.json'} has activation {activation!r}. These work: {', '.join(ACTIVATIONS)}"
        )
    counted = BERT_LIKE.get(config["model_type"]) == "roberta."
    pad_id = config.get("pad_token_id")
    return EncoderShape(
        **sizes,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
        activation=ACTIVATIONS[activation],
        pad_id=(1 if counted else 0) if pad_id is None else int(pad_id),
        counted=counted,
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / "model.safetensors"
    if not path.is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        shards = sorted(file.name for file in folder.glob("model-*-of-*.safetensors"))
        if pickles:
            why = f"only {pickles[0]}, a pickle, which can run any code when it is read. transformers converts it: "
        elif shards:
            why = f"only parts of it, as {shards[0]}. transformers joins them, with max_shard_size='100GB' added to: "
        else:
            why = "which holds the weights. transformers writes it: "
        raise LooplineError(
            f"architecture: {folder} has no model.safetensors, {why}"
            f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise LooplineError(f"architecture: {path} cannot be read: {error}") from error


def _renamed(
    raw: Mapping[str, torch.Tensor], model_type: str, shape: EncoderShape
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the encoder's tensors under our names, and all others. The state of token type 0 is added to every position."""
    distil = model_type == "distilbert"
    prefix = "distilbert." if distil else BERT_LIKE[model_type]
    layers, parts = ("transformer.layer.", DISTILBERT_PARTS) if distil else ("encoder.layer.", BERT_PARTS)
    names = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "places",
        "embeddings.LayerNorm": "norm",
    }
    names |= {
        f"{layers}{n}.{their_name}": f"layers.{n}.{our_name}"
        for n in range(shape.layers)
        for their_name, our_name in parts.items()
    }
    tensors, others = {}, {}
    for name, tensor in raw.items():
        # The first published BERT names its normalisation gamma and beta.
        plain = (
            name.removeprefix(prefix)
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias")
        )
        module, _, kind = plain.rpartition(".")
        if module in names:
            tensors[f"{names[module]}.{kind}"] = tensor.float()
        else:
            others[plain] = tensor.float()
    types = others.pop("embeddings.token_type_embeddings.weight", None)
    if types is not None and "places.weight" in tensors:
        tensors["places.weight"] = tensors["places.weight"] + types[0]
    return tensors, others


def _check(tensors: Mapping[str, torch.Tensor], shape: EncoderShape, folder: Path) -> None:
    import torch

    from loopline.tasks.text.encoder import EncoderNetwork

    with torch.device("meta"):
        own = EncoderNetwork(shape, classes=2, embedding=1).state_dict()
    for name, tensor in own.items():
        if name.partition(".")[0] in ("temperature", "head", "projection"):
            continue
        given = tuple(tensors[name].shape) if name in tensors else "missing"
        if given != tuple(tensor.shape):
            raise LooplineError(
                f"architecture: {folder / 'model.safetensors'} does not fit its config.json: {name} should be "
                f"{tuple(tensor.shape)}, it is {given}"
            )
