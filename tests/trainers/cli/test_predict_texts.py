"""`zoo predict` of texts: files, columns, outputs, bad rows, bounded memory."""

import csv
import gzip
import io
import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy import special

import zoo
from tests import toys
from trainers.config.base import optimizer
from trainers.evaluation import predict_texts
from trainers.train.trainer import Trainer
from zoo import registry
from zoo.data.text.labeled import encode_texts
from zoo.data.text.tokenizers import load

TINY = {
    "vocabulary_size": 0, "sequence_length": 24, "num_layers": 1, "hidden_dim": 16, "num_heads": 2,
}  # fmt: skip
TEXTS = ["a good film", "this is bad , so bad", "good good good", "bad"]


def train(folder, output, header, rows):
    """Returns the work directory of a model that was trained on a table."""
    with (folder / "train.csv").open("w") as file:
        csv.writer(file).writerows([header, *rows])
    config = toys.recipe(
        "encoder_nano", "text_classification", model_arguments=TINY,
        task_arguments={"output": output, "trim": 4}, steps=60, log_every=60, checkpoint_every=60,
    )  # fmt: skip
    config.data.update(
        source=f"csv:{folder}/train.csv", tokenizer="word", vocabulary_size=40, sequence_length=64
    )
    config.optimizer = optimizer("adamw", learning_rate=1e-2)
    dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
    Trainer(config, folder / "run", dataset=dataset).train()
    return folder / "run"


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield lambda *data: train(tmp_path_factory.mktemp("texts"), *data)


@pytest.fixture(scope="module")
def run(make_run):
    words = ["good", "bad", "film", "this", "is", "so", "a", ","]
    generator = np.random.default_rng(0)
    rows = []
    for i in range(120):
        text = [words[i % 2], *generator.choice(words[2:], generator.integers(0, 9))]
        rows.append((" ".join(generator.permutation(text)), words[i % 2]))
    return make_run("class", ("text", "label"), rows)


@pytest.fixture(scope="module")
def pairs(make_run):
    rows = [(a, b, "same" if a == b else "other") for a in "xyz" for b in "xyz"] * 4
    return make_run("class", ("first", "second", "label"), rows)


def table(text, delimiter="\t"):
    return list(csv.reader(io.StringIO(text), delimiter=delimiter))


def expected(run, texts):
    """Returns labels and probabilities, computed one by one without the command."""
    model, tokenizer, rows = zoo.load(run), load(run / "tokenizer.json"), []
    for text in texts:
        tokens = encode_texts(tokenizer, [(text,)], 24)["tokens"].astype("int32")
        inputs = {"tokens": tokens, "segments": np.int32(tokens > 0)}
        (row,) = special.softmax(np.array(model(inputs)), -1)
        rows.append((("bad", "good")[row.argmax()], float(row.max())))
    return rows


def write(folder, ending, texts):
    """Writes texts in the column "text", and numbers in another one; returns the path."""
    path = folder / f"texts{ending}"
    if ending == ".parquet":
        columns = {"n": list(range(len(texts))), "text": texts}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    if ".txt" in ending:
        lines = texts
    elif ".jsonl" in ending:
        lines = [json.dumps({"n": i, "text": text}) for i, text in enumerate(texts)]
    else:
        rows = [("n", "text"), *enumerate(texts)]
        file = io.StringIO()
        csv.writer(file, delimiter="," if "csv" in ending else "\t").writerows(rows)
        lines = file.getvalue().splitlines()
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    return path


def test_every_kind_of_file_gets_the_predictions_of_the_model(run, tmp_path, zoo_command):
    endings = (".txt", ".txt.gz", ".csv", ".tsv", ".jsonl", ".jsonl.gz", ".parquet")
    files = [write(tmp_path, ending, TEXTS) for ending in endings]
    answer = zoo_command("predict", run, *files)
    assert (answer.status, answer.err) == (0, "")
    head, *rows = table(answer.out)
    assert head == ["text", "label", "probability"]
    assert len(rows) == len(files) * len(TEXTS)
    wanted = expected(run, TEXTS)
    assert [label for label, _ in wanted] == ["good", "bad", "good", "bad"]
    for row, text, (label, probability) in zip(
        rows, TEXTS * len(files), wanted * len(files), strict=True
    ):
        assert row[:2] == [text, label]
        assert float(row[2]) == pytest.approx(probability, abs=1e-3)


