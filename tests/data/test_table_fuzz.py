"""Damaged files of every layout of texts: each row is used or counted with a reason, or one error explains the damage."""

import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopline.batch import texts
from loopline.data import formats
from loopline.data.clean import clean
from loopline.errors import LooplineError
from loopline.settings import SplitSettings

RECORDS = [
    {"text": f"a café, \"number\" {number}", "label": "pos" if number % 2 else "neg", "split": "train"} for number in range(12)
]  # fmt: skip


def delimited(mark):
    rows = [[f'"{value.replace(chr(34), 2 * chr(34))}"' for value in record.values()] for record in RECORDS]
    return "\n".join(mark.join(row) for row in [["text", "label", "split"], *rows]).encode()


def parquet(**options):
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    columns = {"text": [record["text"] for record in RECORDS], "label": [number % 2 for number in range(len(RECORDS))]}
    file = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file, row_group_size=5, **options)
    return file.getvalue()


def lines(form):
    return "\n".join(form.format(**record) for record in RECORDS).encode()


LAYOUTS = {
    "comma": {"a.csv": delimited(",")},
    "semicolon in UTF-16": {"a.csv": delimited(";").decode().encode("utf-16")},
    "tab": {"train.tsv": delimited("\t"), "test.tsv": delimited("\t")},
    "Windows": {"a.csv": delimited(",").decode().replace("\n", "\r\n").encode("cp1252")},
    "JSON Lines": {"a.jsonl": "\n".join(map(json.dumps, RECORDS)).encode()},
    "JSON list": {"a.json": json.dumps(RECORDS).encode()},
    "JSON list of many lines": {"a.json": json.dumps(RECORDS, indent=1).encode()},
    "Parquet": {"a.parquet": parquet()},
    "Parquet, plain": {"a.parquet": parquet(compression="none", use_dictionary=False)},
    "one tab": {"a.txt": lines("{text}\t{label}"), "b.txt": lines("{text}\t{label}")},
    "fastText": {"q.train": lines("__label__{label} {text}"), "q.valid": lines("__label__{label} {text}")},
    "a file per class": {"r.pos": lines("{text}"), "r.neg": lines("{text} no")},
    "side by side": {
        "val_text.txt": lines("{text}"),
        "val_labels.txt": lines("{label}"),
        "mapping.txt": b"pos\tgood\nneg\tbad\n",
    },
}
BYTES = st.sampled_from(
    [*(bytes([byte]) for byte in b'"\t,;\n\r\0[]{}\\:_ \xff\xe9\x80'), b"\xff\xfe", b'""', b"\n\n", b"__label__"]
) | st.binary(max_size=3)
PLACE = st.integers(0, 1 << 16)
DAMAGE = st.one_of(
    st.tuples(st.just("put"), PLACE, BYTES),
    st.tuples(st.just("over"), PLACE, BYTES),
    st.tuples(st.just("cut"), PLACE, st.integers(1, 60)),
    st.tuples(st.just("again"), PLACE, st.integers(1, 60)),
    st.tuples(st.just("end"), PLACE, st.none()),
)


def damaged(data, damage):
    for kind, place, argument in damage:
        at = place % (len(data) + 1)
        if kind == "put":
            data = data[:at] + argument + data[at:]
        elif kind == "over":
            data = data[:at] + argument + data[at + len(argument) :]
        elif kind == "cut":
            data = data[:at] + data[at + argument :]
        elif kind == "again":
            data = data[:at] + data[at : at + argument] + data[at:]
        else:
            data = data[:at]
    return data


def check(folder):
    """Read the folder as ingest does, and each of its tables as batch prediction does."""
    try:
        cleaned = clean(
            [("a", formats.read(folder, "text"))], task="text", split=SplitSettings(seed=0, val=0.1, test=0.1)
        )
    except LooplineError as error:
        assert str(error)
    else:
        assert cleaned.seen == len(cleaned.samples) + cleaned.aside.total
        assert all(sample.text and sample.label for sample in cleaned.samples)
    for path in folder.iterdir():
        try:
            items = list(texts.texts(str(path)).items)
        except LooplineError as error:
            assert path.name in str(error)
        else:
            assert [item.id for item in items] == list(range(len(items)))


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=list(LAYOUTS))
def test_an_undamaged_file_is_used_to_its_last_row(tmp_path, files):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    samples = list(formats.read(tmp_path, "text"))
    assert not [sample.problem for sample in samples if sample.problem]
    assert len(samples) == len(RECORDS) * (1 if any("mapping" in name for name in files) else len(files))


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=list(LAYOUTS))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(damage=st.lists(DAMAGE, min_size=1, max_size=4), which=st.integers(0, 2))
def test_a_damaged_file_is_used_counted_or_refused(files, damage, which):
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, data) in enumerate(files.items()):
            hit = number == which % len(files)
            (Path(folder) / name).write_bytes(damaged(data, damage) if hit else data)
        check(Path(folder))


KEYS = st.sampled_from(["text", "label", "split", "", "Label"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["\ud800", "train", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(values=st.lists(VALUES, max_size=6))
def test_any_json_is_used_counted_or_refused(name, values):
    records = [*RECORDS[:2], *values]
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(records) if name == "a.json" else "\n".join(map(json.dumps, records))
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        check(Path(folder))
        assert len(list(formats.read(path, "text"))) == len(list(texts.texts(str(path)).items)) == len(records)


COLUMNS = [
    pa.array([1, None], pa.int8()),
    pa.array([2**63, None], pa.uint64()),
    pa.array([0.5, float("inf")], pa.float32()),
    pa.array([True, None]),
    pa.array(["train", None], pa.large_string()),
    pa.array([b"\xe9", None]),
    pa.array([3, None], pa.date32()),
    pa.array([10**18 + 1, None], pa.timestamp("ns")),
    pa.array([4, None], pa.time64("us")),
    pa.array([5, None], pa.duration("s")),
    pa.array(["1.500", None]).cast(pa.decimal128(9, 3)),
    pa.array([["a"], ["a", "b"]]),
    pa.array([[[1]], None]),
    pa.array([{"text": "a"}, None]),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
    pa.nulls(2),
    pa.array(["a", None]).dictionary_encode(),
]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(text=st.sampled_from(COLUMNS), label=st.sampled_from(COLUMNS), split=st.sampled_from(COLUMNS))
def test_columns_of_any_type_are_used_counted_or_refused(text, label, split):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        pq.write_table(pa.table({"text": text, "label": label, "split": split}), path)
        check(Path(folder))
        assert len(list(formats.read(path, "text"))) == len(list(texts.texts(str(path)).items)) == 2
