"""Texts with labels, from a user's files or a registered set, checked row by row."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.data.datasets import SPLITS
from zoo.data.text.corpus_readers import TextFile
from zoo.data.text.labeled import labels
from zoo.data.text.labeled.tables import Table, open_table
from zoo.errors import RunError, UsageError, check_name, short
from zoo.storage.bounds import check_memory
from zoo.storage.disk import content_of, json_digest

# Part of every fingerprint: increase it when the examples of unchanged files change.
VERSION = 1

_SPLITS = {**SPLITS, "dev": "validation"}
_EXAMPLE_BYTES = 200  # of the Python objects around the texts of an example
_CHECK_BYTES = 1 << 20  # between two checks of the memory


@dataclass(frozen=True)
class LabeledTexts:
    """Named splits of examples with one text or two, and a label.

    Attributes:
      name: value of `data.source`.
      splits: "train", … -> function that returns a new iterator of the texts of each example, a
        tuple of one or two str that are not blank.
      labels: split -> labels of its examples, see `labels.as_array`.
      class_names: names of the classes; () for numbers.
      columns: names of the text columns, one or two.
      fingerprint: changes when the examples change.
      licence: stated by the source.
    """

    name: str
    splits: Mapping[str, Callable[[], Iterator[tuple[str, ...]]]]
    labels: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    columns: tuple[str, ...]
    fingerprint: str
    licence: str = ""

    @property
    def is_pair(self) -> bool:
        """Whether examples have two texts."""
        return len(self.columns) == 2

    def texts(self, split: str) -> Iterator[str]:
        """Yields all texts of a split; those of a pair follow each other."""
        return itertools.chain.from_iterable(self.splits[split]())


@dataclass(frozen=True)
class Source:
    """Tables of a source, before columns are chosen.

    Attributes:
      name: value of `data.source`.
      tables: split -> table; "train" must be one of them.
      digest: hex sha256 of the files.
      columns: default of `data.columns`: text columns and the label column; () if unknown.
      class_names: label in the label column of `columns` -> name of its class; {} if unknown.
      licence: stated by the source.
    """

    name: str
    tables: Mapping[str, Table]
    digest: str
    columns: tuple[str, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""


# --- files of users -------------------------------------------------------------------------------


def user_source(name: str) -> Source:
    """Returns the source of `KIND:FILE` or `KIND:FOLDER`.

    A file is the split "train". A folder has a file per split: train, validation (or val, valid,
    dev) and test.

    Raises:
      UsageError: if there is no such file, or a folder has other files of this kind.
      RunError: if a file cannot be read.
    """
    kind, _, text = name.partition(":")
    path = Path(text).expanduser()
    if not text or not path.exists():
        raise UsageError(f"There is no file or folder {text!r}. {content_of(path)}")
    endings = (f".{kind}", *([f".{kind}.gz"] if kind != "parquet" else ()))
    paths = _split_files(path, endings) if path.is_dir() else {"train": path}
    if not paths["train"].name.endswith(endings):
        raise UsageError(
            f"The file of {kind}:FILE must end in {' or '.join(endings)}. Received: {path}."
        )
    files = {split: TextFile.at(file) for split, file in paths.items()}
    tables = {split: open_table(kind, file) for split, file in files.items()}
    digest = json_digest({split: file.sha256() for split, file in files.items()})
    return Source(name, tables, digest)


def _split_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    paths = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in endings if path.name.endswith(e)), None)
        if ending is None or path.name.startswith("."):
            continue
        split = _SPLITS.get(path.name.removesuffix(ending))
        if split is None or split in paths:
            reason = f"Remove {path.name} or {paths[split].name}." if split else ""
            raise UsageError(
                f"The files {endings[0]} of {folder} must be named by their splits: one of each "
                f"of train, validation, test. Received: {path.name}. {reason}"
            )
        paths[split] = path
    if "train" not in paths:
        raise UsageError(f"{folder} must contain a file train{endings[0]}. {content_of(folder)}")
    return {split: paths[split] for split in ("train", "validation", "test") if split in paths}


# --- examples -------------------------------------------------------------------------------------


def read_examples(source: Source, columns: Sequence[str], output: str) -> LabeledTexts:
    """Reads and checks all examples of a source.

    Args:
      source: tables of the source.
      columns: one or two text columns and the label column; () for the default.
      output: "class", "labels" or "number".

    Raises:
      UsageError: if a column does not exist, or `output` is unknown.
      RunError: names the file and the row with a blank text or an invalid label; also if a split is
        empty, or the training split has fewer than two classes.
    """
    check_name("task.output", output, labels.OUTPUTS)
    chosen = tuple(columns) or source.columns or _default_columns(source.tables["train"])
    for table in source.tables.values():
        _check_columns(table, chosen)
    is_own_label = chosen[-1:] == source.columns[-1:]
    names = source.class_names if is_own_label and output != "number" else {}
    order = sorted(source.tables, key=lambda split: split != "train")
    texts, cells, known = {}, {}, None
    for split in order:
        texts[split], cells[split] = _read(source.tables[split], chosen, output, names, known)
        if known is None and output != "number":
            known = _classes(source.tables[split], cells[split], output)
    class_names = labels.sorted_names(names.values() or known or ())
    return LabeledTexts(
        source.name,
        {split: (lambda split=split: iter(texts[split])) for split in source.tables},
        {split: labels.as_array(cells[split], output, class_names) for split in source.tables},
        class_names,
        chosen[:-1],
        json_digest([VERSION, source.name.partition(":")[0], source.digest, chosen, output]),
        source.licence,
    )


def _default_columns(table: Table) -> tuple[str, ...]:
    if len(table.columns) in (2, 3) and table.columns[-1] == "label":
        return table.columns
    raise UsageError(
        "data.columns must name one or two text columns and last the label column. Received: (). "
        f"{table.path} has the columns {short(', '.join(table.columns))}."
    )


def _check_columns(table: Table, columns: Sequence[str]):
    if len(columns) not in (2, 3) or len(set(columns)) < len(columns):
        raise UsageError(
            "data.columns must name one or two text columns and last the label column. Received: "
            f"{short(', '.join(columns))}. {table.path} has the columns "
            f"{short(', '.join(table.columns))}."
        )
    for column in columns:
        if column not in table.columns:
            raise UsageError(
                f"data.columns must be columns of {table.path}. Received: {column!r}; it has the "
                f"columns {short(', '.join(table.columns))}."
            )


def _read(table: Table, columns, output, names, known) -> tuple[list[tuple[str, ...]], list]:
    """Returns the texts and labels of a table; `known` are the classes of the training split."""
    texts, values, size, checked, first = [], [], 0, 0, None
    for number, (*row, cell) in table.read(columns):
        for column, text in zip(columns, row, strict=False):
            if not isinstance(text, str):
                raise table.error(
                    number, f"{column!r} must be text. Received: {labels.kind_of(text)}."
                )
            if not text.strip():
                raise table.error(number, f"{column!r} must not be empty. Remove the row.")
        kind = labels.kind_of(cell)
        first = first or (number, kind)
        if kind != first[1]:
            raise table.error(
                number,
                f"all labels must be of one type. Received: {kind}, and {first[1]} in "
                f"{table.unit} {first[0]:,}.",
            )
        try:
            label = labels.parse(cell, output, names)
        except labels.InvalidLabel as error:
            raise table.error(number, str(error)) from None
        if known is not None and (unknown := set(_as_names(label)) - known):
            raise table.error(
                number,
                f"the label {min(unknown)!r} does not occur in the training split, which has "
                f"{short(', '.join(labels.sorted_names(known)))}.",
            )
        texts.append(tuple(row))
        values.append(label)
        size += _EXAMPLE_BYTES + sum(map(sys.getsizeof, row))
        if size - checked > _CHECK_BYTES:
            check_memory(table.path, size)
            checked = size
    if not texts:
        raise RunError(f"{table.path} must contain examples. Received: no rows.")
    return texts, values


def _as_names(label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label


def _classes(table: Table, values: Sequence, output: str) -> set[str]:
    """Returns the classes of the training split."""
    classes = set(itertools.chain.from_iterable(map(_as_names, values)))
    minimum = 2 if output == "class" else 1
    if len(classes) < minimum:
        received = f"only the class {min(classes)!r}" if classes else "no labels"
        raise RunError(
            f"{table.path} must contain examples of at least {minimum} class"
            f"{'es' * (minimum > 1)}. Received: {received}."
        )
    if len(classes) > labels.MAX_CLASSES:
        raise RunError(
            f"{table.path} must contain at most {labels.MAX_CLASSES:,} different labels. Received: "
            f"{len(classes):,}. Choose another label column by data.columns."
        )
    return classes
