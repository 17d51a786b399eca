"""Tokenizers: training, files, processes and reports; see test_tokenizers.py for the rest."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.data.test_tokenizers import (
    LOSSLESS,
    SIZES,
    STRINGS,
    _text,
    _with,
)
from zoo.data.text import tokenizers
from zoo.data.text.tokenizers import KINDS, normalize, train
from zoo.errors import RunError, UsageError
from zoo.storage import disk

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def trained():
    return {kind: train(kind, [_text()], SIZES[kind]) for kind in KINDS}


def _python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


# --- training -----------------------------------------------------------------------------------

FINGERPRINTS = """
import os, sys
from tests.zoo.data.test_tokenizers import KINDS, SIZES, _text
from zoo.data.text import tokenizers
if os.environ["CORES"] == "1":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
texts = [_text(), _text(seed=2)]
print(*[tokenizers.train(kind, texts, SIZES[kind]).fingerprint for kind in KINDS])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_the_same_text_always_gives_the_same_tokenizer():
    printed = {
        _python(FINGERPRINTS, CORES=cores, PYTHONHASHSEED=cores, **more).stdout
        for cores, more in (
            ("1", {}),
            ("2", {}),
            ("3", {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "7"}),
            ("4", {"TOKENIZERS_PARALLELISM": "false"}),
        )
    }
    assert len(printed) == 1
    assert len(set(printed.pop().split())) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_all_that_decides_the_ids(trained, kind):
    tokenizer = trained[kind]
    assert len(tokenizer.fingerprint) == 64
    assert _with(tokenizer, "NFC").fingerprint == tokenizer.fingerprint
    assert _with(tokenizer, "NFKC").fingerprint != tokenizer.fingerprint
    other = train(kind, [_text(seed=2) + " zzz"], SIZES[kind])
    assert (other.fingerprint == tokenizer.fingerprint) == (kind == "byte")
    assert len({tokenizer.fingerprint for tokenizer in trained.values()}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_vocabulary_is_told_and_works(kind, capfd):
    with pytest.raises(
        UsageError, match=rf"must be at least \d+ for a '{kind}' tokenizer"
    ) as error:
        train(kind, [_text()], 6)
    # SentencePiece reports the minimum for the text only if there is room for the bytes.
    if kind == "sentencepiece":
        with pytest.raises(UsageError, match="tokenizer of this text. Received") as error:
            train(kind, [_text()], 263)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert train(kind, [_text()], least).vocabulary_size == least
    with pytest.raises(UsageError, match=f"at least {least} for .*Received: {least - 1}"):
        train(kind, [_text()], least - 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_larger_than_the_text_supports_is_shrunk(kind, capfd):
    tokenizer = train(kind, ["abc abc abd " * 5], 5000)
    size = tokenizer.vocabulary_size
    assert 6 < size < 300
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        f"zoo: the vocabulary has {size} {kind} tokens: the text does not support 5,000\n"
    )
    train(kind, ["abc abc abd " * 5], size)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_without_text_nothing_is_trained(kind, capfd):
    for documents in ([], ["", ""], iter(())):
        with pytest.raises(RunError, match="no text to train a tokenizer on"):
            train(kind, documents, SIZES[kind])
    if kind in ("word", "wordpiece"):
        with pytest.raises(RunError, match="no text to train a tokenizer on"):
            train(kind, [" \t \u3000"], SIZES[kind])
    if kind == "sentencepiece":
        with pytest.raises(RunError, match="no text to train a tokenizer on"):
            train(kind, ["\n\t\0▁\n"], SIZES[kind])
    assert capfd.readouterr() == ("", "")


def test_sentencepiece_learns_from_lines_with_any_character():
    # The library silently skips lines with any of these.
    for odd in ("\0", "\t", "▁", "\u2585", "\r"):
        tokenizer = train("sentencepiece", [f"hello{odd}wonderful world\n" * 50], 290)
        # Known characters are not encoded as bytes.
        assert tokenizer.encode("hello wonderful world").min() >= 262


def test_sentencepiece_never_goes_on_over_white_space():
    tokenizer = train("sentencepiece", ["a  b   c\n\nof the  of the\n" * 99], 290)
    for name in tokenizer.tokens(range(262, tokenizer.vocabulary_size)):
        assert "▁" not in name[1:]
        assert "\n" not in name


@pytest.mark.parametrize("size", [-1, 2.5, "8000", None, True, 2**20 + 1])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(UsageError, match="vocabulary_size must be an integer"):
        train("bpe", ["a"], size)


def test_wrong_requests_are_one_line(trained):
    for kind in ("word", "wordpiece", "bpe", "sentencepiece"):
        with pytest.raises(UsageError, match=f"vocabulary_size must be positive for a '{kind}'"):
            train(kind, ["a"])
    with pytest.raises(UsageError, match="no tokenizer 'wordpieces'. Did you mean 'wordpiece'"):
        train("wordpieces", ["a"], 100)
    with pytest.raises(UsageError, match="no normalization 'NFD'"):
        train("byte", ["a"], normalization="NFD")
    with pytest.raises(UsageError, match="must be an iterable of texts"):
        train("byte", "a text")
    with pytest.raises(UsageError, match="must be an iterable of texts"):
        trained["byte"].encode_documents("a text")
    with pytest.raises(UsageError, match=r"must be a str. Received: bytes"):
        train("sentencepiece", ["a", b"a"], 400)
    with pytest.raises(UsageError, match=r"must be a str. Received: NoneType"):
        trained["bpe"].encode(None)
    with pytest.raises(UsageError, match="workers must be a number"):
        trained["bpe"].encode_documents(["a"], workers=-1)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([7, -1], "ids must be in 0 … 261. Received: -1"),
        ([7, 262], "ids must be in 0 … 261. Received: 262"),
        (np.array([2**40]), "Received: 1099511627776"),
        ([1.0], "a 1-D array of integers"),
        ([[1]], "a 1-D array of integers"),
        (1, "a 1-D array of integers"),
    ],
)
def test_ids_that_are_none_are_refused(trained, ids, words):
    for method in (trained["byte"].decode, trained["byte"].decode_bytes, trained["byte"].tokens):
        with pytest.raises(UsageError, match=words):
            method(ids)
    assert (trained["byte"].decode([]), trained["byte"].tokens([])) == ("", [])


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back(trained, kind, tmp_path):
    tokenizer, path = trained[kind], tmp_path / "tokenizer.json"
    tokenizer.save(path)
    data = json.loads(path.read_text())
    assert data["format_version"] == 1
    for key in ("kind", "normalization", "vocabulary_size", "fingerprint", "trained_on"):
        assert data[key] == getattr(tokenizer, key)
    for again in (tokenizers.load(str(path)), pickle.loads(pickle.dumps(tokenizer))):
        assert again.fingerprint == tokenizer.fingerprint
        assert again.trained_on == tokenizer.trained_on == {
            "documents": 1,
            "bytes": len(_text().encode()),
        }  # fmt: skip
        assert repr(again) == repr(tokenizer)
        np.testing.assert_array_equal(again.token_bytes, tokenizer.token_bytes)
        np.testing.assert_array_equal(again.starts_word, tokenizer.starts_word)
        for text in STRINGS[:100] + [_text(seed=5)]:
            np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def _changed(data, **changes):
    return json.dumps(data | changes).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_altered_file_is_refused_by_name(trained, kind, tmp_path):
    path = tmp_path / "mine.json"
    trained[kind].save(path)
    whole = path.read_bytes()
    data = json.loads(whole)
    damaged = [whole[:size] for size in range(0, len(whole) - 2, len(whole) // 9)]
    for place in range(30, len(whole), max(1, len(whole) // 40)):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
    damaged += [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format_version": "1"}']
    damaged += [
        _changed(data, normalization="NFKC"),
        _changed(data, kind="byte" if kind != "byte" else "character"),
        _changed(data, vocabulary_size=data["vocabulary_size"] + 1),
        _changed(data, trained_on={"documents": 1, "bytes": 5}),
        _changed(data, fingerprint="0" * 64),
        _changed(data, checksum=None),
        _changed(data, more=1),
        _changed({k: v for k, v in data.items() if k != "payload"}),
    ]
    # The checksum is valid, the content is not.
    for changes in (
        {"normalization": "none"},
        {"normalization": "NFD"},
        {"kind": "trees"},
        {"payload": "AAAA"},
        {"payload": 5},
        {"vocabulary_size": 9},
        {"fingerprint": None},
    ):
        altered = {k: v for k, v in (data | changes).items() if k != "checksum"}
        damaged.append(_changed(altered, checksum=disk.json_digest(altered)))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises((RunError, UsageError), match="mine.json") as error:
            tokenizers.load(path)
        assert "\n" not in str(error.value)
        assert isinstance(error.value, RunError)


def test_a_file_of_another_version_or_none_at_all_is_a_wrong_request(trained, tmp_path):
    path = tmp_path / "mine.json"
    trained["byte"].save(path)
    path.write_bytes(_changed(json.loads(path.read_text()), format_version=2))
    with pytest.raises(UsageError, match="mine.json must have format_version 1. Received: 2"):
        tokenizers.load(path)
    for nothing in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(UsageError, match=f"There is no file {nothing}"):
            tokenizers.load(nothing)


def test_a_failure_while_writing_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    trained["byte"].save(path)
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tokenizers.disk, "fsync_file", full)
        with pytest.raises(RunError, match="tokenizer.json cannot be written: No space left"):
            trained["bpe"].save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    trained["bpe"].save(path)
    assert tokenizers.load(path).kind == "bpe"
    with pytest.raises(RunError, match="no/t.json cannot be written: No such file"):
        trained["bpe"].save(tmp_path / "no" / "t.json")


# --- processes ----------------------------------------------------------------------------------


def test_importing_it_is_cheap():
    code = """
import sys, zoo.data.text.tokenizers
print([m for m in ("tensorflow", "keras", "tokenizers", "sentencepiece") if m in sys.modules])
"""
    assert _python(code).stdout == "[]\n"


def test_it_is_silent_in_threads_and_forks():
    code = """
import os, sys
from tests.zoo.data.test_tokenizers import KINDS, SIZES, _text
from zoo.data.text import tokenizers
trained = [tokenizers.train(kind, [_text()], SIZES[kind]) for kind in KINDS]
expected = [t.encode(_text(100, 4)) for t in trained]
for t in trained:
    list(t.encode_documents([_text(100, 4)] * 200, workers=3))
child = os.fork()
for t, ids in zip(trained, expected):
    assert all((one == ids).all() for one in t.encode_documents([_text(100, 4)] * 200, workers=2))
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""
    without = {k: v for k, v in os.environ.items() if not k.startswith("TOKENIZERS")}
    done = subprocess.run(
        # From 3.12 on, Python warns of forks beside a thread; only the library's warnings count.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env=without | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- reports, and real text ---------------------------------------------------------------------


def test_a_report_says_how_well_it_fits():
    tokenizer = train("character", ["ab ", "ي"], normalization="persian")
    assert tokenizers.report(tokenizer, ["ab ba", "", "ax ي"]) == {
        "kind": "character",
        "vocabulary_size": 10,
        "normalization": "persian",
        "bytes": 10,
        "tokens": 9,
        "bytes_per_token": 10 / 9,
        "tokens_per_word": 9 / 4,
        "unknown_rate": 1 / 9,
        "trained on": {"documents": 2, "bytes": 5},
    }
    json.dumps(tokenizers.report(tokenizer, ["a"]))
    assert "tokens_per_word" not in tokenizers.report(tokenizer, [" "])
    with pytest.raises(RunError, match="no text to measure"):
        tokenizers.report(tokenizer, [])


def _original(name, file):
    path = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / name / file
    if not path.is_file():
        pytest.skip(f"ZOO_DATA_DIR holds no {name}: set it and run `zoo fetch {name}`")
    data = path.read_bytes()
    return (gzip.decompress(data) if file.endswith(".gz") else data).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("name", "file", "normalization", "bytes_per_token"),
    [
        ("tiny_shakespeare", "input.txt", "NFC", {"bpe": 2.6, "sentencepiece": 2.5}),
        ("persian_poems", "hafez.txt.gz", "persian", {"bpe": 3.9, "sentencepiece": 3.9}),
    ],
)
def test_real_text(name, file, normalization, bytes_per_token):
    text = _original(name, file)[:250_000]
    for kind in KINDS:
        size = 0 if kind in ("character", "byte") else 1500
        tokenizer = train(kind, text.split("\n\n"), size, normalization)
        report = tokenizers.report(tokenizer, [text])
        assert report["vocabulary_size"] == size or size == 0
        assert report["bytes_per_token"] > bytes_per_token.get(kind, 0.9)
        assert report["unknown_rate"] < (0.2 if kind == "word" else 0.01)
        ids = tokenizer.encode(text)
        if kind in (*LOSSLESS, "character"):
            assert tokenizer.decode(ids) == normalize(text, normalization)
        # If all words are known, only white space is lost.
        if kind == "wordpiece" and report["unknown_rate"] == 0:
            assert "".join(tokenizer.decode(ids).split()) == "".join(
                normalize(text, normalization).split()
            )


@pytest.mark.parametrize("kind", ["bpe", "word", "wordpiece"])
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                           "invert": False}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////////////w=="}),
        ("added_tokens", [{"id": 9, "content": "a", "single_word": False, "lstrip": False,
                           "rstrip": False, "normalized": False, "special": True}]),
    ],
)  # fmt: skip
def test_parts_that_no_kind_has_are_not_loaded(trained, tmp_path, kind, part, value):
    """Some of these would end the process by memory or by a slow search."""
    data = trained[kind]._data()
    payload = {**json.loads(data["payload"]), part: value}
    with pytest.raises(ValueError, match="components do not match"):
        tokenizers.Tokenizer(kind, "none", json.dumps(payload), data["trained_on"])
