"""Tokenizers: lossless kinds, determinism, normalization and streams."""

import itertools
import pickle
import random
import threading
import unicodedata

import numpy as np
import pytest

from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import SPECIAL
from zoo.data.text.tokenizers import KINDS, Tokenizer, normalize, train
from zoo.errors import UsageError

LOSSLESS = ("byte", "bpe", "sentencepiece")
SIZES = {"character": 0, "byte": 0, "word": 120, "wordpiece": 250, "bpe": 350, "sentencepiece": 380}

ENGLISH = "the cat sat on a mat and the dog ran to it, but cats don't run: they sit; dogs bark!"
PERSIAN = "می\u200cخواهم به خانه بروم و کتاب\u200cها را بخوانم؛ کِتابِ خوب، دوستِ خوب است."


def _text(words=1500, seed=1):
    """Lines of English, Persian and random words."""
    draw = random.Random(seed)
    made_up = ["".join(draw.choices(("ba", "ki", "lo", "mun", "ter"), k=3)) for _ in range(300)]
    vocabulary = (ENGLISH + " " + PERSIAN).split() * 8 + made_up
    return " ".join(
        draw.choice(vocabulary) + ("\n" if draw.random() < 0.1 else "") for _ in range(words)
    )


# Text that has broken tokenizers: names of special tokens, internal characters of libraries, all
# kinds of white space, decomposed characters and surrogates.
ODD = [
    *SPECIAL, "</s>", "<s>", "<0x41>", "<0x0A>", "[UNK]", "[CLS]", "##", "##a", "Ġ", "Ċ", "▁",
    "▁▁", "\u2585", "\u2047", "\ufffd", "\ufeff", "\u200b", "\u200c", "\u200d", "\u2060",
    " ", "  ", "    ", "\n", "\n\n", "\r\n", "\r", "\t", "\v", "\f", "\x85", "\xa0", "\u2028",
    "\u2029", "\u3000", "\u180e", *map(chr, range(32)), "\x7f", "\x80", "\x9f",
    "é", "e\u0301", "e\u0327\u0301", "\u0301", "ي", "ى", "ك", "ي\u0654", "ـ", "کِتاب", "٣", "۳",
    "می\u200cخواهم", "ﻻ", "ﷲ", "각", "\u1100\u1161\u11a8", "漢字", "한", "ก็", "ﬁ", "²", "½", "Å",
    "\u212b", "😀", "👨\u200d👩\u200d👧", "👍🏽", "🇮🇷", "❤\ufe0f", "\U000e0041", "\ue000",
    "\U000f0000", "\U0010ffff", "\uffff", "\ufdd0", "\ud800", "\udfff", "\ud83d\ude00",
    "a" * 150, "=" * 40,
    "a", "b", "Z", "0", "12345", "it's", "'", "’", "_", ".", "...", "،", "؟", "«", "»", "<", ">",
]  # fmt: skip


def _odd_strings(count, seed=7):
    draw = random.Random(seed)
    yield from ODD
    yield ""
    for _ in range(count):
        parts = draw.choices(ODD, k=draw.randint(1, 12))
        if draw.random() < 0.5:
            parts += [chr(draw.randrange(0x110000)) for _ in range(draw.randint(1, 6))]
            draw.shuffle(parts)
        yield draw.choice(("", " ", "\n")).join(parts)


STRINGS = list(_odd_strings(400))


@pytest.fixture(scope="module")
def trained():
    return {kind: train(kind, [_text()], SIZES[kind]) for kind in KINDS}


def _with(tokenizer, normalization):
    """Returns a tokenizer with the same tokens and another normalization."""
    _, (kind, _, payload, trained_on) = tokenizer.__reduce__()
    return Tokenizer(kind, normalization, payload, trained_on)


# --- encoding and decoding ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_special_tokens_are_the_first_six(trained, kind):
    tokenizer = trained[kind]
    assert tuple(tokenizer.tokens(range(6))) == SPECIAL
    ids = ("pad_id", "unknown_id", "start_id", "end_id", "separator_id", "mask_id")
    assert [getattr(tokenizer, name) for name in ids] == list(range(6))
    assert tokenizer.token_bytes[:6].tolist() == [0] * 6
    assert tokenizer.starts_word[:6].all()
    assert (tokenizer.token_bytes[6:] > 0).all()
    for array, kind_of in ((tokenizer.token_bytes, np.int32), (tokenizer.starts_word, bool)):
        assert (array.shape, array.dtype) == ((tokenizer.vocabulary_size,), kind_of)
    assert tokenizer.decode([2, 6, 3, 0]) == tokenizer.decode([6])
    assert tokenizer.decode([2, 3], skip_special=False) == "<start><end>"
    assert tokenizer.decode_bytes(range(6)) == b""


