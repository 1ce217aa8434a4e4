"""What the pipeline says of itself, in a log and on a terminal."""

import json
import re
import sys

import pytest

from loopline.cli import main, results
from loopline.errors import LooplineError
from loopline.training import progress_bar


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the files that the stages of two models have left."""
    monkeypatch.chdir(tmp_path)
    for name, headline, chosen in (("signs", "accuracy", "int8"), ("cells", "map50", "fp32")):
        write(
            f"data/{name}/ingest.json",
            {
                "samples": 2062,
                "splits": {"train": 1330, "val": 314, "test": 418},
                "classes": {key: {} for key in "0123456789"},
                "set_aside": {"unreadable": {"count": 3}, "copy": {"count": 2}},
            },
        )
        write(f"data/{name}/validation.json", {"checks": [{}, {}]})
        write(f"models/{name}/export/parity.json", {"tolerance": 1e-4, "largest_difference": {"a": 1e-6, "b": 3e-6}})
        (tmp_path / f"models/{name}/export/model.onnx").write_bytes(b"o" * 612_345)
        write(f"models/{name}/quantize/verdict.json", {"chosen": chosen})
        report = {
            "headline": headline,
            "n": 418,
            "metrics": {headline: {"value": 0.992, "low": 0.9811, "high": 1.0}},
            "baselines": {"simple": {"name": "logistic regression", "value": 0.9723}},
            "model_bytes": 2_940_000,
        }
        write(f"models/{name}/report.json", report)
        promise = {"false_alarms": 0.05, "windows": 24}
        write(f"models/{name}/calibrate/drift.json", {"samples": 420, "signals": {"a": 1, "b": 2}, "promise": promise})
        (tmp_path / f"models/{name}/bundle").mkdir()
        (tmp_path / f"models/{name}/bundle/SHA256SUMS").write_text("")
    (tmp_path / "models/signs/history.csv").write_text(
        "epoch,val_loss,val_accuracy\n1,0.5,0.8\n2,0.25,0.9\n3,0.3,0.91\n"
    )
    (tmp_path / "models/cells/history.csv").write_text("epoch,val_loss,map50_95\n1,0.5,0.8\n2,0.6,0.9\n")
    return tmp_path


def write(path, content):
    from pathlib import Path

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))


def test_every_stage_ends_with_a_line_of_its_figures(project):
    lines = {stage: results.line(stage, "signs") for stage in results.LINES}
    assert lines == {
        "ingest": "signs: 2,062 samples, 5 set aside, train 1,330, val 314, test 418, 10 classes",
        "validate": "signs: 2 checks of the data passed",
        "train": "signs: trained 3 epochs, the best is 2: val_loss 0.25, val_accuracy 0.9",
        "export": "signs: ONNX of 612 KB, differs from torch by 3e-06 at most, 0.0001 is allowed",
        "calibrate": "signs: drift reference of 420 samples and 2 signals, chance of a false alarm 0.05 in 24 windows",
        "package": "signs: bundle e3b0c44298fc in models/signs/bundle",
    }
    assert "the best is 2" in results.line("train", "cells")  # by average precision, not by the loss
    assert results.line("quantize", "signs") is None  # it prints its own


def test_a_probe_and_an_adopted_model_were_not_trained_for_epochs(project):
    history = project / "models/signs/history.csv"
    history.write_text("epoch,strength,train_loss,val_loss,val_accuracy\n1,0.001,1,0.5,0.8\n2,0.003,1,0.4,0.9\n")
    assert results.line("train", "signs").startswith("signs: fitted with 2 penalties, the best is 2: strength 0.003, ")
    history.write_text("epoch,val_loss,val_accuracy\n1,0.5,0.8\n")
    assert results.line("train", "signs") == "signs: not trained, only measured: val_loss 0.5, val_accuracy 0.8"


def test_the_table_has_a_row_for_each_model_and_the_next_step(project):
    results.keep_seconds("signs", "ingest", 4.0)
    results.keep_seconds("signs", "train", 181.2)
    results.keep_seconds("signs", "ingest", 5.0)  # again: the latest counts
    table = results.table(["signs", "cells", "nothing-yet"])
    rows = [re.split(r"\s{2,}", line) for line in table.splitlines()]
    assert rows[0] == list(results.HEADER)
    assert rows[1] == ["signs", "accuracy 0.992 [0.981, 1.000]", "0.972", "INT8", "2.9 MB", "3 min 06 s"]
    assert rows[2] == ["cells", "map50 0.992 [0.981, 1.000]", "0.972", "FP32", "2.9 MB", "-"]
    assert rows[3:] == [
        [""],
        ["Next: `make serve`. More figures: `dvc metrics show`, models/*/report.json, `make mlflow`"],
    ]
    assert "`make serve MODEL=signs`" in results.table(["signs"])


def test_without_results_the_table_says_what_makes_them(project):
    with pytest.raises(LooplineError, match="make repro"):
        results.table(["nothing-yet"])


def test_an_unknown_model_is_named(project, capsys):
    (project / "params.yaml").write_text("seed: 0\nmodels: {}\n")
    assert main(["results", "signs"]) == 1
    assert capsys.readouterr().err.startswith("loopline: ")


def follow(epochs, done):
    shown = progress_bar.Progress("signs", epochs=epochs, steps=2, done=done)
    for epoch in range(done + 1, epochs + 1):
        shown.step()
        shown.step()
        shown.epoch(epoch, {"val_loss": 0.123456})
    shown.close()


def test_a_log_gets_a_line_an_epoch_with_the_time_left(capsys, monkeypatch):
    seconds = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(seconds))
    follow(epochs=12, done=10)
    assert capsys.readouterr() == (
        "signs: epoch 11 of 12, val_loss 0.1235, 10 s left\nsigns: epoch 12 of 12, val_loss 0.1235, 0 s left\n",
        "",
    )


def test_a_terminal_gets_a_bar_and_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    follow(epochs=3, done=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train signs" in shown.err
    assert "6/6" in shown.err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_a_duration_is_read_at_a_glance(seconds, text):
    assert progress_bar.duration(seconds) == text
