"""Registers the zoo's own sets of labeled texts.

All are read from original files. Loading a set checks their sha256, so that results are always of
the same text.
"""

import functools
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.data.datasets import list_datasets, refuse_manual_dir, register_dataset
from zoo.data.text.corpus_readers import TextFile
from zoo.data.text.labeled.examples import Source, user_source
from zoo.data.text.labeled.originals import IMDB_SUBSET, original_files
from zoo.data.text.labeled.synthetic import SYNTHETIC, synthetic_source
from zoo.data.text.labeled.tables import KINDS, Table, open_table
from zoo.data.text.originals import checked_files, originals_folder
from zoo.errors import UsageError, near_names
from zoo.storage.bounds import Decompressed
from zoo.storage.disk import json_digest, open_file

_ADVICE = "use your own files as csv:FILE"


@dataclass(frozen=True)
class _Set:
    """A registered set.

    Attributes:
      columns: text columns and the label column.
      class_names: label in the files -> name of the class.
      tables: `tables(files) -> {split: Table}`.
      licence: stated by the source.
    """

    columns: tuple[str, ...]
    class_names: Mapping[str, str]
    tables: Callable[[Sequence[TextFile]], dict[str, Table]]
    licence: str


_SETS: dict[str, _Set] = {}


def list_sets() -> tuple[str, ...]:
    """Returns the sorted names of the registered sets."""
    return tuple(sorted(_SETS))


def source_of(name: str, manual_dir: Path | None) -> Source:
    """Returns a source of labeled texts.

    Args:
      name: one of `list_sets()`, KIND:FILE or KIND:FOLDER of one of `tables.KINDS`, or
        synthetic:NAME.
      manual_dir: folder of the original files; `data_dir()/name` by default.

    Raises:
      UsageError: if the name is unknown, or a file does not exist.
      RunError: if an original file is missing or damaged, or a file cannot be read.
    """
    if manual_dir and not manual_dir.is_dir():
        raise UsageError(f"data.manual_dir must be an existing folder. Received: {manual_dir}.")
    if name.partition(":")[0] in KINDS and ":" in name:
        refuse_manual_dir(name, manual_dir)
        return user_source(name)
    if name.startswith(SYNTHETIC):
        refuse_manual_dir(name, manual_dir)
        return synthetic_source(name)
    if name not in _SETS:
        kinds = ", ".join(f"{kind}:FILE" for kind in KINDS)
        reason = "has no labeled texts" if name in list_datasets() else "is unknown"
        raise UsageError(
            f"data.source must have labeled texts. Received: {name!r}, which {reason}."
            f"{near_names(name, _SETS)} Known: {', '.join(list_sets())}, and {kinds} for your own."
        )
    registered, originals = _SETS[name], original_files(name)
    if name == "imdb" and _has_only_subset(manual_dir):
        originals = (IMDB_SUBSET,)
    files = checked_files(name, originals, manual_dir, _ADVICE)
    digest = json_digest([name, [file.sha256 for file in originals]])
    return Source(
        name, registered.tables(files), digest, registered.columns, registered.class_names,
        registered.licence,
    )  # fmt: skip


def _has_only_subset(manual_dir: Path | None) -> bool:
    folder, (whole,) = originals_folder("imdb", manual_dir), original_files("imdb")
    return (folder / IMDB_SUBSET.file_name).is_file() and not (folder / whole.file_name).is_file()


def _register(name, columns, class_names, tables, description, licence):
    def as_arrays(manual_dir):
        raise UsageError(
            f"{name!r} has labeled texts, not arrays: use it with task.name=text_classification."
        )

    register_dataset(name, as_arrays, functools.partial(original_files, name), description, licence)
    _SETS[name] = _Set(columns, class_names, tables, licence)


# --- formats --------------------------------------------------------------------------------------
# The hashes of these files are checked before, so the readers need no error handling.


def _tables(kind: str, *splits: str) -> Callable:
    return lambda files: dict(zip(splits, (open_table(kind, file) for file in files), strict=True))


def _selected(table: Table, column: str) -> Table:
    """Returns the rows of a table with "1" in a column."""

    def read(columns):
        for number, (*cells, mark) in table.read((*columns, column)):
            if mark == "1":
                yield number, tuple(cells)

    return Table(table.path, table.columns, read)


