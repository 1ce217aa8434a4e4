"""Batch prediction: every row gets an answer or a reason, in order; a killed run can continue; memory stays small."""

import csv
import functools
import gzip
import http.server
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading

import brightness
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper
from PIL import Image

from loopline import cli
from loopline.batch import output
from loopline.batch import texts as tables
from loopline.batch.predict import BatchOptions, predict
from loopline.errors import LooplineError
from loopline.release import bundle
from loopline.server.model import Encoded, Model
from loopline.tables import table_reader

TEXTS = ["good fine", "bad poor", 'good, "great"', "bad\nawful", "", "gut über"]


def answers(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(path, texts, column="text"):
    """Write a table of texts in the format of the path's suffix."""
    kind = table_reader.kind(tables.unpacked(path.name))
    if kind == ".parquet":
        pq.write_table(pa.table({"other": list(range(len(texts))), column: texts}), path, row_group_size=2)
        return path
    content = io.StringIO()
    if kind == ".jsonl":
        content.writelines(json.dumps({column: text}) + "\n" for text in texts)
    else:
        rows = csv.writer(content, delimiter="\t" if kind == ".tsv" else ",")
        rows.writerows([("other", column), *enumerate(texts)])
    data = content.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def command(*arguments, **options):
    line = [sys.executable, "-m", "loopline.cli", "predict", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two bright and two dark images, and three files that cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    for name, value in {"b/2.png": 250, "b/10.png": 3, "a [1]?*.png": 240, "c::d%20.PNG": 9}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(brightness.png(value))
    (root / "b/broken.png").write_bytes(brightness.png(250)[:45])
    (root / "notes.txt").write_text("not an image")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / ".hidden").write_text("")
    return root


PICTURES = {"a [1]?*.png": "bright", "b/10.png": "dark", "b/2.png": "bright", "b/broken.png": None, "c::d%20.PNG": "dark",
            "gone.png": None, "notes.txt": None}  # fmt: skip


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.parquet", "x.csv.gz"])
def test_each_kind_of_table_gets_the_servers_answers_in_order(folders, tmp_path, name):
    source = table(tmp_path / name, TEXTS)
    summary = predict(
        folders["text"], str(source), str(tmp_path / "out.parquet"), BatchOptions(part_rows=4, batch_rows=3)
    )
    model = Model(folders["text"])
    expected = [model.run([Encoded([text])])[0][0] for text in TEXTS]
    rows = answers(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == list(range(6))
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in expected], abs=1e-6)
    assert (summary.rows, summary.errors, summary.code) == (6, 0, 0)
    assert not (tmp_path / "out.parquet.partial").exists()


def test_all_kinds_of_output_have_the_same_content(folders, tmp_path):
    source = table(tmp_path / "x.parquet", ["good", None, "bad"])
    rows = []
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        predict(folders["text"], str(source), str(tmp_path / name), BatchOptions())
        rows.append(
            [(int(r["id"]), r["label"] or None, r["error"] or None, r["probability"]) for r in answers(tmp_path / name)]
        )
    assert [row[:3] for row in rows[0]] == [(0, "good", None), (1, None, "no text"), (2, "bad", None)]
    assert all([row[:3] for row in kind] == [row[:3] for row in rows[0]] for kind in rows)
    assert float(rows[1][0][3]) == pytest.approx(rows[0][0][3]) == pytest.approx(rows[2][0][3])


