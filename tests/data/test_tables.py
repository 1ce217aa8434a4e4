"""Tables as people and tools write them, read by ingest and by batch prediction."""

import csv
import datetime
import io
import json
import tempfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loopline.batch import texts as tables
from loopline.data import formats
from loopline.data.clean import clean
from loopline.errors import LooplineError
from loopline.settings import SplitSettings
from loopline.tables import encoding

SPLIT = SplitSettings(seed=0, val=0.1, test=0.1)


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def ingested(path):
    """(text, label), or the problem of the row."""
    return [sample.problem or (sample.text, sample.label) for sample in formats.read(path, "text")]


def predicted(path, column=None):
    """The text, or the problem of the row."""
    return [item.error or item.content for item in tables.texts(str(path), column).items]


def parquet(path, columns, metadata=None):
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


# Quotes

ROWS = [f"text number {number},{'pos' if number % 2 else 'neg'}" for number in range(300)]
UNCLOSED = "quote that is not closed"


def with_rows(changed):
    rows = [changed.get(number, row) for number, row in enumerate(ROWS)]
    return "text,label\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("changed", "problems"),
    [
        ({100: '"text number 100,neg'}, {100: UNCLOSED}),
        ({100: '"text number 100,neg', 200: '"text number 200,neg'}, {100: UNCLOSED, 200: UNCLOSED}),
        ({100: '"text number 100,neg', 200: '"text, number 200",neg'}, {100: UNCLOSED}),
        # The second quote closes the first one by chance: a hundred rows would be one text.
        ({100: '"text number 100,neg', 200: 'screen of 24",neg'}, {100: UNCLOSED}),
        ({100: '"text number 100,neg', 101: 'screen of 24",pos'}, {100: UNCLOSED}),
        ({0: '"text number 0,neg', 25: 'screen of 24",neg'}, {0: UNCLOSED}),
        ({299: '"text number 299,neg'}, {299: UNCLOSED}),
        ({100: '"text" number 100,neg'}, {100: "text behind a closing quote"}),
        ({100: r'"she said \"no\"",neg'}, {100: "text behind a closing quote"}),
    ],
    ids=[
        "one",
        "two",
        "before a quoted cell",
        "closed by chance",
        "closed at once",
        "in the first row",
        "at the end",
        "text behind it",
        "backslashes",
    ],
)
def test_a_broken_quote_costs_its_own_line(tmp_path, changed, problems):
    path = write(tmp_path / "all.csv", with_rows(changed))
    rows = ingested(path)
    assert {number: row for number, row in enumerate(rows) if isinstance(row, str)} == problems
    assert len(rows) == 300
    assert len(predicted(path)) == 300
    assert predicted(path)[100] == next(iter(problems.values())) or 100 not in problems


def test_a_broken_row_is_named_by_its_line(tmp_path):
    path = write(tmp_path / "all.csv", with_rows({100: '"text number 100,neg'}))
    assert [sample.path for sample in formats.read(path, "text") if sample.problem] == ["all.csv:102"]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"line {number}, of a letter\n" for number in range(9)) + "the end",
        "Dear John,\nthank you,\nMe",
        "a\tb\nc\td\ne",
        "neg, it is\nnot",
        "\n\n",
        "a\r\nb\rc",
    ],
)
def test_cells_over_several_lines_are_not_split(tmp_path, text):
    for name, mark in (("all.csv", ","), ("all.tsv", "\t")):
        for order in (slice(None), slice(None, None, -1)):
            rows = [("a", "neg"), ("b", ""), (text, "pos"), ("c", "neg")]
            content = io.StringIO()
            csv.writer(content, delimiter=mark).writerows([("text", "label")[order], *(row[order] for row in rows)])
            path = write(tmp_path / name, content.getvalue())
            assert ingested(path) == rows
            assert predicted(path) == [row[0] for row in rows]


