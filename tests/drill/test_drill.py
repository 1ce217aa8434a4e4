"""The drill's parts. CI plays the whole drill with `make drill ARGS=--fast`."""

import io
import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import brightness
import bundles
import prometheus
import pytest
import yaml
from PIL import Image
from servers import Process

from loopline import cli
from loopline.data import manifest
from loopline.data.raw import RawSample
from loopline.drill import faults, story, timeline_picture
from loopline.drill.observer import Observer
from loopline.drill.record import DrillRecord, Figure
from loopline.drill.scenario import Pools, ScenarioSample, pools
from loopline.drill.scratch import Scratch
from loopline.drill.world import Seen, World
from loopline.errors import LooplineError
from loopline.journal import index
from loopline.release import bundle, decisions
from loopline.retraining.guard import Action, Alert, RetrainingDecision
from loopline.retraining.run_store import RetrainerStore
from loopline.simulate import other_domain

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path):
    """world(clean, drifted samples, server options, kept) -> a World that asks a server with the brightness classifier."""
    running = []

    def make(clean, drifted=(), *options, kept=set):
        bundles.classifier(tmp_path / "classifier")
        server = Process(tmp_path / "classifier", "--port", 0, *options)
        world = World(server.url, "classifier", Pools(list(clean), list(drifted)), 100, time.monotonic(), kept)
        running.append((world, server))
        return world

    yield make
    for world, server in running:
        world.close()
        server.stop()


BRIGHT, DARK = brightness.png(250), brightness.png(3)


def test_labelled_samples_are_never_used_to_measure_accuracy(tmp_path):
    samples = [
        manifest.Sample(
            id=f"{v:064x}",
            source="s",
            path=f"{v}.png",
            split=("train", "val", "test")[v % 3],
            label="bright",
            image=brightness.png(v),
            width=8,
            height=8,
        )
        for v in range(60)
    ]
    (tmp_path / "data/classifier").mkdir(parents=True)
    path = tmp_path / "data/classifier/manifest.parquet"
    manifest.write(path, samples, task="classification", labels=("bright", "dark"))
    bundles.classifier(tmp_path / "bundle")
    chosen = pools(tmp_path, "classifier", bundle.read(tmp_path / "bundle").manifest.spec)
    assert {sample.part for sample in chosen.clean} == {"val", "test"}
    assert {sample.part for sample in chosen.drifted} == {"train", "test"}
    tested = [sample for sample in chosen.clean if sample.part == "test"]
    assert len(tested) == sum(sample.part == "test" for sample in chosen.drifted) > 0
    assert not {sample.body for sample in chosen.clean} & {sample.body for sample in chosen.drifted}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """texts(dataset) -> the pools of a text model that was trained on this data set."""

    def make(dataset, other=None, **more):
        labels = ("negative", "positive")
        samples = [
            manifest.Sample(
                id=f"{n:064x}",
                source="s",
                path=f"s:{n}",
                split=("train", "val", "test")[n % 3],
                label=labels[n % 2],
                text=f"text {n} is written",
            )
            for n in range(60)
        ]
        (tmp_path / "data/text").mkdir(parents=True)
        manifest.write(tmp_path / "data/text/manifest.parquet", samples, task="text", labels=labels)
        params = yaml.safe_load((ROOT / "tests/params.yaml").read_text())
        params["models"]["text"]["dataset"] = dataset
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        bundles.text(tmp_path / "bundle")
        spec = replace(bundle.read(tmp_path / "bundle").manifest.spec, labels=labels)
        return pools(tmp_path, "text", spec, other, **more)

    return make


def test_texts_come_from_a_companion_with_the_same_classes(texts, monkeypatch):
    others = [RawSample(f"o:{n}", None, f"other {n}", ("negative", "positive")[n % 2], None, None) for n in range(8)]
    monkeypatch.setattr(
        other_domain, "_open", lambda name, _: iter(others if name == "sentiment-labelled-sentences" else [])
    )
    chosen = texts("rt-polarity")
    assert {json.loads(sample.body)["text"][:5] for sample in chosen.drifted} == {"other"}
    assert [sample.part for sample in chosen.drifted].count("test") == 4
    assert {sample.label for sample in chosen.drifted if sample.part == "train"} == {"negative", "positive"}
    assert chosen.short == "other texts"


