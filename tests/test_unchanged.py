"""`scripts/unchanged`: what `make repro` may change, and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loopline.lib import machine as hardware

ROOT = Path(__file__).parents[1]
HERE = {"cpu": "AMD EPYC"} | hardware.kind()
OTHERS = {  # all of one name, each of another kind than this machine
    "features": HERE | {"features": "avx2 fma sse2"},
    "maker": HERE | {"processor": "x86_64 OtherMaker 1 2"},
    "torch": HERE | {"torch": "1.0.0"},
    "threads": HERE | {"threads": "5"},
    "onnxruntime": HERE | {"onnxruntime": "1.0.0"},
    "features not recorded": {"cpu": "AMD EPYC", "features": ["avx2"]},
}


def git(repository, *words):
    identity = {f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return subprocess.run(["git", *words], cwd=repository, env=os.environ | identity, check=True, capture_output=True)


def write(repository, *, accuracy, machine, models=("text",), n=2000, interval=0.02, metric="accuracy"):
    """The results of a run: a report and a dvc.lock."""
    digest, lock = f"{accuracy} {machine}", {}
    for name in models:
        folder = repository / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        figure = {"value": accuracy, "low": accuracy - interval, "high": accuracy + interval}
        report = {"headline": metric, "n": n, "metrics": {metric: figure}, "machine": machine}
        (folder / "report.json").write_text(json.dumps(report))
        lock[f"evaluate@{name}"] = {"outs": digest}
    (repository / "dvc.lock").write_text(yaml.safe_dump({"stages": lock}))


@pytest.fixture
def committed(tmp_path):
    """Make a repository whose results were committed on a machine."""

    def make(machine, **changes):
        write(tmp_path, **{"accuracy": 0.83, "machine": machine} | changes)
        (tmp_path / "params.yaml").write_text("seed: 0\n")
        git(tmp_path, "init", "--quiet")
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "--message", "Results")
        return tmp_path

    return make


def judged(repository):
    return subprocess.run([sys.executable, ROOT / "scripts/unchanged"], cwd=repository, capture_output=True, text=True)


@pytest.mark.parametrize("machine", [HERE, *OTHERS.values()])
def test_where_nothing_changed_every_machine_passes(committed, machine):
    done = judged(committed(machine))
    assert (done.returncode, done.stdout, done.stderr) == (0, "git status is clean\n", "")


def test_on_the_kind_of_machine_that_made_them_results_come_out_bit_by_bit(committed):
    repository = committed(HERE)
    write(repository, accuracy=0.8301, machine=HERE)
    done = judged(repository)
    assert (done.returncode, done.stderr) == (1, "")
    assert "text does not come out bit by bit" in done.stdout
    assert "dvc.lock: evaluate@text" in done.stdout


def test_another_name_of_the_same_kind_of_machine_excuses_nothing(committed):
    repository = committed(HERE | {"cpu": "AMD EPYC 9B14"})
    write(repository, accuracy=0.8301, machine=HERE)
    assert judged(repository).returncode == 1


@pytest.mark.parametrize("kind", OTHERS)
def test_on_another_kind_of_the_same_name_figures_within_the_band_pass(committed, kind):
    repository = committed(OTHERS[kind])
    write(repository, accuracy=0.815, machine=HERE)
    done = judged(repository)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "text: accuracy 0.815, committed 0.83, band 0.8100 to 0.8500" in done.stdout
    assert {"features": "only in the committed results: ;", "maker": "OtherMaker"}.get(
        kind, kind.split()[0]
    ) in done.stdout


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("accuracy", [0.805, 0.86, float("nan")])
def test_on_another_kind_figures_outside_the_band_fail(committed, kind, accuracy):
    repository = committed(OTHERS[kind])
    write(repository, accuracy=accuracy, machine=HERE)
    done = judged(repository)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"accuracy {accuracy} is outside 0.8100 to 0.8500" in done.stdout


@pytest.mark.parametrize(("metric", "within", "outside"), [("accuracy", 0.821, 0.819), ("map50", 0.801, 0.799)])
def test_a_band_is_no_narrower_than_what_rounding_does_to_a_training(committed, metric, within, outside):
    repository = committed(OTHERS["features"], interval=0.0, metric=metric)
    write(repository, accuracy=within, machine=HERE, metric=metric)
    assert judged(repository).returncode == 0
    write(repository, accuracy=outside, machine=HERE, metric=metric)
    assert judged(repository).returncode == 1


def test_a_test_split_of_another_size_fails_on_every_machine(committed):
    repository = committed(OTHERS["features"])
    write(repository, accuracy=0.83, machine=HERE, n=1999)
    assert "n is 1999, and was 2000" in judged(repository).stdout


def test_each_model_is_judged_by_the_machine_that_made_it(committed):
    """A retraining elsewhere commits one model: the others must still come out bit by bit on the machine that made them."""
    repository = committed(HERE, models=("classifier", "text"))
    write(repository, accuracy=0.83, machine=OTHERS["features"])
    lock = yaml.safe_load((repository / "dvc.lock").read_text())["stages"]
    lock["evaluate@classifier"] = {"outs": "as it was"}
    (repository / "dvc.lock").write_text(yaml.safe_dump({"stages": lock}))
    git(repository, "commit", "--all", "--quiet", "--message", "Retrained elsewhere")
    lock["evaluate@text"] = {"outs": "other bits"}
    (repository / "dvc.lock").write_text(yaml.safe_dump({"stages": lock}))
    assert judged(repository).returncode == 0
    lock["evaluate@classifier"] = {"outs": "other bits"}
    (repository / "dvc.lock").write_text(yaml.safe_dump({"stages": lock}))
    done = judged(repository)
    assert done.returncode == 1
    assert "classifier does not come out bit by bit" in done.stdout
    assert "evaluate@text" not in done.stdout


@pytest.mark.parametrize("machine", [HERE, OTHERS["features"]])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("scratch.txt", "scratch.txt: git neither tracks nor ignores it"),
        ("models/text/scratch.txt", "models/text/scratch.txt: git neither tracks nor ignores it"),
        ("params.yaml", "params.yaml: changed, and no result of a model"),
    ],
)
def test_what_is_no_result_fails_on_every_machine(committed, machine, path, said):
    repository = committed(machine)
    (repository / path).write_text("seed: 1\n")
    done = judged(repository)
    assert (done.returncode, done.stderr) == (1, "")
    assert said in done.stdout


def test_a_report_that_is_gone_fails(committed):
    repository = committed(OTHERS["features"])
    (repository / "models/text/report.json").unlink()
    assert "report.json is gone" in judged(repository).stdout


CPUINFO = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: {}\n"


@pytest.fixture
def kind_of(monkeypatch, tmp_path):
    """The kind of a machine with these flags: only this module reads another file in place of /proc/cpuinfo."""
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "Path", lambda _: cpuinfo)

    def kind(flags):
        cpuinfo.write_text(CPUINFO.format(flags), encoding="utf-8")
        return hardware.kind()

    return kind


def test_two_processors_of_one_name_are_told_apart_by_any_feature_that_computes(kind_of):
    full = "fpu sse2 avx2 fma avx512f avx512_vnni"
    assert kind_of(full) != kind_of("fpu sse2 avx2 fma")
    assert kind_of(full) != kind_of(full + " avx512_bf16")
    assert kind_of(full) != kind_of(full + " amx_of_the_future")
    assert kind_of(full)["processor"].endswith("AuthenticAMD 25 17")


def test_what_a_kernel_or_a_hypervisor_shows_or_hides_does_not_tell_equal_processors_apart(kind_of):
    full = "fpu sse2 avx2 fma"
    hidden = "hypervisor constant_tsc nonstop_tsc tsc_known_freq xtopology ibrs ibpb stibp ssbd smep smap pku md_clear svm ibt arat"
    assert kind_of(full) == kind_of(f"{hidden} fma avx2 sse2 fpu")
