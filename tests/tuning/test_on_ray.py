"""Trials and batch predictions on a real Ray: the same results as without it, whatever dies. One Ray serves this file's tests."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_tuning import project, searched  # noqa: F401 - fixtures

from loopline import cli
from loopline.batch import engines
from loopline.batch.engines import Pool
from loopline.lib import ray_cluster


@pytest.fixture(scope="module")
def ray():
    """The module of a Ray with two cores, to which commands can connect."""
    if os.environ.get("LOOPLINE_REQUIRE_RAY") != "1":
        pytest.skip("Ray needs the machine for itself: see the end of .ci/run")
    with ray_cluster.joined(2) as ray:
        yield ray


def command(ray, *words, **environment):
    """Start `loopline` with the cluster's address and token."""
    address = ray.get_runtime_context().gcs_address
    line = [Path(sys.executable).with_name("loopline"), *words]
    env = os.environ | {ray_cluster.ADDRESS: address} | environment
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(process, code=0):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, out + errors
    assert not errors.startswith("Traceback")
    assert "\nTraceback" not in errors
    return out + errors


class Killer(threading.Thread):
    """Kills processes of Ray that run a task or an actor, one after the other."""

    def __init__(self, kills, pause):
        super().__init__(daemon=True)
        self.left, self.pause, self.stopped = kills, pause, threading.Event()
        self.start()

    def run(self):
        while self.left and not self.stopped.wait(self.pause):
            for victim in victims()[:1]:
                victim.kill()
                self.left -= 1


def victims():
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.cmdline()[:1]
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if name and name[0].startswith(("ray::_task", "ray::Actor")):  # and not Ray's own agents
            found.append(process)
    return found


def test_trials_on_ray_give_the_same_table_although_workers_are_killed(ray, searched, project):  # noqa: F811
    killer = Killer(2, pause=4.0)
    out = done(command(ray, "tune", "classifier", "--engine", "ray", "--out", "there"))
    killer.stopped.set()
    assert killer.left < 2
    assert "proven gain" in out
    for name in ("trials.csv", "report.md"):
        here = searched[0] / "reports/tune/classifier" / name
        assert (project / "there" / name).read_bytes() == here.read_bytes()


@pytest.fixture(scope="module")
def reviews(tmp_path_factory, request):
    """A text bundle, and a table of many texts."""
    import bundles

    folder = tmp_path_factory.mktemp("reviews")
    texts = [f"good {number} bad fine {'poor ' * (number % 7)}" for number in range(60_000)]
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    return bundles.text(folder / "text").folder, folder


def predicted(ray, bundle, folder, name, **environment):
    words = ["predict", str(bundle), str(folder / "texts.parquet"), str(folder / name), "--engine", "ray"]
    return command(ray, *words, "--slots", "2", "--batch-rows", "16", "--part-rows", "2000", **environment)


def test_a_prediction_on_ray_gives_the_same_bytes_although_actors_are_killed(ray, reviews):
    bundle, folder = reviews
    options = ["--batch-rows", "16", "--part-rows", "2000"]
    assert (
        cli.main(["predict", str(bundle), str(folder / "texts.parquet"), str(folder / "here.parquet"), *options]) == 0
    )
    killer = Killer(4, pause=1.5)
    done(predicted(ray, bundle, folder, "there.parquet"))
    killer.stopped.set()
    assert killer.left < 4
    assert (folder / "there.parquet").read_bytes() == (folder / "here.parquet").read_bytes()


def test_a_prediction_whose_driver_is_killed_continues_with_the_parts_that_were_written(ray, reviews):
    bundle, folder = reviews
    process = predicted(ray, bundle, folder, "again.parquet")
    parts = folder / "again.parquet.partial"
    until = time.monotonic() + 120
    while len(list(parts.glob("part-*"))) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert 3 <= len(list(parts.glob("part-*"))) < 30
    assert "rows are kept from an earlier run" in done(predicted(ray, bundle, folder, "again.parquet"))
    assert (folder / "again.parquet").read_bytes() == (folder / "here.parquet").read_bytes()


