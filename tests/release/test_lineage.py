"""The chain of lineage with real parts: a server, MLflow's registry, git and DVC; each link is broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import answering
import brightness
import pytest
from servers import Process

import loopline
from loopline.cli import main
from loopline.cli.whoami import _made_from
from loopline.data import manifest
from loopline.errors import LooplineError
from loopline.release import bundle, mlflow_store, registry
from loopline.release import lineage as identity

PIPELINE = """
stages:
  ingest: {foreach: [classifier], do: {cmd: "true", outs: ["data/${item}/manifest.parquet"]}}
  package: {foreach: [classifier], do: {cmd: "true", outs: ["models/${item}/bundle"]}}
"""
REST = ["revision", "dvc.lock", "parameters", "code", "data"]  # links that cannot be checked without the registry


def run(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(*paths):
    """Put the outputs of DVC's stages into dvc.lock and all files into a commit; return its revision."""
    run(sys.executable, "-m", "dvc", "commit", "--force", "--quiet")
    return commit_without_dvc()


def commit_without_dvc():
    run("git", "add", "--all", ".")
    run(
        "git",
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "a commit",
    )
    return run("git", "rev-parse", "HEAD")


def write_bundle(folder, threshold, parts, **lineage):
    """Write a bundle of the classifier of brightness with this lineage."""
    described = brightness.described(**lineage)
    (parts / "drift.json").write_text(json.dumps(brightness.reference(described.spec)))
    model = brightness.onnx_model(parts / "model.onnx", threshold)
    return bundle.write(folder, described, model=model, drift=parts / "drift.json", card="# classifier\n")


@pytest.fixture(scope="module")
def released(tmp_path_factory, request):
    """A project whose bundle is committed, registered and served, and a second served bundle that is not registered."""
    from mlflow import MlflowClient

    root, parts = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        MlflowClient(f"sqlite:///{root}/mlflow.db").search_experiments()
        run("git", "init", "--quiet")
        run(sys.executable, "-m", "dvc", "init", "--quiet")
        ignored = "mlflow.db\nmlruns/\nmlartifacts/\n__pycache__/\n*.partial\n.loopline/\n"
        Path(".gitignore").write_text(ignored)
        Path("dvc.yaml").write_text(PIPELINE)
        Path("params.yaml").write_text(brightness.params())
        package = Path(loopline.__file__).parent
        shutil.copytree(package, "src/loopline", ignore=shutil.ignore_patterns("__pycache__", "assets"))
        path = Path("data/classifier/manifest.parquet")
        brightness.write_manifest(path)
        parameters, code = _made_from("classifier", root)
        lineage = {"data": bundle._sha256(path), "parameters": parameters, "code": code}
        Path("models/classifier").mkdir(parents=True)
        own = write_bundle(Path("models/classifier/bundle"), 130, parts, **lineage)
        revision = commit()
        registry.register(own.folder)
        other = write_bundle(parts / "other", 140, parts)
        servers = [Process(folder, "--port", 0) for folder in (own.folder, other.folder)]
        yield SimpleNamespace(
            root=root, url=servers[0].url, other=servers[1].url, version=own.version, revision=revision
        )
    for server in servers:
        assert server.stop() == 0


