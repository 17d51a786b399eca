"""Filters documents: `rule(document, settings)` returns the reason to drop one, or "".

RULES maps names to rules; section `prep.NAME` of the recipe has the thresholds. The rules work for
any language with spaces between words. A rule that needs words of a language (stop words, a word
list) passes documents of other languages. Rule `c4` also removes lines.

Sources: Gopher (Rae et al. 2021, arXiv:2112.11446, A.1.1), C4 (Raffel et al. 2020,
arXiv:1910.10683, 2.2), FineWeb (Penedo et al. 2024, arXiv:2406.17557, 3.5).
"""

import functools
import importlib
import io
import re
from collections import Counter
from collections.abc import Mapping
from urllib.parse import urlsplit

from zoo.data.text.tokenizers import normalize
from zoo.errors import RunError, UsageError, short
from zoo.prep.cleaning.languages import (
    LETTERS,
    STOP_WORDS,
    count_sentences,
    ends_line,
    ends_sentence,
    identify,
)
from zoo.prep.cleaning.word_lists import TOXIC
from zoo.prep.document import Document
from zoo.processes import search_current_folder_last
from zoo.storage.disk import open_file

_MARKS = re.compile(rf"\A[^{LETTERS}]+|[^{LETTERS}]+\Z")
_BULLETS = ("-", "*", "•", "●", "○", "▪", "■", "‣", "–", "·")
_ELLIPSES = ("...", "…", ". . .")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
             "use cookies")  # fmt: skip
_WORD = re.compile(rf"[{LETTERS}]+(?:[\u200c'’-][{LETTERS}]+)*")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")


def language(document: Document, settings: Mapping) -> str:
    """Identifies the language of the text; drops languages that `keep` does not list."""
    code, probability = identify(document.text)
    document.language = code
    if settings["keep"] and code not in settings["keep"]:
        return f"is {code}"
    if settings["keep"] and probability < settings["least"]:
        return "unsure"
    return ""


def address(document: Document, settings: Mapping) -> str:
    """Drops documents by URL: blocked domains, and words of adult sites."""
    if not document.url:
        return ""
    try:
        host = (urlsplit(document.url).hostname or "").lower()
    except ValueError:
        return "no address"
    domains = _read_list(settings["blocked_domains"])
    parts = host.split(".")
    if domains and any(".".join(parts[i:]) in domains for i in range(len(parts))):
        return "blocked domain"
    words = set(re.split(r"[\W_]+", document.url.lower()))
    if words & set(settings["blocked_words"]):
        return "blocked word"
    return ""


def gopher_quality(document: Document, settings: Mapping) -> str:
    """Drops text that is not prose, by word lengths, symbols, bullets, ellipses and stop words."""
    text = document.text
    words = text.split()
    stripped_words = [word for word in (_MARKS.sub("", word) for word in words) if word]
    if len(stripped_words) < settings["min_words"]:
        return "few words"
    if len(stripped_words) > settings["max_words"]:
        return "many words"
    mean = sum(map(len, stripped_words)) / len(stripped_words)
    if mean < settings["min_mean_word_length"]:
        return "short words"
    if mean > settings["max_mean_word_length"]:
        return "long words"
    max_symbols = settings["max_symbols"] * len(words)
    if text.count("#") > max_symbols or sum(map(text.count, _ELLIPSES)) > max_symbols:
        return "symbols"
    lines = [line for line in text.split("\n") if line]
    if sum(line.startswith(_BULLETS) for line in lines) > settings["max_bullet_lines"] * len(lines):
        return "bullets"
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines)
    if ellipses > settings["max_ellipsis_lines"] * len(lines):
        return "ellipses"
    # isalpha() of the whole word is fast and true for most words.
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words)
    if alphabetic < settings["min_alphabetic_words"] * len(words):
        return "few letters"
    stop_words = STOP_WORDS.get(document.language)
    if stop_words and len(stop_words.intersection(map(str.lower, stripped_words))) < min(
        settings["min_stop_words"], len(stop_words)
    ):
        return "stop words"
    return ""


def gopher_repetition(document: Document, settings: Mapping) -> str:
    """Drops repetitive text, by repeated lines, paragraphs and n-grams."""
    text = document.text
    for name, parts in (
        ("paragraph", [p.strip() for p in text.split("\n\n")]),
        ("line", text.split("\n")),
    ):
        parts = [part for part in parts if part]
        count, characters = _count_repeats(parts)
        if count > settings[f"max_duplicate_{name}s"] * len(parts):
            return f"{name}s"
        if characters > settings[f"max_duplicate_{name}_characters"] * len(text):
            return f"{name} characters"
    words = _WORD.findall(text)
    for n, max_share in enumerate(settings["max_top_ngram"], 2):
        if _top_ngram(words, n) > max_share * len(text):
            return f"top {n}-gram"
    shares = settings["max_duplicate_ngrams"]
    # A repeated 10-gram contains repeated 5-grams, so most documents need only the 5-gram test.
    if shares and _duplicate_ngrams(words, 5) > min(shares) * len(text):
        for n, max_share in enumerate(shares, 5):
            if _duplicate_ngrams(words, n) > max_share * len(text):
                return f"duplicate {n}-grams"
    return ""


