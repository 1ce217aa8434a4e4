"""`loopline adopt`: a finished model becomes a served bundle, with one command in a clone."""

import hashlib
from pathlib import Path

import pytest
import requests
import yaml
from adopting import adopt, cloned
from reviews import split
from servers import Process
from test_adopted_onnx import learnt as learnt_onnx
from test_adopted_onnx import saved as saved_onnx
from test_classification_training import stripes

from loopline.cli import adoption
from loopline.release import bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return cloned(tmp_path_factory.mktemp("adopt"))


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A small BERT that transformers made, trained and saved."""
    import torch
    import transformers
    from test_encoder import SIZES, tokenizer

    torch.manual_seed(0)
    words = tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
    config = transformers.BertConfig(
        vocab_size=40, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1}, **SIZES
    )
    model = transformers.BertForSequenceClassification(config)
    examples = split(400, 7)
    ids = torch.tensor([encoding.ids for encoding in words.encode_batch(examples.inputs)])
    classes = torch.tensor([["good", "bad"].index(examples.labels[target]) for target in examples.targets])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=classes).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(words.to_str())
    return folder


def data(folder, count):
    folder.mkdir()
    examples = split(count, 11)
    rows = [f"{text},{examples.labels[target]}" for text, target in zip(examples.inputs, examples.targets, strict=True)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *dict.fromkeys(rows)]))
    return folder


def test_a_folder_of_transformers_becomes_a_bundle(clone, fine_tuned, tmp_path):
    done = adopt(
        clone,
        fine_tuned,
        "--name",
        "reviews",
        "--data",
        data(tmp_path / "data", 700),
        "--floor",
        "0.9",
        "--simple-may-win",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Trained elsewhere" in (clone / "models/reviews/bundle/MODEL_CARD.md").read_text()
    made = bundle.read(clone / "models/reviews/bundle")
    assert made.manifest.spec.labels == ("bad", "good")
    assert made.manifest.metrics["metrics"]["accuracy"]["value"] > 0.95
    params = (clone / "params.yaml").read_text()
    digest = hashlib.sha256((fine_tuned / "model.safetensors").read_bytes()).hexdigest()
    train = yaml.safe_load(params)["models"]["reviews"]["train"]
    assert train == {"adopt": str(fine_tuned), "weights_sha256": digest}
    assert set((ROOT / "params.yaml").read_text().splitlines()) <= set(params.splitlines()), "comments stay"
    again = adopt(clone, fine_tuned, "--name", "reviews", "--data", tmp_path / "data")
    assert again.returncode == 1
    assert "params.yaml has a model 'reviews': choose another --name" in again.stderr


def test_too_few_labels_are_a_refusal_that_says_which_gates_cannot_judge(clone, fine_tuned, tmp_path):
    before = (clone / "params.yaml").read_text()
    done = adopt(clone, fine_tuned, "--name", "few", "--data", data(tmp_path / "data", 60))
    assert done.returncode == 1
    assert "in the test split: evaluate (the floor, the simple model) and a promotion cannot judge" in done.stderr
    assert "in the val split: quantize" in done.stderr
    assert (clone / "params.yaml").read_text() == before


def test_an_onnx_file_ships_unjudged_and_its_card_and_a_server_say_so(clone, tmp_path):
    path = saved_onnx(learnt_onnx(), tmp_path / "stripes.onnx")
    examples = stripes(140, seed=3)
    for number, (content, target) in enumerate(zip(examples.inputs, examples.targets, strict=True)):
        place = tmp_path / "data" / examples.labels[target] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    words = ("--task", "classification", "--data", tmp_path / "data", "--unjudged")
    done = adopt(clone, path, "--name", "few", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the model ships although no gate judged its quality" in done.stdout
    made = bundle.read(clone / "models/few/bundle")
    assert made.manifest.unjudged
    assert made.manifest.quantization == "fp32"
    card = (made.folder / "MODEL_CARD.md").read_text()
    assert "**No gate judged this model**" in card
    assert "Trained elsewhere, measured on **data**" in card
    server = Process("--port", 0, made.folder)
    try:
        assert requests.get(f"{server.url}/v2/models/few", timeout=20).json()["parameters"]["unjudged"] is True
        given = [
            requests.post(f"{server.url}/predict/few", data=each, timeout=20).json() for each in examples.inputs[:9]
        ]
    finally:
        server.stop()
    labels = [answer["predictions"][0]["label"] for answer in given]
    assert (
        sum(label == examples.labels[target] for label, target in zip(labels, examples.targets[:9], strict=True)) >= 8
    )


def test_what_is_no_model_changes_nothing(clone, tmp_path):
    before = (clone / "params.yaml").read_text()
    done = adopt(clone, tmp_path, "--name", "nothing", "--data", tmp_path)
    assert done.returncode == 1
    assert "config.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert (clone / "params.yaml").read_text() == before


def test_a_model_is_added_at_the_end_of_the_models_and_comments_stay():
    text = "seed: 0 # of all\n\nmodels:\n  a:\n    task: text # one\n\n# about promotion\npromotion: {}\n"
    added = adoption.with_block(text, "  b:\n    task: text\n")
    assert yaml.safe_load(added)["models"] == {"a": {"task": "text"}, "b": {"task": "text"}}
    assert all(line in added for line in text.splitlines())
