"""`loopline traffic`: the samples of each profile, and the models that they are sent to."""

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
    """A project with a brightness classifier (256 images, data set digits) and a text model (three names, data set languages)."""
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
    """A server of these models that records the paths of predictions. status: model -> status of its answers (default 200)."""

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
    started = []

    def start(*models, **status):
        started.append(Serving(*models, **status))
        return started[-1]

    yield start
    for server in started:
        server.close()


def send(server, *more):
    """Run `loopline traffic` for a tenth of a second; return its exit code, output and errors."""
    command = [sys.executable, "-m", "loopline.cli", "traffic", "--rate", "50", "--seconds", "0.1", "--url", server.url]
    done = subprocess.run([*command, *more], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_model_that_is_not_up_is_left_out(folder, serving):
    server = serving("text")
    code, out, _ = send(server)
    assert code == 0
    assert f"left out: classifier is not up at {server.url}" in out
    assert set(server.asked) == {"/predict/text"}


def test_a_named_model_that_is_not_up_is_refused_with_those_that_are(folder, serving):
    server = serving("text", "speech")
    code, _, errors = send(server, "text", "classifier")
    assert code == 1
    assert errors == f"loopline: not up at {server.url}: classifier; models that are up: speech, text\n"
    assert server.asked == []


def test_a_server_of_other_models_or_without_models_is_refused(folder, serving):
    assert ": classifier, text; models that are up: speech" in send(serving("speech"))[2]
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


def test_an_absent_server_or_one_without_models_is_reported(folder, serving):
    url = f"http://127.0.0.1:{prometheus.free_port()}"
    with pytest.raises(LooplineError, match=r"cannot be reached: .*; `loopline status` shows what is up"):
        traffic.choose((), ("text",), traffic.TrafficPlan(url=url))
    server = Server(lambda *_: (200, b"<html>"))
    with pytest.raises(LooplineError, match="not as a server of models does"):
        traffic.choose((), ("text",), traffic.TrafficPlan(url=server.url))
    server.close()


def test_the_token_goes_with_every_request(folder):
    tokens = set()

    def answer(method, path, headers, body):
        tokens.add(headers.get("Authorization"))
        return 200, b'[{"name": "text"}]'

    server = Server(answer)
    plan = traffic.TrafficPlan(url=server.url, rate=50, seconds=0.1, token="secret")
    traffic.choose((), ("text",), plan)
    assert traffic.send({"text": ["a"]}, plan, progress=False) == {"200": 5}
    assert tokens == {"Bearer secret"}
    server.close()


def params(folder, **datasets):
    content = yaml.safe_load((ROOT / "tests/params.yaml").read_text(encoding="utf-8"))
    models = {name: content["models"][name] for name in ("classifier", "text")}
    for name, dataset in datasets.items():
        models[name]["dataset"] = dataset
    (folder / "params.yaml").write_text(yaml.safe_dump(content | {"models": models}), encoding="utf-8")


def plan(profile, **more):
    return traffic.TrafficPlan(url="", profile=profile, **more)


def test_an_unknown_profile_is_refused_with_a_list_of_profiles(folder):
    with pytest.raises(LooplineError, match="clean, prior, other-domain, noisy, noise"):
        traffic.samples("classifier", plan("typos"))


@pytest.mark.parametrize("profile", ["clean", "prior", "noise", "dead-pixels"])
def test_every_profile_gives_images_that_can_be_sent(folder, profile):
    chosen = traffic.samples("classifier", plan(profile))
    assert all(sample.startswith(b"\x89PNG") for sample in chosen)
    assert len(chosen) == 256


def test_requests_to_an_absent_server_count_as_unanswered(folder):
    nowhere = traffic.TrafficPlan(url=f"http://127.0.0.1:{prometheus.free_port()}", rate=50, seconds=0.2)
    counts = traffic.send({"classifier": [b"\x89PNG"]}, nowhere, progress=False)
    assert counts["no answer"] == 10


def test_noisy_means_noise_in_images_and_typos_in_texts(folder):
    chosen, left_out = traffic.pools((), ("classifier", "text"), plan("noisy"))
    assert not left_out
    assert chosen["classifier"] == traffic.samples("classifier", plan("noise"))
    assert chosen["text"] == traffic.samples("text", plan("typos")) != list(TEXTS)


def test_a_profile_of_images_leaves_out_the_models_of_texts(folder):
    chosen, left_out = traffic.pools((), ("classifier", "text"), plan("blur"))
    assert list(chosen) == ["classifier"]
    assert "no profile 'blur' for text: choose one of clean" in left_out[0]


def test_the_profile_must_fit_a_named_model(folder):
    with pytest.raises(LooplineError, match="no profile 'blur' for text"):
        traffic.pools(("classifier", "text"), (), plan("blur"))


def test_a_profile_that_fits_no_model_is_refused(folder):
    with pytest.raises(LooplineError, match=r"for classifier(.|\n)*for text"):
        traffic.pools((), ("classifier", "text"), plan("nothing"))


def test_the_command_reports_the_models_left_out(folder):
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
    chosen, _ = traffic.pools((), ("classifier", "text"), plan("other-domain"))
    assert len(chosen["classifier"]) == 1100, "digit scenes, the companion of digits"
    assert all(sample.startswith(b"\x89PNG") for sample in chosen["classifier"])
    assert len(chosen["text"]) == traffic.MOST_FOREIGN
    assert all(isinstance(sample, str) and len(sample) > other_domain.LEAST_LETTERS for sample in chosen["text"])


def test_another_domain_may_be_a_named_data_set_or_folder(folder):
    (folder / "mine/dark").mkdir(parents=True)
    (folder / "mine/dark/one.png").write_bytes(brightness.png(3))
    (folder / "mine/bright").mkdir()
    (folder / "mine/bright/two.png").write_bytes(brightness.png(250))
    chosen = traffic.samples("classifier", plan("other-domain", dataset="mine"))
    assert sorted(chosen) == sorted([brightness.png(3), brightness.png(250)])
    assert len(traffic.samples("classifier", plan("other-domain", dataset="digits"))) == 1797


def test_a_data_set_without_a_companion_is_refused(folder):
    params(folder, classifier="/my/own/images")
    with pytest.raises(LooplineError, match="classifier: /my/own/images has no companion: name a data set"):
        traffic.samples("classifier", plan("other-domain"))


def test_texts_are_not_sent_to_a_model_of_images(folder):
    with pytest.raises(LooplineError, match="classifier: languages has no images"):
        traffic.samples("classifier", plan("other-domain", dataset="languages"))


def test_only_the_profile_other_domain_accepts_a_data_set(folder):
    with pytest.raises(LooplineError, match="only the profile other-domain sends another data set"):
        traffic.samples("classifier", plan("clean", dataset="digits"))


def test_samples_of_a_companion_are_drawn_evenly_and_reproducibly(folder):
    found = other_domain.read("digits", "classification", 300)
    assert len(found) == 300
    assert found == other_domain.read("digits", "classification", 300)
    assert found != other_domain.read("digits", "classification", 300, seed=1)
    numbers = sorted(int(sample.path.removesuffix(".png")) for sample in found)
    assert numbers[0] < 100 and numbers[-1] > 1697, "from the whole data set"


def test_every_companion_is_in_the_catalogue(folder):
    catalogue = yaml.safe_load((folder / "data/catalog.yaml").read_text(encoding="utf-8"))
    assert set(other_domain.COMPANIONS) <= set(catalogue)
    assert set(other_domain.COMPANIONS.values()) <= {*catalogue, other_domain.PROSE}


def test_each_request_has_its_own_id_so_that_a_rollout_spreads_them(folder):
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
