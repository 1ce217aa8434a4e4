"""An encoder as challenger of n-grams: it is better and many times slower, and the policy decides whether that is too slow."""

from dataclasses import replace
from pathlib import Path

import bundles
import numpy as np
import pytest
from reviews import split
from servers import Process
from test_encoder import tokenizer

from loopline import settings
from loopline.data import manifest
from loopline.release import bundle, promotion, promotion_evidence, registry
from loopline.rollout import evidence, judge
from loopline.tasks.text import training as text

PARAMS = Path(__file__).parents[1] / "params.yaml"
LARGE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
FEW = {"fine", "poor"}  # the words that the champion has seen


def write(folder, examples, architecture, **options):
    """Train a model and write its bundle."""
    _, model = settings.model("text", PARAMS)
    fit = model.train.model_copy(update={"architecture": str(architecture), "patience": 99, **options})
    model = model.model_copy(update={"train": fit, "input": model.input.model_copy(update={"max_tokens": 24})})
    val, graph = split(80, 1), folder.with_suffix(".onnx")
    out = folder.with_suffix(".train")
    text.train(examples, val, model, seed=0, out=out, work=folder.with_suffix(".work"), log=lambda *_: None)
    spec = text.export(out, examples, val, model, out=graph)
    takes = (bundle.Tensor(name="ids", datatype="INT64", shape=(-1, -1)),)
    gives = tuple(bundle.Tensor(name=name, datatype="FP32", shape=(-1, 2)) for name in ("probabilities", "embedding"))
    described = bundles._described("text", spec, takes, gives)
    return bundles._write(folder, described, graph, tokenizer=out / "tokenizer.json")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The bundles of champion and challenger."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    source = folder / "bert"
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=64, **LARGE)
    transformers.BertModel(config).save_pretrained(source)
    (source / "tokenizer.json").write_text(tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]")).to_str())
    examples = split(300, 0)
    seen = [row for row, content in enumerate(examples.inputs) if FEW & set(content.split())]
    few = replace(
        examples,
        ids=[examples.ids[row] for row in seen],
        inputs=[examples.inputs[row] for row in seen],
        targets=np.asarray(examples.targets)[seen],
        sizes=examples.sizes[seen],
    )
    champion = write(folder / "ngrams", few, "ngrams", epochs=8)
    return champion, write(folder / "encoder", examples, source, epochs=6, batch_size=32, learning_rate=0.0005)


@pytest.fixture(scope="module")
def measured(pair, tmp_path_factory):
    """What both answer on the same test split."""
    champion, challenger = pair
    examples, path = split(400, 5), tmp_path_factory.mktemp("data") / "manifest.parquet"
    samples = [
        manifest.Sample(
            id=f"{row}", source="s", path=f"{row}", split="test", label=examples.labels[target], text=content
        )
        for row, (content, target) in enumerate(zip(examples.inputs, examples.targets, strict=True))
    ]
    manifest.write(path, samples, task="text", labels=examples.labels)
    return promotion_evidence.gather(challenger, champion, path)


def shipped():
    everything, model = settings.model("text", PARAMS)
    return registry.policy(everything, model)


def test_the_shipped_budgets_refuse_an_encoder_that_is_better_and_name_time_and_size(measured):
    decision = promotion.decide(*measured, shipped())
    assert not decision.promote
    assert any("times the champion's time, 1.5 is allowed" in reason for reason in decision.reasons), decision
    assert any("times the champion's size, 1.5 is allowed" in reason for reason in decision.reasons), decision


def test_larger_budgets_promote_it_for_its_gain(measured):
    decision = promotion.decide(*measured, replace(shipped(), max_latency_ratio=1e4, max_size_ratio=1e4))
    assert decision.promote, decision
    assert decision.figures["budgets"]["latency_ratio"] > 1.5


def test_a_shadow_rolls_it_back_unless_the_rollout_allows_more_time(pair):
    servers = [Process("--port", 0, each.folder) for each in pair]
    try:
        inputs = split(120, 9).inputs
        shadow = evidence.replay(inputs, "text", *(server.url for server in servers))
    finally:
        for server in servers:
            server.stop()
    refused = judge.shadow(shadow, judge.RolloutPolicy())
    assert refused.action == "roll back"
    assert "times the champion's latency, 1.5 is allowed" in refused.reasons[0]
    allowed = judge.shadow(shadow, judge.RolloutPolicy(slower=1e4))
    assert allowed.action == "pass", allowed
