"""Corpora: every character in one split, no normalization, errors of one line."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import zoo.data
from zoo.data import datasets
from zoo.data.text import corpora, corpus_splits
from zoo.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parents[3]


def _read(corpus):
    return {split: list(documents()) for split, documents in corpus.splits.items()}


def _all(corpus):
    return [document for documents in _read(corpus).values() for document in documents]


def _texts(count):
    return [f"Text {number},\nof two lines. " + "x" * number for number in range(count)]


def _write_folder(folder, texts, name="{:03}.txt"):
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / name.format(number)).write_bytes(text.encode())
    return f"text:{folder}"


def _write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    return f"text:{path}"


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(datasets, "_DATASETS", dict(datasets._DATASETS))
    monkeypatch.setattr(corpora, "_LOADERS", dict(corpora._LOADERS))
    return zoo.data.register_corpus


# --- the registry -------------------------------------------------------------------------------


def test_reading_text_loads_neither_tensorflow_nor_the_network(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    code = """
import sys, zoo.data
zoo.data.load_corpus("text:" + sys.argv[1])
print([m for m in ("tensorflow", "keras", "urllib.request", "socket") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_users_corpus_is_loaded_by_name(register):
    mine = zoo.data.Corpus("mine", {"train": lambda: iter(["a"])}, ("en",), "1")
    calls = []
    register("mine", lambda *arguments: calls.append(arguments) or mine, licence="mine")
    assert "mine" in zoo.data.list_corpora()
    assert zoo.data.load_corpus("mine") is mine
    assert zoo.data.load_corpus("mine", str(ROOT), languages=["en"]) is mine
    assert calls == [(None, ()), (ROOT, ("en",))]
    assert datasets.dataset_entry("mine").licence == "mine"
    for name in ("mine", "mnist"):
        with pytest.raises(UsageError, match="registered already"):
            register(name, None)
    assert "mnist" not in zoo.data.list_corpora()
    register("wrong", lambda *arguments: ["a"])
    with pytest.raises(UsageError, match="loader of 'wrong' must return.*Received: list"):
        zoo.data.load_corpus("wrong")
    with pytest.raises(RunError, match="'mine' has no splits"):
        zoo.data.Corpus("mine", {}, ("en",), "1")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("tiny_shakespear", {}, "Did you mean 'tiny_shakespeare'"),
        ("mnist", {}, "'mnist' is a dataset of arrays, not a corpus"),
        ("text:", {}, "no file or folder ''"),
        ("pairs:", {}, "no file ''"),
        ("text:/nowhere.txt", {}, "no file or folder '/nowhere.txt'"),
        (f"pairs:{ROOT}", {}, f"no file '{ROOT}'"),
        (f"text:{ROOT}/zoo", {}, "must contain .txt"),
        (f"text:{__file__}", {}, "must be a folder or a .txt.*Received: .*test_corpora.py"),
        (f"text:{__file__}", {"languages": ["en", "fa"]}, "one language. Received: en, fa"),
        (f"pairs:{__file__}", {"languages": ["en"]}, "two languages.*Received: en"),
        (f"text:{__file__}", {"manual_dir": ROOT}, "data.manual_dir must be empty"),
        ("pydoc", {"manual_dir": ROOT}, "data.manual_dir must be empty"),
        ("pydoc", {"manual_dir": f"{ROOT}/nowhere"}, "must be an existing folder"),
        ("pydoc", {"languages": "en"}, "must be a list of strings, such as .*Received: 'en'"),
        ("pydoc", {"languages": ["fa"]}, "one language of en. Received: fa"),
        ("multi30k", {"languages": ["en"]}, "two different languages of en, de, fr. Received: en"),
        ("multi30k", {"languages": ["en", "en"]}, "two different languages"),
        ("multi30k", {"languages": ["en", "fa"]}, "two different languages.*Received: en, fa"),
    ],
)
def test_a_wrong_request_is_one_line(name, arguments, words):
    with pytest.raises(UsageError, match=words) as error:
        zoo.data.load_corpus(name, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", zoo.data.list_corpora())
def test_a_corpus_is_not_taken_for_arrays(name):
    with pytest.raises(UsageError, match=f"^'{name}' is a corpus of text"):
        zoo.data.load(name)


# --- text of users: splits ----------------------------------------------------------------------


@pytest.mark.parametrize("write", [_write_folder, _write_jsonl])
def test_twenty_documents_are_split_by_documents(tmp_path, write):
    name = write(tmp_path / ("a" if write is _write_folder else "a.jsonl"), _texts(40))
    corpus = zoo.data.load_corpus(name, languages=["en"])
    splits = _read(corpus)
    assert {split: len(documents) for split, documents in splits.items()} == {
        "train": 36,
        "validation": 2,
        "test": 2,
    }
    assert sorted(_all(corpus)) == sorted(_texts(40))
    assert splits["train"] == [text for text in _texts(40) if text in splits["train"]]
    assert _read(corpus) == splits
    assert (corpus.name, corpus.languages, corpus.unreadable) == (name, ("en",), {})


def test_a_document_stays_in_its_split_whatever_its_place(tmp_path):
    texts = _texts(30)
    first = _read(zoo.data.load_corpus(_write_folder(tmp_path / "a", texts)))
    again = _read(zoo.data.load_corpus(_write_folder(tmp_path / "b", texts[::-1])))
    assert {split: set(documents) for split, documents in first.items()} == {
        split: set(documents) for split, documents in again.items()
    }


def test_a_text_that_occurs_twice_is_in_one_split(tmp_path):
    corpus = zoo.data.load_corpus(_write_jsonl(tmp_path / "a.jsonl", _texts(20) * 3))
    splits = _read(corpus)
    assert [len(documents) for documents in splits.values()] == [54, 3, 3]
    assert len(set(splits["validation"])) == len(set(splits["test"])) == 1
    assert not set(splits["train"]) & set(splits["validation"] + splits["test"])


def test_nineteen_different_documents_are_cut_at_a_line(tmp_path, capsys):
    """A repeated document is left out, or it would be in both splits."""
    texts = [f"{text}\n" for text in _texts(19)]
    name = _write_jsonl(tmp_path / "a.jsonl", [*texts, *(text[:-1] for text in texts)])
    corpus = zoo.data.load_corpus(name)
    assert capsys.readouterr().err == f"zoo: {name}: 19 repeated documents were left out.\n"
    splits = _read(corpus)
    assert list(splits) == ["train", "validation"]
    whole = "".join(texts)
    train, validation = map("".join, splits.values())
    assert train + validation == whole
    assert train.endswith("\n")
    assert 0 <= 0.9 * len(whole) - len(train) <= max(map(len, texts))
    # Only one document is cut.
    assert splits["train"][:-1] == texts[: len(splits["train"]) - 1]
    assert splits["validation"][1:] == texts[len(splits["train"]) :]


@pytest.mark.parametrize(
    ("texts", "train", "validation"),
    [
        (["12345678\n0\n"], ["12345678\n"], ["0\n"]),
        (["1234567\n90"], ["1234567890"[:9].replace("8", "\n")], ["0"]),
        (["1234567\n90" * 2], ["1234567\n901234567\n"], ["90"]),
        (["12\n4567890"], ["12\n456789"], ["0"]),
        (["ab"], ["a"], ["b"]),
        (["a"] * 10, ["a"] * 9, ["a"]),
        (["abcdefg", "hij"], ["abcdefg", "hi"], ["j"]),
        (["abcdefgh", "ij"], ["abcdefgh"], ["ij"]),
        (["abcdefgh" * 3, "ijklmn"], ["abcdefgh" * 3], ["ijklmn"]),
    ],
)
def test_where_a_text_is_cut(texts, train, validation):
    splits = corpus_splits.split_by_cut(lambda: iter(texts), [len(text) for text in texts])
    assert list(splits["train"]()) == train
    assert list(splits["validation"]()) == validation


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path):
    name = _write_folder(tmp_path / "a", ["one", "two"])
    (tmp_path / "a" / "000").mkdir()
    (tmp_path / "a" / "000" / "z.txt.gz").write_bytes(gzip.compress(b"first"))
    (tmp_path / "a" / "000.txtx").write_text("no")
    (tmp_path / "a" / "._000.txt").write_text("no")
    (tmp_path / "a" / ".git").mkdir()
    (tmp_path / "a" / ".git" / "a.txt").write_text("no")
    (tmp_path / "a" / "000" / ".a.txt").write_text("no")
    (tmp_path / "a" / "folder.txt").mkdir()
    # "." sorts before "/".
    assert "".join(_all(zoo.data.load_corpus(name))) == "onefirsttwo"


