"""Positions of tokens in the original text: which characters a token comes from.

    ids, starts, ends = encode_with_offsets(tokenizer, text)
    text[starts[i] : ends[j]]     # the text of the tokens i to j

Normalization may join, split and reorder characters. A text is therefore divided into segments that
are normalized independently of each other (Unicode Standard Annex 15, section 9, "boundaries"). If
normalization changes a segment, each of its characters comes from the whole segment.
"""

import functools
import re
import sys
import unicodedata

import numpy as np

from zoo.data.text.tokenizers import Tokenizer, normalize

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# Vowels and final consonants of Hangul, which are composed with the letters before them.
_HANGUL = frozenset(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))


def encode_with_offsets(
    tokenizer: Tokenizer, text: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encodes a text, and returns the place of each token in it.

    Args:
      tokenizer: tokenizer of any kind.
      text: any str, before normalization.

    Returns:
      `(ids, starts, ends)`, all (n,) int32. `ids` are those of `tokenizer.encode(text)`; token i
      comes from `text[starts[i] : ends[i]]`. The text of a token includes the space before it in
      kinds that keep white space. Tokens that are parts of one character have the same place.
    """
    normalized, starts, ends = normalize_with_offsets(text, tokenizer.normalization)
    ids, first, last = tokenizer.encode_normalized(normalized)
    return ids, starts[first], ends[last - 1]


def normalize_with_offsets(text: str, normalization: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Normalizes a text as `normalize` does, and returns the place of each character in it.

    Args:
      text: any str.
      normalization: one of `zoo.data.text.tokenizers.NORMALIZATIONS`.

    Returns:
      `(normalized, starts, ends)`: character i of the normalized text comes from
      `text[starts[i] : ends[i]]`; starts and ends are (n,) int32 and do not decrease.
    """
    normalized = normalize(text, normalization)
    characters, starts, ends = _without_surrogates(text)
    if normalized != characters:
        # Persian letters replace letters one by one, after NFC.
        form = "NFC" if normalization == "persian" else normalization
        first, last = [], []
        for start, end in _segments(characters):
            segment = characters[start:end]
            changed = normalize(segment, form)
            is_same = changed == segment
            first += range(start, end) if is_same else [start] * len(changed)
            last += range(start, end) if is_same else [end - 1] * len(changed)
        starts, ends = starts[first], ends[last]
    return normalized, starts, ends


def _without_surrogates(text: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Returns a text with pairs of surrogates joined, and the place of each character."""
    starts = np.arange(len(text), dtype=np.int32)
    joined = normalize(text, "none")
    if len(joined) < len(text):
        seconds = [match.start() + 1 for match in _SURROGATE_PAIR.finditer(text)]
        starts = np.delete(starts, seconds)
    return joined, starts, np.append(starts[1:], np.int32(len(text)))


def _segments(text: str):
    """Yields (start, end) of segments of a text that are normalized independently."""
    bounds = [i for i in range(1, len(text)) if _begins_segment(text[i])]
    return zip([0, *bounds], [*bounds, len(text)], strict=True)


@functools.lru_cache(2**14)
def _begins_segment(character: str) -> bool:
    """Returns whether no form of Unicode joins or reorders a character with those before it."""
    if character.isascii():
        return True
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.combining(first) == 0 and first not in _second_characters()


@functools.cache
def _second_characters() -> frozenset[str]:
    """Returns all characters that are composed with the character before them."""
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(sys.maxunicode + 1))
    # Decompositions with a tag such as <compat> are never composed.
    return _HANGUL | {chr(int(x[1], 16)) for x in pairs if len(x) == 2 and x[0][0] != "<"}
