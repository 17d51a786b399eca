"""Tokenizers of published models: ids of the libraries, special tokens, refused files."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library

from tests.third_party import third_party
from tests.zoo.data.published_folders import (
    END,
    KINDS,
    SPECIAL,
    START,
    make_tokenizer,
    sentencepiece_model,
    write_tokenizer,
)
from tests.zoo.data.test_tokenizers import STRINGS, _text
from zoo.data.text import tokenizers
from zoo.data.text.published.folder import has_tokenizer, read_folder
from zoo.errors import RunError, UsageError

TRAINING = [_text(), "def run(x):\n    return {x: 1}  # 12345\n" * 3]
TEXTS = [
    *(tokenizers.normalize(text, "none") for text in STRINGS),
    "a<s>b</s><unk>", "<|end_of_text|> <|eot_id|>\n<|im_end|> <|endoftext|><|im_start|>user",
    "\r\n\t\r\n  x \0 y", "  two  spaces", "۱۲۳ می\u200cشود", "👩\u200d👩\u200d👧 e\u0301", "",
]  # fmt: skip
# Longer than a piece of `cut`, with line ends that belong to the token before.
LONG = "He said (so): 'Stop.'\n\n\n  Then \t\r\n" * 700


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns folders with tokenizer.json and config.json by kind."""
    root, results = tmp_path_factory.mktemp("published"), {}
    for kind in KINDS:
        results[kind] = root / kind
        write_tokenizer(results[kind], kind, make_tokenizer(kind, TRAINING))
        (results[kind] / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return results


def reference(folder):
    """Returns the library's tokenizer, which takes special tokens in a text for text."""
    tokenizer = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(kind, folders):
    ours, theirs = read_folder(folders[kind]), reference(folders[kind])
    assert len(LONG) > 2 * tokenizers.PIECE_LENGTH
    texts = [*TEXTS, LONG]
    for text, ids in zip(texts, ours.encode_documents(texts, workers=2), strict=True):
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids, text[:50]
        np.testing.assert_array_equal(ours.encode(text), ids)
        assert not {*ids.tolist()} & (ours.special.control - {ours.unknown_id}), text[:50]


def _real_lines():
    root = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere")
    names = {
        "tiny_shakespeare": "*.txt", "persian_poems": "*", "multi30k": "*de*", "wikitext2": "*",
    }  # fmt: skip
    for name, pattern in names.items():
        files = [path for path in sorted((root / name).rglob(pattern)) if path.is_file()]
        for path in files:
            try:
                lines = path.read_text().splitlines(keepends=True)
            except UnicodeDecodeError:
                continue
            yield name, lines[:2000]
            break


def test_ids_of_real_text(folders, tmp_path):
    texts = dict(_real_lines())
    if not texts:
        pytest.skip("ZOO_DATA_DIR holds no text: set it and run `zoo fetch tiny_shakespeare`")
    for kind in KINDS:
        ours, theirs = read_folder(folders[kind]), reference(folders[kind])
        for lines in texts.values():
            expected = theirs.encode_batch_fast(lines, add_special_tokens=False)
            for ids, encoding in zip(ours.encode_documents(lines), expected, strict=True):
                assert ids.tolist() == encoding.ids


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, folders, transformers):
    with third_party():
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folders[kind] / "tokenizer.json"), split_special_tokens=True
        )
    ours = read_folder(folders[kind])
    for text in [*TEXTS[-40:], LONG]:
        expected = theirs(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert ours.encode(text).tolist() == expected, text[:50]


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back(kind, folders):
    ours = read_folder(folders[kind])
    for text in [*TEXTS, LONG]:
        expected = tokenizers.normalize(text, "NFC" if kind == "qwen" else "none")
        ids = ours.encode(text)
        decoded = ours.decode(ids)
        if ours.unknown_id is None or ours.unknown_id not in ids.tolist():
            if kind in ("llama2", "mistral"):  # a space in SentencePiece's notation is a space
                expected = expected.replace("▁", " ")
            if kind == "mistral":  # the library inserts no space before a space
                expected = expected.removeprefix(" ")
            assert decoded == expected
        size = int(ours.token_bytes[ids].sum())
        assert size - len(decoded.encode()) in (0, 1)  # the space before a text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(kind, folders):
    ours, theirs = read_folder(folders[kind]), reference(folders[kind])
    assert ours.start_id == (START[kind] and theirs.token_to_id(START[kind]))
    assert ours.end_id == theirs.token_to_id(END[kind])
    assert ours.special.stops == (ours.end_id,)
    assert ours.special.control == {theirs.token_to_id(name) for name in SPECIAL[kind]}
    assert ours.vocabulary_size == theirs.get_vocab_size()
    ids = [theirs.token_to_id(name) for name in SPECIAL[kind]]
    assert ours.decode(ids) == ""
    assert ours.decode(ids, skip_special=False) == "".join(SPECIAL[kind])


def test_stop_tokens_come_from_three_files(folders, tmp_path):
    folder = tmp_path / "folder"
    make = make_tokenizer("llama3", TRAINING)
    write_tokenizer(folder, "llama3", make)
    first, second, third = (make.token_to_id(name) for name in SPECIAL["llama3"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [second, third]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": first}))
    assert read_folder(folder).special.stops == (third, second, first)
    settings = {"add_bos_token": False, "bos_token": SPECIAL["llama3"][0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = read_folder(folder)
    assert tokenizer.start_id is None
    assert tokenizer.end_id == second
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 10**6}))
    with pytest.raises(RunError, match="ids of special tokens must be from 0 to .* 1000000"):
        read_folder(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_pickled_as_every_tokenizer(kind, folders, tmp_path):
    tokenizer = read_folder(folders[kind])
    tokenizer.save(tmp_path / "tokenizer.json")
    for copy in (
        tokenizers.load(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.special == tokenizer.special
        np.testing.assert_array_equal(copy.encode(LONG), tokenizer.encode(LONG))
    report = tokenizers.report(tokenizer, [LONG])
    assert report["kind"] == "published"
    assert report["unknown_rate"] == 0


def test_a_sentencepiece_model(tmp_path):
    import sentencepiece

    data = sentencepiece_model(TRAINING[0].split("\n"))
    (tmp_path / "tokenizer.model").write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    ours = read_folder(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in [*TEXTS, LONG]:
        ids = ours.encode(text)
        assert ids.tolist() == theirs.encode(text)
        assert not {1, 2} & {*ids.tolist()}
        if 0 not in ids:
            assert ours.decode(ids) == text.replace("▁", " ")
    assert (ours.start_id, ours.end_id, ours.unknown_id) == (1, 2, 0)
    assert ours.special.control == {0, 1, 2}
    (tmp_path / "tokenizer.model").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"tokenizer.model is not supported: .* AutoTokenizer"):
        read_folder(tmp_path)


def test_vocabulary_and_merges_of_gpt2(tmp_path, transformers):
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    trained.train_from_iterator(TRAINING, trainer)
    trained.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 0}))
    ours = read_folder(tmp_path)
    trained.encode_special_tokens = True
    for text in [*TEXTS, LONG]:
        assert ours.encode(text).tolist() == trained.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    assert (ours.start_id, ours.special.stops) == (None, (0,))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UsageError, match="'qwen2' are not in this file. Save the folder"):
        read_folder(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UsageError, match="contains no tokenizer: neither tokenizer.json nor"):
        read_folder(tmp_path)
    assert has_tokenizer(tmp_path)


def _parts(folder):
    return json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "model.type must be BPE.* 'WordPiece'"),
        ({"model": None}, "it has no model"),
        ({"normalizer": {"type": "Precompiled"}}, "the normalizer 'Precompiled' is not supported"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]}},
         "the pre_tokenizer 'Whitespace' is not supported"),
        ({"added_tokens": [{"id": 0}]}, "an added token has no content"),
    ],
)  # fmt: skip
def test_what_we_do_not_read_is_refused(change, message, folders, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({**_parts(folders["llama3"]), **change}))
    with pytest.raises(UsageError, match=f"tokenizer.json is not supported: {message}") as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"model": ', "[1]", '{"model": {"type": "BPE", "vocab": 3}}'])
def test_damaged_files_are_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(RunError, match="tokenizer.json (is damaged|cannot be read)") as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)