def test_pairs_are_split_by_their_sources(tmp_path):
    pairs = [(f"source {number % 40}", f"target {number}") for number in range(80)]
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{source}\t{target}\tby me\n" for source, target in pairs))
    corpus = zoo.data.load_corpus(f"pairs:{path}", languages=["en", "de"])
    splits = _read(corpus)
    assert [len(documents) for documents in splits.values()] == [72, 4, 4]
    assert sorted(_all(corpus)) == sorted(pairs)
    sources = [{source for source, _ in documents} for documents in splits.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 40
    assert corpus.languages == ("en", "de")


def test_few_sources_are_on_one_side_each(tmp_path, capsys):
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"source {i % 10}\ttarget {i}\n" for i in range(100)))
    train, validation = _read(zoo.data.load_corpus(f"pairs:{path}")).values()
    assert {source for source, _ in validation} == {"source 9"}
    assert len(validation) == 10
    assert {source for source, _ in train} == {f"source {i}" for i in range(9)}
    path.write_text("one\ta\none\tb\n")
    with pytest.raises(RunError, match="at least 2 different sources"):
        zoo.data.load_corpus(f"pairs:{path}")


@pytest.mark.parametrize("different", [10, 100])
def test_white_space_at_the_ends_makes_no_other_document(tmp_path, different):
    texts = [f"{text}{ending}" for text in _texts(different) for ending in ("", "\n", " \n")]
    splits = _read(zoo.data.load_corpus(_write_jsonl(tmp_path / "a.jsonl", texts)))
    train = {text.strip() for text in splits["train"]}
    # Parts of the cut document are in both splits.
    assert not train & {text.strip() for text in splits["validation"]}


