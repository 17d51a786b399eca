"""Registry of corpora: text as documents, or as pairs of a sentence and its translation.

Your own text:

    load_corpus("text:my_book.txt")      # one document; also .txt.gz
    load_corpus("text:my_folder")        # one document per .txt or .txt.gz file, recursively
    load_corpus("text:my_texts.jsonl")   # one {"text": "…"} per line; also .jsonl.gz
    load_corpus("pairs:my_pairs.tsv")    # one SOURCE<TAB>TARGET per line; also .gz

Several corpora as one: load_corpus("wikipedia_en+novels_en").

A corpus of your own module, which `--import=my_module` imports: `register_corpus`.

Files are UTF-8; see `corpus_readers`. Only line ends are normalized here; the tokenizer does the
rest. Corpora without splits are split by the hash of a key (the id of a page, the name of a book,
the text itself), so splits do not depend on the order of files, and equal texts are in one split.
"""

import functools
import hashlib
import itertools
import logging
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.data.datasets import list_datasets, refuse_manual_dir, register_dataset
from zoo.data.text import corpus_readers as readers
from zoo.data.text.corpus_readers import Tally, TextFile
from zoo.data.text.corpus_splits import key_hash, split_by_cut, split_by_hash
from zoo.errors import RunError, UsageError, near_names
from zoo.storage.disk import content_of

_LOG = logging.getLogger(__name__)

TEXT = "text:"
PAIRS = "pairs:"

# Part of every fingerprint: increase it when the documents or splits of unchanged files change.
READER_VERSION = 2

# Fewer different documents are not split by document, but by a cut near the end of the text.
MIN_DOCUMENTS_TO_SPLIT = 20