def test_texts_of_a_named_data_set_are_limited_to_the_models_classes(texts, monkeypatch):
    others = [
        RawSample(f"o:{n}", None, f"other {n}", ("negative", "neutral", "positive")[n % 3], None, None)
        for n in range(9)
    ]
    monkeypatch.setattr(other_domain, "_open", lambda name, _: iter(others if name == "tweets" else others[:1]))
    assert {sample.label for sample in texts("rt-polarity", "tweets").drifted} == {"negative", "positive"}


def test_a_data_set_that_lacks_a_class_of_the_model_is_refused(texts, monkeypatch):
    only = [RawSample("o:1", None, "other", "negative", None, None)]
    monkeypatch.setattr(other_domain, "_open", lambda *_: iter(only))
    with pytest.raises(LooplineError, match="tweets lacks the model's class 'positive'"):
        texts("rt-polarity", "tweets")


def test_more_labels_than_people_can_give_are_refused_before_anything_starts(texts, monkeypatch):
    others = [RawSample(f"o:{n}", None, f"other {n}", ("negative", "positive")[n % 2], None, None) for n in range(9)]
    monkeypatch.setattr(other_domain, "_open", lambda *_: iter(others))
    with pytest.raises(LooplineError, match="--labels 5: people can label only 4 samples of this drift"):
        texts("rt-polarity", "tweets", labels=5)


def test_texts_without_a_companion_get_typos(texts):
    chosen = texts("languages")
    clean = {sample.body for sample in chosen.clean}
    assert sum(sample.body in clean for sample in chosen.drifted) < len(chosen.drifted) / 4
    assert {sample.part for sample in chosen.drifted} == {"train", "test"}
    assert chosen.short == "typos"


def test_accuracy_is_measured_on_unlabelled_images_by_condition(world):
    asking = world(
        [ScenarioSample(BRIGHT, "bright", "test")],
        [ScenarioSample(DARK, "bright", "test"), ScenarioSample(BRIGHT, "bright", "train")],
    )
    prometheus.eventually(lambda: asking.accuracy(0, drifted=False)[1] >= 20)
    assert asking.accuracy(0, drifted=False)[0] == 1
    asking.drifted = True
    prometheus.eventually(lambda: asking.accuracy(0, drifted=True)[1] >= 20)
    assert asking.accuracy(0, drifted=True)[0] == 0
    assert asking.accuracy(1e9, drifted=True)[1] == 0
    assert asking.ask([ScenarioSample(BRIGHT, "bright", "test"), ScenarioSample(DARK, "bright", "test")]) == 0.5


def test_people_label_each_drifted_training_image_once_and_only_while_labelling(world, tmp_path):
    drifted = [
        ScenarioSample(DARK, "dark", "train"),
        ScenarioSample(BRIGHT, "bright", "train"),
        ScenarioSample(DARK, "dark", "test"),
    ]
    asking = world(
        [ScenarioSample(BRIGHT, "bright", "test")], drifted, "--journal", tmp_path / "journal", "--journal-sample", 1
    )
    asking.drifted = True
    prometheus.eventually(lambda: len(asking.seen) > 20)
    assert asking.labelled == set()
    asking.labelling = True
    labels = prometheus.eventually(lambda: _labels(tmp_path / "journal", 2))
    assert sorted(line["label"] for line in labels) == ["bright", "dark"]
    assert asking.labelled == {0, 1}


def test_people_label_samples_once_the_journal_kept_them(world, tmp_path):
    asked = []

    def kept(ids):
        """Keep nothing of the first 40 requests."""
        asked.extend(set(ids) - set(asked))
        return set(ids) & set(asked[40:])

    drifted = [ScenarioSample(brightness.png(value), "dark", "train") for value in range(20)]
    journal = ("--journal", tmp_path / "journal", "--journal-sample", 1)
    asking = world([ScenarioSample(BRIGHT, "bright", "test")], drifted, *journal, kept=kept)
    asking.drifted = asking.labelling = True
    labels = prometheus.eventually(lambda: _labels(tmp_path / "journal", 20))
    assert len(labels) == 20, "each sample is labelled once"
    assert {line["id"] for line in labels} <= set(asked[40:])


def _labels(folder, count):
    lines = [json.loads(x) for path in folder.glob("*/*.jsonl") for x in path.read_bytes().splitlines()]
    labels = [line for line in lines if line["kind"] == "label"]
    return labels if len(labels) >= count else []