@pytest.fixture
def project(released, tmp_path, monkeypatch):
    """A copy of the project for a test to break; its server still serves the original."""
    root = shutil.copytree(released.root, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    return root


def question(released, **options):
    return identity.Question(**{"url": released.url, "made_from": _made_from, **options})


def walk(released, **options):
    """name -> link."""
    return {link.name: link for link in identity.walk(question(released, **options), "classifier")}


def states(links, state):
    return [link.name for link in links.values() if link.state == state]


def retag(released, **tags):
    store = mlflow_store.client()
    for key, value in tags.items():
        store.set_model_version_tag("classifier", "1", key, value)


def test_a_whole_chain_leads_from_the_server_to_the_data(released, project):
    links = walk(released)
    assert states(links, "whole") == [name for name in identity.LINKS if name != "image"], [*map(str, links.values())]
    assert links["image"].state == "not asked"
    assert released.version in links["server"].outcome
    assert released.revision in links["revision"].outcome
    assert identity.stands([*links.values()])
    assert identity.models(question(released)) == ["classifier"]


def test_a_server_of_an_unregistered_bundle_breaks_the_chain(released, project):
    links = walk(released, url=released.other)
    assert links["bundle"].state == "unchecked"
    assert "is not in the registry" in links["registry"].outcome
    assert states(links, "broken") == ["registry"]
    assert not identity.stands([*links.values()], allow_missing=identity.LINKS)


def test_a_server_that_does_not_answer_is_an_error(released, project):
    with pytest.raises(LooplineError, match="does not answer"):
        identity.models(question(released, url="http://127.0.0.1:9"))
    links = walk(released, url="http://127.0.0.1:9")
    assert states(links, "broken") == ["server"]
    assert states(links, "unchecked") == [name for name in identity.LINKS if name != "server"]


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"nonsense", b'{"parameters": {"bundle": "1"}}', b'{"parameters": {"bundle": null}}']
)
def test_a_server_of_something_else_is_reported_without_a_traceback(released, project, body):
    server = answering.Server(lambda *_: (200, body))
    try:
        assert states(walk(released, url=server.url), "broken") == ["server"]
        with pytest.raises(LooplineError, match=r"is not a server of models|serves no model"):
            identity.models(question(released, url=server.url))
    finally:
        server.close()


