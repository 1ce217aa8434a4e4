"""The container image, built and run: locked down, small, with only what a server needs.

Without podman or docker these are skipped, or fail where LOOPLINE_REQUIRE_CONTAINERS=1 says that there must be one.
"""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import uuid
from importlib import metadata
from pathlib import Path

import assemble
import bundles
import image as builder
import prometheus
import pytest
import requests
from PIL import Image

from loopline.release import lineage, signature

ROOT = Path(__file__).parents[2]
REVISION = "org.opencontainers.image.revision"
LOCKED_DOWN = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=4711:4711", "--memory=256m")
SECONDS = 60  # for a step of the container engine


def build(*arguments):
    words = [sys.executable, str(ROOT / "serving/image.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def image(engine):
    done = build("--tag", "loopline-test")
    assert done.returncode == 0, done.stderr
    return "loopline-test"


@pytest.fixture(scope="session")
def mounted(folders):
    """A folder of the three tiny bundles, readable for all."""
    root = next(iter(folders.values())).parent
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


class Container:
    """A running container; its server answers at `url`."""

    def __init__(self, engine, image, *arguments, options=()):
        self.engine, self.name = engine, f"loopline-test-{uuid.uuid4().hex[:8]}"
        published = "--publish=127.0.0.1::8080"
        start = time.monotonic()
        self.output("run", "--detach", "--name", self.name, published, *LOCKED_DOWN, *options, image, *arguments)
        self.url = "http://" + self.output("port", self.name, "8080/tcp").split()[0]
        while not self.ready():
            assert self.inspect("{{.State.Running}}") == "true", self.logs()
            assert time.monotonic() - start < SECONDS, self.logs()
            time.sleep(0.02)

    def output(self, *words):
        done = subprocess.run([self.engine, *words], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def inspect(self, form):
        return self.output("inspect", "--format", form, self.name)

    def logs(self):
        done = subprocess.run([self.engine, "logs", self.name], capture_output=True, text=True, timeout=SECONDS)
        return done.stdout + done.stderr

    def ready(self):
        try:
            return requests.get(self.url + "/v2/health/ready", timeout=10).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    def run(self, *words):
        """Run a program in the container."""
        return subprocess.run([self.engine, "exec", self.name, *words], capture_output=True, text=True, timeout=SECONDS)

    def health(self):
        """The exit code of the image's own health check."""
        kind, *words = json.loads(self.inspect("{{json .Config.Healthcheck.Test}}"))
        assert kind == "CMD"
        return self.run(*words).returncode

    def remove(self):
        subprocess.run([self.engine, "rm", "--force", "--time=0", self.name], capture_output=True, timeout=SECONDS)


@pytest.fixture
def run(engine):
    started = []

    def start(image, *arguments, options=()):
        container = Container.__new__(Container)
        started.append(container)
        container.__init__(engine, image, *arguments, options=options)
        return container

    yield start
    for container in started:
        container.remove()


def picture(kind, shade=200):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (shade,) * 3).save(file, kind)
    return file.getvalue()


def test_a_locked_down_container_serves_every_task_and_kind_of_image(run, image, mounted):
    container = run(image, options=[f"--volume={mounted}:/bundles:ro"])
    for kind in ("PNG", "JPEG", "WEBP"):
        answer = requests.post(container.url + "/predict/classifier", data=picture(kind), timeout=60).json()
        assert answer["predictions"][0]["label"] == "bright", kind
    answer = requests.post(container.url + "/predict/detector", data=picture("PNG", 255), timeout=60).json()
    assert [box["label"] for box in answer["predictions"][0]["boxes"]] == ["spot"]
    answer = requests.post(container.url + "/predict/text", json={"texts": ["good great", "bad"]}, timeout=60).json()
    assert [prediction["label"] for prediction in answer["predictions"]] == ["good", "bad"]
    form = {"file": ("a.png", picture("PNG", 20), "image/png")}
    answer = requests.post(container.url + "/predict/classifier", files=form, timeout=60).json()
    assert answer["predictions"][0]["label"] == "dark"
    assert "loopline_" in requests.get(container.url + "/metrics", timeout=60).text
    assert requests.get(container.url + "/", timeout=60).status_code == 200


def test_three_models_fit_into_140_megabytes(run, image, mounted):
    container = run(image, options=[f"--volume={mounted}:/bundles:ro"])
    requests.post(container.url + "/predict/classifier", data=picture("PNG"), timeout=60)
    status = container.run("python3", "-c", "print(open('/proc/1/status').read())").stdout
    assert int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) < 140_000
    assert re.search(r"Uid:\s+4711", status)
    assert re.search(r"CapEff:\s+0+\n", status)


def test_sigterm_ends_it_with_0_and_its_health_check_says_not_ready_before(run, image, mounted):
    container = run(image, "/bundles", "--grace=15", options=[f"--volume={mounted}:/bundles:ro"])
    assert container.health() == 0
    container.output("kill", "--signal=TERM", container.name)
    prometheus.eventually(lambda: container.health() == 1, 14)
    assert container.output("wait", container.name) == "0"
    assert '"stopped"' in container.logs()


def test_nothing_can_be_written_and_no_shell_be_started(run, image, mounted):
    container = run(image, options=[f"--volume={mounted}:/bundles:ro"])
    for place in ("/usr/local/x", "/bundles/x", "/x"):
        assert "Read-only file system" in container.run("python3", "-c", f"open({place!r}, 'w')").stderr
    assert container.run("sh", "-c", "true").returncode in (126, 127)
    for module in ("pip", "ensurepip", "torch", "pydantic", "onnx"):
        assert "ModuleNotFoundError" in container.run("python3", "-c", f"import {module}").stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "/bundles is not a bundle"), (("--volume={}:/bundles:ro",), "model.onnx was changed")],
)
def test_without_a_good_bundle_it_stops_with_one_clear_line(engine, image, folders, tmp_path, options, message):
    tmp_path.chmod(0o755)
    bad = shutil.copytree(folders["classifier"], tmp_path / "classifier")
    (bad / "model.onnx").write_bytes(b"x")
    for path in (bad, *bad.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    words = [engine, "run", "--rm", *LOCKED_DOWN, *(option.format(tmp_path) for option in options), image]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "level=" not in line]  # the engine's own
    assert len(lines) == 1
    assert message in lines[0]