def _count_repeats(parts: list[str]) -> tuple[int, int]:
    """Returns the number of parts that repeat an earlier one, and their characters."""
    if len(distinct := set(parts)) == len(parts):
        return 0, 0
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def _top_ngram(words: list[str], n: int) -> int:
    """Returns the characters that the most frequent n-gram covers, 0 if none repeats."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    if not counts:
        return 0
    highest = max(counts.values())
    if highest == 1:
        return 0
    return highest * max(sum(map(len, gram)) + n - 1 for gram, c in counts.items() if c == highest)


def _duplicate_ngrams(words: list[str], n: int) -> int:
    """Returns the characters of words in repeated n-grams, counting each word once."""
    seen_ngrams, num_covered, end = set(), 0, 0
    for index, gram in enumerate(zip(*(words[i:] for i in range(n)), strict=False)):
        if gram in seen_ngrams:
            num_covered += sum(map(len, words[max(index, end) : index + n]))
            end = index + n
        else:
            seen_ngrams.add(gram)
    return num_covered


def c4(document: Document, settings: Mapping) -> str:
    """Removes lines that are not prose; drops code, placeholder text and too few sentences."""
    text = document.text
    lower = text.lower()
    if "lorem ipsum" in lower:
        return "lorem ipsum"
    if "{" in text:
        return "curly bracket"
    lines = (_CITATION.sub("", line).rstrip() for line in text.split("\n"))
    kept_lines = [line for line in lines if not line or _passes_c4(line, settings)]
    shorter = re.sub("\n{3,}", "\n\n", "\n".join(kept_lines)).strip()
    if not shorter:
        return "no lines"
    if sum(map(count_sentences, kept_lines)) < settings["min_sentences"]:
        return "few sentences"
    document.text = shorter
    return ""


def _passes_c4(line: str, settings: Mapping) -> bool:
    words = line.split()
    if len(words) < settings["min_line_words"] or len(line) > settings["max_word_length"] and any(
        len(word) > settings["max_word_length"] for word in words
    ):  # fmt: skip
        return False
    if settings["terminal_punctuation"] and not ends_sentence(line):
        return False
    lower = line.lower()
    return "javascript" not in lower and not any(policy in lower for policy in _POLICIES)


def fineweb(document: Document, settings: Mapping) -> str:
    """Drops lists, by unfinished lines, short lines, repeated lines and number of lines."""
    lines = [line for line in document.text.split("\n") if line]
    if not lines:
        return "no lines"
    if sum(map(ends_line, lines)) < settings["min_lines_ended"] * len(lines):
        return "lines without end"
    short = sum(len(line) <= settings["short_line"] for line in lines)
    if short > settings["max_short_lines"] * len(lines):
        return "short lines"
    size = sum(map(len, lines))
    if _count_repeats(lines)[1] > settings["max_duplicate_characters"] * size:
        return "repeated lines"
    if document.text.count("\n") > settings["max_newlines"] * len(document.text.split()):
        return "line ends"
    return ""


def blocked_words(document: Document, settings: Mapping) -> str:
    """Drops text with too many words or phrases of the user's file; case does not matter."""
    phrases = _read_list(settings["file"])
    if not phrases:
        return ""
    count = len(_pattern(phrases).findall(document.text.lower()))
    return "blocked word" if count > settings["most"] else ""


def toxicity(document: Document, settings: Mapping) -> str:
    """Drops text by the score of a scorer; by default, the share of words of a word list."""
    score = scorer(settings["scorer"], settings["file"])(document.text)
    return "toxic" if score > settings["most"] else ""


@functools.cache
def scorer(name: str, file: str):
    """Returns the function that `toxicity.scorer` names; raises `UsageError` if none exists."""
    if name == "words":
        words = _read_list(file) or TOXIC

        def share(text):
            text_words = _WORD.findall(text.lower())
            return sum(word in words for word in text_words) / max(1, len(text_words))

        return share
    module, _, function = name.partition(":")
    search_current_folder_last()
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            "prep.toxicity.scorer must be 'words' or MODULE:FUNCTION, a function from text to "
            f"score. Received: {name!r}: {short(error)}."
        ) from None


@functools.cache
def _read_list(file: str) -> frozenset[str]:
    """Returns the lines of a list in the form of cleaned text, both Persian and other.

    Empty lines and lines that start with # are skipped.
    """
    if not file:
        return frozenset()
    try:
        with io.TextIOWrapper(open_file(file), encoding="utf-8-sig") as lines:
            words = [line.strip().lower() for line in lines if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"The word list {file} cannot be read: {short(error)}.") from None
    forms = (normalize(word, form) for word in words if word for form in ("NFC", "persian"))
    return frozenset(forms)


@functools.cache
def _pattern(phrases: frozenset[str]) -> re.Pattern:
    letter = rf"[{LETTERS}\u200c]"  # a word continues after a ZWNJ
    alternatives = "|".join(map(re.escape, sorted(phrases)))
    return re.compile(rf"(?<!{letter})(?:{alternatives})(?!{letter})")


RULES = {
    "language": language,
    "address": address,
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "blocked_words": blocked_words,
    "toxicity": toxicity,
}
