"""Checks of the files for serverless services without an account. docs/serverless.md lists what they leave untested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "serving/serverless"
SDKS = ("modal==1.6.4", "truss==0.18.35")
LOAD = """
import sys, warnings
from pathlib import Path
folder = Path("serving/serverless")
sys.path[:0] = [str(folder), "src"]
import modal_app
from truss.base.truss_config import TrussConfig
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    assert list(modal_app.app.registered_web_endpoints) == ["server"]
assert TrussConfig.from_yaml(Path(sys.argv[1])).docker_server.server_port == 8000
"""


def lint(path):
    command = [Path(sys.executable).parent / "cfn-lint", "--regions", "eu-central-1", "--", path]
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("aws-lambda.yaml", "PackageType: Image", "PackageType: Picture"),
        ("aws-fargate.yaml", 'Memory: "4096"', 'Memory: "512"'),
    ],
)
def test_cloudformation_templates_have_no_fault(tmp_path, name, right, wrong):
    assert lint(FOLDER / name) == ""
    text = (FOLDER / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace(right, wrong), encoding="utf-8")
    assert "E3" in lint(tmp_path / name)


def test_the_lambda_image_asks_the_server_whether_it_is_ready():
    dockerfile = FOLDER / "Dockerfile.lambda"
    subprocess.run([Path(sys.executable).parent / "hadolint", dockerfile], check=True)
    assert "AWS_LWA_READINESS_CHECK_PATH=/v2/health/ready" in dockerfile.read_text(encoding="utf-8")


def arguments():
    """Yield each file's arguments for the server."""
    template = yaml.safe_load((FOLDER / "azure-container-app.yaml").read_text(encoding="utf-8"))["properties"][
        "template"
    ]
    yield template["containers"][0]["args"]
    run = yaml.safe_load((FOLDER / "cloud-run.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    yield run["containers"][0]["args"]
    fargate = yaml.load((FOLDER / "aws-fargate.yaml").read_text(encoding="utf-8"), _Cloudformation)["Resources"]["Task"]
    yield fargate["Properties"]["ContainerDefinitions"][0]["Command"]
    truss = yaml.safe_load((FOLDER / "truss/config.yaml").read_text(encoding="utf-8"))
    yield truss["docker_server"]["start_command"].split()[2:]
    (command,) = (
        line
        for line in (FOLDER / "Dockerfile.lambda").read_text(encoding="utf-8").splitlines()
        if line.startswith("CMD")
    )
    yield yaml.safe_load(command.removeprefix("CMD "))


class _Cloudformation(yaml.SafeLoader):
    """A loader that reads !Ref and similar tags as their values."""


_Cloudformation.add_multi_constructor("!", lambda _loader, _tag, node: node.value)


def test_the_server_accepts_every_argument_of_the_files():
    from loopline.cli import parser

    commands = list(arguments())
    assert len(commands) == 5
    for words in commands:
        assert parser().parse_args(["serve", *words]).demo is False
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", "/bundles", "--no-demonstration"])


@pytest.mark.parametrize("name", ["modal_app.py", "beam_app.py"])
def test_apps_compile(name):
    compile((FOLDER / name).read_text(encoding="utf-8"), name, "exec")


def test_the_vendors_packages_accept_the_apps(tmp_path):
    uv, python = Path(sys.executable).parent / "uv", tmp_path / "venv/bin/python"
    subprocess.run([uv, "venv", "--quiet", tmp_path / "venv", "--python", sys.executable], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, *SDKS]
    fetched = subprocess.run(install, capture_output=True, text=True)
    if fetched.returncode and not os.environ.get("LOOPLINE_REQUIRE_SDKS"):
        pytest.skip(f"the packages cannot be fetched: {fetched.stderr[-200:]}")
    assert fetched.returncode == 0, fetched.stderr

    def loaded(config):
        environment = os.environ | {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml")}
        command = [python, "-c", LOAD, config]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    right = loaded(FOLDER / "truss/config.yaml")
    assert right.returncode == 0, right.stderr
    wrong = (FOLDER / "truss/config.yaml").read_text(encoding="utf-8").replace("server_port", "serverport")
    (tmp_path / "config.yaml").write_text(wrong, encoding="utf-8")
    assert loaded(tmp_path / "config.yaml").returncode != 0
