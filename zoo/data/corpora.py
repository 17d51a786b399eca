"""Corpora: text by name, as documents or as pairs of a sentence and its translation.

Yours, without a line of code:

    load_corpus("text:my_book.txt")      # one document; also .txt.gz
    load_corpus("text:my_folder")        # one document a .txt or .txt.gz file in and below it
    load_corpus("text:my_texts.jsonl")   # one {"text": "…"} a line; also .jsonl.gz
    load_corpus("pairs:my_pairs.tsv")    # one SOURCE<TAB>TARGET a line; also .gz

or in a module of yours (loaded with `--import=my_module`): `register_corpus`.

Nothing but line ends is normalised here: that is the tokenizer's work. Files are UTF-8; see
`corpus_readers`.

Splits that the source does not give are drawn by the hash of a key (a page's id, a book's name,
the text itself): they do not depend on the order of the files, and what has the same key, such as
a text that occurs twice, is never in two splits.
"""

import functools
import hashlib
import itertools
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.data import corpus_readers as readers
from zoo.data.corpus_readers import Tally, TextFile
from zoo.data.corpus_splits import key_hash, split_by_cut, split_by_hash
from zoo.data.datasets import list_datasets, register_dataset
from zoo.data.disk import lies_at
from zoo.errors import RunError, UsageError, near_names

TEXT = "text:"
PAIRS = "pairs:"

# Raise it when the documents or the splits of unchanged files change: fingerprints change with it.
READER_VERSION = 2

# Fewer different documents than this are not split by documents but by a cut near their end.
MIN_DOCUMENTS_TO_SPLIT = 20


@dataclass(frozen=True)
class Corpus:
    """Named splits of documents; checked when it is made.

    Attributes:
      name: as given to `load_corpus`.
      splits: "train", "validation", "test", … -> function that returns a fresh iterator of
        documents (str), or of (source, target) pairs of str where there are two languages. The
        order is always the same. No document is empty.
      languages: ISO 639 codes: ("en",), or ("en", "de") for pairs. () where a user's text comes
        without them.
      fingerprint: changes when the documents, or how they are split, change.
      licence: as its source states it.
      unreadable: what was replaced or skipped while reading -> how often; only what did happen.
        "invalid_sequences" were not UTF-8 and became U+FFFD; "line_ends" were \\r\\n or \\r and
        became \\n; "empty_files", "empty_documents" and "empty_pairs" were skipped.

    Raises:
      RunError: it has no splits.
    """

    name: str
    splits: Mapping[str, Callable[[], Iterator]]
    languages: tuple[str, ...]
    fingerprint: str
    licence: str = ""
    unreadable: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if not self.splits:
            raise RunError(f"The corpus {self.name!r} has no splits.")


_LOADERS: dict[str, Callable[[Path | None, tuple[str, ...]], Corpus]] = {}


def register_corpus(name, loader, files=(), description="", licence=""):
    """Makes `load_corpus(name)` and, where it has `files`, `zoo fetch NAME` work.

    Args:
      name: letters, digits, `_`, `-` and `.`; also the name of its folder in `data_dir()`. Data
        sets and corpora share their names.
      loader: function of `manual_dir` (a Path, or None where the user gave none) and `languages`
        (a tuple of str, empty where the user gave none) that returns a `Corpus`.
      files: `zoo.data.fetch.FetchFile`s, or a function that returns them.
      description: one line.
      licence: as its source states it.

    Raises:
      UsageError: for a name that is taken or cannot be the name of a folder.
    """

    def as_arrays(manual_dir):
        raise UsageError(
            f"{name!r} is a corpus of text: tasks that learn from text read it "
            f"(zoo.data.load_corpus), and zoo.data.load has no arrays of it."
        )

    register_dataset(name, as_arrays, files, description, licence)
    _LOADERS[name] = loader


def list_corpora() -> tuple[str, ...]:
    """Returns the registered names, sorted."""
    return tuple(sorted(_LOADERS))


