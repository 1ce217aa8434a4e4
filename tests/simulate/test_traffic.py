"""`loopline traffic`: what each profile sends, to which models."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import brightness
import prometheus
import pytest
import yaml
from answering import Server

from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.simulate import other_domain, traffic

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


class Serving(Server):
    """A server of these models, which notes what it is asked. status: of its predictions, by model, where it is not 200."""

    def __init__(self, *models, **status):
        self.asked = []

        def answer(method, path, headers, body):
            if path == "/v2/repository/index":
                return 200, json.dumps([{"name": name, "version": "1", "state": "READY"} for name in models]).encode()
            self.asked.append(path)
            return status.get(path.removeprefix("/predict/"), 200), b"{}"

        super().__init__(answer)


@pytest.fixture
def serving():
    made = []

    def start(*models, **status):
        made.append(Serving(*models, **status))
        return made[-1]

    yield start
    for one in made:
        one.close()


def send(server, *more):
    """`loopline traffic` for a tenth of a second: exit code, output, errors."""
    command = [sys.executable, "-m", "loopline.cli", "traffic", "--rate", "50", "--seconds", "0.1", "--url", server.url]
    done = subprocess.run([*command, *more], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_model_that_is_not_up_is_sent_nothing(folder, serving):
    server = serving("text")
    code, out, _ = send(server)
    assert code == 0
    assert f"left out: classifier is not up at {server.url}" in out
    assert set(server.asked) == {"/predict/text"}


def test_a_model_that_is_named_and_not_up_is_refused_with_what_is(folder, serving):
    server = serving("text", "speech")
    code, _, errors = send(server, "text", "classifier")
    assert code == 1
    assert errors == f"loopline: not up: classifier; at {server.url} there is only speech, text\n"
    assert server.asked == []


def test_a_server_of_other_models_or_of_none_is_refused(folder, serving):
    assert "not up: classifier, text; " in send(serving("speech"))[2]
    assert "no model is up" in send(serving())[2]


def test_answers_other_than_200_fail_with_their_counts(folder, serving):
    server = serving("classifier", "text", classifier=503)
    code, out, errors = send(server)
    assert code == 1
    assert "200: 2, 503: 3" in out
    assert errors == "loopline: 3 of 5 requests did not get the answer 200 (503: 3)\n"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"200": 7}, ""),
        ({"200": 7, "not sent": 2}, ""),
        ({"404": 1067}, r"1,067 of 1,067 requests did not get the answer 200 \(404: 1,067\)"),
        ({"200": 5, "413": 1, "no answer": 2, "not sent": 9}, r"3 of 8 .*\(413: 1, no answer: 2\)"),
        ({}, "no request was sent"),
        ({"not sent": 3}, "no request was sent"),
    ],
)
def test_every_status_but_200_is_a_failure(counts, words):
    assert re.fullmatch(words, traffic.failures(Counter(counts)))


def test_a_server_that_is_not_there_or_none_of_models_is_said(folder, serving):
    url = f"http://127.0.0.1:{prometheus.free_port()}"
    with pytest.raises(LooplineError, match=r"cannot be reached: .*; `loopline status` shows what is up"):
        traffic.choose((), ("text",), traffic.TrafficPlan(url=url))
    server = Server(lambda *_: (200, b"<html>"))
    with pytest.raises(LooplineError, match="not as a server of models does"):
        traffic.choose((), ("text",), traffic.TrafficPlan(url=server.url))
    server.close()


def test_the_token_goes_with_every_request(folder):
    given = set()

    def answer(method, path, headers, body):
        given.add(headers.get("Authorization"))
        return 200, b'[{"name": "text"}]'

    server = Server(answer)
    plan = traffic.TrafficPlan(url=server.url, rate=50, seconds=0.1, token="secret")
    traffic.choose((), ("text",), plan)
    assert traffic.send({"text": ["a"]}, plan, progress=False) == {"200": 5}
    assert given == {"Bearer secret"}
    server.close()


def params(folder, **datasets):
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    models = {name: content["models"][name] for name in ("classifier", "text")}
    for name, dataset in datasets.items():
        models[name]["dataset"] = dataset
    (folder / "params.yaml").write_text(yaml.safe_dump(content | {"models": models}), encoding="utf-8")


def plan(profile, **more):
    return traffic.TrafficPlan(url="", profile=profile, **more)


def test_a_profile_that_is_none_is_refused_with_those_there_are(folder):
    with pytest.raises(LooplineError, match="clean, prior, other-domain, noisy, noise"):
        traffic.samples("classifier", plan("typos"))


@pytest.mark.parametrize("profile", ["clean", "prior", "noise", "dead-pixels"])
def test_every_profile_gives_images_that_can_be_sent(folder, profile):
    found = traffic.samples("classifier", plan(profile))
    assert all(one.startswith(b"\x89PNG") for one in found)
    assert len(found) == 256


def test_the_test_of_an_absent_server_counts_what_got_no_answer(folder):
    nowhere = traffic.TrafficPlan(url=f"http://127.0.0.1:{prometheus.free_port()}", rate=50, seconds=0.2)
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
    server = Serving("classifier", "text", "speech")
    done = subprocess.run([*command, "--url", server.url], capture_output=True, text=True)
    server.close()
    assert done.returncode == 0, done.stderr
    assert "left out: no profile 'typos' for classifier" in done.stdout
    assert "left out: speech is up, but not in params.yaml" in done.stdout
    assert "200: 5" in done.stdout
    assert set(server.asked) == {"/predict/text"}


def test_another_domain_is_the_companion_of_the_models_data_set(folder):
    found, _ = traffic.pools((), ("classifier", "text"), plan("other-domain"))
    assert len(found["classifier"]) == 1100, "scenes, for a model of digits"
    assert all(one.startswith(b"\x89PNG") for one in found["classifier"])
    assert len(found["text"]) == traffic.MOST_FOREIGN
    assert all(isinstance(one, str) and len(one) > other_domain.LEAST_LETTERS for one in found["text"])


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
    found = other_domain.read("digits", "classification", 300)
    assert len(found) == 300
    assert found == other_domain.read("digits", "classification", 300)
    assert found != other_domain.read("digits", "classification", 300, seed=1)
    numbers = sorted(int(one.path.removesuffix(".png")) for one in found)
    assert numbers[0] < 100 and numbers[-1] > 1697, "from all of it"


def test_every_companion_is_there(folder):
    known = yaml.safe_load((folder / "data/catalog.yaml").read_text(encoding="utf-8"))
    assert set(other_domain.COMPANIONS) <= set(known)
    assert set(other_domain.COMPANIONS.values()) <= {*known, other_domain.PROSE}


def test_each_request_has_an_id_of_its_own_so_that_a_rollout_spreads_them(folder):
    ids = []

    def answer(method, path, headers, body):
        ids.append(headers["X-Request-Id"])
        return 200, b"{}"

    server = Server(answer)
    counts = traffic.send(
        {"classifier": [b"the same"]}, traffic.TrafficPlan(url=server.url, rate=100, seconds=0.2), progress=False
    )
    server.close()
    assert counts == {"200": 20}
    assert len(set(ids)) == 20 and all(ids)