class Work:
    fs = None

    def __init__(self, *batches):
        self.batches = list(batches)


def test_a_sample_that_ends_its_actor_twice_gets_an_error_and_all_others_an_answer(ray):
    class Poisoned:  # in a function, so that Ray sends the class and not the name of this file
        def ready(self):
            pass

        def answers(self, batches, _):
            if any("poison" in batch for batch in batches):
                os.kill(os.getpid(), 9)
            return [{"label": content} for batch in batches for content in batch]

    works = [Work(["a", "b"], ["c", "poison", "d"]), Work(), Work(["e"])]
    kind = ray.remote(num_cpus=1)(Poisoned)
    found = dict(Pool(ray, kind.remote, 2).run(iter(works)))
    labels = [answer.get("label", answer.get("error")) for answer in found[works[0]]]
    assert labels == ["a", "b", "c", "its process died 2 times", "d"]
    assert found[works[1]] == []
    assert found[works[2]] == [{"label": "e"}]


def test_actors_that_never_start_are_an_error(ray):
    class Broken:
        def __init__(self):
            os.kill(os.getpid(), 9)

        def ready(self):
            pass

    kind = ray.remote(num_cpus=1)(Broken)
    with pytest.raises(engines.LooplineError, match="no actor starts"):
        list(Pool(ray, kind.remote, 1).run(iter([Work(["a"])])))


def test_map_gives_the_answers_of_the_process_in_order(ray, reviews, tmp_path):
    bundle, _ = reviews
    code = (
        "from loopline import batch\n"
        "texts = [f'good {n}' if n % 3 else 'bad poor' for n in range(3000)]\n"
        f"here, there = (list(batch.map({str(bundle)!r}, texts, engine=kind, slots=2, batch_rows=8)) for kind in ('process', 'ray'))\n"
        "assert here == there and [row['id'] for row in here] == list(range(3000)), 'they differ'\n"
        "print(here[0]['label'])\n"
    )
    env = os.environ | {ray_cluster.ADDRESS: ray.get_runtime_context().gcs_address}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_wrong_token_is_one_message(ray, reviews):
    bundle, folder = reviews
    message = done(predicted(ray, bundle, folder, "x.parquet", RAY_AUTH_TOKEN="0" * 64), code=1)
    assert "the Ray cluster at RAY_ADDRESS=" in message


def test_an_address_where_nothing_listens_is_one_message(ray, reviews):
    bundle, folder = reviews
    message = done(predicted(ray, bundle, folder, "x.parquet", RAY_ADDRESS="127.0.0.1:1"), code=1)
    assert "the Ray cluster at RAY_ADDRESS=127.0.0.1:1 cannot be used" in message


def test_a_cluster_with_another_version_of_ray_is_one_message(ray, reviews):
    bundle, folder = reviews
    code = (
        "import ray, sys; ray.__version__ = '2.0.0'\n"
        "from loopline.cli import main\n"
        f"words = ['predict', {str(bundle)!r}, {str(folder / 'texts.parquet')!r}, {str(folder / 'x.parquet')!r}]\n"
        "sys.exit(main([*words, '--engine', 'ray']))"
    )
    env = os.environ | {ray_cluster.ADDRESS: ray.get_runtime_context().gcs_address}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "ersion" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_ray_the_message_says_how_to_install_it(reviews, monkeypatch, capsys):
    bundle, folder = reviews
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["predict", str(bundle), str(folder / "texts.parquet"), str(folder / "x.parquet"), "--engine", "ray"]
    assert cli.main(words) == 1
    assert "--engine ray needs Ray: make ray" in capsys.readouterr().err


def test_nothing_imports_ray_unless_it_is_asked_for(reviews):
    bundle, folder = reviews
    code = (
        "import sys; from loopline.cli import main\n"
        f"main(['predict', {str(bundle)!r}, {str(folder / 'texts.parquet')!r}, {str(folder / 'y.parquet')!r}])\n"
        "import loopline.tuning.workers, loopline.batch.engines\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