def test_a_row_that_cannot_be_read_keeps_its_place_and_gets_a_reason(folders, tmp_path):
    long = "x" * 100_001
    files = {
        "x.csv": (b"text,other\ngood,1\nbad\n%s,1\n%s,1\nx,1,2\n\"x,1\n\"x\" y,1\nbad,1\n" % (long.encode(), 10 * long.encode()),
                  ["fewer columns", "100001 characters", "too long", "more columns", "not closed", "behind a closing quote"]),
        "x.jsonl": (b'{"text": "good"}\n{"text": {}}\n{broken\n{"other": 1}\n[1]\n\n{"text": "\\ud800"}\n{"text": "bad"}',
                    ["text of type object", "not JSON", "no text", "not a JSON object", "halves of characters"]),
    }  # fmt: skip
    for name, (content, reasons) in files.items():
        (tmp_path / name).write_bytes(content)
        summary = predict(folders["text"], str(tmp_path / name), str(tmp_path / "out.parquet"), BatchOptions())
        rows = answers(tmp_path / "out.parquet")
        assert [rows[0]["label"], rows[-1]["label"]] == ["good", "bad"]
        for row, reason in zip(rows[1:-1], reasons, strict=True):
            assert row["label"] is None
            assert reason in row["error"]
        assert (summary.errors, summary.code) == (len(reasons), 0)
        assert f"and {len(reasons) - 3} more" in str(summary)


def test_a_folder_is_read_with_its_subfolders_and_other_files_get_a_reason(folders, pictures, tmp_path):
    predict(
        folders["classifier"], str(pictures), str(tmp_path / "out.parquet"), BatchOptions(part_rows=3, batch_rows=2)
    )
    rows = {row["id"]: row for row in answers(tmp_path / "out.parquet")}
    assert {name: row["label"] for name, row in rows.items()} == PICTURES
    assert list(rows) == list(PICTURES)
    assert "broken image" in rows["b/broken.png"]["error"]
    assert rows["gone.png"]["error"] == "not found"
    assert "not an image" in rows["notes.txt"]["error"]


def test_a_phones_photo_is_predicted_by_its_first_picture_and_an_animation_is_refused(folders, tmp_path):
    (tmp_path / "photos").mkdir()
    frames = [Image.new("L", (20, 20), shade) for shade in (250, 0)]
    for name, kind in (("phone.jpg", "MPO"), ("moving.png", "PNG")):
        frames[0].save(tmp_path / "photos" / name, kind, save_all=True, append_images=frames[1:])
    predict(folders["classifier"], str(tmp_path / "photos"), str(tmp_path / "out.jsonl"), BatchOptions())
    moving, phone = answers(tmp_path / "out.jsonl")
    assert (phone["id"], phone["label"], phone["error"]) == ("phone.jpg", "bright", None)
    assert "animated" in moving["error"]


def test_a_list_may_mix_paths_and_addresses(folders, pictures, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=pictures)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        lines = [str(pictures / "b/2.png"), f"{web}/b/10.png?size=1", "", f"{web}/nothing.png", f"file://{pictures}/b/2.png",
                 str(pictures / "nothing.png"), str(pictures), "strange://x/y.png"]  # fmt: skip
        (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
        predict(folders["classifier"], str(tmp_path / "list.txt"), str(tmp_path / "out.parquet"), BatchOptions())
        server.shutdown()
    rows = answers(tmp_path / "out.parquet")
    assert [row["id"] for row in rows] == [line for line in lines if line]
    assert [row["label"] for row in rows] == ["bright", "dark", None, "bright", None, None, None]
    assert [row["error"] for row in rows[2:]][:4] == ["not found", None, "not found", "a folder"]
    assert "strange" in rows[-1]["error"]


def test_boxes_are_a_nested_list_or_json(folders, tmp_path):
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.png").write_bytes(brightness.png([255, 255, 0][number]))
    (tmp_path / "in/3.png").write_bytes(b"no")
    (tmp_path / "in/0.png").replace(tmp_path / "in/9.png")
    by_kind = {}
    for kind in ("parquet", "csv", "jsonl"):
        predict(folders["detector"], str(tmp_path / "in"), str(tmp_path / f"out.{kind}"), BatchOptions(batch_rows=2))
        by_kind[kind] = [row["boxes"] for row in answers(tmp_path / f"out.{kind}")]
    box = {"label": "spot", "score": 1.0, "x1": 1.0, "y1": 1.0, "x2": 5.0, "y2": 5.0}
    assert by_kind["parquet"] == by_kind["jsonl"] == [[box], [], None, [box]]
    assert [json.loads(boxes) if boxes else None for boxes in by_kind["csv"]] == by_kind["parquet"]


def test_only_the_poisoned_item_of_a_batch_fails(folders, tmp_path):
    original = bundle.read(folders["text"])
    words = json.loads((original.folder / "tokenizer.json").read_text())["model"]["vocab"]
    poison = max(words, key=words.get)
    graph = onnx.load(original.model)
    (words_table,) = (tensor for tensor in graph.graph.initializer if tensor.name == "table")
    words_table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(words_table)[: words[poison]], "table"))
    onnx.save(graph, tmp_path / "model.onnx")
    fragile = bundle.write(tmp_path / "fragile", original.manifest, model=tmp_path / "model.onnx", card="# tiny\n",
                           drift=original.folder / "drift.json", tokenizer=original.folder / "tokenizer.json")  # fmt: skip
    good = next(word for word in ("good", "fine", "great") if word != poison)
    source = table(tmp_path / "x.csv", [good, good, poison, good])
    predict(fragile.folder, str(source), str(tmp_path / "out.parquet"), BatchOptions(batch_rows=4))
    rows = answers(tmp_path / "out.parquet")
    assert [row["label"] for row in rows] == ["good", "good", None, "good"]
    assert rows[2]["error"].startswith("the model failed on it")