def test_few_pairs_are_cut(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b"a\tA\r\n\n \nb\tB\tx\n\tC\nc\t \n"))
    corpus = zoo.data.load_corpus(f"pairs:{path}")
    assert _read(corpus) == {"train": [("a", "A")], "validation": [("b", "B")]}
    assert corpus.unreadable == {"empty_pairs": 2}
    assert corpus.languages == ()


# --- text of users: characters ------------------------------------------------------------------

# Characters that normalization, `str.splitlines` or a text-mode `open` would change.
RAW = "e\u0301\u212b\x00\x85\u2028\x0c\x1c \t\n\nلا\u200cم ي\ufeff\U0001f600\ufffd\n\n "


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_characters_are_kept_as_they_are(tmp_path, ending, mark, capsys):
    data = RAW.encode()
    if ".jsonl" in ending:
        data = json.dumps({"text": RAW}, ensure_ascii=False).replace(r"\u0000", "\0").encode()
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(mark + data) if ending.endswith(".gz") else mark + data)
    corpus = zoo.data.load_corpus(f"text:{path}")
    assert "".join(_all(corpus)) == RAW
    assert corpus.unreadable == {}
    assert capsys.readouterr().err == ""


def test_pairs_keep_their_characters(tmp_path):
    line = RAW.replace("\n", "").replace("\t", "")
    path = tmp_path / "a.tsv"
    path.write_bytes(f"\ufeff{line}\t{line}\r\n".encode() * 2)
    assert _all(zoo.data.load_corpus(f"pairs:{path}")) == [(line, line), (f"\ufeff{line}", line)]