@pytest.mark.parametrize("normalization", tokenizers.NORMALIZATIONS)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_kinds_give_every_text_back(trained, kind, normalization):
    tokenizer = _with(trained[kind], normalization)
    for text in STRINGS:
        expected = normalize(text, normalization)
        ids = tokenizer.encode(text)
        assert (ids.dtype, ids.ndim) == (np.int32, 1)
        assert tokenizer.decode(ids, skip_special=False) == expected, repr(text)
        # A special token would be omitted here and have no bytes.
        assert tokenizer.decode(ids) == expected
        assert tokenizer.token_bytes[ids].sum() == len(expected.encode())
        assert ids.min(initial=6) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_come_token_by_token(trained, kind):
    tokenizer = trained[kind]
    for text in STRINGS[:200]:
        ids = tokenizer.encode(text)
        whole = tokenizer.decode_bytes(ids)
        assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == whole
        assert tokenizer.token_bytes[ids].sum() == len(whole)
        if kind in LOSSLESS:
            assert whole == normalize(text, "NFC").encode()


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_a_special_token(kind):
    text = "A page ends with <end> and <pad><unk> <start>, <sep> <mask> <0x41> </s>.\n" * 200
    tokenizer = train(kind, [text], {"character": 0, "byte": 0, "word": 30}.get(kind, 300))
    for name in (*SPECIAL, text):
        assert set(tokenizer.encode(name)).isdisjoint({0, 1, 2, 3, 4, 5})
        if kind in (*LOSSLESS, "character"):
            assert tokenizer.decode(tokenizer.encode(name)) == name


def test_the_byte_kind_keeps_bytes_that_are_no_text(trained):
    data = bytes(range(256)) * 3
    ids = trained["byte"].encode_bytes(data)
    assert (ids.dtype, ids.tolist()) == (np.int32, [6 + byte for byte in data])
    assert trained["byte"].decode_bytes(ids) == data
    assert trained["byte"].decode(ids[:256]) == bytes(range(256)).decode("utf-8", "replace")
    with pytest.raises(UsageError, match="Only a 'byte' tokenizer encodes bytes. Received: 'bpe'"):
        trained["bpe"].encode_bytes(data)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_half_a_character_is_shown_as_one_that_is_missing(trained, kind):
    ids = trained[kind].encode("a漢")
    assert trained[kind].decode(ids[:-1]) == "a\ufffd"
    assert trained[kind].decode_bytes(ids[:-1]) == "a漢".encode()[:-1]


def test_characters():
    tokenizer = train("character", ["abracadabra\n", "😀"])
    assert tokenizer.tokens(range(6, tokenizer.vocabulary_size)) == list("\nabcdr😀")
    assert tokenizer.encode("cab\n😀").tolist() == [9, 7, 8, 6, 12]
    # Unknown characters with codes before, between and after the known ones.
    assert tokenizer.encode("ax\0é漢\U0010ffff").tolist() == [7, 1, 1, 1, 1, 1]
    assert tokenizer.decode([7, 1, 8]) == "ab"
    assert tokenizer.decode([7, 1, 8], skip_special=False) == "a<unk>b"
    frequent = train("character", ["abracadabra" * 2 + "xxy"], 9)
    assert frequent.tokens([6, 7, 8]) == ["a", "b", "r"]
    known = train("character", STRINGS)
    for text in STRINGS:
        assert known.decode(known.encode(text)) == normalize(text, "NFC")


def test_words():
    text = "the cat don't\nsay می\u200cخواهم a.b «x» . " * 3
    tokenizer = train("word", [text], 30)
    ids = tokenizer.encode("the  cat don't\nsay\tمی\u200cخواهم zebra a.b «x»")
    assert tokenizer.tokens(ids) == [
        "the", "cat", "don't", "\n", "say", "می\u200cخواهم", "<unk>", "a", ".", "b", "«", "x", "»"
    ]  # fmt: skip
    assert tokenizer.decode(ids) == "the cat don't\nsay می\u200cخواهم a. b « x»"
    assert tokenizer.starts_word.all()
    # The most frequent characters, and of equally frequent ones the first.
    few = train("word", ["b a c c\n"], 9)
    assert few.tokens(range(6, 9)) == ["c", "\n", "a"]