def test_the_exit_code_is_1_only_if_all_failed(folders, pictures, tmp_path, capsys):
    for texts, code in (([None, "good"], 0), ([None, None], 1), ([], 0)):
        source = table(tmp_path / "x.jsonl", texts)
        assert cli.main(["predict", str(folders["text"]), str(source), str(tmp_path / "out.csv")]) == code
        assert f"out.csv: {len(texts)} rows, {texts.count(None)} without an answer" in capsys.readouterr().out
    assert answers(tmp_path / "out.csv") == []


def many(path, count=20_000):
    return table(path, [f"{'good' if n % 3 else 'bad'} {'fine ' * (n % 5)}" for n in range(count)])


DIES = """
import os, signal, sys
from loopline import cli
from loopline.batch import output
write = output.Output.write_part
def last(self, number, rows, facts):
    write(self, number, rows, facts)
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
output.Output.write_part = last
cli.main(sys.argv[1:])
"""


def test_a_killed_run_continues_and_ends_with_the_same_bytes(folders, tmp_path):
    source, out = many(tmp_path / "x.csv"), tmp_path / "out.parquet"
    arguments = (folders["text"], source, out, "--part-rows", 100, "--slots", 2)
    killed = subprocess.run([sys.executable, "-c", DIES, "predict", *map(str, arguments)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    done = len(list((tmp_path / "out.parquet.partial").glob("part-*")))
    assert 5 <= done < 200

    again = command(*arguments)
    printed, warned = again.communicate()
    assert again.returncode == 0
    assert f"{100 * done} rows are kept" in warned
    assert "20000 rows, 0 without an answer" in printed
    uninterrupted = tmp_path / "whole.parquet"
    summary = predict(folders["text"], str(source), str(uninterrupted), BatchOptions(part_rows=100))
    assert summary.kept == 0
    assert out.read_bytes() == uninterrupted.read_bytes()
    assert not (tmp_path / "out.parquet.partial").exists()


@pytest.fixture
def stopped(folders, tmp_path):
    """The parts of a killed run: three of ten rows, of which the last is damaged."""
    source, out = many(tmp_path / "x.csv", 40), tmp_path / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output.Output, "join", lambda *_: os.fspath(out))  # killed before the parts are joined
        predict(folders["text"], str(source), str(out), BatchOptions(part_rows=10, batch_rows=7))
    kept = sorted((tmp_path / "out.jsonl.partial").iterdir())
    assert len(kept) == 4
    kept[3].unlink()
    kept[2].write_bytes(kept[2].read_bytes()[:100])
    return source, out


def test_a_damaged_part_is_predicted_again_and_the_batch_size_stays(folders, stopped):
    source, out = stopped
    summary = predict(folders["text"], str(source), str(out), BatchOptions(part_rows=10))
    assert (summary.kept, summary.rows) == (20, 40)
    assert [row["id"] for row in answers(out)] == list(range(40))


def test_the_batch_size_of_the_first_run_is_kept(folders, stopped, monkeypatch):
    sizes = []
    run = Model.run
    monkeypatch.setattr(
        Model, "run", lambda self, payloads: sizes.append(len(payloads[0].arrays["ids"])) or run(self, payloads)
    )
    source, out = stopped
    predict(folders["text"], str(source), str(out), BatchOptions(part_rows=10))
    assert sorted(sizes) == [3, 3, 7, 7]


@pytest.mark.parametrize("option", [{"part_rows": 20}, {"part_rows": 10, "batch_rows": 8}])
def test_other_options_start_anew_and_say_so(folders, stopped, option, capsys):
    source, out = stopped
    assert predict(folders["text"], str(source), str(out), BatchOptions(**option)).kept == 0
    assert "starting anew" in capsys.readouterr().err
    assert len(answers(out)) == 40


def test_another_bundle_starts_anew_and_says_so(folders, stopped, tmp_path, capsys):
    original = bundle.read(folders["text"])
    other = bundle.write(tmp_path / "other", original.manifest, model=original.model, card="# another\n",
                         drift=original.folder / "drift.json", tokenizer=original.folder / "tokenizer.json")  # fmt: skip
    source, out = stopped
    assert predict(other.folder, str(source), str(out), BatchOptions(part_rows=10)).kept == 0
    assert "made with another bundle" in capsys.readouterr().err


def test_changed_input_rows_are_predicted_again(folders, stopped, capsys):
    source, out = stopped
    lines = source.read_text().splitlines()
    lines[15] = "14,bad awful poor"
    source.write_text("\n".join(lines))
    assert predict(folders["text"], str(source), str(out), BatchOptions(part_rows=10)).kept == 10
    assert "part 1 was made from other items" in capsys.readouterr().err
    assert answers(out)[14]["label"] == "bad"


def test_a_changed_image_is_predicted_again(folders, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / f"in/{number}.png").write_bytes(brightness.png(250))
    run = functools.partial(
        predict, folders["classifier"], str(tmp_path / "in"), str(tmp_path / "out.csv"), BatchOptions(part_rows=2)
    )
    with monkeypatch.context() as patch:
        patch.setattr(output.Output, "join", lambda *_: None)
        run()
    (tmp_path / "in/3.png").write_bytes(brightness.png(2))
    assert run().kept == 2
    assert [row["label"] for row in answers(tmp_path / "out.csv")] == ["bright", "bright", "bright", "dark"]


@pytest.mark.parametrize(
    ("source", "out", "options", "message"),
    [("x.csv", "x.csv", {}, "is the input"), ("x.csv", "out.xlsx", {}, "the output's name must end in .parquet, .csv, .jsonl"),
     ("x.csv", "out.csv", {"column": "name"}, "has no column 'name': it has 'other', 'text'; name one with --column"),
     ("y.csv", "out.csv", {}, "not found"), ("x.doc", "out.csv", {}, "needs a table, whose name ends in"),
     ("x.csv", "x.csv/out.csv", {}, "or lies in it"), ("x.csv", "x.parquet/out.csv", {}, "cannot be written"),
     ("strange://x.csv", "out.csv", {}, "strange"),
     ("x.parquet", "out.csv", {}, "is not a Parquet file"), ("cut.csv.gz", "out.csv", {}, "cannot be read to its end")],
)  # fmt: skip
def test_a_users_mistake_is_explained_and_nothing_is_written(
    folders, tmp_path, monkeypatch, source, out, options, message
):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "x.csv", TEXTS)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    cut = table(tmp_path / "cut.csv.gz", [os.urandom(9).hex() for _ in range(5000)])
    cut.write_bytes(cut.read_bytes()[:9000])
    before = (tmp_path / "x.csv").read_bytes()
    with pytest.raises(LooplineError, match=re.escape(message)):
        predict(folders["text"], source, out, BatchOptions(**options))
    assert (tmp_path / "x.csv").read_bytes() == before
    assert not (tmp_path / "out.csv").exists()