def test_invalid_utf8_is_replaced_counted_and_said_once(tmp_path, capsys):
    folder = tmp_path / "a"
    name = _write_folder(folder, ["fine, with a \ufffd of its own\n", "fine\n"])
    (folder / "b.txt").write_bytes(b"caf\xe9 \xf0\x9f\x98 \xff\xfe \xef\xbf\xbd\n")
    (folder / "c.txt").write_bytes(b"\xc3\n")
    (folder / "d.txt").touch()
    (folder / "e.txt").write_bytes(b"\xef\xbb\xbf")
    corpus = zoo.data.load_corpus(name)
    assert "caf\ufffd \ufffd \ufffd\ufffd \ufffd\n\ufffd\n" in "".join(_all(corpus))
    assert corpus.unreadable == {"invalid_sequences": 5, "empty_files": 2}
    assert capsys.readouterr().err == (
        f"zoo: {name}: 5 invalid UTF-8 sequences were read as U+FFFD, in {folder}/b.txt (4), "
        f"{folder}/c.txt (1); 2 empty files were skipped.\n"
    )
    zoo.data.load_corpus(name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "folder"])
def test_line_ends_become_newlines_and_are_said_once(kind, tmp_path, capsys):
    text = "one\r\ntwo\r\n\r\nthree\rfour\n" * 8
    path = tmp_path / f"a.{kind}"
    if kind == "folder":
        path.mkdir()
        (path / "a.txt").write_bytes(text.encode())
    elif kind == "jsonl":
        path.write_text(json.dumps({"text": text}) + "\r\n")
    else:
        path.write_bytes(gzip.compress(text.encode()) if kind == "txt.gz" else text.encode())
    corpus = zoo.data.load_corpus(f"text:{path}")
    assert "".join(_all(corpus)) == "one\ntwo\n\nthree\nfour\n" * 8
    assert corpus.unreadable == {"line_ends": 32}
    err = capsys.readouterr().err
    assert err == f"zoo: text:{path}: 32 line ends \\r\\n or \\r were read as \\n, in 1 files.\n"
    zoo.data.load_corpus(f"text:{path}")
    assert capsys.readouterr().err == ""


