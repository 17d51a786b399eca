"""Places of tokens in the original text, for all kinds of tokenizers and normalizations."""

import random
import sys
import unicodedata

import numpy as np
import pytest

from tests.zoo.data.test_tokenizers import ENGLISH, ODD, PERSIAN, SIZES, _odd_strings, _text
from zoo.data.text import tokenizers
from zoo.data.text.questions.offsets import encode_with_offsets, normalize_with_offsets
from zoo.data.text.tokenizers import KINDS, NORMALIZATIONS, Tokenizer, normalize, train

ARABIC = "الْعَرَبِيَّةُ لُغَةٌ جَمِيلَةٌ، وَكَتَبَ ﷲ كتابًا."
TEXTS = {
    "English": ENGLISH,
    "Persian": PERSIAN + " كتاب علي ي\u0654 ۀ",
    "Arabic": ARABIC,
    "combining characters": "cafe\u0301 a\u0328\u0301 \u1100\u1161\u11a8 q\u0307\u0323",
    "compatibility characters": "ﬁne ½ Å ﷲ ﷺ ① ℌ ｱ\uff9e …",
    "emoji": "a 👩🏽\u200d🚀 b 🇮🇷 c ❤\ufe0f d \ud83d\ude00 e",
    "white space": "  two  spaces\tand\n\nlines ",
    "empty": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    text, made = [_text(), ARABIC * 20], {}
    for kind in KINDS:
        _, (_, _, payload, counts) = train(
            kind, text, SIZES[kind] and SIZES[kind] + 60
        ).__reduce__()
        for normalization in NORMALIZATIONS:
            made[kind, normalization] = Tokenizer(kind, normalization, payload, counts)
    return made


def _check(tokenizer, text):
    ids, starts, ends = encode_with_offsets(tokenizer, text)
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert ids.dtype == starts.dtype == ends.dtype == np.int32
    assert ids.shape == starts.shape == ends.shape
    if not len(ids):
        return ids, starts, ends
    assert starts[0] >= 0
    assert ends[-1] <= len(text)
    assert (starts < ends).all()
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(ends) >= 0).all()
    # What lies between two tokens is white space that the kind drops.
    between = [text[a:b] for a, b in zip(ends[:-1], starts[1:], strict=True) if a < b]
    between += [text[: starts[0]], text[ends[-1] :]]
    kept = "".join(between).translate(dict.fromkeys(range(0x1C, 0x20)))
    if tokenizer.kind in ("word", "wordpiece"):
        assert not kept.strip()
    else:
        assert not "".join(between)
    return ids, starts, ends


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_come_from_their_places(trained, kind, normalization):
    tokenizer = trained[kind, normalization]
    for text in [*TEXTS.values(), *_odd_strings(150)]:
        _, starts, ends = _check(tokenizer, text)
        # A part of the text around whole tokens and segments is normalized to their spellings.
        if kind == "character":
            for start, end in {*zip(starts.tolist(), ends.tolist(), strict=True)}:
                same = [i for i in range(len(starts)) if (starts[i], ends[i]) == (start, end)]
                part = normalize(text, normalization)[same[0] : same[-1] + 1]
                assert normalize(text[start:end], normalization) == part


@pytest.mark.parametrize("kind", KINDS)
def test_word_is_found_in_the_original_text(trained, kind):
    """The tokens of a word cover it, after text of which normalization changes the length."""
    tokenizer = trained[kind, "NFKC"]
    text = "ﬁ ﷺ cafe\u0301 \u1100\u1161\u11a8 the dog ran ½ \ud83d\ude00 cats"
    _, starts, ends = _check(tokenizer, text)
    for word in ("dog", "cats"):
        at = text.index(word)
        inside = (ends > at) & (starts < at + len(word))
        assert text[starts[inside][0] : ends[inside][-1]].strip() == word


def test_reordered_marks_come_from_their_segment():
    text = "xq\u0307\u0323y"  # the marks change places
    normalized, starts, ends = normalize_with_offsets(text, "NFC")
    assert normalized == "xq\u0323\u0307y"
    assert starts.tolist() == [0, 1, 1, 1, 4]
    assert ends.tolist() == [1, 4, 4, 4, 5]


def test_unchanged_segment_keeps_its_characters():
    text = "ﷲ بِ é"
    assert normalize_with_offsets(text, "NFC")[1].tolist() == list(range(len(text)))
    normalized, starts, _ = normalize_with_offsets("e\u0301" + text, "NFC")
    assert starts.tolist() == [0, *range(2, len(text) + 2)]
    assert len(normalized) == len(starts)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_long_text_continue_the_places(trained, kind, monkeypatch):
    tokenizer = trained[kind, "NFC"]
    text = "cafe\u0301 " + _text(60, seed=3) + "x" * 50
    monkeypatch.setattr(tokenizers, "PIECE_LENGTH", 20)
    _, starts, ends = _check(tokenizer, text)
    assert len(text) > 200
    assert ends[-1] == len(text)
    at = text.rindex("\n", 0, 200) + 1
    inside = np.flatnonzero((ends > at) & (starts < at + 3))
    assert text[starts[inside[0]] : ends[inside[-1]]].strip().startswith(text[at : at + 3].strip())


def test_segments_are_independent():
    """Every character, after every character that may be composed: the parts give the whole."""
    draw = random.Random(0)
    marks = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "M"]
    letters = [chr(c) for c in range(0xA0, 0x3200)] + ["각", "가", "\u1100", "\u1161", "\u11a8"]
    for form in ("NFC", "NFKC"):
        for _ in range(1000):
            pool = draw.choice((marks, letters, ODD))
            text = "".join(draw.choice(letters) + draw.choice(pool) for _ in range(4))
            normalized, starts, ends = normalize_with_offsets(text, form)
            assert len(normalized) == len(starts) == len(ends)
            for start in range(len(normalized)):
                if start and starts[start] < ends[start - 1]:
                    continue
                assert normalize(text[: starts[start]], form) == normalized[:start]