def _farstail(files) -> dict[str, Table]:
    tables = _tables("tsv", "train", "validation", "test")(files)
    # Pairs whose label a model of the hypothesis alone, or of the shared words, does not predict.
    for name in ("hypothesis", "overlap"):
        tables[f"test_hard_{name}"] = _selected(tables["test"], f"hard({name})")
    return tables


def _rows_table(path: Path, rows: Callable[[], Iterator[tuple[str, str]]]) -> Table:
    """Returns a table with the columns "text" and "label"."""
    names = ("text", "label")

    def read(columns):
        places = [names.index(column) for column in columns]
        for number, row in enumerate(rows(), start=1):
            yield number, tuple(row[place] for place in places)

    return Table(path, names, read, unit="row")


def _trec(files) -> dict[str, Table]:
    def rows(file):
        with open_file(file.path) as raw:
            for line in raw:
                label, _, text = line.decode("latin-1").partition(" ")
                yield text.strip(), label.partition(":")[0]

    return {
        split: _rows_table(file.path, functools.partial(rows, file))
        for split, file in zip(("train", "test"), files, strict=True)
    }


_REVIEW = re.compile(r"aclImdb/(train|test)/(pos|neg)/(\d+)_\d+\.txt")


def _imdb(files) -> dict[str, Table]:
    (file,) = files
    reviews = {"train": {}, "test": {}}
    with (
        open_file(file.path) as raw,
        io.BufferedReader(Decompressed(file.path, raw)) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        for member in archive:
            if match := _REVIEW.fullmatch(member.name):
                split, label, number = match.groups()
                text = archive.extractfile(member).read().decode()
                reviews[split][label, int(number)] = text.replace("<br />", "\n")
    return {
        split: _rows_table(file.path, functools.partial(_review_rows, split_reviews))
        for split, split_reviews in reviews.items()
    }


def _review_rows(reviews: Mapping) -> Iterator[tuple[str, str]]:
    for (label, _), text in sorted(reviews.items()):
        yield text, label


_register(
    "sst2",
    ("sentence", "label"),
    {"0": "negative", "1": "positive"},
    _tables("tsv", "train", "test"),
    "GLUE SST-2, sentiment of 67,349 phrases and 872 sentences of movie reviews; GLUE's dev split "
    "is the split test, because GLUE's test labels are not public",
    "not stated by its source",
)
_register(
    "imdb",
    ("text", "label"),
    {"neg": "negative", "pos": "positive"},
    _imdb,
    "sentiment of 25,000 + 25,000 movie reviews (Maas et al. 2011)",
    "not stated by its source",
)
_register(
    "trec",
    ("text", "label"),
    {
        "ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human",
        "LOC": "location", "NUM": "number",
    },
    _trec,
    "5,452 + 500 questions in 6 classes of their answers (Li and Roth 2002)",
    "not stated by its source",
)  # fmt: skip
_register(
    "rte",
    ("sentence1", "sentence2", "label"),
    {"0": "entailment", "1": "not_entailment"},
    _tables("parquet", "train", "test"),
    "GLUE RTE, entailment of 2,490 + 277 pairs; GLUE's validation split is the split test, because "
    "GLUE's test labels are not public",
    "not stated by its source",
)
_register(
    "sick",
    ("sentence_A", "sentence_B", "entailment_judgment"),
    {
        "CONTRADICTION": "contradiction", "ENTAILMENT": "entailment", "NEUTRAL": "neutral",
    },
    _tables("tsv", "train", "validation", "test"),
    "entailment of 4,500 + 500 + 4,927 pairs of captions (Marelli et al. 2014); the column "
    "relatedness_score is a number from 1 to 5",
    "CC BY-NC-SA 3.0",
)  # fmt: skip
_register(
    "farstail",
    ("premise", "hypothesis", "label"),
    {"c": "contradiction", "e": "entailment", "n": "neutral"},
    _farstail,
    "entailment of 7,266 + 1,537 + 1,564 Persian pairs (Amirkhani et al. 2023); the splits "
    "test_hard_hypothesis and test_hard_overlap are parts of test",
    "Apache-2.0",
)