def test_a_quote_in_a_tsv_is_text_unless_it_surrounds_a_cell(tmp_path):
    rows = ['"Deutschland\tx', '"a ""b"""\tx', 'he said "no"\ty', '"yes" and "no"\ty', 'Italia"\tx']
    path = write(tmp_path / "all.tsv", "text\tlabel\n" + "\n".join(rows))
    texts = ['"Deutschland', 'a "b"', 'he said "no"', '"yes" and "no"', 'Italia"']
    assert [row[0] for row in ingested(path)] == texts
    assert predicted(path) == texts


@pytest.mark.parametrize(("rows", "label"), [(2, "x"), (5, "x{}"), (50, "x{}")])
def test_quotes_of_a_tsv_that_close_by_chance_are_text(tmp_path, rows, label):
    lines = [f"name {number}\t{label.format(number)}" for number in range(60)]
    lines[3], lines[2 + rows] = f'"{lines[3]}', lines[2 + rows].replace("\t", '"\t')
    path = write(tmp_path / "all.tsv", "text\tlabel\n" + "\n".join(lines))
    assert predicted(path) == [line.partition("\t")[0] for line in lines]
    assert ingested(path) == [tuple(line.split("\t")) for line in lines]


def test_a_lone_carriage_return_is_a_character(tmp_path):
    for name, content in (
        ("a.csv", 'text,label\r\nDeutsch\rland,x\r\n"I\rt, a",x\r\n'),
        ("a.tsv", "text\tlabel\na\rb\tx\n"),
    ):
        texts = ["Deutsch\rland", "I\rt, a"] if name == "a.csv" else ["a\rb"]
        path = write(tmp_path / name, content)
        assert predicted(path) == texts
        assert [text for text, _ in ingested(path)] == texts


@pytest.mark.parametrize(("characters", "fits"), [(200_000, True), (1_000_000, True), (1_000_001, False)])
@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.jsonl"])
def test_a_text_may_have_a_million_characters(tmp_path, characters, fits, name):
    text = "x" * characters
    line = {".csv": f"{text},pos", ".tsv": f"{text}\tpos", "onl": json.dumps({"text": text, "label": "pos"})}[
        name[-4:].removeprefix("s")
    ]
    head = {".csv": "text,label\n", ".tsv": "text\tlabel\n", "onl": ""}[name[-4:].removeprefix("s")]
    path = write(tmp_path / name, f"{head}{line}\n")
    cleaned = clean([("a", formats.read(path, "text"))], task="text", split=SPLIT)
    assert [len(sample.text) for sample in cleaned.samples] == ([characters] if fits else [])
    assert cleaned.aside.counts == ({} if fits else {"text too long": 1})


# Headers, delimiters, encodings

HEADERS = ["text{0}label", "Text{0}LABEL", ' text {0}"label"', "id{0}Review{0}Sentiment"]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("header", HEADERS)
def test_ingest_and_prediction_read_the_same_table(tmp_path, header, coding):
    for name in ("all.csv", "all.tsv", "all.tab", "all.txt", "ALL.CSV"):
        for mark in ",;\t|":
            rows = [["1"] * (header.count("{0}") + 1) for _ in range(2)]
            place = header.startswith("id")
            rows[0][place], rows[1][place] = "Österreich – 5 €", "d’été"
            table = "\r\n".join([header.format(mark), *(mark.join(row) for row in rows)])
            path = write(tmp_path / name, table.encode(coding))
            assert ingested(path) == [("Österreich – 5 €", "1"), ("d’été", "1")]
            assert predicted(path) == ["Österreich – 5 €", "d’été"]


def test_excel_names_its_delimiter_in_a_first_line(tmp_path):
    path = write(tmp_path / "all.csv", "sep=;\r\ntext;label\r\na, b;x\r\n")
    assert ingested(path) == [("a, b", "x")]
    assert predicted(path) == ["a, b"]


def test_empty_lines_are_skipped(tmp_path):
    path = write(tmp_path / "all.csv", "\n\ntext,label\n\na,x\n\n\nb,y\n\n")
    assert ingested(path) == [("a", "x"), ("b", "y")]
    assert predicted(path) == ["a", "b"]