def test_word_pieces():
    text = "playing played player walking walked walker unsaid می\u200cخواهم کِتاب " * 20
    tokenizer = train("wordpiece", [text], 150)
    ids = tokenizer.encode("Playing, walkers\nplaying می\u200cخواهم!")
    assert (ids == tokenizer.unknown_id).sum() == 3  # "Playing" has a capital; "," and "!".
    ids = tokenizer.encode("playing  walkers\nunplayed می\u200cخواهم کِتاب")
    assert tokenizer.decode(ids) == "playing walkers unplayed می\u200cخواهم کِتاب"
    starts = np.array(tokenizer.tokens(ids))[tokenizer.starts_word[ids]]
    assert len(starts) == 5
    assert not any(name.startswith("##") for name in starts)


def test_word_pieces_of_more_characters_than_are_worth_it(monkeypatch):
    from zoo.data.text.vocabularies import WordPieces

    monkeypatch.setattr(WordPieces, "max_characters", 4)
    tokenizer = train("wordpiece", ["abc abc cab ba] x^ aé" * 9], 40)
    assert {"a", "b", "c"} <= set(tokenizer.tokens(range(6, tokenizer.vocabulary_size)))
    assert tokenizer.tokens(tokenizer.encode("abc x ^ é")).count("<unk>") == 3


@pytest.mark.parametrize(
    ("kind", "spelled", "starts"),
    [
        ("bpe", " the", True),
        ("bpe", "the", False),
        ("bpe", "\n", True),
        ("bpe", ".", True),
        ("bpe", "ک", False),
        ("sentencepiece", " ", True),
        ("sentencepiece", "t", False),
        ("sentencepiece", "\n", True),
        ("sentencepiece", ",", True),
        ("byte", " ", True),
        ("byte", "a", False),
        ("character", "a", False),
        ("character", "،", True),
        ("character", "\u200c", False),
        ("character", "\u0650", False),
        ("character", "\n", True),
    ],
)
def test_where_a_word_begins(trained, kind, spelled, starts):
    first = trained[kind].encode(spelled)[0]
    assert bool(trained[kind].starts_word[first]) is starts


def test_the_rest_of_a_character_begins_no_word(trained):
    for kind in LOSSLESS:
        ids = trained[kind].encode("漢")
        assert not trained[kind].starts_word[ids].any()


# --- normalization ------------------------------------------------------------------------------


def test_normalizations():
    assert normalize("e\u0301ﬁ\n", "NFC") == "éﬁ\n"
    assert normalize("e\u0301ﬁ\n", "NFKC") == "éfi\n"
    assert normalize("e\u0301ﬁ\n", "none") == "e\u0301ﬁ\n"
    # Yeh with hamza is another letter; ZWNJ, tatweel, digits and harakat stay.
    assert normalize("علي كتاب على ي\u0654 می\u200cروم ـ ٣ كِ", "persian") == (
        "علی کتاب علی ئ می\u200cروم ـ ٣ کِ"
    )
    for how in tokenizers.NORMALIZATIONS:
        assert normalize("\ud800a\udfff\ud83d\ude00", how) == "\ufffda\ufffd😀"
    with pytest.raises(UsageError, match="no normalization 'NFD'. Did you mean 'NFC'"):
        normalize("a", "NFD")


@pytest.mark.parametrize("how", tokenizers.NORMALIZATIONS)
def test_normalization_is_unicodes_and_ends(how):
    for text in STRINGS:
        once = normalize(text, how)
        assert normalize(once, how) == once
        if how.startswith("NF"):
            assert once == unicodedata.normalize(how, normalize(text, "none"))