def test_a_request_without_a_right_answer_is_lost_and_counted(world):
    asking = world([ScenarioSample(b"no image", "bright", "test")])
    prometheus.eventually(lambda: len(asking.lost()) > 5)
    assert {seen.status for seen in asking.lost()} == {415}
    assert asking.accuracy(0, drifted=False)[1] == 0


@pytest.mark.parametrize("make", [bundles.classifier, bundles.text])
def test_a_mixed_up_bundle_has_its_first_two_classes_swapped(tmp_path, make):
    make(tmp_path / "source")
    swapped = bundle.read(faults.mixed_up(tmp_path / "source", tmp_path / "bad"))
    first, second, *others = bundle.read(tmp_path / "source").manifest.spec.labels
    assert swapped.manifest.spec.labels == (second, first, *others)
    assert swapped.version != bundle.read(tmp_path / "source").version


def test_the_drills_policy_is_the_repositorys_at_another_pace(tmp_path):
    (tmp_path / "monitoring").mkdir()
    (tmp_path / "monitoring/retraining.yaml").write_text((ROOT / "monitoring/retraining.yaml").read_text())
    drilled = yaml.safe_load(faults.policy(tmp_path, faults.FAST).read_text())
    committed = yaml.safe_load((ROOT / "monitoring/retraining.yaml").read_text())
    assert drilled["labels"]["total"] == faults.FAST.labels
    assert [step["name"] for step in drilled["here"]] == [step["name"] for step in committed["here"]]
    assert drilled["alerts"] == committed["alerts"]
    added = drilled["here"][-1]["run"].removeprefix(committed["here"][-1]["run"]).split()
    assert f"--requests {faults.FAST.requests}" in " ".join(added)
    assert all(float(figure) >= 0 for figure in added[1::2]), (
        "only numbers change; the steps are those of the committed policy"
    )


def test_consecutive_ports_are_free():
    first = faults.free_ports(5)
    for number in range(5):
        socket.create_server(("127.0.0.1", first + number)).close()


def test_a_record_prints_and_stores_events(capsys):
    record = DrillRecord(began=time.monotonic() + 0.9)  # a pause of a second is still 00:00
    record.say("act", "One")
    record.say("decision", "retrain: because\nof two reasons", "retrain")
    output = capsys.readouterr().out
    assert "00:00 ▶ One\n" in output
    assert "00:00 → retrain: because\n          of two reasons\n" in output
    assert "| 00:00 | → | retrain: because; of two reasons |" in timeline_picture.table(record)
    assert record.to_dict()["events"][1]["short"] == "retrain"


def test_the_picture_is_drawn_with_many_or_few_data(tmp_path):
    record = DrillRecord(out=io.StringIO())
    for number in range(30):
        record.say("note", "x", f"event number {number}")
    record.figures.extend(Figure(float(t), {"v1": t / 10}, 0, ("RetrainCandidate",) * (t > 20)) for t in range(40))
    seen = [Seen(t / 5, t > 100, "test", t % 3 > 0, "v1" if t < 150 else "v2", 200) for t in range(200)]
    timeline_picture.draw(tmp_path / "a.png", record, [*seen, Seen(20.0, True, "train", None, "", 503)], "worn camera")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width > 600
    timeline_picture.draw(tmp_path / "b.png", DrillRecord(out=io.StringIO()), seen[:3], "")
    assert (tmp_path / "b.png").exists()


def test_a_failed_outcome_ends_the_drill(tmp_path):
    drill = object.__new__(story.Drill)
    drill.record, drill.world = DrillRecord(out=io.StringIO()), None
    drill.observed = Observer(tmp_path, "classifier", drill.record)
    with pytest.raises(LooplineError, match="waited 0 s in vain for the moon"):
        drill._until("the moon", lambda: None, patience=0.3)
    assert drill._until("the sun", lambda: "sun") == "sun"
    with pytest.raises(LooplineError, match="the drill failed: all is well"):
        drill._check(False, "all is well")
    assert drill.record.events[-1].kind == "bad"


def test_a_timeout_of_the_drill_reports_the_last_decision(tmp_path):
    drill = object.__new__(story.Drill)
    drill.record, drill.world = DrillRecord(out=io.StringIO()), None
    drill.observed = Observer(tmp_path, "classifier", drill.record)
    log = tmp_path / "decisions/log.jsonl"
    for action, reason in (("promote", "the first"), ("decline", "the drift is over")):
        decisions.append("classifier", action, bundle="b", champion="b", reasons=[reason, "no label"], to=log)
    with pytest.raises(
        LooplineError, match="in vain for a run; the last decision is decline: the drift is over; no label"
    ):
        drill._until("a run", lambda: None, patience=0.1)


