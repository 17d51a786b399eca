"""Defines the keys of section `prep` of a recipe, their defaults and their checks.

Each subsection has the settings of one step. `rules` lists the rules of
`zoo.prep.cleaning.filters` in order; each rule has its thresholds in the section of its name.
"""

import copy
from collections.abc import Mapping

from zoo.data.text.dataset import PACKINGS
from zoo.data.text.dataset import check as check_text
from zoo.errors import UsageError, check_minimums, near_names
from zoo.prep.cleaning.filters import RULES, scorer

# Thresholds of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1), C4 (Raffel et al. 2020,
# arXiv:1910.10683, 2.2) and FineWeb (Penedo et al. 2024, arXiv:2406.17557, 3.6) are those of
# datatrove, with which FineWeb was made. C4's own code has 3 sentences and 5 words per line instead
# of 5 and 3; FineWeb's paper has 0.1 for repeated lines instead of 0.01.
KEYS = {
    # Comma-separated file patterns, folders, URLs (http://…) to crawl, or corpus:NAME.
    "input": "",
    "licence": "",  # license of documents that do not state one
    "text_field": "text",  # column of the text in JSONL and Parquet
    "html_field": "",  # column of HTML to extract, used instead if set
    "shard_bytes": 16 << 20,  # input per shard
    "max_document_bytes": 10 << 20,  # larger documents are dropped
    "max_file_ratio": 200,  # a file of a higher compression ratio is a decompression bomb
    "crawl": {
        "depth": 2,  # links away from the seed URLs
        "pages": 1000,
        "delay": 1.0,  # seconds between requests to a host; robots.txt may ask for more
        "timeout": 20.0,  # seconds per request, in total
        "retries": 2,
        "max_bytes": 5 << 20,  # per page
        "other_sites": False,  # follow links to hosts other than those of the seed URLs
    },
    "extract": {
        "favor": "",  # or "precision" or "recall"; docs/prepare.md has the measured difference
        "comments": False,  # reader comments below the article
        "tables": True,
        "metadata": True,  # title, date and license; takes a sixth of the time
        "timeout": 20.0,  # seconds of CPU time per page
    },
    "clean": {
        "repair": True,  # repair mojibake, by ftfy
        "mask": (),  # any of "email", "ip", "phone"
    },
    "rules": ("language", "address", "gopher_quality", "gopher_repetition", "c4", "fineweb",
              "blocked_words", "toxicity"),
    "language": {
        "keep": (),  # ISO 639-1 codes; () keeps every language
        "least": 0.65,  # minimum probability
    },
    "address": {
        "blocked_domains": "",  # file with one domain per line; subdomains are blocked too
        "blocked_words": ("porn", "xxx", "hentai", "camgirl", "escort"),  # words in the URL
    },
    "gopher_quality": {
        "min_words": 50,
        "max_words": 100_000,
        "min_mean_word_length": 3.0,
        "max_mean_word_length": 10.0,
        "max_symbols": 0.1,  # "#" or ellipses per word
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_alphabetic_words": 0.8,
        "min_stop_words": 2,  # distinct ones
    },
    "gopher_repetition": {
        "max_duplicate_lines": 0.3,
        "max_duplicate_paragraphs": 0.3,
        "max_duplicate_line_characters": 0.2,
        "max_duplicate_paragraph_characters": 0.2,
        "max_top_ngram": (0.2, 0.18, 0.16),  # characters of the most frequent 2-, 3-, 4-gram
        "max_duplicate_ngrams": (0.15, 0.14, 0.13, 0.12, 0.11, 0.1),  # 5- to 10-grams
    },
    "c4": {
        "min_sentences": 5,
        "min_line_words": 3,
        "max_word_length": 1000,
        "terminal_punctuation": False,  # drop lines that do not end a sentence, as C4 did
    },
    "fineweb": {
        "min_lines_ended": 0.12,  # share of lines that end a sentence
        "max_short_lines": 0.67,
        "short_line": 30,  # characters
        "max_duplicate_characters": 0.01,  # share of characters in repeated lines
        "max_newlines": 0.3,  # per word
    },
    "blocked_words": {
        "file": "",  # one word or phrase per line; "" disables the rule
        "most": 0,  # occurrences allowed
    },
    "toxicity": {
        "scorer": "words",  # or MODULE:FUNCTION, a function from text to score
        "file": "",  # word list; "" for a short list in English, German and Persian
        "most": 0.02,  # highest score allowed; for "words", their share of all words
    },
    "dedup": {
        "exact": True,
        "near": True,
        "ngram": 5,  # words per shingle
        "bands": 25,
        "rows": 8,  # per band
        "similarity": 0.8,  # Jaccard similarity from which documents are near duplicates
        # A line in more documents than this is kept in the first one only; 0 keeps all lines.
        "line_documents": 10,
        "min_line": 15,  # characters; shorter lines are not counted
        "min_characters": 200,  # shorter documents are dropped if they lost lines
    },
    "validation": 0.01,  # share of the remaining documents
    "tokenizer_bytes": 200 << 20,  # text that the tokenizer is trained on
}  # fmt: skip

MASKS = ("email", "ip", "phone")
FAVORS = ("", "precision", "recall")
# Minimum values, if not 0.
_LEAST = dict.fromkeys(
    ("shard_bytes", "max_document_bytes", "max_file_ratio", "tokenizer_bytes", "ngram", "bands",
     "rows", "pages", "max_bytes"), 1,
)  # fmt: skip


def defaults() -> dict:
    """Returns a new copy of all keys with their defaults."""
    return copy.deepcopy(KEYS)


def check(prep: Mapping, data: Mapping) -> None:
    """Checks the values of sections `prep` and `data`; raises `UsageError`."""
    if not prep["input"]:
        raise UsageError(
            "prep.input must not be empty: set --config.prep.input to a file pattern, a folder or "
            "a URL. Received: ''."
        )
    for key, supported, values in (
        ("rules", tuple(RULES), tuple(prep["rules"])),
        ("clean.mask", MASKS, tuple(prep["clean"]["mask"])),
        ("extract.favor", FAVORS, (prep["extract"]["favor"],)),
    ):
        for name in values:
            if name not in supported:
                raise UsageError(
                    f"prep.{key} does not support {name!r}.{near_names(str(name), supported)} "
                    f"Supported: {', '.join(filter(None, supported))}."
                )
    if "toxicity" in prep["rules"]:
        scorer(prep["toxicity"]["scorer"], prep["toxicity"]["file"])
    check_minimums("prep", prep, _LEAST)
    for section in (key for key, value in prep.items() if isinstance(value, Mapping)):
        check_minimums(f"prep.{section}", prep[section], _LEAST)

    def value_of(key):
        section, _, name = key.rpartition(".")
        return (prep[section] if section else prep)[name]

    for key in ("extract.timeout", "crawl.timeout"):
        if not value_of(key) > 0:
            raise UsageError(f"prep.{key} must be positive. Received: {value_of(key)}.")
    for key in ("validation", "dedup.similarity"):
        if not 0 < value_of(key) < 1:
            raise UsageError(f"prep.{key} must be between 0 and 1. Received: {value_of(key)}.")
    check_text(data, PACKINGS)
