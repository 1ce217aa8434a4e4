"""Turns a copy of this repository into a project of its own: what copier.yml cannot leave out by its path alone.

Copier runs it in the copy, where `.copier-answers.yml` has the answers; its only argument is `copy` or `update`. An update writes
none of the README, CHANGELOG, CITATION and dvc.lock anew: they are the project's own by then.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import yaml

MODELS = {"classification": "classifier", "detection": "detector", "text": "text"}
# What the `detect` extra alone brings into requirements.lock. tests/test_template.py works it out.
DETECTION = {
    *("nvidia-ml-py", "opencv-python-headless", "polars", "polars-runtime-32"),
    *("ultralytics-opencv-headless", "ultralytics-platform", "ultralytics-thop"),
}


def edit(path: str, pattern: str, replacement: str = "") -> None:
    """Replace what matches in a file. Raises SystemExit where nothing does: the template is behind the repository."""
    text, found = re.subn(pattern, replacement, Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not found:
        sys.exit(f"template/bake.py: nothing in {path} matches {pattern!r}")
    Path(path).write_text(text, encoding="utf-8")


def cut(path: str, name: str) -> None:
    """Take the entries whose name matches, two spaces deep, out of a YAML file; the comments of others stay."""
    edit(path, rf"^  {name}:\n(?:    .*\n|\n)*")


def mend(page: Path) -> None:
    """Drop a page's table rows that name what the project lacks; other links to such files become plain text."""

    def there(target: str) -> bool:
        return "://" in target or (page.parent / target).exists()

    rows = []
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        links = re.findall(r"\]\(([^)#]+)", line)
        tests = [Path(name) for name in re.findall(r"`(tests/[\w/]+\.py)", line)]
        if not line.startswith("|") or (all(map(there, links)) and all(name.exists() for name in tests)):
            rows.append(re.sub(r"!?\[([^\]]*)\]\(([^)#]+)[^)]*\)", lambda m: m[0] if there(m[2]) else m[1], line))
    page.write_text("".join(rows), encoding="utf-8")


def figures(name: str) -> dict[str, Any]:
    """What the README says of a model: from params.yaml and the committed report."""
    model = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["models"][name]
    report = json.loads(Path(f"models/{name}/report.json").read_text(encoding="utf-8"))
    found = report["metrics"][report["headline"]] | {"simple": report["baselines"]["simple"]["value"]}
    numbers = {key: f"{value:.3f}".removeprefix("0") for key, value in found.items()}
    return numbers | {"name": name, "task": model["task"], "dataset": model["dataset"], "headline": report["headline"]}


def choose_tasks(tasks: list[str], missing: list[str]) -> None:
    """Take the models that are missing out of the settings, and Ultralytics with the detector."""
    for name in missing:
        cut("params.yaml", name)
    if tasks == ["detection"]:
        edit(".ci/run", r"^.*make drill.*\n")
    if "detection" not in tasks:
        edit("pyproject.toml", r"^# Ultralytics.*\ndetect = .*\n")
        edit("scripts/lock", r" --extra detect")
        for package in sorted(DETECTION):
            edit("requirements.lock", rf"^{package}==.*\n")


def choose_targets(targets: list[str], tasks: list[str], missing: list[str]) -> None:
    """Drop what calls a target that is missing, and the missing models from those that are there."""
    if "compose" not in targets:
        edit("Makefile", r"^.* serving/compose\.yaml\n")
    if "kubernetes" in targets:
        for name in missing:
            edit("serving/kubernetes/route/route.yaml", rf"^.*/v2/models/{name}/infer.*\n")
    if "serverless" in targets:
        first = next(MODELS[task] for task in MODELS if task in tasks)
        edit("serving/serverless/truss/config.yaml", r"(?<=/predict/)classifier(?= )", first)


def begin(project: str, tasks: list[str], missing: list[str], commit: str) -> None:
    """Write what is the project's own from now on."""
    for name in missing:
        cut("dvc.lock", rf"\w+@{name}")
    if "detection" not in tasks:
        # Bundles name the code that made them, and some of it is gone: `make repro` packs them anew, in seconds.
        cut("dvc.lock", r"package@\w+")
    models = [figures(MODELS[task]) for task in MODELS if task in tasks]
    readme = Path(__file__).with_name("README.md.jinja").read_text(encoding="utf-8")
    text = jinja2.Template(readme).render(project=project, tasks=tasks, models=models, drill=tasks != ["detection"])
    Path("README.md").write_text(f"{text}\n", encoding="utf-8")
    Path("CHANGELOG.md").write_text(f"# Changelog\n\n- Made from Loopline {commit}.\n", encoding="utf-8")
    edit("CITATION.cff", "Loopline", project)
    edit("CITATION.cff", r"(?<=^abstract: ).*", f"{project}, made from Loopline")
    edit("CITATION.cff", r"^license: .*\n")


def main(operation: str) -> None:
    """Make the copy in this folder a project."""
    answers = yaml.safe_load(Path(".copier-answers.yml").read_text(encoding="utf-8"))
    project, tasks = answers["project"], answers["tasks"]
    missing = [MODELS[task] for task in MODELS if task not in tasks]
    choose_tasks(tasks, missing)
    choose_targets(answers["targets"], tasks, missing)
    edit("pyproject.toml", r'(?<=^name = ")loopline"\n(?=version)', f'{project}"\n')
    edit("pyproject.toml", r'(?<=^description = ").*(?="$)', f"{project}, made from Loopline")
    edit("Makefile", r"^\.PHONY: new\nnew: .*\n(?:\t.*\n)*\n")
    edit(".ci/run", r"^.*scripts/(readme|ml_test_score\.py)\n")
    edit(".github/workflows/ci.yml", r"^ +- run: scripts/ml_test_score\.py\n")
    for page in (Path("CONTRIBUTING.md"), Path("SECURITY.md"), *Path("docs").rglob("*.md")):
        mend(page)
    if operation == "copy":
        begin(project, tasks, missing, answers["_commit"])


if __name__ == "__main__":
    main(sys.argv[1])
