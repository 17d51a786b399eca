"""Reads texts whose labels a model shall predict, row by row.

A damaged row is refused, and the others are read.
"""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zoo.data.text.corpus_readers import TextFile
from zoo.data.text.labeled.labels import kind_of
from zoo.data.text.labeled.tables import KINDS, Table, numbered_lines, open_table
from zoo.errors import RunError, UsageError, short
from zoo.storage.bounds import MAX_LINE_BYTES

STANDARD_INPUT = "-"
_ENDINGS = {f".{kind}": kind for kind in ("txt", *KINDS)}


class UnlabeledTexts:
    """The texts of a file or of standard input.

    Args:
      source: path of a .txt file with one text per line, or of a table of one of `KINDS`, which may
        also end in .gz except .parquet; "-" for the lines of standard input.
      columns: names of the text columns, one or two; a line is the text of a single column.
      refuse: function that gets the error of each row that is skipped: it cannot be read, or a text
        is blank.

    Raises:
      UsageError: if the name has another ending, a line would need two texts, or a column does not
        exist.
      RunError: if the file cannot be read.
    """

    def __init__(self, source: str, columns: Sequence[str], refuse: Callable[[RunError], None]):
        self._columns, self._refuse = columns, refuse
        kind = "txt" if source == STANDARD_INPUT else _kind(source)
        if kind != "txt":
            self._table = open_table(kind, TextFile.at(Path(source)), refuse)
        elif len(columns) == 1:
            self._table = _lines(source, columns, refuse)
        else:
            raise UsageError(
                f"The model requires two texts per row, {' and '.join(columns)}: a file "
                f"{', '.join(f'.{kind}' for kind in KINDS)}. Received: {source}."
            )
        for column in columns:
            if column not in self._table.columns:
                raise UsageError(
                    f"{source} must have the column {column!r}. Received: a file with the columns "
                    f"{short(', '.join(self._table.columns))}."
                )

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Yields the texts of each row; raises RunError if the file cannot be read further."""
        for number, texts in self._table.read(self._columns):
            if problem := _problem(self._columns, texts):
                self._refuse(self._table.error(number, problem))
            else:
                yield texts


def _kind(source: str) -> str:
    path = Path(source)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _ENDINGS or path.name.endswith(".parquet.gz"):
        raise UsageError(
            f"Files of texts must end in {', '.join(_ENDINGS)}, or be - for standard input. "
            f"Received: {source}."
        )
    return _ENDINGS[suffix]


def _problem(columns: Sequence[str], texts: Sequence) -> str:
    """Returns what is wrong with a row; "" for a valid row."""
    for column, text in zip(columns, texts, strict=True):
        if not isinstance(text, str):
            return f"{column!r} must be text. Received: {kind_of(text)}."
        if not text.strip():
            return f"{column!r} must not be empty."
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can encode a lone surrogate
            return f"{column!r} must be valid Unicode. Received: {short(ascii(text))}."
    return ""


def _lines(source: str, columns: Sequence[str], refuse) -> Table:
    path = Path("standard input") if source == STANDARD_INPUT else Path(source)
    # The file is opened at once, so that a missing one is reported before a model is loaded.
    file = None if source == STANDARD_INPUT else TextFile.at(path)

    def read(_):
        for number, line, error in _input_lines() if file is None else numbered_lines(file):
            if error:
                refuse(error)
            else:
                yield number, (line,)

    return Table(path, tuple(columns), read)


def _input_lines() -> Iterator[tuple[int, str, RunError | None]]:
    stream = getattr(sys.stdin, "buffer", None) or io.BytesIO()  # a closed stdin has no buffer
    for number, data in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        name = f"standard input, line {number:,}"
        if len(data) > MAX_LINE_BYTES:
            raise RunError(f"{name}: is longer than {MAX_LINE_BYTES >> 20} MiB.")
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8")
            yield number, line.removesuffix("\n").removesuffix("\r"), None
        except UnicodeDecodeError:
            received = short(repr(data.decode(errors="replace")))
            yield number, "", RunError(f"{name}: must be UTF-8. Received: {received}.")