def test_the_image_holds_only_what_the_server_needs(engine, image):
    name = f"loopline-test-{uuid.uuid4().hex[:8]}"
    subprocess.run([engine, "create", "--name", name, image], check=True, capture_output=True)
    try:
        exported = subprocess.run([engine, "export", name], check=True, capture_output=True).stdout
    finally:
        subprocess.run([engine, "rm", name], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        members = [member for member in archive if not member.name.startswith(("dev", "proc", "sys", "run"))]
    programs = {
        member.name for member in members if member.isfile() and member.mode & 0o111 and "/bin/" in f"/{member.name}"
    }
    assert programs == {"usr/local/bin/python3.11", "usr/local/bin/loopline"}
    assert [member.name for member in members if member.mode & 0o6000] == [], "setuid or setgid"
    assert {member.name for member in members if member.mode & 0o002 and not member.issym()} == {"tmp"}
    packages = {member.name.split("/")[5] for member in members if "/site-packages/" in member.name}
    packages = {name for name in packages if not name.endswith((".dist-info", ".libs"))}
    assert packages <= {
        *("Crypto", "PIL", "httptools", "loopline", "numpy", "onnxruntime", "orjson", "prometheus_client"),
        *("multipart", "python_multipart", "tokenizers", "uvloop"),
    }
    assert not [
        member.name
        for member in members
        if re.search(r"torch|ultralytics|loopline/(training|stages|data)", member.name)
    ]
    assert [member for member in members if "/loopline-" in member.name or member.name.endswith("licenses/LICENSE")], (
        "licences stay"
    )


def test_bundles_can_be_in_it_and_its_labels_say_which(engine, run, image, folders):
    before = builder.revision()
    done = build("--tag", "loopline-test-bundles", "--bundles", *folders.values())
    assert done.returncode == 0, done.stderr
    container = run("loopline-test-bundles")
    labels = json.loads(container.inspect("{{json .Config.Labels}}"))
    hashes = dict(pair.split("=") for pair in labels["loopline.bundles"].split())
    assert set(hashes) == set(folders)
    for name, version in hashes.items():
        served = requests.get(f"{container.url}/v2/models/{name}", timeout=60).json()
        assert version in json.dumps(served["parameters"])
    assert labels["org.opencontainers.image.revision"] in (before, builder.revision()), "whatever was built before"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    for name in (container.name, "loopline-test-bundles"):
        assert (
            f"{name}: its label names the same bundle" in image_link(container.url, name).outcome
            or "-dirty" in labels[REVISION]
        )
    assert image_link(container.url, image).state == "unchecked", "it has no bundles in it"
    assert image_link(container.url, "no-such-image").state == "unchecked"


def image_link(url, image, model="classifier"):
    """The image's link in the result of `loopline whoami --image`."""
    chain = lineage.walk(lineage.Question(url=url, image=image, made_from=lambda *_: ("", "")), model)
    return next(link for link in chain if link.name == "image")


def test_a_container_that_serves_another_bundle_than_its_image_has_is_found_out(engine, run, image, folders, tmp_path):
    tmp_path.chmod(0o755)
    other = bundles.classifier(tmp_path / "other", 100).folder
    for path in (other, *other.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert build("--tag", "loopline-test-bundles", "--bundles", *folders.values()).returncode == 0
    container = run("loopline-test-bundles", "/other", options=[f"--volume={other}:/other:ro"])
    link = image_link(container.url, container.name)
    assert (link.state, "its label names" in link.outcome) == ("broken", True)


def test_signed_bundles_are_in_it_with_their_signatures_and_verified_there(engine, run, image, folders, tmp_path):
    tmp_path.chmod(0o755)
    words = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "key.pem"]
    subprocess.run(words, check=True)
    words = ["openssl", "ec", "-in", tmp_path / "key.pem", "-pubout", "-out", tmp_path / "key.pub"]
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "key.pub").chmod(0o644)
    copied = shutil.copytree(folders["text"], tmp_path / "text")
    signature.sign(copied, tmp_path / "key.pem")
    assert build("--tag", "loopline-test-bundles", "--bundles", copied).returncode == 0
    demand = (f"--volume={tmp_path}/key.pub:/key.pub:ro", "--env=LOOPLINE_VERIFY_KEY=/key.pub")
    assert '"signed":true' in run("loopline-test-bundles", options=demand).logs()
    assert build("--tag", "loopline-test-bundles", "--bundles", folders["text"]).returncode == 0
    words = [engine, "run", "--rm", *LOCKED_DOWN, *demand, "loopline-test-bundles"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, "/bundles/text is not signed" in done.stderr) == (1, True), done.stderr