@dataclass(frozen=True)
class Corpus:
    """Named splits of documents.

    Attributes:
      name: argument of `load_corpus`.
      splits: "train", "validation", "test", … -> function that returns a new iterator of nonempty
        documents (str), or of pairs (source, target) of str, in a fixed order.
      languages: ISO 639 codes: ("en",), or ("en", "de") for pairs; () if unknown.
      fingerprint: changes when the documents or the splits change.
      licence: stated by the source.
      unreadable: kind of replaced or skipped text -> count, without zeros. "invalid_sequences" of
        UTF-8 became U+FFFD; "line_ends" \\r\\n and \\r became \\n; "empty_files", "empty_documents"
        and "empty_pairs" were skipped.

    Raises:
      RunError: if there are no splits.
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
    """Registers a corpus for `load_corpus(name)` and, if it has `files`, for `zoo fetch NAME`.

    Args:
      name: name as in `zoo.data.register_dataset`; datasets and corpora share their names.
      loader: `loader(manual_dir, languages) -> Corpus`; `manual_dir` is a Path or None, `languages`
        a tuple of str, which may be empty.
      files: `zoo.data.fetch.FetchFile` objects, or a function that returns them.
      description: one line.
      licence: stated by the source.

    Raises:
      UsageError: if the name is registered already or is invalid.
    """

    def as_arrays(manual_dir):
        raise UsageError(
            f"{name!r} is a corpus of text, not a dataset of arrays: use it with a task on text "
            "(zoo.data.load_corpus)."
        )

    register_dataset(name, as_arrays, files, description, licence)
    _LOADERS[name] = loader


def list_corpora() -> tuple[str, ...]:
    """Returns the sorted names of registered corpora."""
    return tuple(sorted(_LOADERS))


def load_corpus(
    name: str, manual_dir: str | os.PathLike | None = None, *, languages: Sequence[str] = ()
) -> Corpus:
    """Loads a corpus.

    `text:` with at least 20 different documents is split by document: 90 % train, 5 % validation
    and 5 % test, by the hash of each stripped text. Otherwise repeated documents are left out, the
    last 10 % of the characters (or slightly more, to cut between lines) are validation, and there
    is no test split. `pairs:` are split by the hash of each source; with fewer than 20 different
    sources, the pairs of the last 10 % of the sources, at least one, are validation.

    Args:
      name: one of `list_corpora()`, several of them joined by "+", `text:PATH` or `pairs:PATH`.
      manual_dir: folder of the original files; `data_dir()/name` by default.
      languages: language codes. They choose the source and target of `multi30k` and
        `tatoeba_en_fa`, and describe `text:` (one) and `pairs:` (two).

    Raises:
      UsageError: if the name or the languages are unknown, or a file or folder does not exist.
      RunError: if data are missing or damaged.
    """
    folder = Path(manual_dir).expanduser() if manual_dir else None
    if folder and not folder.is_dir():
        raise UsageError(f"data.manual_dir must be an existing folder. Received: {manual_dir}.")
    if isinstance(languages, str) or not all(isinstance(code, str) for code in languages):
        raise UsageError(
            f"languages must be a list of strings, such as ['en']. Received: {languages!r}."
        )
    languages = tuple(languages)
    for prefix, load in ((TEXT, _load_text), (PAIRS, _load_pairs)):
        if name.startswith(prefix):
            refuse_manual_dir(name, folder)
            return load(name, name.removeprefix(prefix), languages)
    if "+" in name:
        refuse_manual_dir(name, folder)
        return _joined(name, [load_corpus(part, languages=languages) for part in name.split("+")])
    if not name:
        raise UsageError(
            "data.source must be the name of a corpus (see `zoo fetch`), text:PATH, pairs:FILE or "
            "prepared:FOLDER. Received: ''."
        )
    if name not in _LOADERS:
        fault = "is a dataset of arrays, not" if name in list_datasets() else "is not the name of"
        raise UsageError(
            f"{name!r} {fault} a corpus of text.{near_names(name, _LOADERS)} Known: "
            f"{', '.join(list_corpora())}, and text:PATH and pairs:FILE for your own text."
        )
    corpus = _LOADERS[name](folder, languages)
    if not isinstance(corpus, Corpus):
        raise UsageError(
            f"The loader of {name!r} must return a zoo.data.Corpus. "
            f"Received: {type(corpus).__name__}."
        )
    return corpus


def _joined(name: str, corpora: Sequence[Corpus]) -> Corpus:
    """Returns a corpus with the documents of several corpora, in order, split by split."""
    if len({corpus.languages for corpus in corpora}) > 1 or len(corpora[0].languages) > 1:
        raise UsageError(f"Corpora joined by '+' must have one common language. Received: {name}.")

    def documents(split):
        return itertools.chain.from_iterable(
            corpus.splits[split]() for corpus in corpora if split in corpus.splits
        )

    splits = dict.fromkeys(split for corpus in corpora for split in corpus.splits)
    return Corpus(
        name,
        {split: functools.partial(documents, split) for split in splits},
        corpora[0].languages,
        fingerprint("+", [corpus.fingerprint for corpus in corpora]),
        ", ".join(dict.fromkeys(corpus.licence for corpus in corpora)),
    )


def fingerprint(*parts) -> str:
    """Returns the hex sha256 of the `repr` of values, and of READER_VERSION."""
    return hashlib.sha256(repr((READER_VERSION, *parts)).encode()).hexdigest()


# --- text of users ------------------------------------------------------------------------------


def _load_text(name: str, path: str, languages: tuple[str, ...]) -> Corpus:
    if len(languages) > 1:
        raise UsageError(
            f"{name!r} supports at most one language. Received: {', '.join(languages)}."
        )
    root = Path(path).expanduser()
    labels, paths, read = _text_files(path, root)
    files = [TextFile.at(path) for path in paths]
    tally, hashes, lengths = Tally(), array("Q"), array("Q")
    for document in read(files, tally):
        hashes.append(key_hash(document.strip()))
        lengths.append(len(document))
    _, first = np.unique(hashes, return_index=True)
    # Repeated documents count once; the repetitions are left out below.
    if np.asarray(lengths)[first].sum() < 2:
        raise RunError(
            f"{root} must contain at least two characters of text. Received: "
            f"{'a single character' if lengths else 'no text'}."
        )

    def documents():
        return read(files, Tally())

    if len(first) >= MIN_DOCUMENTS_TO_SPLIT:
        splits = split_by_hash(lambda: ((text.strip(), text) for text in documents()), 0.05, hashes)
    else:
        if num_repeated := len(hashes) - len(first):
            _warn_once(f"{name}: {num_repeated:,} repeated documents were left out.")
        different = np.isin(np.arange(len(hashes)), first)
        splits = split_by_cut(
            lambda: itertools.compress(documents(), different),
            list(itertools.compress(lengths, different)),
        )
    label_hashes = list(zip(labels, (file.sha256() for file in files), strict=True))
    # Line ends were once kept; text without \r keeps its fingerprint.
    conversions = ("universal newlines",) if tally.line_ends else ()
    digest = fingerprint(TEXT, label_hashes, *conversions)
    return Corpus(name, splits, languages, digest, unreadable=_report_unreadable(name, tally))


def _text_files(text: str, root: Path) -> tuple[list[str], list[Path], Callable]:
    """Returns the files of `text:PATH`, as labels for the fingerprint and paths, and the reader."""
    if text and root.is_dir():
        # Editors and file systems leave hidden files behind.
        labels = sorted(
            label
            for ending in ("*.txt", "*.txt.gz")
            for file in root.rglob(ending)
            if not re.search(r"(^|/)\.", label := file.relative_to(root).as_posix())
            and file.is_file()
        )
        if not labels:
            raise UsageError(f"{root} must contain .txt or .txt.gz files. {content_of(root)}")
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
            f"{name!r} requires two languages, source and target, or no language. "
            f"Received: {', '.join(languages)}."
        )
    file = TextFile.at(_existing_file(path, Path(path).expanduser()))
    tally = Tally()
    hashes = array("Q", (key_hash(pair[0]) for pair in readers.tab_separated_pairs(file, tally)))
    count = len(hashes)
    if count < 2:
        raise RunError(f"{file.path} must contain at least 2 pairs. Received: {count}.")

    def pairs():
        return readers.tab_separated_pairs(file, Tally())

    if len(np.unique(hashes)) >= MIN_DOCUMENTS_TO_SPLIT:
        splits = split_by_hash(lambda: ((pair[0], pair) for pair in pairs()), 0.05, hashes)
    else:
        sources, first = np.unique(hashes, return_index=True)
        if len(sources) < 2:
            raise RunError(f"{file.path} must contain at least 2 different sources. Received: 1.")
        order = sources[np.argsort(first)]
        validation = np.isin(hashes, order[-max(1, round(len(order) / 10)) :])
        splits = {
            "train": lambda: itertools.compress(pairs(), ~validation),
            "validation": lambda: itertools.compress(pairs(), validation),
        }
    unreadable = _report_unreadable(name, tally)
    return Corpus(name, splits, languages, fingerprint(PAIRS, file.sha256()), unreadable=unreadable)


def _existing_file(text: str, path: Path, kind: str = "file") -> Path:
    if not (text and path.is_file()):
        raise UsageError(f"There is no {kind} {text!r}. {content_of(path)}")
    return path


def _report_unreadable(name: str, tally: Tally) -> dict[str, int]:
    """Returns `Corpus.unreadable`, and prints it in one line on stderr."""
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
    words += [f"{count:,} empty {kind} were skipped" for kind, count in tally.empty.items()]
    if words:
        _warn_once(f"{name}: {'; '.join(words)}.")
    unreadable = {f"empty_{kind}": count for kind, count in tally.empty.items()}
    for key, counter in (("line_ends", tally.line_ends), ("invalid_sequences", tally.invalid)):
        if counter:
            unreadable = {key: counter.total(), **unreadable}
    return unreadable


@functools.cache
def _warn_once(line: str):
    _LOG.warning(line)
