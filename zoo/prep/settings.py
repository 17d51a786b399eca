"""The keys of a recipe's section `prep`, and what they mean. Loads nothing.

Sections in it are the settings of one step each. A rule of `zoo.prep.cleaning.filters` runs where
`rules` names it, in that order, with the thresholds of the section of its name.
"""

import copy
from collections.abc import Mapping

from zoo.data.text.dataset import PACKINGS
from zoo.data.text.dataset import check as check_text
from zoo.errors import UsageError, near_names
from zoo.prep.cleaning.filters import RULES, scorer

# Thresholds: Gopher (Rae et al. 2021, arXiv:2112.11446, table A1), C4 (Raffel et al. 2020,
# arXiv:1910.10683, 2.2) and FineWeb (Penedo et al. 2024, arXiv:2406.17557, 3.6) as datatrove, by
# which FineWeb was made, has them. C4's own code asks for 3 sentences and 5 words a line where this
# has 5 and 3, FineWeb's paper allows 0.1 in repeated lines where its code has 0.01.
_DEFAULTS = {
    # Files: a pattern, a folder, addresses (http://…) to crawl or corpus:NAME; several by commas.
    "input": "",
    "licence": "",  # of documents that do not state their own
    "text_field": "text",  # column of the text in JSONL and Parquet
    "html_field": "",  # or column of the page, to be extracted
    "shard_bytes": 16 << 20,  # of input that is one piece of work
    "max_document_bytes": 10 << 20,  # larger ones are dropped
    "max_file_ratio": 200,  # a file that unpacks to more than this many times its size is a bomb
    "crawl": {
        "depth": 2,  # links away from the start addresses
        "pages": 1000,
        "delay": 1.0,  # seconds between two requests to a host, or what its robots.txt asks for
        "timeout": 20.0,  # seconds of a request, all of it
        "retries": 2,
        "max_bytes": 5 << 20,  # of a page
        "other_sites": False,  # follow links to hosts that no start address names
    },
    "extract": {
        "favor": "",  # or "precision" or "recall"; docs/prepare.md has the measured difference
        "comments": False,  # of readers, below the article
        "tables": True,
        "metadata": True,  # title, date and licence; a sixth of the time
        "timeout": 20.0,  # processor seconds of a page
    },
    "clean": {
        "repair": True,  # mojibake and its like, by ftfy
        "mask": (),  # of "email", "ip", "phone"
    },
    "rules": ("language", "address", "gopher_quality", "gopher_repetition", "c4", "fineweb",
              "blocked_words", "toxicity"),
    "language": {
        "keep": (),  # ISO 639-1 codes; () for every language
        "least": 0.65,  # probability
    },
    "address": {
        "blocked_domains": "",  # a file, one a line: the domain and all below it
        "blocked_words": ("porn", "xxx", "hentai", "camgirl", "escort"),  # of its words
    },
    "gopher_quality": {
        "min_words": 50,
        "max_words": 100_000,
        "min_mean_word_length": 3.0,
        "max_mean_word_length": 10.0,
        "max_symbols": 0.1,  # "#" and ellipses a word
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_alphabetic_words": 0.8,
        "min_stop_words": 2,  # different ones
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
        "terminal_punctuation": False,  # drop lines that do not end a sentence; C4 did
    },
    "fineweb": {
        "min_lines_ended": 0.12,  # share of lines that end a sentence
        "max_short_lines": 0.67,
        "short_line": 30,  # characters
        "max_duplicate_characters": 0.01,  # in lines that occur again
        "max_newlines": 0.3,  # a word
    },
    "blocked_words": {
        "file": "",  # one word or phrase a line; "" for none
        "most": 0,  # occurrences
    },
    "toxicity": {
        "scorer": "words",  # or MODULE:FUNCTION of yours, text -> score
        "file": "",  # the word list; "" for a short list in English, German and Persian
        "most": 0.02,  # for "words", their share of all words
    },
    "dedup": {
        "exact": True,
        "near": True,
        "ngram": 5,  # words of a shingle
        "bands": 25,
        "rows": 8,  # of a band
        "similarity": 0.8,  # Jaccard, of two documents that are the same
        "line_documents": 10,  # a line that more have is kept in the first alone; 0: all kept
        "min_line": 15,  # characters; shorter lines are not counted
        "min_characters": 200,  # what is shorter when lines were taken out is dropped
    },
    "validation": 0.01,  # share of the documents that are left
    "tokenizer_bytes": 200 << 20,  # of text that the tokenizer is trained on
}  # fmt: skip

MASKS = ("email", "ip", "phone")
FAVORS = ("", "precision", "recall")


def defaults() -> dict:
    """Returns a fresh copy of all keys."""
    return copy.deepcopy(_DEFAULTS)


def check(prep: Mapping, data: Mapping) -> None:
    """Checks the values of a section with all keys; raises `UsageError`."""
    if not prep["input"]:
        raise UsageError(
            "zoo prepare needs pages: --config.prep.input=PATTERN, a folder or an address. "
            "Received: ''."
        )
    for key, known, given in (
        ("rules", tuple(RULES), tuple(prep["rules"])),
        ("clean.mask", MASKS, tuple(prep["clean"]["mask"])),
        ("extract.favor", FAVORS, (prep["extract"]["favor"],)),
    ):
        for name in given:
            if name not in known:
                raise UsageError(
                    f"prep.{key} has no {name!r}.{near_names(str(name), known)} "
                    f"Known: {', '.join(filter(None, known))}."
                )
    if "toxicity" in prep["rules"]:
        scorer(prep["toxicity"]["scorer"], prep["toxicity"]["file"])
    least = {
        "shard_bytes": 1, "max_document_bytes": 1, "max_file_ratio": 1, "tokenizer_bytes": 1,
        "dedup.ngram": 1, "dedup.bands": 1, "dedup.rows": 1, "dedup.line_documents": 0,
        "crawl.pages": 1, "crawl.depth": 0, "crawl.delay": 0, "crawl.retries": 0,
        "crawl.max_bytes": 1,
    }  # fmt: skip
    for key, smallest in least.items():
        section, _, name = key.rpartition(".")
        value = (prep[section] if section else prep)[name]
        if value < smallest:
            raise UsageError(f"prep.{key} is at least {smallest}. Received: {value}.")
    for key in ("extract.timeout", "crawl.timeout"):
        section, _, name = key.partition(".")
        if not prep[section][name] > 0:
            raise UsageError(f"prep.{key} is more than 0 seconds. Received: {prep[section][name]}.")
    for key, value in (
        ("validation", prep["validation"]), ("dedup.similarity", prep["dedup"]["similarity"]),
    ):  # fmt: skip
        if not 0 < value < 1:
            raise UsageError(f"prep.{key} lies in (0, 1). Received: {value}.")
    check_text(data, PACKINGS)
