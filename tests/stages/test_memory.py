"""The warning of a stage whose data do not fit into memory."""

import pytest
from test_ingest import project  # noqa: F401 - a fixture

from loopline import settings
from loopline.cli import main, memory

GB = 1_000_000_000


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Return a function that writes a container's limit and its use, in bytes, as the kernel does."""
    for name in ("LIMIT", "USED"):
        monkeypatch.setattr(memory, name, tmp_path / name)

    def limit(capacity, used):
        memory.LIMIT.write_text(f"{capacity}\n")
        memory.USED.write_text(f"{used}\n")

    return limit


def test_a_stage_that_would_not_fit_warns_and_starts(project, container, capsys):  # noqa: F811
    container(2 * GB, 2 * GB - 100_000_000)
    assert main(["stage", "ingest", "classifier"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("classifier: warning: ingest needs about 0.5 GB of memory and 0.1 GB are free here")
    assert (project / "data/classifier/manifest.parquet").exists()
    main(["stage", "validate", "classifier"])
    assert "validate needs about 0.5 GB" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [(2 * GB, GB), ("max", 3 * GB)])
def test_a_stage_that_fits_does_not_warn(project, container, capsys, limit):  # noqa: F811
    container(*limit)
    assert main(["stage", "ingest", "classifier"]) == 0
    assert "memory" not in capsys.readouterr().out


def test_the_need_grows_with_files_pixels_and_batches(project):  # noqa: F811
    def need(stage):
        return memory.need(stage, "classifier", settings.model("classifier")[1])

    before = need("ingest")
    (project / "shapes/2/large.png").write_bytes(b"\0" * 1_000_000)
    (project / "data/batches/classifier/v2").mkdir(parents=True)
    (project / "data/batches/classifier/v2/more.png").write_bytes(b"\0" * 2_000_000)
    assert need("ingest") == before + memory.COPIES * 3_000_000
    assert need("train") == 0  # there is no manifest, which the stage itself reports
    (project / "data/classifier").mkdir(parents=True)
    (project / "data/classifier/manifest.parquet").write_bytes(b"no Parquet")
    assert need("train") == 0
    (project / "data/batches/classifier/v2/more.png").unlink()
    (project / "data/batches/classifier/v2").rmdir()
    assert main(["stage", "ingest", "classifier"]) == 0
    shape = settings.model("classifier")[1].input
    decoded = 120 * shape.height * shape.width * shape.channels
    assert need("train") - need("validate") == memory.DECODED * decoded