def load_corpus(
    name: str, manual_dir: str | os.PathLike | None = None, *, languages: Sequence[str] = ()
) -> Corpus:
    """Returns the corpus `name`.

    `text:` is split by documents where it holds at least 20 different ones: 90 % train, 5 %
    validation, 5 % test, drawn by the hash of each text, white space at its ends apart. Otherwise
    repeated ones are left out, and the last 10 % of the characters are validation, and a little
    more where that lets the cut fall between two lines; there is no test split. `pairs:` are drawn
    by the hash of each source; with fewer than 20 different ones, the pairs of the last 10 % of
    the sources, at least one, are validation.

    Args:
      name: one of `list_corpora()`, or `text:PATH` or `pairs:PATH` for text of your own.
      manual_dir: the folder of its original files, where that is not `data_dir()/name`.
      languages: codes. Of `multi30k` and `tatoeba_en_fa` they choose the source and the target;
        of `text:` (one) and `pairs:` (two) they say what your text is.

    Raises:
      UsageError: unknown name or languages, or a file or folder that is not there.
      RunError: missing or damaged data, by file.
    """
    folder = Path(manual_dir).expanduser() if manual_dir else None
    if folder and not folder.is_dir():
        raise UsageError(f"data.manual_dir must be a folder that exists. Received: {manual_dir}.")
    if isinstance(languages, str) or not all(isinstance(code, str) for code in languages):
        raise UsageError(f"languages must be a list such as ['en']. Received: {languages!r}.")
    languages = tuple(languages)
    for prefix, load in ((TEXT, _load_text), (PAIRS, _load_pairs)):
        if name.startswith(prefix):
            refuse_manual_dir(name, folder)
            return load(name, name.removeprefix(prefix), languages)
    if not name:
        raise UsageError(
            "data.source names a corpus (`zoo fetch` lists them), or is text:PATH, pairs:FILE or "
            "prepared:FOLDER. Received nothing."
        )
    if name not in _LOADERS:
        what = "is a data set of arrays, not" if name in list_datasets() else "is not the name of"
        raise UsageError(
            f"{name!r} {what} a corpus of text.{near_names(name, _LOADERS)} Known: "
            f"{', '.join(list_corpora())}, and text:PATH and pairs:FILE for your own text."
        )
    corpus = _LOADERS[name](folder, languages)
    if not isinstance(corpus, Corpus):
        raise UsageError(
            f"The loader of {name!r} must return a zoo.data.Corpus. "
            f"Received: {type(corpus).__name__}."
        )
    return corpus


def refuse_manual_dir(name: str, folder: Path | None):
    """Raises UsageError where the user gave a folder that would be ignored."""
    if folder:
        raise UsageError(f"The corpus {name!r} takes no data.manual_dir. Received: {folder}.")


def fingerprint(*parts) -> str:
    """Returns the sha256 of `parts`, which print as what they hold, and of READER_VERSION."""
    return hashlib.sha256(repr((READER_VERSION, *parts)).encode()).hexdigest()


# --- the user's own text ------------------------------------------------------------------------


def _load_text(name: str, path: str, languages: tuple[str, ...]) -> Corpus:
    if len(languages) > 1:
        raise UsageError(f"{name!r} is text in one language. Received: {', '.join(languages)}.")
    root = Path(path).expanduser()
    labels, paths, read = _text_files(path, root)
    files = [TextFile.found(found) for found in paths]
    tally, hashes, lengths = Tally(), array("Q"), array("Q")
    for document in read(files, tally):
        hashes.append(key_hash(document.strip()))
        lengths.append(len(document))
    _, first = np.unique(hashes, return_index=True)
    # Repeated documents count once: the rest of them are left out below.
    if np.asarray(lengths)[first].sum() < 2:
        raise RunError(
            f"{root} holds {'no text' if not lengths else 'a single character'}: "
            "there is nothing to learn from."
        )

    def documents():
        return read(files, Tally())

    if len(first) >= MIN_DOCUMENTS_TO_SPLIT:
        splits = split_by_hash(lambda: ((text.strip(), text) for text in documents()), 0.05, hashes)
    else:
        if repeated := len(hashes) - len(first):
            _say_once(f"zoo: {name}: {repeated:,} repeated documents were left out.")
        different = np.isin(np.arange(len(hashes)), first)
        splits = split_by_cut(
            lambda: itertools.compress(documents(), different),
            list(itertools.compress(lengths, different)),
        )
    hashed = list(zip(labels, (file.sha256() for file in files), strict=True))
    # Line ends were kept before: text without \r, which has not changed, keeps its fingerprint.
    changed = ("universal newlines",) if tally.line_ends else ()
    digest = fingerprint(TEXT, hashed, *changed)
    return Corpus(name, splits, languages, digest, unreadable=_reported(name, tally))