def test_an_empty_line_between_two_texts_of_a_single_column_is_a_row(tmp_path):
    path = write(tmp_path / "all.csv", "text\r\nhello\r\n\r\n\r\nthird\r\n\r\n")
    assert predicted(path) == ["hello", "", "", "third"]
    assert [item.id for item in tables.texts(str(path)).items] == [0, 1, 2, 3]
    assert predicted(write(tmp_path / "b.csv", "text\n\n\n")) == []


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_repeated_header_is_no_sample(tmp_path, mark, name):
    table = "id,text,label\n1,a,x\n2,text,label\n" + mark + "id,text,label\n1,b,y\n"
    path = write(tmp_path / name, mark + table.replace(",", "\t" if name == "a.tsv" else ","))
    assert ingested(path) == [("a", "x"), ("text", "label"), "header again", ("b", "y")]
    assert predicted(path) == ["a", "text", "header again", "b"]
    assert predicted(write(tmp_path / "b.csv", "text\na\ntext\n")) == ["a", "text"]


def test_the_text_column_is_found_by_name_or_reported_missing(tmp_path):
    path = write(tmp_path / "all.csv", "title;Text;name\na;b;c\n")
    assert predicted(path) == ["b"]
    assert predicted(path, "NAME") == ["c"]
    assert predicted(path, "title") == ["a"]
    with pytest.raises(LooplineError, match=r"no column 'x': it has 'title', 'Text', 'name'; name one with --column"):
        predicted(path, "x")


def test_one_broken_line_does_not_change_how_the_others_are_read(tmp_path):
    lines = ["text,label", *["café – été,x"] * 9]
    content = "\n".join(lines).encode() + b"\ncaf\xe9 \x96 5 \x80,x\n"
    assert predicted(write(tmp_path / "all.csv", content)) == ["café – été"] * 9 + ["café – 5 €"]


def test_a_file_in_windows_1252_is_decoded_so_in_every_line():
    # DF 93 are a letter and a quote in Windows-1252, and one letter of another script in UTF-8.
    data = "„Straße“\n„Gruß“\nSpaß“\n".encode("cp1252")
    assert list(encoding.lines(io.BytesIO(data))) == ["„Straße“", "„Gruß“", "Spaß“"]
    assert encoding.decode(data) == "„Straße“\n„Gruß“\nSpaß“\n"


def test_bytes_undefined_in_windows_1252_mean_another_encoding(tmp_path):
    neither = "that is neither UTF-8 nor Windows-1252"
    data = b"text,label\na,x\n" + "ќ сказка,x\n".encode("cp1251") + "café – 5 €,y\n".encode("cp1252")
    path = write(tmp_path / "all.csv", data)
    assert ingested(path) == [("a", "x"), f"text {neither}", ("café – 5 €", "y")]
    assert predicted(path) == ["a", f"text {neither}", "café – 5 €"]
    lines = write(tmp_path / "b.txt", b"\x9d\tx\na\ty\nb\tx\n")
    cleaned = clean([("b", formats.read(lines, "text"))], task="text", split=SPLIT)
    assert (len(cleaned.samples), cleaned.aside.counts) == (2, {f"text {neither}": 1})


@pytest.mark.parametrize("coding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_lines_are_the_same_wherever_the_chunks_end(coding, ends, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 7)
    texts = ["a\u0085b\u2028c\x0cd", "", "é" * 9, "𝄞" * 5, "x"]
    data = ends.join(texts).encode(coding)
    assert [line.removesuffix("\r") for line in encoding.lines(io.BytesIO(data))] == texts


def test_a_line_that_is_too_long_is_reported_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "MOST_LINE", 100_000)
    path = write(tmp_path / "all.csv", f"text,label\na,x\n{'b' * 200_000},x\nc,x\n")
    assert ingested(path) == [("a", "x"), "line of more than 64 MB", ("c", "x")]