def test_an_output_among_the_images_is_refused(folders, pictures):
    with pytest.raises(LooplineError, match="or lies in it: write the output elsewhere"):
        predict(folders["classifier"], str(pictures), str(pictures / "b/out.csv"), BatchOptions())
    assert not (pictures / "b/out.csv.partial").exists()


def test_an_image_in_place_of_a_list_is_refused(folders, pictures, tmp_path):
    with pytest.raises(LooplineError, match="is not a list of images"):
        predict(folders["classifier"], str(pictures / "b/2.png"), str(tmp_path / "out.csv"), BatchOptions())


def test_pyarrow_reads_from_memory_only(folders, tmp_path, monkeypatch):
    """A thread of pyarrow's reader may outlive the reading. If it holds a Python file, it sometimes aborts the process."""
    sources = []

    def noting(read):
        return lambda source, *more, **options: sources.append(type(source)) or read(source, *more, **options)

    monkeypatch.setattr(output.pq, "ParquetFile", noting(pq.ParquetFile))
    monkeypatch.setattr(output.pyarrow.json, "read_json", noting(output.pyarrow.json.read_json))
    source = table(tmp_path / "in.csv", TEXTS)
    predict(folders["text"], str(source), str(tmp_path / "out.csv"), BatchOptions())
    assert len(sources) > 1 and set(sources) == {pa.BufferReader}