def test_rows_keep_their_order_across_chunks(run, tmp_path, zoo_command, monkeypatch):
    monkeypatch.setattr(predict_texts, "_CHUNK_ROWS", 7)
    monkeypatch.setattr(predict_texts, "_BATCH", 3)
    texts = ["good " * (i % 5) + ("film" if i % 3 else "bad") for i in range(40)]
    texts.append("good " * 20 + "bad " * 40)  # the end does not fit in the model's positions
    rows = table(zoo_command("predict", run, write(tmp_path, ".txt", texts)).out)[1:]
    assert [row[0] for row in rows] == texts
    wanted = expected(run, texts)
    assert [row[1] for row in rows] == [label for label, _ in wanted]
    assert [float(row[2]) for row in rows] == pytest.approx([p for _, p in wanted], abs=1e-3)


def test_the_output_is_written_while_a_file_is_read(run, tmp_path, monkeypatch):
    """A chunk is predicted before the next one is read, so memory is bounded."""
    monkeypatch.setattr(predict_texts, "_CHUNK_ROWS", 5)
    read = []
    rows = predict_texts.chunks((str(i),) for i in range(100) if not read.append(i))
    next(rows)
    assert len(read) == 5
    monkeypatch.setattr(predict_texts, "_CHUNK_CHARACTERS", 10)
    assert [len(chunk) for chunk in predict_texts.chunks(iter([("a" * 6,)] * 4))] == [2, 2]


def test_standard_input_and_quoted_cells(run, tmp_path, zoo_command, monkeypatch):
    data = '\ufeffa good\tfilm\r\nbad "film"'.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    answer = zoo_command("predict", run, "-")
    assert answer.status == 0
    assert [row[0] for row in table(answer.out)[1:]] == ["a good\tfilm", 'bad "film"']


def test_a_table_is_written_at_once_or_not_at_all(run, tmp_path, zoo_command, monkeypatch):
    out = tmp_path / "labels.csv"
    words = "predict", run, write(tmp_path, ".jsonl", ["good, film", "bad\nfilm"]), f"--out={out}"
    answer = zoo_command(*words)
    assert (answer.status, answer.out, answer.err) == (0, "", "")
    rows = table(out.read_text(), ",")
    assert [row[:2] for row in rows] == [
        ["text", "label"], ["good, film", "good"], ["bad\nfilm", "bad"]
    ]  # fmt: skip
    before = out.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_texts.TextPredictor, "_logits", interrupted)
    assert zoo_command(*words).status == 130
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "texts.jsonl"]