def test_invalid_utf_16_is_set_aside(tmp_path):
    table = "text,label\na,x\nb\ud800,x\nc,y\n".encode("utf-16", "surrogatepass")
    path = write(tmp_path / "all.csv", table[:-3])
    assert ingested(path) == [("a", "x"), "text with halves of characters", "label with halves of characters"]
    assert predicted(path) == ["a", "text with halves of characters", "c"]


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_detected_without_a_byte_order_mark(tmp_path, coding):
    path = write(tmp_path / "all.csv", "text,label\ncafé,x\nété,y\n".encode(coding))
    assert ingested(path) == [("café", "x"), ("été", "y")]
    assert predicted(path) == ["café", "été"]


@pytest.mark.parametrize(
    "table", ["text,label\ra,x\rb,y\r", '"text";"label"\r"a";"x"\r', "text\tlabel\ra\tx", "label,text\rx,a\r"]
)
def test_a_table_whose_lines_end_at_carriage_returns_is_refused(tmp_path, table):
    path = write(tmp_path / "all.csv", table)
    for read in (ingested, predicted):
        with pytest.raises(LooplineError, match=r"its lines end at \\r alone"):
            read(path)


# JSON


def test_the_first_record_need_not_have_all_columns(tmp_path):
    records = [{"text": "a"}, {"id": 3}, {"text": "b", "label": "x"}]
    for name, content in (("a.jsonl", "\n".join(map(json.dumps, records))), ("b.json", json.dumps(records, indent=2))):
        path = write(tmp_path / name, content)
        assert ingested(path) == [("a", None), ("", None), ("b", "x")]
        assert predicted(path) == ["a", "no text", "b"]


def test_columns_are_searched_in_many_records(tmp_path):
    records = [{"text": "a"}] * 5000 + [{"text": "b", "label": "x"}]
    assert ingested(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records))))[-1] == ("b", "x")


@pytest.mark.parametrize("layout", [None, 2])
def test_a_list_is_read_object_by_object(tmp_path, layout):
    records = [{"text": "x" * 1000 + "é]},{[", "label": number, "deep": {"a": [1, {"b": []}]}} for number in range(300)]
    path = write(tmp_path / "a.json", json.dumps(records, indent=layout, ensure_ascii=False))
    assert ingested(path) == [(record["text"], str(record["label"])) for record in records]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"text": "a", "label": "x"}, {"text": "b", "la', "breaks off at item 2"),
        ('[{"text": "a", "label": "x"} {"text": "b", "label": "x"}]', "breaks off at item 2 (',' is missing"),
        ('[{"text": "a", "label": "x"}]\n[{"text": "b", "label": "x"}]', "text follows its end"),
        ("[" * 5000, "breaks off at item 1"),
    ],
    ids=["cut", "no comma", "two lists", "deep"],
)
def test_a_broken_list_is_refused(tmp_path, content, problem):
    path = write(tmp_path / "a.json", content)
    for read in (ingested, predicted):
        with pytest.raises(LooplineError) as caught:
            read(path)
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
        {"text": {"first": "a"}, "label": {"first": "x"}},
        {"text": ["a", "b"], "label": ["x", "y"]},
    ],
)
def test_a_json_of_columns_is_refused(tmp_path, content):
    path = write(tmp_path / "test.json", json.dumps(content))
    write(tmp_path / "train.csv", "text,label\na,x\n")
    for read, source in ((ingested, tmp_path), (predicted, path)):
        if read is predicted and "first" in content["text"]:
            continue  # one object may be anything
        with pytest.raises(LooplineError, match=r"test\.json has columns in place of records.*orient='records'"):
            read(source)


def test_a_json_of_one_record_is_one_row(tmp_path):
    for text in ({"en": "a"}, {}, []):
        path = write(tmp_path / "a.json", json.dumps({"text": text, "label": "x"}))
        assert ingested(path) == predicted(path) == [f"text of type {'list' if text == [] else 'object'}"]