def _text_files(text: str, root: Path) -> tuple[list[str], list[Path], Callable]:
    """Returns the files of `text:PATH`, what a fingerprint calls them, and their reader."""
    if text and root.is_dir():
        # Hidden ones are what editors and file systems leave behind.
        labels = sorted(
            label
            for ending in ("*.txt", "*.txt.gz")
            for found in root.rglob(ending)
            if not re.search(r"(^|/)\.", label := found.relative_to(root).as_posix())
            and found.is_file()
        )
        if not labels:
            raise UsageError(f"{root} holds no .txt or .txt.gz files. {lies_at(root)}")
        return labels, [root / label for label in labels], readers.whole_texts
    path = _existing_file(text, root, "file or folder")
    for ending, read in ((".txt", readers.whole_texts), (".jsonl", readers.json_texts)):
        if path.name.removesuffix(".gz").endswith(ending):
            return [ending], [path], read
    raise UsageError(
        f"{TEXT}PATH must be a folder or a .txt, .txt.gz, .jsonl or .jsonl.gz file. "
        f"Received: {path}."
    )


def _load_pairs(name: str, path: str, languages: tuple[str, ...]) -> Corpus:
    if len(languages) not in (0, 2):
        raise UsageError(
            f"{name!r} takes two languages, of the source and of the target, or none. "
            f"Received: {', '.join(languages)}."
        )
    file = TextFile.found(_existing_file(path, Path(path).expanduser()))
    tally = Tally()
    hashes = array("Q", (key_hash(pair[0]) for pair in readers.tab_separated_pairs(file, tally)))
    count = len(hashes)
    if count < 2:
        raise RunError(f"{file.path} holds {count} pairs: at least 2 are needed.")

    def pairs():
        return readers.tab_separated_pairs(file, Tally())

    if len(np.unique(hashes)) >= MIN_DOCUMENTS_TO_SPLIT:
        splits = split_by_hash(lambda: ((pair[0], pair) for pair in pairs()), 0.05, hashes)
    else:
        found, first = np.unique(hashes, return_index=True)
        if len(found) < 2:
            raise RunError(f"{file.path} holds a single source: at least 2 are needed.")
        order = found[np.argsort(first)]
        held = np.isin(hashes, order[-max(1, round(len(order) / 10)) :])
        splits = {
            "train": lambda: itertools.compress(pairs(), ~held),
            "validation": lambda: itertools.compress(pairs(), held),
        }
    unreadable = _reported(name, tally)
    return Corpus(name, splits, languages, fingerprint(PAIRS, file.sha256()), unreadable=unreadable)


def _existing_file(text: str, path: Path, what: str = "file") -> Path:
    if not (text and path.is_file()):
        raise UsageError(f"There is no {what} {text!r}. {lies_at(path)}")
    return path


def _reported(name: str, tally: Tally) -> dict[str, int]:
    """Returns `Corpus.unreadable`; says what is in it, in one line on stderr."""
    words = []
    if tally.invalid:
        files = [f"{path} ({count:,})" for path, count in tally.invalid.most_common(3)]
        more = len(tally.invalid) - len(files)
        words.append(
            f"{tally.invalid.total():,} invalid UTF-8 sequences were read as U+FFFD, in "
            f"{', '.join(files)}{f' and {more:,} more files' if more else ''}"
        )
    if tally.line_ends:
        words.append(
            f"{tally.line_ends.total():,} line ends \\r\\n or \\r were read as \\n, in "
            f"{len(tally.line_ends):,} files"
        )
    words += [f"{count:,} empty {what} were skipped" for what, count in tally.empty.items()]
    if words:
        _say_once(f"zoo: {name}: {'; '.join(words)}.")
    unreadable = {f"empty_{what}": count for what, count in tally.empty.items()}
    for key, counted in (("line_ends", tally.line_ends), ("invalid_sequences", tally.invalid)):
        if counted:
            unreadable = {key: counted.total(), **unreadable}
    return unreadable


@functools.cache
def _say_once(line: str):
    print(line, file=sys.stderr, flush=True)