def test_its_bill_of_materials_is_what_is_in_it(image, tmp_path):
    words = [sys.executable, ROOT / "serving/sbom.py", "--image", image, "--out", tmp_path / "sbom.json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    components = json.loads((tmp_path / "sbom.json").read_text())["components"]
    wheels = {part["name"]: part["version"] for part in components if part.get("purl", "").startswith("pkg:pypi/")}
    assert wheels == pinned("serving/requirements.lock")
    assert (
        wheels.items()
        <= {re.sub(r"[-_.]+", "-", wheel.name).lower(): wheel.version for wheel in metadata.distributions()}.items()
    )
    assert {"libc6", "libssl3", "python"} <= {part["name"] for part in components}
    words[-2:] = ["--out", tmp_path / "none.json", "--lock", ROOT / "serving/requirements-gpu.lock"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, "do not show" in done.stderr) == (1, True)
    assert not (tmp_path / "none.json").exists()


def test_a_damaged_bundle_is_not_put_into_an_image(engine, folders, tmp_path):
    bad = shutil.copytree(folders["text"], tmp_path / "text")
    (bad / "model.onnx").write_bytes(b"x")
    done = build("--tag", "loopline-test-bundles", "--bundles", bad)
    assert (done.returncode, "model.onnx was changed" in done.stderr) == (1, True)


@pytest.mark.parametrize("limit", ["--budget=50", "--budget-compressed=20"])
def test_an_image_over_its_budget_is_refused(image, limit):
    done = build("--tag", image, limit)
    assert done.returncode == 1
    assert "over its budget" in done.stderr
    assert re.search(r"\d+ MB, compressed \d+", re.sub(r"\.\d", "", done.stdout)), "the sizes are printed all the same"


def test_the_demo_page_can_be_left_out(run, image, mounted):
    done = build("--tag", "loopline-test-no-demo", "--no-demo")
    assert done.returncode == 0, done.stderr
    container = run("loopline-test-no-demo", options=[f"--volume={mounted}:/bundles:ro"])
    assert requests.get(container.url + "/", timeout=60).status_code == 404
    assert requests.get(container.url + "/docs", timeout=60).status_code == 200


def pinned(name):
    """name -> version of a lock file with hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    assert all(
        len(row) > 1 and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in row[1:]) for row in rows
    )
    return dict(row[0].split("==") for row in rows)


def test_the_image_locks_by_hash_what_the_tests_ran_with():
    tested = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    expected = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["serve"])
    cpu, gpu = pinned("serving/requirements.lock"), pinned("serving/requirements-gpu.lock")
    assert set(cpu) == expected | {"numpy", "pillow"}
    assert cpu.items() <= tested.items()
    assert gpu["onnxruntime-gpu"] == cpu["onnxruntime"], "scripts/lock"
    assert {name: cpu[name] for name in cpu if name != "onnxruntime"}.items() <= gpu.items()
    assert "onnxruntime" not in gpu, "the two packages overwrite each other"


def test_a_library_that_the_base_lacks_stops_the_build(tmp_path):
    import numpy
    from numpy._core import _multiarray_umath as compiled

    alone = tmp_path / "alone.so"
    alone.write_bytes(Path(compiled.__file__).read_bytes())
    if not (Path(numpy.__file__).parents[1] / "numpy.libs").exists():
        pytest.skip("this NumPy links to the system's libraries")
    with pytest.raises(SystemExit, match="openblas"):
        assemble.libraries([alone], [])


def test_a_module_cut_to_its_segments_still_works(tmp_path):
    import httptools.parser.parser as module

    cut = tmp_path / Path(module.__file__).name
    cut.write_bytes(Path(module.__file__).read_bytes())
    assemble.strip(cut)
    assert cut.stat().st_size < 0.5 * Path(module.__file__).stat().st_size
    program = "import sys, importlib.util as u; s = u.spec_from_file_location('httptools.parser.parser', sys.argv[1]); "
    program += "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.HttpRequestParser)"
    done = subprocess.run([sys.executable, "-c", program, str(cut)], capture_output=True, text=True)
    assert "HttpRequestParser" in done.stdout, done.stderr


def test_a_careless_dockerfile_is_refused(tmp_path):
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python\nRUN sudo pip install numpy\nCMD loopline serve\n")
    assert subprocess.run(["hadolint", str(careless)], capture_output=True).returncode == 1


def test_a_folder_of_bundles_is_as_good_as_its_bundles(serve, mounted, tmp_path):
    layout = tmp_path / "models"
    (layout / "text").mkdir(parents=True)
    (layout / "text/bundle").symlink_to(mounted / "text")
    (layout / "classifier").symlink_to(mounted / "classifier")
    server = serve(layout)
    assert sorted(server.log[-1]["models"]) == ["classifier", "text"]
    assert server.stop() == 0