def test_an_unknown_list_is_refused_with_its_keys(tmp_path):
    write(tmp_path / "a.json", json.dumps([{"title": "a", "stars": 1}]))
    write(tmp_path / "b.json", "[{")
    with pytest.raises(LooplineError) as caught:
        formats.recognise.recognise(tmp_path, "text")
    assert "Columns of a.json: title, stars" in str(caught.value)
    assert "b.json: the JSON list breaks off at item 1" in str(caught.value)


@pytest.mark.parametrize(
    ("label", "read"),
    [
        (["a"], "a"), ([], None), (["a", "b"], "several labels: a text must have one label"), ({"a": 1}, "label of type object"),
        ({"choices": ["a"]}, "a"), ({"choices": ["a", "b"]}, "several labels: a text must have one label"), ("1.0", "1"),
        (1.0, "1"), (0.5, "0.5"), (True, "true"), (None, None), ([[1]], "label of type list"), ("", ""),
    ],
)  # fmt: skip
def test_a_label_is_one_value_or_its_type_is_reported(tmp_path, label, read):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "t", "label": label}))
    wrong = isinstance(read, str) and " " in read
    assert ingested(path) == [read if wrong else ("t", read)]


SEVERAL = "several labels: a text must have one label"


@pytest.mark.parametrize(
    ("label", "read"),
    [
        ("['sad', 'joy']", SEVERAL),
        ('["sad","joy"]', SEVERAL),
        ("['sad' 'joy']", SEVERAL),
        ("['sad'\n 'joy']", SEVERAL),
        ('{"choices":["pos","neg"]}', SEVERAL),
        ("['sad']", "sad"),
        (' ["it\'s"] ', "it's"),
        ('{"choices": ["pos"]}', "pos"),
        ("[]", None),
        ("[sad, joy]", "[sad, joy]"),
        ("['sad'] ['joy']", "['sad'] ['joy']"),
        ("[deleted]", "[deleted]"),
        ("{x}", "{x}"),
        ("[" * 5000, "[" * 5000),
        ('["\0"', '["\0"'),
        ("1.0", "1"),
        ("-0.00", "0"),
        ("1.50", "1.50"),
        ("['2.0']", "2"),
        ("1.0.0", "1.0.0"),
    ],
)
def test_lists_and_whole_numbers_in_a_csv_are_labels_as_in_json(tmp_path, label, read):
    content = io.StringIO()
    csv.writer(content).writerows([("text", "label"), ("t", label)])
    assert ingested(write(tmp_path / "a.csv", content.getvalue())) == [SEVERAL if read == SEVERAL else ("t", read)]


@pytest.mark.parametrize("header", ["text,label,label", "Text,text,label", 'text,label," Label"'])
def test_a_duplicate_column_is_refused(tmp_path, header):
    table = f"{header}\na,x,y\nb,y,x\n"
    for path in (write(tmp_path / "a.csv", table), write(tmp_path / "a.tsv", table.replace(",", "\t"))):
        with pytest.raises(
            LooplineError, match=r"a\..sv has several columns called '(?i:text|label)': keep or rename all"
        ):
            ingested(path)
    assert ingested(write(tmp_path / "a.csv", "text,label,,\na,x,1,2\n")) == [("a", "x")]


# Columns of the tools


def test_a_row_rejected_in_prodigy_is_set_aside(tmp_path):
    answers = ["accept", "reject", "ignore", None, "in forty-two words"]
    rows = [{"text": answer or "none", "label": "SPAM", "answer": answer} for answer in answers]
    rejected = "answer other than accept"
    used = [("accept", "SPAM"), rejected, rejected, ("none", "SPAM"), (answers[4], "SPAM")]
    for name, columns in (("a.jsonl", {}), ("b.jsonl", {"split": "train"})):
        path = write(tmp_path / name, "\n".join(json.dumps(columns | row) for row in rows))
        assert ingested(path) == used
        assert len(predicted(path)) == 5