def test_encode_normalizes_as_training_did():
    tokenizer = train("character", ["كي"], normalization="persian")
    assert tokenizer.tokens([6, 7]) == ["ک", "ی"]
    assert tokenizer.encode("يیكک").tolist() == [7, 7, 6, 6]


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_long_text_is_cut_where_tokens_end(kind, monkeypatch):
    draw = random.Random(3)
    harmless = [s for s in ODD if len(s) < 20 and not s.isspace()] + ENGLISH.split()
    # White space for Python, punctuation for the patterns of words.
    harmless += ["!\x1c?", ".\x1f\x1d,"] * 20
    between = (" ", " ", "\n", "  ", "    ", "\n\n\n", " \n", "\t ", "\u3000 ")
    text = "".join(draw.choice(harmless) + draw.choice(between) for _ in range(800))
    text = normalize(text, "NFC")
    # The training text gives tokens of several spaces and marks.
    tokenizer = train(kind, [text] * 3, SIZES[kind] and 600)
    whole = tokenizer.encode(text)
    monkeypatch.setattr(tokenizers, "PIECE_LENGTH", 45)
    pieces = list(tokenizers.cut(text))
    assert "".join(pieces) == text
    assert len(pieces) > 60
    assert all(0 < len(piece) <= 45 for piece in pieces)
    np.testing.assert_array_equal(tokenizer.encode(text), whole)


@pytest.mark.parametrize("kind", [*LOSSLESS, "character"])
def test_text_without_a_place_to_cut_is_lossless(trained, kind, monkeypatch):
    monkeypatch.setattr(tokenizers, "PIECE_LENGTH", 10)
    texts = ["the" * 40, " " * 95, "\n \n" * 15, "▁" * 33, "می\u200cخواهم" * 9, " a" + " " * 30]
    tokenizer = train("character", texts) if kind == "character" else trained[kind]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(tokenizers.cut("")) == [""]


@pytest.mark.parametrize("kind", KINDS)
def test_an_endless_line_is_no_trouble(trained, kind):
    for text in ("a" * 1_000_000, "a b " * 250_000):
        (ids,) = trained[kind].encode_documents([text])
        if kind in LOSSLESS:
            assert trained[kind].decode_bytes(ids) == text.encode()
    assert len(train(kind, ["ab" * 20_000, "a b"], SIZES[kind]).encode("a")) == 1


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_come_in_order_as_encode_gives_them(trained, kind, workers, monkeypatch):
    monkeypatch.setattr(tokenizers, "PIECE_LENGTH", 300)
    monkeypatch.setattr(tokenizers, "_JOB_LENGTH", 500)
    documents = [_text(n, n) for n in (1, 300, 2, 5, 40, 3, 900)] + STRINGS[:60] + [""]
    documents[2:2] = ["", ""]
    encoded = list(trained[kind].encode_documents(iter(documents), workers))
    assert len(encoded) == len(documents)
    for document, ids in zip(documents, encoded, strict=True):
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, trained[kind].encode(document))


@pytest.mark.parametrize("kind", ["word", "wordpiece", "bpe", "sentencepiece"])
def test_documents_are_encoded_at_the_same_time(trained, kind, monkeypatch):
    tokenizer = pickle.loads(pickle.dumps(trained[kind]))
    vocabulary, encode = tokenizer._vocabulary, tokenizer._vocabulary.encode
    together = threading.Barrier(3)

    def encode_together(pieces):
        together.wait(timeout=60)
        return encode(pieces)

    monkeypatch.setattr(vocabulary, "encode", encode_together)
    monkeypatch.setattr(tokenizers, "_JOB_LENGTH", 10)
    assert len(list(tokenizer.encode_documents(["a long document"] * 9, workers=3))) == 9


def test_an_endless_stream_is_read_as_it_is_needed(trained, monkeypatch):
    monkeypatch.setattr(tokenizers, "_JOB_LENGTH", 100)
    before = threading.active_count()
    read = itertools.count()
    stream = trained["bpe"].encode_documents((f"document {next(read)}" for _ in read), workers=2)
    first = [next(stream) for _ in range(20)]
    assert trained["bpe"].decode(first[0]).startswith("document ")
    assert next(read) < 300
    stream.close()
    assert threading.active_count() == before


def test_what_a_stream_raises_comes_through(trained):
    def documents():
        yield from ["a b c"] * 50
        raise ConnectionError("the disk is gone")

    for kind in KINDS:
        with pytest.raises(ConnectionError, match="the disk is gone"):
            list(trained[kind].encode_documents(documents()))
        with pytest.raises(ConnectionError, match="the disk is gone"):
            train(kind, documents(), SIZES[kind])
