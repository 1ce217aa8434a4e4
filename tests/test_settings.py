"""params.yaml is read strictly: a wrong key is named, never ignored."""

import json
import re
from pathlib import Path

import brightness
import pytest
import yaml

from loopline import settings
from loopline.data import catalog
from loopline.errors import LooplineError
from loopline.release import bundle
from loopline.retraining import policy
from loopline.tasks import spec

PARAMS = Path(__file__).with_name("params.yaml")


@pytest.fixture
def params(tmp_path):
    """Return a function that writes a changed copy of params.yaml and returns its path."""

    def changed(change):
        content = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        change(content)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return changed


def test_the_repositorys_own_settings_are_valid_and_frozen():
    loaded = settings.load()
    assert loaded.models
    with pytest.raises(Exception, match="frozen"):
        loaded.seed = 1


def test_an_unknown_key_is_refused_by_name(params):
    path = params(lambda content: content["models"]["classifier"]["train"].update(epoch=3))
    with pytest.raises(LooplineError, match=r"models\.classifier\.train\.epoch: Extra inputs"):
        settings.load(path)


@pytest.mark.parametrize(
    ("model", "limit"), [("classifier", "max_characters"), ("detector", "max_characters"), ("text", "min_side")]
)
def test_an_expectation_that_means_nothing_to_the_task_is_refused_by_name(params, model, limit):
    path = params(lambda content: content["models"][model]["expectations"].update({limit: 8}))
    with pytest.raises(LooplineError, match=rf"models\.{model}\.expectations\.{limit}: Extra inputs"):
        settings.load(path)


def test_a_value_out_of_range_is_refused_and_quoted(params):
    path = params(lambda content: content["models"]["text"]["split"].update(val=1.5))
    with pytest.raises(LooplineError, match=r"split\.val: .*less than or equal to 1 \(got 1\.5\)"):
        settings.load(path)


def test_the_error_about_an_unknown_model_lists_the_models():
    with pytest.raises(LooplineError, match="there are classifier, detector, text"):
        settings.model("clasifier", PARAMS)


def test_the_error_about_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(LooplineError, match="repository's root"):
        settings.load(tmp_path / "params.yaml")


def test_broken_yaml_is_one_message(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("models: [", encoding="utf-8")
    with pytest.raises(LooplineError, match="not valid YAML"):
        settings.load(path)


READERS = [settings.load, catalog.load, policy.load]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_settings_in_another_encoding_are_one_message(tmp_path, encoding, read):
    path = tmp_path / "params.yaml"
    path.write_bytes("seed: 1  # größe\n".encode(encoding))
    with pytest.raises(LooplineError, match=r"params\.yaml is not UTF-8, at byte \d+: save it as UTF-8"):
        read(path)


@pytest.mark.parametrize("read", READERS)
def test_a_folder_in_place_of_the_file_is_one_message(tmp_path, read):
    with pytest.raises(LooplineError, match="cannot be read: Is a directory"):
        read(tmp_path)


INVALID_NAMES = ["", "../x", "größe", "٣", "-a", "a-", "A", "a_b", "a.b", "a b", "a\n", "x" * 64, "--force"]


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_settings_and_bundles_refuse_the_same_names(params, name):
    path = params(lambda content: content["models"].update({name: content["models"]["text"]}))
    message = f"{name!r} cannot name a model: use 1 to 63 of a-z, 0-9 and '-'"
    with pytest.raises(LooplineError, match=re.escape(message)):
        settings.load(path)
    with pytest.raises(bundle.BundleError, match=re.escape(message)):
        bundle.Manifest.from_json(json.dumps(json.loads(brightness.described().to_json()) | {"name": name}))


@pytest.mark.parametrize("name", ["a", "9", "text-2", "a--b", "x" * 63])
def test_settings_and_bundles_accept_the_same_names(params, name):
    path = params(lambda content: content["models"].update({name: content["models"]["text"]}))
    assert name in settings.load(path).models
    content = json.dumps(json.loads(brightness.described().to_json()) | {"name": name})
    assert bundle.Manifest.from_json(content).name == name


def test_the_script_of_a_retraining_accepts_the_same_names():
    script = (PARAMS.parents[1] / "scripts/retrain").read_text(encoding="utf-8")
    assert f"[[ ${{MODEL:-}} =~ ^{spec.MODEL_NAME.pattern}$ ]]" in script


@pytest.mark.parametrize("key", [3, True, None])
def test_a_name_that_yaml_does_not_read_as_text_is_refused(params, key):
    path = params(lambda content: content["models"].update({key: content["models"]["text"]}))
    with pytest.raises(LooplineError, match=r"models\.\w+\.\[key\]: Input should be a valid string"):
        settings.load(path)


def test_the_removed_key_min_speedup_is_refused_and_the_message_says_what_to_write(params):
    path = params(lambda content: content["models"]["text"]["quantize"].update(min_speedup=1.05))
    with pytest.raises(LooplineError, match=r"min_speedup was removed .*: delete it, .*write precision: fp32"):
        settings.load(path)


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "~nobody-of-that-name/data"])
def test_a_path_that_no_file_can_have_is_one_message(path):
    with pytest.raises(LooplineError, match="is not a valid path"):
        settings.located(path)