def test_memory_does_not_grow_with_the_input(folders, tmp_path):
    code = (
        "import pathlib, re, sys; from loopline import cli\n"
        "code = cli.main(sys.argv[1:])\n"  # getrusage's peak would be that of the tests' own process
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]); sys.exit(code)"
    )
    peaks = []
    for rows in (500, 6_000):
        source = tmp_path / f"{rows}.jsonl"
        source.write_text(f'{{"text": "good", "other": "{"x" * 10_000}"}}\n' * rows)
        line = [
            sys.executable,
            "-c",
            code,
            "predict",
            folders["text"],
            source,
            tmp_path / "out.csv",
            "--part-rows",
            "250",
        ]
        peaks.append(int(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024)
    assert source.stat().st_size > 60e6
    assert peaks[1] - peaks[0] < 15, f"{peaks} MB"


def test_on_a_terminal_there_is_a_progress_bar(folders, tmp_path):
    source = many(tmp_path / "x.parquet", 500)
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    line = [sys.executable, "-m", "loopline.cli", "predict", folders["text"], source, tmp_path / "out.csv"]
    done = subprocess.run(line, stderr=terminal, stdout=subprocess.PIPE)
    os.close(terminal)
    with os.fdopen(screen, "rb", 0) as seen:
        shown = seen.read(100_000).decode()
    assert done.returncode == 0
    assert "500/500" in shown
    assert "rows/s" in shown


def test_input_and_output_may_be_in_an_object_store(folders, pictures, tmp_path, monkeypatch):
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                        "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.mkdir("team")
        for name, label in PICTURES.items():
            store.pipe(f"team/in/{name}", brightness.png(240 if label == "bright" else 9) if label else b"")
        process = command(folders["classifier"], "s3://team/in", "s3://team/out/labels.parquet", "--part-rows", 3)
        printed, warned = process.communicate()
        assert process.returncode == 0, warned
        assert "7 rows, 3 without an answer" in printed
        rows = pq.read_table(io.BytesIO(store.cat("team/out/labels.parquet"))).to_pylist()
        assert {row["id"]: row["label"] for row in rows} == PICTURES
        assert store.find("team/out") == ["team/out/labels.parquet"]
        missing = command(folders["classifier"], "s3://team/in", "s3://nobody/out.parquet")
        assert "s3://nobody/out.parquet cannot be written" in missing.communicate()[1]
        assert not store.exists("nobody")
    finally:
        server.stop()