def test_bad_rows_are_named_and_the_others_predicted(run, tmp_path, zoo_command, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"good\n\n  \nbad \xff\nfilm\n")
    (tmp_path / "b.csv").write_bytes(
        b'n,text\n1,good\n2\n3,"a" b\n4,"two\nlines"\n5,"\xff\nbad"\n6,\n7,bad\n8,"open'
    )
    (tmp_path / "c.jsonl").write_text(
        '[0]\n{"text": "good"}\n[1]\n{"n": 1}\n{"text": 5}\n{"text": "\\ud800"}\n\n'
        '{"text": "bad"}\n'
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\ngood\n\n")))
    files = [tmp_path / name for name in ("a.txt", "b.csv", "none.txt", "c.jsonl")]
    answer = zoo_command("predict", run, *files, "-")
    assert answer.status == 1
    assert [row[0] for row in table(answer.out)[1:]] == [
        "good", "film", "good", "two\nlines", "bad", "good", "bad", "good"
    ]  # fmt: skip
    errors = [line.removeprefix("zoo: error: ") for line in answer.err.splitlines()]
    places = [error.partition(": ")[0].replace(f"{tmp_path}/", "") for error in errors]
    assert places == [
        "none.txt cannot be read",
        "a.txt, line 2", "a.txt, line 3", "a.txt, line 4",
        "b.csv, line 3", "b.csv, line 4", "b.csv, line 7", "b.csv, line 9", "b.csv, line 11",
        "c.jsonl, line 1", "c.jsonl, line 3", "c.jsonl, line 4", "c.jsonl, line 5",
        "c.jsonl, line 6",
        "standard input, line 1", "standard input, line 3",
    ]  # fmt: skip
    for place, message in (
        ("a.txt, line 2", "'text' must not be empty"),
        ("a.txt, line 4", "must be UTF-8"),
        ("b.csv, line 3", "must have 2 cells"),
        ("b.csv, line 7", "must be UTF-8"),
        ("c.jsonl, line 1", "must be a JSON object"),
        ("c.jsonl, line 4", "must have the key 'text'"),
        ("c.jsonl, line 5", "'text' must be text. Received: number"),
        ("c.jsonl, line 6", "must be valid Unicode"),
    ):
        assert message in errors[places.index(place)]


def test_files_without_a_valid_row_load_no_model(run, tmp_path, zoo_command, monkeypatch):
    def load_model(*_):
        raise AssertionError("no row can be read: the model is not needed")

    monkeypatch.setattr("zoo.registry.load", load_model)
    (tmp_path / "empty.txt").write_text("\n")
    answer = zoo_command("predict", run, tmp_path / "empty.txt", "--json")
    assert (answer.status, json.loads(answer.out)) == (1, [])


def test_pairs_are_read_from_their_columns(pairs, tmp_path, zoo_command):
    (tmp_path / "p.csv").write_text("second,first,a,b\nx,x,y,z\nz,y,x,x\n")
    answer = zoo_command("predict", pairs, tmp_path / "p.csv", "--json")
    assert [row["texts"] for row in json.loads(answer.out)] == [["x", "x"], ["y", "z"]]
    answer = zoo_command("predict", pairs, tmp_path / "p.csv", "--columns=a, b")
    assert [row[:2] for row in table(answer.out)] == [["a", "b"], ["y", "z"], ["x", "x"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["p.csv", "--columns=a"], "requires 2 text column(s), such as first, second"),
        (["p.csv", "--columns=a,a"], "one or two columns"),
        (["p.csv", "--columns=a,c"], "p.csv must have the column 'c'"),
        (["p.csv", "t.txt"], "requires two texts per row, first and second"),
        (["-"], "requires two texts per row"),
        (["p.png"], "must end in .txt, .csv, .tsv, .jsonl, .parquet"),
        (["p.csv", "--invert"], "--invert is not supported"),
        (["p.csv", "--out=labels.txt"], "--out must be a .csv or .tsv file"),
        (["p.csv", "--out=no/labels.csv"], "--out must be a .csv or .tsv file"),
        (["p.csv", "--out=l.csv", "--json"], "set --json or --out"),
    ],
)
def test_wrong_requests_are_one_line(pairs, tmp_path, zoo_command, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("second,first,a,b\nx,x,y,z\n")
    (tmp_path / "t.txt").write_text("x\n")
    answer = zoo_command("predict", pairs, *words)
    assert answer.status == 2
    assert message in answer.one_line()
    assert answer.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "t.txt"]


@pytest.mark.slow
def test_any_number_of_labels_and_numbers(make_run, tmp_path, zoo_command):
    rows = [("x", "a"), ("y", "b"), ("x y", "a|b"), ("z", "")] * 30
    labels = make_run("labels", ("text", "label"), rows)
    file = write(tmp_path, ".txt", ["x", "y x", "z"])
    answer = zoo_command("predict", labels, file)
    head, *lines = table(answer.out)
    assert head == ["text", "labels", "probabilities"]
    assert [line[1] for line in lines] == ["a", "a|b", ""]
    assert all(float(p) > 0.5 for p in lines[1][2].split("|"))
    (row, *_) = json.loads(zoo_command("predict", labels, file, "--json").out)
    assert row["labels"] == ["a"]

    numbers = make_run("number", ("text", "label"), [("x", "1"), ("x y", "-1")] * 30)
    head, *lines = table(zoo_command("predict", numbers, file).out)
    assert head == ["text", "value"]
    assert float(lines[0][1]) > 0.2 > -0.2 > float(lines[1][1])