def test_an_unknown_split_name_is_shown_with_its_column(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,Set\na,x,train\nb,x,A\n")
    assert [(s.split, s.problem, s.detail) for s in formats.read(path, "text")] == [
        ("train", None, ""),
        (None, "unknown split name", "Set: 'A'"),
    ]


# Parquet


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        (pa.array([Decimal("0"), Decimal("1")], pa.decimal128(3, 0)), ["0", "1"]),
        (pa.array([Decimal("0.50"), Decimal("1.00")], pa.decimal128(3, 2)), ["0.50", "1"]),
        (pa.array([b"neg", b"pos"]), ["neg", "pos"]),
        (pa.array(["neg", "pos"]).dictionary_encode(), ["neg", "pos"]),
        (pa.array([["neg"], ["pos"]]), ["neg", "pos"]),
        (pa.array([0.0, float("nan")]), ["0", None]),
        (pa.array([1, None], pa.int8()), ["1", None]),
        (pa.array([datetime.date(2020, 1, 1)] * 2), "label of type date"),
        (pa.array([{"a": 1}] * 2), "label of type object"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_types_of_labels_are_read_or_reported(tmp_path, labels, read):
    path = parquet(tmp_path / "a.parquet", {"text": ["a", "b"], "label": labels})
    assert ingested(path) == ([read] * 2 if isinstance(read, str) else list(zip("ab", read, strict=True)))


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        (pa.array(["café".encode(), "été".encode("cp1252")]), ["café", "été"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([1, 2]), ["1", "2"]),
        (pa.array([["a"], ["b", "c"]]), ["text of type list"] * 2),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_types_of_texts_are_read_or_reported(tmp_path, texts, read):
    path = parquet(tmp_path / "a.parquet", {"text": texts, "label": ["x", "y"]})
    assert predicted(path) == read
    assert [row if isinstance(row, str) else row[0] for row in ingested(path)] == read


@pytest.mark.parametrize("listed", [False, True])
def test_class_numbers_have_names_and_minus_one_is_no_label(tmp_path, listed):
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    features = {"label": {"feature": feature, "_type": "List"} if listed else feature, "text": {"dtype": "string"}}
    numbers = [0, 1, -1, 2, -2, None]
    path = parquet(
        tmp_path / "a.parquet",
        {"text": list("abcdef"), "label": [[number] for number in numbers] if listed else numbers},
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    unknown = "class number without a name"
    assert ingested(path) == [("a", "neg"), ("b", "pos"), ("c", None), unknown, unknown, ("f", None)]
    assert len(predicted(path)) == 6


def test_a_damaged_parquet_file_is_refused(tmp_path):
    content = parquet(tmp_path / "a.parquet", {"text": ["a"] * 9, "label": ["x"] * 9}).read_bytes()
    path = write(tmp_path / "b.parquet", content[:-20])
    for read in (ingested, predicted):
        with pytest.raises(LooplineError, match="is not a Parquet file"):
            read(path)


# Lines


def test_lines_with_several_tabs_are_refused(tmp_path):
    path = write(tmp_path / "train.tsv", "gj04\t0\t*\tThe sentence.\nks08\t1\t\tAnother one.\n")
    with pytest.raises(LooplineError, match="more than one tab, so the first line must name the columns"):
        ingested(path)


PAIRS = [f"a phrase {number}\t{number % 3}" for number in range(30)]


@pytest.mark.parametrize(
    "lines",
    [
        ["PhraseId\tPhrase\tSentiment", *(f"{number}\t{pair}" for number, pair in enumerate(PAIRS))],
        ["Phrase\tSentiment", *PAIRS],
        ["Phrase\tMood", *PAIRS[:4]],
        ["Mood\tPhrase", *("\t".join(pair.split("\t")[::-1]) for pair in PAIRS)],
        ["Phrase\tMood", *(f"a phrase {number}\t{['good', 'bad'][number % 2]}" for number in range(30))],
    ],
    ids=["three columns", "a known name", "few numbers", "labels first", "many words"],
)
def test_a_header_of_unknown_columns_is_not_a_sample(tmp_path, lines):
    path = write(tmp_path / "train.tsv", "\n".join(lines))
    with pytest.raises(LooplineError, match=f"no column of texts.*: {', '.join(lines[0].split(chr(9)))}"):
        ingested(path)


def test_labels_behind_a_tab_are_those_of_a_table(tmp_path):
    path = write(tmp_path / "train.tsv", "a\t1.0\nb\t0\nc\t['x', 'y']\n")
    assert ingested(path) == [("a", "1"), ("b", "0"), SEVERAL]


def test_a_class_of_one_sample_in_the_first_line_is_not_a_header(tmp_path):
    path = write(tmp_path / "train.tsv", "a\tpos\nb\tneg\nc\tneg\nd\tneu\ne\tneu\n")
    assert ingested(path)[0] == ("a", "pos")


def test_class_numbers_that_a_mapping_does_not_name_are_counted(tmp_path):
    write(tmp_path / "val_text.txt", "a\nb\nc\n")
    write(tmp_path / "val_labels.txt", "1\n7\n\n")
    write(tmp_path / "mapping.txt", "1\tone\n")
    assert ingested(tmp_path) == [("a", "one"), "class number without a name", ("c", "")]


FASTTEXT = "__label__baking how long\n__label__tea  which one \n\nno label\n__label__tea __label__cup a\tb\nat the end __label__tea\n"
READ = [("how long", "baking"), ("which one ", "tea"), ("", None), ("no label", None),
        "several labels: a text must have one label", ("at the end ", "tea")]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt"),
        ("q.train", "q.valid"),
        ("train.ft", "valid.ft"),
        ("train", "valid"),
        ("q.TRAIN", "q.val"),
    ],
)
def test_fasttext_names_its_splits(tmp_path, names):
    for name in names:
        write(tmp_path / name, FASTTEXT)
    assert ingested(tmp_path) == READ * 2
    assert {(sample.path.partition(":")[0], sample.split) for sample in formats.read(tmp_path, "text")} == {
        (names[0], "train"),
        (names[1], "val"),
    }


def test_suffixes_that_name_splits_are_not_classes(tmp_path):
    for name in ("reviews.train", "reviews.test"):
        write(tmp_path / name, "good film\nbad film\n")
    with pytest.raises(LooplineError, match="no known format for the task text"):
        ingested(tmp_path)
    for name in ("reviews.train", "reviews.test"):
        write(tmp_path / name, "good film\tpos\nbad film\tneg\n")
    assert {(s.text, s.label, s.split) for s in formats.read(tmp_path, "text")} == {
        (text, label, split)
        for text, label in (("good film", "pos"), ("bad film", "neg"))
        for split in ("train", "test")
    }


@pytest.mark.parametrize(
    "files",
    [
        {"a.csv": "text,label\na,x\n"},
        {"r.pos": "a\n", "r.neg": "b\n"},
        {"a.txt": "a\t1\nb\t0\n"},
        {"train.txt": "__label__a b\n"},
        {"train_text.txt": "a\n", "train_labels.txt": "1\n", "mapping.txt": "1\tone\n"},
    ],
    ids=["table", "classes", "tabs", "fasttext", "pairs"],
)
def test_a_file_that_the_format_cannot_use_is_counted(tmp_path, files):
    for name, content in (files | {"notes.docx": "x", "more/picture.png": "x", "script.py": "x"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, content)
    assert {"notes.docx", "more/picture.png", "script.py"} == {
        s.path for s in formats.read(tmp_path, "text") if s.problem
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", "text,label\na,x\n"), ("train.tsv", "text\tlabel\na\tx\n"), ("train.jsonl", '{"text": "a", "label": "x"}'),
     ("train.json", '[{"text": "a", "label": "x"}]'), ("train.txt", "a\tx\n"), ("train.ft.txt", "__label__x a\n")],
)  # fmt: skip
def test_a_single_file_is_a_dataset(tmp_path, name, content):
    write(tmp_path / "beside.csv", "text,label\nb,y\n")
    assert [(s.path.partition(":")[0], s.text, s.label, s.split) for s in formats.read(write(tmp_path / name, content), "text")] == [
        (name, "a", "x", "train")
    ]  # fmt: skip


def test_a_single_file_in_no_known_format_is_refused(tmp_path):
    with pytest.raises(LooplineError, match=r"Seen: 1 \.pdf"):
        formats.read(write(tmp_path / "a.pdf", "x"), "text").__next__()


# Any table

CELLS = st.text(
    st.sampled_from(list('ab é€ß’,;\t|"\r\n\0\u0085\u2028\\𝄞1=')) | st.characters(codec="utf-8"), max_size=12
)
NOISE = st.lists(st.tuples(st.integers(0, 400), st.sampled_from([*'",;\t\n\r\0', '"\n'])), max_size=4)
SHAPE = {
    "name": st.sampled_from(["a.csv", "a.tsv", "a.txt"]),
    "mark": st.sampled_from([",", ";", "\t", "|"]),
    "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    "end": st.sampled_from(["\n", "\r\n"]),
    "coding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
}
ROW = st.tuples(CELLS, st.sampled_from(["pos", "neg", 'p"', ""]))


def account(path):
    """The number of rows that ingest used or counted with a reason."""
    cleaned = clean([("a", formats.read(path, "text"))], task="text", split=SPLIT)
    assert cleaned.seen == len(cleaned.samples) + cleaned.aside.total
    return cleaned.seen


def lines_of(content):
    return [line for line in content.split("\n") if line.removesuffix("\r")]


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROW, min_size=1, max_size=12), **SHAPE)
def test_every_row_that_a_writer_wrote_comes_in_and_out(rows, name, mark, quoting, end, coding):
    content = io.StringIO()
    writer = csv.writer(content, delimiter=mark, quoting=quoting, lineterminator=end)
    writer.writerows([("text", "label"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, content.getvalue().encode(coding))
        assert [item.content for item in tables.texts(str(path)).items] == [text for text, _ in rows]
        assert ingested(path) == rows
        assert account(path) == len(rows)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    lines=st.lists(st.text(st.sampled_from([*"ab é€,;\t|\r\0=\\"]), max_size=12), max_size=25),
    broken=st.sets(st.integers(0, 24)),
    **SHAPE,
)
@example(lines=["a,b"] * 5, broken={0, 1, 4}, name="a.csv", mark=",", quoting=0, end="\n", coding="utf-8")
def test_every_line_comes_in_and_out_whatever_quotes_are_never_closed(lines, broken, name, mark, quoting, end, coding):
    del quoting
    lines = [f'"x{line}' if number in broken else line for number, line in enumerate(lines)]
    table = end.join([f"text{mark}label", *lines])
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, table.encode(coding))
        assert account(path) == len(predicted(path)) == len(lines_of("\n".join(lines)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROW, min_size=1, max_size=12), noise=NOISE, **SHAPE)
def test_ingest_and_prediction_see_the_same_rows_of_a_damaged_table(rows, noise, name, mark, quoting, end, coding):
    content = io.StringIO()
    csv.writer(content, delimiter=mark, quoting=quoting, lineterminator=end).writerows(rows)
    body = content.getvalue()
    for place, character in noise:
        body = body[: place % (len(body) + 1)] + character + body[place % (len(body) + 1) :]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, f"text{mark}label{end}{body}".encode(coding))
        answers = list(tables.texts(str(path)).items)
        assert account(path) == len(answers) <= len(lines_of(body))
        assert [item.id for item in answers] == list(range(len(answers)))
        wrong = {sample.problem for sample in formats.read(path, "text")} - {None}
        assert wrong == {
            item.error for item in answers if item.error and item.error != "text with halves of characters"
        }


@pytest.mark.parametrize("content", ["{}\n{}\n", "nothing\n{}\n", '"text"\n' * 3 + "{}\n"])
def test_json_of_empty_objects_is_counted_row_by_row(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    rows = content.count("\n")
    items = list(tables.texts(str(path)).items)
    assert len(items) == rows
    assert all(item.error for item in items)
    with pytest.raises(LooplineError, match="no known format for the task text"):
        list(formats.read(path, "text"))