def test_outside_the_repository_its_links_are_not_checked(released, project, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    links = walk(released, bundle=project / "models/classifier/bundle")
    assert states(links, "broken") == []
    assert states(links, "unchecked") == REST


def test_metrics_of_another_bundle_break_the_chain(released, project):
    links = walk(released, metrics=released.other)
    assert states(links, "broken") == ["metrics"]


def test_metrics_that_a_gateway_does_not_pass_on_are_not_checked(released, project):
    links = walk(released, metrics=f"{released.url}/nothing")
    assert states(links, "unchecked") == ["metrics"]
    assert not identity.stands([*links.values()])
    assert identity.stands([*links.values()], allow_missing=["metrics"])


def test_a_server_whose_files_changed_breaks_the_chain(released, project):
    card = released.root / "models/classifier/bundle/MODEL_CARD.md"
    stat = card.stat()
    os.utime(card, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    try:
        assert "bundle_intact is not 1" in walk(released)["metrics"].outcome
    finally:
        os.utime(card, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_changed_file_of_the_bundle_breaks_the_chain(released, project):
    (project / "models/classifier/bundle/model.onnx").write_bytes(b"x")
    links = walk(released)
    assert states(links, "broken") == ["bundle"]
    assert "model.onnx was changed" in links["bundle"].outcome


def test_a_folder_of_another_bundle_breaks_the_chain(released, project, tmp_path):
    other = write_bundle(tmp_path / "other", 150, tmp_path)
    links = walk(released, bundle=other.folder)
    assert f"is bundle {other.version:.12}, but {released.version:.12} is served" in links["bundle"].outcome
    assert states(links, "broken") == ["bundle"]


def test_without_the_bundles_folder_the_registrys_copy_is_used(released, project):
    shutil.rmtree(project / "models")
    links = walk(released)
    assert states(links, "unchecked") == ["bundle"]
    assert identity.stands([*links.values()], allow_missing=["bundle"])


def test_a_registry_without_the_bundle_breaks_the_chain(released, project):
    mlflow_store.client().delete_model_version("classifier", "1")
    links = walk(released)
    assert states(links, "broken") == ["registry"]
    assert states(links, "unchecked") == REST


def test_a_missing_registry_fails_unless_it_may_be_missing(released, project, monkeypatch):
    (project / "mlflow.db").unlink()
    links = walk(released)
    assert not (project / "mlflow.db").exists()
    assert states(links, "unchecked") == ["registry", *REST]
    assert not identity.stands([*links.values()], allow_missing=["registry"])
    assert identity.stands([*links.values()], allow_missing=["registry", *REST])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert walk(released)["registry"].state == "unchecked"


@pytest.mark.parametrize("kind", ["data", "parameters", "code"])
def test_a_tag_that_differs_from_the_bundle_breaks_the_chain(released, project, kind):
    retag(released, **{f"{kind}_sha256": "0" * 64})
    assert f"the tag {kind}_sha256" in walk(released)["registry"].outcome


def test_a_run_of_another_bundle_breaks_the_chain(released, project):
    store = mlflow_store.client()
    store.set_tag(store.get_model_version("classifier", "1").run_id, registry.HASH, "0" * 64)
    assert "is of another bundle" in walk(released)["registry"].outcome


@pytest.mark.parametrize("revision", ["none", "{}-dirty", "main; rm", "0" * 40])
def test_a_revision_that_is_not_a_commit_of_this_repository_breaks_the_chain(released, project, revision):
    retag(released, git_revision=revision.format(released.revision))
    links = walk(released)
    assert states(links, "broken") == ["revision"]
    assert states(links, "unchecked") == REST[1:]


def test_registering_again_after_the_commit_adds_the_revision(released, project):
    retag(released, git_revision=f"{released.revision}-dirty")
    registry.register(project / "models/classifier/bundle")
    assert walk(released)["revision"].state == "whole"


def test_a_dvc_lock_of_another_revision_breaks_the_chain(released, project, tmp_path):
    shutil.copytree(project / "models/classifier/bundle", tmp_path / "kept")
    write_bundle(project / "models/classifier/bundle", 160, tmp_path)
    retag(released, git_revision=commit())
    links = walk(released, bundle=tmp_path / "kept")
    assert states(links, "broken") == ["dvc.lock"]
    assert links["data"].state == "unchecked"


def test_a_revision_without_dvc_lock_breaks_the_chain(released, project):
    (project / "dvc.lock").unlink()
    retag(released, git_revision=commit_without_dvc())
    assert states(walk(released), "broken") == ["dvc.lock"]


def test_other_parameters_break_the_chain(released, project):
    (project / "params.yaml").write_text(brightness.params(dataset="fashion-mnist"))
    retag(released, git_revision=commit())
    assert states(walk(released), "broken") == ["parameters"]


def test_other_code_breaks_the_chain(released, project):
    with (project / "src/loopline/tasks/image.py").open("a") as file:
        file.write("# changed\n")
    retag(released, git_revision=commit())
    assert states(walk(released), "broken") == ["code"]


def test_code_that_no_model_depends_on_leaves_the_chain_whole(released, project):
    with (project / "src/loopline/server/run.py").open("a") as file:
        file.write("# changed\n")
    retag(released, git_revision=commit())
    assert identity.stands([*walk(released).values()])


def test_other_data_breaks_the_chain(released, project):
    path = project / "data/classifier/manifest.parquet"
    brightness.write_manifest(path, split="train")
    assert manifest.table(path, ["split"]).num_rows == 256
    retag(released, git_revision=commit())
    links = walk(released)
    assert states(links, "broken") == ["data"]
    assert "bundle.json says" in links["data"].outcome


def test_earlier_data_comes_from_dvcs_cache_and_is_not_checked_without_it(released, project):
    path = project / "data/classifier/manifest.parquet"
    brightness.write_manifest(path, split="train")
    assert walk(released)["data"].state == "whole"
    shutil.rmtree(project / ".dvc/cache")
    assert states(walk(released), "unchecked") == ["data"]


def test_whoami_prints_the_links_and_fails_on_a_broken_one(released, project, capsys):
    assert main(["whoami", released.url]) == 0
    out = capsys.readouterr().out
    assert out.startswith("classifier:\n  ✓ server ")
    assert out.count("✓") == 9
    assert main(["whoami", released.url, "--model", "classifier", "--json", "--metrics", released.other]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["whole"] is False
    assert {row["name"]: row["state"] for row in printed["links"]}["metrics"] == "broken"
