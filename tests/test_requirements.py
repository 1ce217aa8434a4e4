"""Every package that our code imports is declared in pyproject.toml, in an extra that those who run the code install."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = ("src", "serving", "benchmarks", "tests", "template", "scripts")
EXTRAS = PROJECT["optional-dependencies"]
# Declared as another package that is the same code in another build.
STAND_INS = {"ultralytics": "ultralytics-opencv-headless"}
PLATFORMS = {"beam", "modal"}  # serverless platforms' own, for examples that run there
OPTIONAL = {"timm"}  # installed by those who name one of its networks: see docs/pretrained.md
# Benchmarks of other servers and of other drift alarms have environments and locks of their own.
LOCKS = ("benchmarks/serving/requirements.lock", "benchmarks/drift/requirements.lock")


def normal(name):
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;@]", name.strip(), maxsplit=1)[0]).lower()


def imported(path):
    """Top-level packages that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield first.value.partition(".")[0]


def undeclared(folder, declared, distributions):
    """package -> a file that imports it, for those of no declared distribution. A module that lies in the repository is ours."""
    own = {path.stem for place in FOLDERS for path in (ROOT / place).rglob("*.py")} | {"loopline", "benchmarks"}
    missing = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in imported(path):
            if name in sys.stdlib_module_names or name in own | PLATFORMS | OPTIONAL:
                continue
            if not {normal(one) for one in distributions.get(name, [name])} & declared:
                missing[name] = path.relative_to(ROOT).as_posix()
    return missing


def declared_for(folder):
    """What may be imported: in src, which others install, without what only we work with."""
    extras = [extra for name, extra in EXTRAS.items() if (folder, name) != ("src", "dev")]
    names = {normal(name) for name in [*PROJECT["dependencies"], *(name for extra in extras for name in extra)]}
    for lock in LOCKS if folder == "benchmarks" else ():
        names |= {normal(line) for line in (ROOT / lock).read_text(encoding="utf-8").splitlines() if "==" in line}
    return names


@pytest.fixture(scope="module")
def distributions():
    found = {module: list(names) for module, names in packages_distributions().items()}
    for module, name in STAND_INS.items():
        found.setdefault(module, []).append(name)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_import_is_of_a_declared_package(folder, distributions):
    assert undeclared(folder, declared_for(folder), distributions) == {}


@pytest.mark.parametrize(
    ("folder", "name"), [("src", "scipy"), ("src", "niquests"), ("src", "numpy"), ("template", "jinja2")]
)
def test_without_its_declaration_an_import_is_named(distributions, folder, name):
    assert name in undeclared(folder, declared_for(folder) - {name}, distributions)


def test_the_lock_has_every_declared_package():
    locks = [ROOT / "requirements.lock", ROOT / "ray.lock"]  # `make ray` installs the second one
    lines = [line for lock in locks for line in lock.read_text(encoding="utf-8").splitlines()]
    locked = {normal(line) for line in lines if "==" in line}
    extras = [extra for name, extra in EXTRAS.items() if name != "gpu"]
    assert {normal(name) for name in [*PROJECT["dependencies"], *(one for extra in extras for one in extra)]} <= locked
