"""params.yaml is read strictly: a slip is named, never ignored."""

from pathlib import Path

import pytest
import yaml

from loopline import settings
from loopline.errors import LooplineError

PARAMS = Path(__file__).with_name("params.yaml")


@pytest.fixture
def params(tmp_path):
    """Write a changed copy of params.yaml and give its path."""

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
    with pytest.raises(LooplineError, match=r"models\.classifier\.classification\.train\.epoch: Extra inputs"):
        settings.load(path)


def test_a_value_out_of_range_is_refused_with_what_was_found(params):
    path = params(lambda content: content["models"]["text"]["split"].update(val=1.5))
    with pytest.raises(LooplineError, match=r"split\.val: .*less than or equal to 1 \(got 1\.5\)"):
        settings.load(path)


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(LooplineError, match="there are classifier, detector, text"):
        settings.model("clasifier", PARAMS)


def test_a_missing_file_says_where_to_go(tmp_path):
    with pytest.raises(LooplineError, match="repository's root"):
        settings.load(tmp_path / "params.yaml")


def test_broken_yaml_is_no_traceback(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("models: [", encoding="utf-8")
    with pytest.raises(LooplineError, match="not valid YAML"):
        settings.load(path)


def test_a_model_name_that_is_no_folder_name_is_refused(params):
    path = params(lambda content: content["models"].update({"../x": content["models"]["text"]}))
    with pytest.raises(LooplineError, match="lower-case letters"):
        settings.load(path)