def test_half_surrogates_and_empty_texts_of_json_are_counted(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a\\ud83d b"}\n\n{"text": ""}\r\n{"text": "\\ud83d\\ude00 and more"}\n'
    )
    corpus = zoo.data.load_corpus(f"text:{path}")
    assert "".join(_all(corpus)) == "a\ufffd b\U0001f600 and more"
    assert corpus.unreadable == {"invalid_sequences": 1, "empty_documents": 1}
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_one_line_of_50_megabytes(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    size = 50_000_000
    path.write_text("y" * size if ending == "txt" else '{"text": "' + "y" * size + '"}')
    splits = _read(zoo.data.load_corpus(f"text:{path}"))
    assert [list(map(len, documents)) for documents in splits.values()] == [
        [size * 9 // 10],
        [size // 10],
    ]


def _gzipped(text="some text\n" * 1000):
    return gzip.compress(text.encode(), mtime=0)


@pytest.mark.parametrize(
    ("file_name", "data", "words"),
    [
        ("a.txt", b"", "at least two characters of text. Received: no text"),
        ("a.txt", b"\xef\xbb\xbf", "at least two characters of text. Received: no text"),
        ("a.txt", b"a", "Received: a single character"),
        ("a.txt.gz", b"", "at least two characters of text. Received: no text"),
        ("a.txt.gz", b"plain text", "cannot be read: Not a gzipped file"),
        ("a.txt.gz", _gzipped()[:-20], "cannot be read: Compressed file ended"),
        ("a.txt.gz", _gzipped()[:-6] + b"123456", "cannot be read: CRC check failed"),
        ("a.txt.gz", _gzipped()[:14] + b"\xff" * 9 + _gzipped()[23:], "cannot be read: Error -3"),
        ("a.jsonl.gz", _gzipped()[:-20], "cannot be read: Compressed file ended"),
        ("a.txt", _gzipped(), "its name must end in .gz"),
        ("a.txt", "text".encode("utf-16"), "must be UTF-8. Received: UTF-16"),
        ("a.jsonl", "text".encode("utf-16"), "must be UTF-8. Received: UTF-16"),
        ("a.jsonl", b"", "at least two characters of text. Received: no text"),
        ("a.jsonl", b'{"text": ""}\n', "at least two characters of text. Received: no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a"}\n', "Received: a single character"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a "}\n', "Received: a single character"),
        ("a.jsonl", b'{"text": "\\ud800"}', "Received: a single character"),
        ("a.jsonl", b'{"text": "\\ud800"}\n{"text": "\\udfff"}\n', "Received: a single character"),
        ("a.jsonl", b'{"text": "\\ud83d\\ude00"}', "Received: a single character"),
        ("a.txt", b"\r\n", "Received: a single character"),
        ("a.tsv", b"a\tA\na\tB\n", "at least 2 different sources"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a"\n', "line 2: must be a JSON object.*Received"),
        ("a.jsonl", b'\n"text"', "line 2: must be"),
        ("a.jsonl", b'["text"]', "line 1: must be"),
        ("a.jsonl", b"7", "line 1: must be"),
        (
            "a.jsonl",
            b'{"texts": "a", "id": 7}',
            r"line 1: must be.*an object with the keys 'texts' .string., 'id' .number.[.]$",
        ),
        ("a.jsonl", b'{"text": null}', "line 1: must be.*the keys 'text' .null."),
        ("a.jsonl", b"{}", "line 1: must be.*an object with no keys"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: must be.*Received: .{60,62}[.]$"),
        ("a.tsv", b"", "at least 2 pairs. Received: 0"),
        ("a.tsv", b"a\tA\n", "at least 2 pairs. Received: 1"),
        ("a.tsv", b"a\tA\nb B\n", "line 2: must be SOURCE<TAB>TARGET. Received: 'b B'"),
        ("a.tsv", _gzipped(), "its name must end in .gz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, file_name, data, words):
    path = tmp_path / file_name
    path.write_bytes(data)
    with pytest.raises(RunError, match=words) as error:
        zoo.data.load_corpus(f"{'pairs' if path.suffix == '.tsv' else 'text'}:{path}")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_folder_of_empty_files_is_refused(tmp_path):
    with pytest.raises(RunError, match=f"^{tmp_path}/a must contain at least two characters"):
        zoo.data.load_corpus(_write_folder(tmp_path / "a", ["", ""]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(RunError, match=f"^{tmp_path}/a.txt cannot be read: Permission denied.$"):
        zoo.data.load_corpus(f"text:{tmp_path}/a.txt")


def test_the_fingerprint_tells_other_text_and_not_another_place(tmp_path, monkeypatch):
    def fingerprint_of(name):
        return zoo.data.load_corpus(name).fingerprint

    texts = _texts(3)
    fingerprints = [fingerprint_of(_write_folder(tmp_path / "a", texts))]
    (tmp_path / "elsewhere").mkdir()
    assert fingerprint_of(_write_folder(tmp_path / "elsewhere" / "b", texts)) == fingerprints[0]
    fingerprints.append(fingerprint_of(_write_folder(tmp_path / "c", [*texts[:2], texts[2] + " "])))
    fingerprints.append(fingerprint_of(_write_folder(tmp_path / "d", texts[::-1])))
    fingerprints.append(fingerprint_of(_write_folder(tmp_path / "e", texts[:2])))
    line = json.dumps({"text": "a\tb"}) + "\n"
    for name in ("f.txt", "f.jsonl", "f.tsv"):
        lines = line + line.replace("a", "c")
        (tmp_path / name).write_text(lines.replace("\\t", "\t").replace("text", "text"))
        fingerprints.append(
            fingerprint_of(f"{'pairs' if name.endswith('v') else 'text'}:{tmp_path / name}")
        )
    (tmp_path / "g.txt.gz").write_bytes(gzip.compress((tmp_path / "f.txt").read_bytes()))
    assert fingerprint_of(f"text:{tmp_path}/g.txt.gz") == fingerprints[4]
    monkeypatch.setattr(corpora, "READER_VERSION", corpora.READER_VERSION + 1)
    fingerprints.append(fingerprint_of(f"text:{tmp_path}/a"))
    assert len(set(fingerprints)) == len(fingerprints) == 8


def test_a_file_that_changes_in_use_is_not_mixed_with_what_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    corpus = zoo.data.load_corpus(f"text:{path}")
    path.write_text("one\ntwo\nthree\n")
    with pytest.raises(RunError, match="a.txt was changed while it was in use"):
        list(corpus.splits["train"]())
    path.unlink()
    with pytest.raises(RunError, match="a.txt cannot be read: No such file"):
        list(corpus.splits["train"]())