def test_each_complete_line_of_a_training_is_recorded_once(tmp_path):
    record = DrillRecord(out=io.StringIO())
    observer = Observer(tmp_path, "classifier", record)
    store = RetrainerStore(tmp_path / ".loopline/retrainer")
    row = Alert(model="classifier", name="RetrainCandidate", version="")
    store.receive([("run-1", row)], "alertmanager")
    store.decide(store.alerts()[0], RetrainingDecision(Action.RETRAIN, ("a test",)), 0.0, "train")
    log = tmp_path / ".loopline/retrainer/runs/run-1/train.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "$ dvc repro\nStage 'batches@classifier' didn't change, skipping\n"
        "Running stage 'train@classifier':\n> loopline stage train\nepoch 1 of"
    )
    observer.relay()
    with log.open("a") as file:
        file.write(
            " 3, loss 0.5\n\nUpdating lock file 'dvc.lock'\nTo track the changes with git, run:\n\n\tgit add dvc.lock\n"
        )
    for _ in range(2):
        observer.relay()
    store.close()
    texts = [event.text.strip() for event in record.events]
    assert texts == ["retraining, step train", "Running stage 'train@classifier':", "epoch 1 of 3, loss 0.5"]


def test_kept_ids_are_read_from_the_journal_index_if_there_is_one(tmp_path):
    observer = Observer(tmp_path, "classifier", DrillRecord(out=io.StringIO()))
    assert observer.kept(["a"]) == set(), "the collector has not started yet"
    (tmp_path / ".loopline/journal").mkdir(parents=True)
    (tmp_path / ".loopline/journal/index.db").write_text("no database")
    assert observer.kept(["a"]) == set()
    (tmp_path / ".loopline/journal/index.db").unlink()
    with closing(index.connect(tmp_path / ".loopline/journal", write=True)) as journal:
        journal.executemany("INSERT INTO entry (model, id) VALUES (?, ?)", [("classifier", "a"), ("text", "b")])
    assert observer.kept(["a", "b", "c"]) == {"a"}


def test_a_clone_begins_with_uncommitted_results(tmp_path, monkeypatch):
    """This happens if `make repro` changed dvc.lock, because the committed results come from another kind of processor."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    root = tmp_path / "root"
    root.mkdir()
    stages = {name: {"foreach": ["classifier"], "do": None} for name in ("ingest", "train", "package")}
    for name, stage in stages.items():
        stage["do"] = {
            "cmd": f"mkdir -p {name} && cat value > {name}/${{item}}",
            "deps": ["value"],
            "outs": [f"{name}/${{item}}"],
        }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "value").write_text("the other machine's")
    (root / ".gitignore").write_text(".loopline/\n")

    def run(*command):
        subprocess.run(command, cwd=root, check=True, capture_output=True)

    run("git", "init", "--quiet", "-b", "main")
    run(sys.executable, "-m", "dvc", "init", "--quiet")
    run(sys.executable, "-m", "dvc", "repro", "--quiet")
    run("git", "add", "--all")
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "committed")
    shutil.rmtree(root / ".dvc/cache")  # this machine has not made the committed results
    for name in ("ingest", "train", "package"):
        shutil.rmtree(root / name)
    with pytest.raises(LooplineError, match=r"run `make repro` first: (?s:.*)package/classifier"):
        Scratch(root, tmp_path / "clone", "classifier")
    (root / "value").write_text("this machine's")
    run(sys.executable, "-m", "dvc", "repro", "--quiet")
    before = subprocess.run(["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True).stdout
    scratch = Scratch(root, tmp_path / "clone", "classifier")
    assert (scratch.folder / "package/classifier").read_text() == "this machine's"
    assert scratch.uncommitted == ["dvc.lock", "value"]
    assert scratch.run("git", "status", "--porcelain") == "", "the clone has committed the changes"
    assert subprocess.run(["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True).stdout == before


def test_a_model_that_cannot_be_drilled_is_refused_with_those_that_can(monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "tests")  # tests/params.yaml has all three models
    assert cli.main(["drill", "--model", "detector"]) == 1
    assert "one class a sample; params.yaml has: classifier, text" in capsys.readouterr().err
