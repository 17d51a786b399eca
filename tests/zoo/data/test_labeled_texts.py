"""Users' labeled texts: columns, labels, rows of tokens, and messages for bad files."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from trainers.config.data import KEYS
from zoo import registry
from zoo.data.hold_out import with_hold_out
from zoo.data.text import tokenizers
from zoo.data.text.labeled import encode_texts, text_classification
from zoo.data.text.special_tokens import PADDING, SEPARATOR, START
from zoo.errors import RunError, UsageError

ROWS = [("good film", "pos"), ('a "bad"\nplot, or none', "neg"), ("fine", "pos"), ("dull", "neg")]


def load(source, output="class", **data):
    keys = {
        **KEYS, "source": str(source), "tokenizer": "word", "sequence_length": 12, **data,
    }  # fmt: skip
    keys["vocabulary_size"] = 0 if keys["tokenizer"] == "byte" else 40
    return text_classification(keys, {"name": "text_classification", "output": output})


def texts_of(dataset, split="train"):
    return [dataset.tokenizer.decode(row) for row in dataset.splits[split]["tokens"]]


@pytest.fixture(autouse=True)
def own_cache(cache):
    """Gives each test a cache of its own."""


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return f"{path.name.split('.')[1]}:{path}"


# --- formats --------------------------------------------------------------------------------------


def quoted(cell):
    return f'"{cell.replace(chr(34), chr(34) * 2)}"'


@pytest.fixture(params=["csv", "csv.gz", "tsv", "jsonl", "parquet"])
def source(request, tmp_path):
    """Returns the source of a file of each format with the rows ROWS."""
    path = tmp_path / f"reviews.{request.param}"
    if request.param == "parquet":
        table = pyarrow.table({"text": [a for a, _ in ROWS], "label": [b for _, b in ROWS]})
        pyarrow.parquet.write_table(table, path)
        return f"parquet:{path}"
    if request.param == "jsonl":
        return write(path, "\n\n".join(json.dumps({"text": a, "label": b}) for a, b in ROWS))
    delimiter = "\t" if request.param == "tsv" else ","
    lines = [("text", "label"), *((quoted(a), b) for a, b in ROWS)]
    # A byte order mark, a blank line and \r\n occur in files of spreadsheets.
    return write(path, "\ufeff" + "\r\n".join(map(delimiter.join, lines)) + "\r\n\r\n")


def test_formats_give_equal_examples(source):
    dataset = load(source)
    assert list(dataset.splits) == ["train"]
    assert texts_of(dataset) == ["good film", 'a " bad "\nplot, or none', "fine", "dull"]
    assert dataset.class_names == ("neg", "pos")
    np.testing.assert_array_equal(dataset.splits["train"]["label"], [1, 0, 1, 0])
    assert dataset.splits["train"]["label"].dtype == np.int32
    # The longest example has 9 tokens, <start> and <sep>.
    assert dataset.splits["train"]["tokens"].shape == (4, 11)
    assert dataset.facts["Classes of train"] == {"neg": 2, "pos": 2}
    assert dataset.facts["Data"]["truncated in train"] == "0.00%"


def test_delta_encoded_parquet(tmp_path):
    table = pyarrow.table({"text": [a for a, _ in ROWS], "label": [1, 0, 1, 0]})
    path = tmp_path / "delta.parquet"
    pyarrow.parquet.write_table(
        table, path, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    )
    assert texts_of(load(f"parquet:{path}"))[0] == "good film"


def test_parquet_columns_are_chosen_in_any_order(tmp_path):
    table = pyarrow.table({"gold": ["x", "y"], "id": [1, 2], "b": ["c", "d"], "a": ["e", "f"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    dataset = load(f"parquet:{tmp_path}/a.parquet", columns=("a", "b", "gold"), tokenizer="byte")
    assert texts_of(dataset) == ["ec", "fd"]
    assert dataset.class_names == ("x", "y")


def test_folder_with_splits(tmp_path):
    for name, text in (("train", "a,x\nb,y"), ("dev", "c,y"), ("test", "d,x\ne,x\nf,y")):
        write(tmp_path / f"{name}.csv", f"text,label\n{text}\n")
    (tmp_path / "notes.txt").write_text("not read")
    dataset = load(f"csv:{tmp_path}", tokenizer="byte")
    assert {k: v["label"].tolist() for k, v in dataset.splits.items()} == {
        "train": [0, 1], "validation": [1], "test": [0, 0, 1],
    }  # fmt: skip
    assert texts_of(dataset, "test") == ["d", "e", "f"]


def test_columns_are_chosen_in_any_order(tmp_path):
    source = write(
        tmp_path / "nli.tsv", "gold\tid\thypothesis\tpremise\nyes\t1\tb c\ta\nno\t2\td\te\n"
    )
    dataset = load(source, columns=("premise", "hypothesis", "gold"), tokenizer="byte")
    tokens, types = (dataset.splits["train"][key] for key in ("tokens", "types"))
    a, b, c, space = (dataset.tokenizer.encode(x)[0] for x in "abc ")
    assert tokens[0].tolist() == [START, a, SEPARATOR, b, space, c, SEPARATOR]
    assert types[0].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert types[1].tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert dataset.class_names == ("no", "yes")


def test_fingerprint_changes_with_the_data(tmp_path):
    path = tmp_path / "a.csv"
    source = write(path, "text,label\na,x\nb,y\n")
    before = load(source).fingerprint
    assert load(source).fingerprint == before
    assert load(source, sequence_length=13).fingerprint != before
    write(path, "text,label\na,x\nb,x\nb,y\n")
    changed_rows = load(source).fingerprint
    write(path, "text,label\na,x\nb,y\nb,y\n")
    assert len({before, changed_rows, load(source).fingerprint}) == 3


def test_hold_out_is_stratified(tmp_path):
    lines = [f"{'abc'[i % 3]}{i},{'pos' if i % 4 == 0 else 'neg'}" for i in range(40)]
    source = write(tmp_path / "a.csv", "text,label\n" + "\n".join(lines))
    dataset, note = with_hold_out(load(source), 8)
    assert np.bincount(dataset.splits["validation"]["label"]).tolist() == [6, 2]
    assert "'pos' 2 of 10" in note


def test_the_registry_loads_it(tmp_path):
    source = write(tmp_path / "a.csv", "text,label\na,x\nb,y\n")
    data = {**KEYS, "source": source, "tokenizer": "byte", "sequence_length": 8}
    task = {"name": "text_classification", "output": "class"}
    assert registry.load_data(data, task).class_names == ("x", "y")


# --- labels ---------------------------------------------------------------------------------------


def test_integer_classes_are_in_the_order_of_their_values(tmp_path):
    lines = [json.dumps({"text": "a", "label": label}) for label in (10, 9, -1, 9)]
    dataset = load(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert dataset.class_names == ("-1", "9", "10")
    assert dataset.splits["train"]["label"].tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_several_labels(tmp_path, ending):
    if ending == "csv":
        text = "text,label\na,x|y\nb,\nc,z | x\n"
    else:
        lists = [["x", "y"], [], ["z", "x"]]
        text = "\n".join(json.dumps({"text": "a", "label": labels}) for labels in lists)
    dataset = load(write(tmp_path / f"a.{ending}", text), output="labels")
    assert dataset.class_names == ("x", "y", "z")
    labels = dataset.splits["train"]["labels"]
    assert labels.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert (labels.dtype, "label" in dataset.splits["train"]) == (np.uint8, False)
    assert dataset.facts["Classes of train"] == {"x": 2, "y": 1, "z": 1}


def test_numbers(tmp_path):
    dataset = load(write(tmp_path / "a.csv", "text,label\na,1.5\nb,-2e1\n"), output="number")
    target = dataset.splits["train"]["target"]
    assert (target.tolist(), target.dtype) == ([1.5, -20.0], np.float32)
    assert dataset.class_names == ()
    assert dataset.facts["Numbers of train"]["mean"] == -9.25


# --- rows of tokens -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_tokenizer():
    return tokenizers.train("byte", ["abc"])


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        (["abcd"], "<abcd>.."),
        (["abcdefghi"], "<abcdef>"),
        (["ab", "cd"], "<ab>cd>."),
        (["abcdefgh", "x"], "<abcd>x>"),
        (["x", "abcdefgh"], "<x>abcd>"),
        (["abcdefgh", "uvwxyz"], "<abc>uv>"),
        (["abc", "uvwxyz"], "<abc>uv>"),
        (["abcdef", "uv"], "<abc>uv>"),
    ],
)
def test_the_longer_text_is_cut_first(byte_tokenizer, texts, row):
    encoded = encode_texts(byte_tokenizer, [texts], 8)
    tokens = encoded["tokens"][0].tolist()
    names = {START: "<", SEPARATOR: ">", PADDING: "."}
    assert "".join(names.get(i) or byte_tokenizer.decode([i]) for i in tokens) == row
    types = encoded["types"][0].tolist()
    second = 1 + tokens.index(SEPARATOR)
    expected = [int(len(texts) == 2 and i >= second and x != 0) for i, x in enumerate(tokens)]
    assert types == expected
    assert (encoded["tokens"].dtype, encoded["types"].dtype) == (np.uint16, np.uint8)


def test_many_rows_keep_their_order(byte_tokenizer):
    rows = [(str(i), str(-i)) for i in range(2500)]
    tokens = encode_texts(byte_tokenizer, rows, 16)["tokens"]
    assert [byte_tokenizer.decode(row) for row in tokens] == [a + b for a, b in rows]


def test_no_rows(byte_tokenizer):
    assert encode_texts(byte_tokenizer, [], 8)["tokens"].shape == (0, 8)


def test_examples_that_are_no_texts_are_refused(byte_tokenizer):
    for rows in (["abc"], [("a", "b", "c")], [()]):
        with pytest.raises(UsageError, match="one or two texts"):
            encode_texts(byte_tokenizer, rows, 8)
    with pytest.raises(UsageError, match="at least 5 for pairs of texts. Received: 4"):
        encode_texts(byte_tokenizer, [("a", "b")], 4)


def test_prediction_encodes_as_training(tmp_path):
    dataset = load(write(tmp_path / "a.csv", "text,label\ngood film,x\nbad,y\n"))
    encoded = encode_texts(dataset.tokenizer, [("good film",), ("bad",)], 12)
    width = dataset.splits["train"]["tokens"].shape[1]
    np.testing.assert_array_equal(encoded["tokens"][:, :width], dataset.splits["train"]["tokens"])


def test_truncated_examples_are_reported(tmp_path):
    dataset = load(write(tmp_path / "a.csv", "text,label\na b c d e,x\na b c d,y\n"),
                   sequence_length=6)  # fmt: skip
    assert dataset.facts["Data"]["truncated in train"] == "50.00%"
    assert dataset.splits["train"]["tokens"].shape == (2, 6)


# --- bad files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "is empty: its first line must name the columns"),
        ("a.csv", "text,label\n", "must contain examples. Received: no rows"),
        ("a.csv", "text,label\na,x\nb\n", "line 3: must have 2 cells, as the header. Received: 1"),
        ("a.csv", "text,label\na,x\nb,y,z\n", "line 3: must have 2 cells.* 3 cells, 'b,y,z'"),
        ("a.csv", 'text,label\n"a\nb",x\nc\n', "line 4: must have 2 cells"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,y\n', 'line 3: .*begins with " must end with "'),
        ("a.csv", 'text,label\n"a" b,x\n', "line 2: cannot be read as cells"),
        ("a.csv", "text,text,label\na,b,x\n", "several columns named 'text'"),
        ("a.csv", "text,label\na,x\n ,y\n", "line 3: 'text' must not be empty"),
        ("a.csv", "text,label\na,x\nb, \n", "line 3: the label must be text.* Received: ' '"),
        ("a.csv", "text,label\na,x\nb,\n", "line 3: the label must be text.*: an empty cell"),
        ("a.csv", "text,label\na,x\nb,x\n", "at least 2 classes. Received: only the class 'x'"),
        ("p.tsv", "a\tb\tlabel\n \tc\tx\n", "line 2: 'a' must not be empty"),
        ("p.tsv", "a\tb\tlabel\nc\t\tx\n", "line 2: 'b' must not be empty"),
        ("a.jsonl", "", "is empty: each line must be a JSON object"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n[]', "line 2: must be a JSON object"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{', "line 2: must be a JSON object"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "a"}', "line 2: must have the key 'lab"),
        ("a.jsonl", '{"text": 5, "label": "x"}', "line 1: 'text' must be text. Received: number"),
        ("a.jsonl", '{"text": null, "label": "x"}', "'text' must be text. Received: nothing"),
        ("a.jsonl", '{"text": "a", "label": null}', "line 1: the label must be .*: None"),
        ("a.jsonl", '{"text": "a", "label": 1.5}', "Received: 1.5; for numbers set task.output="),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n\n{"text": "a", "label": 1}',
            "line 3: all labels must be of one type. Received: number, and text in line 1",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, name, text, words):
    with pytest.raises(RunError, match=words) as error:
        load(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("output", "label", "words"),
    [
        ("number", "nan", "line 2: the label must be a finite number. Received: 'nan'"),
        ("number", "1e39", "finite number"),
        ("number", "high", "finite number"),
        ("number", "", "finite number. Received: an empty cell"),
        ("labels", "x|x", "the labels must be different"),
        ("labels", "x||y", "the label must be text"),
        ("labels", "", "at least 1 class. Received: no labels"),
    ],
)
def test_bad_labels_of_other_outputs(tmp_path, output, label, words):
    with pytest.raises(RunError, match=words):
        load(write(tmp_path / "a.csv", f"text,label\na,{label}\n"), output=output)


def test_invalid_utf8_is_named(tmp_path):
    source = write(tmp_path / "a.csv", "text,label\na,x\ncafé,y\n", encoding="latin-1")
    with pytest.raises(RunError, match="a.csv, line 3: must be UTF-8"):
        load(source)
    table = pyarrow.table({"text": [b"a", b"caf\xe9"], "label": ["x", "y"]})
    binary = table.schema.field("text").type
    assert binary == pyarrow.binary()
    text = pyarrow.array(table["text"].to_pylist(), pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(table.set_column(0, "text", text), tmp_path / "a.parquet")
    with pytest.raises(RunError, match="a.parquet, row 2: must be UTF-8"):
        load(f"parquet:{tmp_path}/a.parquet")


def test_valid_replacement_characters_are_text(tmp_path):
    dataset = load(write(tmp_path / "a.csv", "text,label\n\ufffd,x\nb,y\n"), tokenizer="byte")
    assert texts_of(dataset)[0] == "\ufffd"


def test_labels_unknown_in_training_are_named(tmp_path):
    write(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    write(tmp_path / "test.csv", "text,label\na,x\nb,z\n")
    with pytest.raises(RunError, match="test.csv, line 3: the label 'z' does not occur in the tra"):
        load(f"csv:{tmp_path}")
    with pytest.raises(RunError, match="test.csv, line 3: the label 'z' does not occur in the tra"):
        load(f"csv:{tmp_path}", output="labels")


def test_too_many_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.text.labeled.labels.MAX_CLASSES", 2)
    source = write(tmp_path / "a.csv", "text,label\na,x\nb,y\nc,z\n")
    with pytest.raises(RunError, match="at most 2 different labels. Received: 3"):
        load(source)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ((), r"must name one or two text columns.* Received: \(\).*columns text, label, id"),
        (("text", "lable"), "Received: 'lable'; it has the columns text, label, id"),
        (("text",), "must name one or two text columns.*Received: text"),
        (("text", "text", "label"), "must name one or two text columns"),
        (("text", "label", "id", "x"), "must name one or two text columns"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, words):
    source = write(tmp_path / "a.csv", "text,label,id\na,x,1\nb,y,2\n")
    with pytest.raises(UsageError, match=words):
        load(source, columns=columns)


def test_wrong_sources_are_refused(tmp_path):
    write(tmp_path / "a.csv", "text,label\na,x\nb,y\n")
    for source, words in (
        ("csv:", "There is no file or folder ''"),
        (f"csv:{tmp_path}/b.csv", "There is no file or folder"),
        (f"tsv:{tmp_path}/a.csv", "must end in .tsv or .tsv.gz"),
        (f"csv:{tmp_path}", "must be named by their splits.*Received: a.csv"),
        (f"jsonl:{tmp_path}", "must contain a file train.jsonl"),
        ("sst3", "Received: 'sst3', which is unknown. Did you mean 'sst2'"),
        ("pydoc", "'pydoc', which has no labeled texts"),
        ("text:a.txt", "is unknown"),
    ):
        with pytest.raises(UsageError, match=words):
            load(source)
    with pytest.raises(UsageError, match="data.manual_dir must be empty"):
        load(f"csv:{tmp_path}/a.csv", manual_dir=str(tmp_path))
    with pytest.raises(UsageError, match="No task.output is named 'score'"):
        load(f"csv:{tmp_path}/a.csv", output="score")
    with pytest.raises(UsageError, match="sequence_length must be at least 3 for texts"):
        load(f"csv:{tmp_path}/a.csv", sequence_length=2)


def test_two_files_of_a_split_are_refused(tmp_path):
    for name in ("train.csv", "val.csv", "dev.csv.gz"):
        write(tmp_path / name, "text,label\na,x\nb,y\n")
    with pytest.raises(UsageError, match="Received: val.csv. Remove val.csv or dev.csv.gz"):
        load(f"csv:{tmp_path}")


# --- bounds ---------------------------------------------------------------------------------------


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.storage.bounds.FREE_BYTES", 1 << 18)
    source = write(tmp_path / "a.csv.gz", "text,label\n" + f"{'a' * 10_000},x\n" * 100)
    with pytest.raises(RunError, match="a.csv.gz cannot be read: .* stored bytes expand to"):
        load(source)
    # A dictionary holds the text of a thousand rows once.
    table = pyarrow.table({"text": ["a" * 10_000] * 1000, "label": ["x", "y"] * 500})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet", compression="zstd")
    with pytest.raises(RunError, match="b.parquet cannot be read: .* stored bytes expand to"):
        load(f"parquet:{tmp_path}/b.parquet")


def test_long_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.text.corpus_readers.MAX_LINE_BYTES", 1000)
    source = write(tmp_path / "a.csv", f"text,label\na,x\n{'b' * 1000},y\n")
    with pytest.raises(RunError, match="line 3 is longer than"):
        load(source)


def test_texts_that_do_not_fit_in_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.text.labeled.examples._CHECK_BYTES", 0)
    monkeypatch.setattr("zoo.storage.bounds.FREE_BYTES", 600)
    monkeypatch.setattr("zoo.storage.bounds.available_memory", lambda: 700)
    with pytest.raises(RunError, match="a.csv cannot be read: it requires .* bytes of memory"):
        load(write(tmp_path / "a.csv", "text,label\na,x\nb,y\nc,x\n"))


def test_damaged_parquet_files_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {i}" for i in range(500)], "label": ["x", "y"] * 250})
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)
    data = path.read_bytes()
    for damaged in (data[:-3], data[:200] + bytes([data[200] ^ 255]) + data[201:], b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read as a Parquet file"):
            load(f"parquet:{path}")
