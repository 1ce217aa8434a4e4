"""`loopline traffic`: what each profile sends, to which models."""

import shutil
import subprocess
import sys
from pathlib import Path

import brightness
import prometheus
import pytest
import yaml
from answering import Server

from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.monitoring import companions, traffic

ROOT = Path(__file__).parents[2]
TEXTS = ("a name", "another name", "nothing")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository of a classifier of 256 brightnesses, said to be of digits, and of a text model of three names in languages."""
    monkeypatch.chdir(tmp_path)
    brightness.write_manifest(tmp_path / "data/classifier/manifest.parquet")
    rows = [
        manifest.Sample(id=f"{n:064x}", source="s", path=str(n), split="test", label="en", text=text)
        for n, text in enumerate(TEXTS)
    ]
    manifest.write(tmp_path / "data/text/manifest.parquet", rows, task="text", labels=("en",))
    shutil.copytree(ROOT / "data/catalog", tmp_path / "data/catalog")
    shutil.copy(ROOT / "data/catalog.yaml", tmp_path / "data/catalog.yaml")
    params(tmp_path)
    return tmp_path


def params(folder, **datasets):
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    models = {name: content["models"][name] for name in ("classifier", "text")}
    for name, dataset in datasets.items():
        models[name]["dataset"] = dataset
    (folder / "params.yaml").write_text(yaml.safe_dump(content | {"models": models}), encoding="utf-8")


def plan(profile, **more):
    return traffic.Plan(url="", profile=profile, **more)


def test_a_profile_that_is_none_is_refused_with_those_there_are(folder):
    with pytest.raises(LooplineError, match="clean, prior, other-domain, noisy, noise"):
        traffic.samples("classifier", plan("typos"))


@pytest.mark.parametrize("profile", ["clean", "prior", "noise", "dead-pixels"])
def test_every_profile_gives_images_that_can_be_sent(folder, profile):
    found = traffic.samples("classifier", plan(profile))
    assert all(one.startswith(b"\x89PNG") for one in found)
    assert len(found) == 256


def test_the_test_of_an_absent_server_counts_what_got_no_answer(folder):
    nowhere = traffic.Plan(url=f"http://127.0.0.1:{prometheus.free_port()}", rate=50, seconds=0.2)
    counts = traffic.send({"classifier": [b"\x89PNG"]}, nowhere, progress=False)
    assert counts["no answer"] == 10


def test_noisy_is_noise_in_images_and_typos_in_texts(folder):
    found, left_out = traffic.pools((), ("classifier", "text"), plan("noisy"))
    assert not left_out
    assert found["classifier"] == traffic.samples("classifier", plan("noise"))
    assert found["text"] == traffic.samples("text", plan("typos")) != list(TEXTS)


def test_a_profile_of_images_goes_to_the_models_of_images_and_the_others_are_told(folder):
    found, left_out = traffic.pools((), ("classifier", "text"), plan("blur"))
    assert list(found) == ["classifier"]
    assert "no profile 'blur' for text: there are clean" in left_out[0]


def test_a_model_that_is_named_must_be_fit_for_the_profile(folder):
    with pytest.raises(LooplineError, match="no profile 'blur' for text"):
        traffic.pools(("classifier", "text"), (), plan("blur"))


def test_a_profile_that_fits_no_model_is_refused(folder):
    with pytest.raises(LooplineError, match=r"for classifier(.|\n)*for text"):
        traffic.pools((), ("classifier", "text"), plan("nothing"))


def test_the_command_says_who_was_left_out(folder):
    command = [
        sys.executable,
        "-m",
        "loopline.cli",
        "traffic",
        "--profile",
        "typos",
        "--rate",
        "50",
        "--seconds",
        "0.1",
    ]
    url = f"http://127.0.0.1:{prometheus.free_port()}"
    done = subprocess.run([*command, "--url", url], capture_output=True, text=True)
    assert "left out: no profile 'typos' for classifier" in done.stdout
    assert "no answer: 5" in done.stdout


def test_another_domain_is_the_companion_of_the_models_data_set(folder):
    found, _ = traffic.pools((), ("classifier", "text"), plan("other-domain"))
    assert len(found["classifier"]) == 1100, "scenes, for a model of digits"
    assert all(one.startswith(b"\x89PNG") for one in found["classifier"])
    assert len(found["text"]) == traffic.MOST_FOREIGN
    assert all(isinstance(one, str) and len(one) > companions.LEAST_LETTERS for one in found["text"])


def test_another_domain_may_be_a_data_set_or_a_folder_that_is_named(folder):
    (folder / "mine/dark").mkdir(parents=True)
    (folder / "mine/dark/one.png").write_bytes(brightness.png(3))
    (folder / "mine/bright").mkdir()
    (folder / "mine/bright/two.png").write_bytes(brightness.png(250))
    found = traffic.samples("classifier", plan("other-domain", dataset="mine"))
    assert sorted(found) == sorted([brightness.png(3), brightness.png(250)])
    assert len(traffic.samples("classifier", plan("other-domain", dataset="digits"))) == 1797


def test_another_domain_without_a_companion_asks_for_one(folder):
    params(folder, classifier="/my/own/images")
    with pytest.raises(LooplineError, match="classifier: /my/own/images has no companion: --dataset names"):
        traffic.samples("classifier", plan("other-domain"))


def test_texts_are_not_sent_to_a_model_of_images(folder):
    with pytest.raises(LooplineError, match="classifier: languages has no images"):
        traffic.samples("classifier", plan("other-domain", dataset="languages"))


def test_a_data_set_is_for_its_profile_alone(folder):
    with pytest.raises(LooplineError, match="by the profile other-domain alone"):
        traffic.samples("classifier", plan("clean", dataset="digits"))


def test_companions_are_drawn_evenly_the_same_each_time_and_no_more_than_asked(folder):
    found = companions.read("digits", "classification", 300)
    assert len(found) == 300
    assert found == companions.read("digits", "classification", 300)
    assert found != companions.read("digits", "classification", 300, seed=1)
    numbers = sorted(int(one.path.removesuffix(".png")) for one in found)
    assert numbers[0] < 100 and numbers[-1] > 1697, "from all of it"


def test_every_companion_is_there(folder):
    known = yaml.safe_load((folder / "data/catalog.yaml").read_text(encoding="utf-8"))
    assert set(companions.COMPANIONS) <= set(known)
    assert set(companions.COMPANIONS.values()) <= {*known, companions.PROSE}


def test_each_request_has_an_id_of_its_own_so_that_a_rollout_spreads_them(folder):
    ids = []

    def answer(method, path, headers, body):
        ids.append(headers["X-Request-Id"])
        return 200, b"{}"

    server = Server(answer)
    counts = traffic.send(
        {"classifier": [b"the same"]}, traffic.Plan(url=server.url, rate=100, seconds=0.2), progress=False
    )
    server.close()
    assert counts == {"200": 20}
    assert len(set(ids)) == 20 and all(ids)
