"""Reads tables of texts and labels: CSV, TSV, JSON lines and Parquet.

CSV and TSV have a header and quote cells as RFC 4180 does: a cell that begins with a quotation mark
ends with one, and two of them inside it are one. Each line of a JSONL file is an object. Files are
UTF-8 and may be compressed as .gz, except Parquet. Memory is bounded, see `zoo.storage.bounds`.
"""

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data.text.corpus_readers import Tally, TextFile
from zoo.errors import RunError, short
from zoo.storage.bounds import MAX_LINE_BYTES, check_expansion, check_memory
from zoo.storage.disk import open_file

DELIMITERS = {"csv": ",", "tsv": "\t"}
KINDS = (*DELIMITERS, "jsonl", "parquet")
_PARQUET_ROWS = 1024  # per batch


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Attributes:
      path: path of the file, for messages.
      columns: names of all columns.
      read: `read(columns)` yields (number, cells) of each row: the number of its first line or of
        the row, and its cells in the order of `columns`. Raises RunError for damaged rows.
      unit: what the number counts: "line" or "row".
    """

    path: Path
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[int, tuple[Any, ...]]]]
    unit: str = "line"

    def error(self, number: int, message: str) -> RunError:
        """Returns the `RunError` for a row."""
        return RunError(f"{self.path}, {self.unit} {number:,}: {message}")


def open_table(
    kind: str, file: TextFile, refuse: Callable[[RunError], None] | None = None
) -> Table:
    """Returns the table of a file.

    Args:
      kind: one of `KINDS`.
      file: the file; its path may end in .gz unless the kind is "parquet".
      refuse: function that gets the error of each damaged row; the row is then skipped. By default
        the error is raised.

    Raises:
      RunError: if the file is empty or cannot be read, or two columns have the same name.
    """
    columns = {"jsonl": _json_columns, "parquet": _parquet_columns}.get(kind, _header)
    # The first valid object names the columns; damaged rows are refused when they are read.
    skip = (_skip if refuse else _raise,) if kind == "jsonl" else ()
    names = columns(file, *_delimiter(kind), *skip)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"{file.path} has several columns named {repeated[0]!r}. Rename them.")
    read = {"jsonl": _json_rows, "parquet": _parquet_rows}.get(kind, _separated_rows)

    def rows(chosen: Sequence[str]):
        return read(file, names, chosen, *_delimiter(kind), refuse or _raise)

    return Table(file.path, names, rows, "row" if kind == "parquet" else "line")


def _delimiter(kind: str) -> tuple[str, ...]:
    return (DELIMITERS[kind],) if kind in DELIMITERS else ()


def _raise(error: RunError):
    raise error


def _skip(error: RunError):
    pass


def numbered_lines(file: TextFile) -> Iterator[tuple[int, str, RunError | None]]:
    """Yields (number, line, error) of each line; the error is None for valid UTF-8."""
    tally = Tally()
    for number, line in enumerate(file.lines(tally), start=1):
        error = None
        if tally.invalid:
            tally.invalid.clear()
            error = RunError(
                f"{file.path}, line {number:,}: must be UTF-8. Received: {short(repr(line))}. "
                "`iconv -t UTF-8` converts files."
            )
        yield number, line, error


# --- CSV and TSV ----------------------------------------------------------------------------------


def _header(file: TextFile, delimiter: str) -> tuple[str, ...]:
    for _, cells in _separated(file, delimiter, _raise):
        return tuple(cells)
    raise RunError(f"{file.path} is empty: its first line must name the columns.")


def _separated_rows(file, names, chosen, delimiter, refuse) -> Iterator[tuple[int, tuple]]:
    places = [names.index(name) for name in chosen]
    rows = _separated(file, delimiter, refuse)
    next(rows)
    for number, cells in rows:
        if len(cells) == len(names):
            yield number, tuple(cells[place] for place in places)
        else:
            refuse(
                RunError(
                    f"{file.path}, line {number:,}: must have {len(names)} cells, as the header. "
                    f"Received: {len(cells)} cells, {short(delimiter.join(cells))!r}."
                )
            )


def _separated(file: TextFile, delimiter: str, refuse) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the first line, cells) of each valid row that is not blank."""
    # The bound is one per process; the lines are bounded already.
    csv.field_size_limit(MAX_LINE_BYTES)
    errors = []  # of the lines of a row: a quoted cell may contain the ends of lines

    def lines():
        for _, line, error in numbered_lines(file):
            errors.extend([error] if error else [])
            yield f"{line}\n"

    reader, cells, number = csv.reader(lines(), delimiter=delimiter, strict=True), [], 1
    while cells is not None:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells = []
            errors.append(
                RunError(
                    f"{file.path}, line {number:,}: cannot be read as cells ({short(error)}). A "
                    'cell that begins with " must end with ", and each " inside it must be doubled.'
                )
            )
        if errors:
            refuse(errors[0])
            errors.clear()
        elif cells:
            yield number, cells
        number = reader.line_num + 1


# --- JSON lines -----------------------------------------------------------------------------------


def _json_columns(file: TextFile, refuse) -> tuple[str, ...]:
    for _, json_object in _json_objects(file, refuse):
        return tuple(json_object)
    raise RunError(f"{file.path} is empty: each line must be a JSON object.")


def _json_rows(file, names, chosen, refuse) -> Iterator[tuple[int, tuple]]:
    for number, json_object in _json_objects(file, refuse):
        missing = [name for name in chosen if name not in json_object]
        if not missing:
            yield number, tuple(json_object[name] for name in chosen)
        else:
            refuse(
                RunError(
                    f"{file.path}, line {number:,}: must have the key {missing[0]!r}. Received: "
                    f"{short(', '.join(map(repr, json_object)) or 'no keys')}."
                )
            )


def _json_objects(file: TextFile, refuse) -> Iterator[tuple[int, dict]]:
    for number, line, error in numbered_lines(file):
        if not line.strip():
            continue
        try:
            # Not strict, because many programs write raw tabs and NULs.
            value = json.loads(line, strict=False)
        except (ValueError, RecursionError):
            value = None
        if error or not isinstance(value, dict):
            refuse(
                error
                or RunError(
                    f"{file.path}, line {number:,}: must be a JSON object. "
                    f"Received: {short(repr(line))}."
                )
            )
            continue
        yield number, value


# --- Parquet --------------------------------------------------------------------------------------


def _parquet_columns(file: TextFile) -> tuple[str, ...]:
    with open_file(file.path) as raw, _parquet_errors(file):
        import pyarrow.parquet

        return tuple(pyarrow.parquet.read_schema(raw).names)


def _parquet_rows(file, names, chosen, refuse) -> Iterator[tuple[int, tuple]]:
    with open_file(file.path) as raw, _parquet_errors(file):
        import pyarrow.parquet

        stored_size, size, number = os.fstat(raw.fileno()).st_size, 0, 0
        metadata = pyarrow.parquet.read_metadata(raw)
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        check_expansion(file.path, sum(group.total_byte_size for group in groups), stored_size)
        with pyarrow.parquet.ParquetFile(
            raw,
            read_dictionary=_shared_texts(metadata, groups, chosen),
            page_checksum_verification=True,
        ) as table:
            for batch in table.iter_batches(_PARQUET_ROWS, columns=list(chosen)):
                columns = [batch.column(name) for name in chosen]
                batch_size = sum(map(_bytes_of, columns))
                size += batch_size
                check_expansion(file.path, size, stored_size)
                check_memory(file.path, batch_size)
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        cells = tuple(_value(file, number, c[index]) for c in columns)
                    except RunError as error:
                        refuse(error)
                        continue
                    yield number, cells


def _shared_texts(metadata, groups, chosen: Sequence[str]) -> list[str]:
    """Returns the text columns that can be read as dictionaries.

    A dictionary holds a value of many rows once, so that its size is known before it is copied.
    pyarrow does not support this for delta encodings.
    """
    from pyarrow import types

    schema = metadata.schema.to_arrow_schema()
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    delta_encoded = {
        column.path_in_schema
        for column in columns
        if any("DELTA" in encoding for encoding in column.encodings)
    }
    return [
        name
        for name in chosen
        if types.is_string(schema.field(name).type)
        or types.is_large_string(schema.field(name).type)
        if name not in delta_encoded
    ]


def _bytes_of(column) -> int:
    """Returns the bytes of a column's values, counting a shared value once per row."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pyarrow.compute.binary_length(column.dictionary)
    return pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0


def _value(file: TextFile, number: int, cell):
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        raise RunError(f"{file.path}, row {number:,}: must be UTF-8.") from None
    except (ValueError, OverflowError, LookupError) as error:  # a date after the year 9999
        raise RunError(f"{file.path}, row {number:,}: cannot be read: {short(error)}.") from None


@contextlib.contextmanager
def _parquet_errors(file: TextFile):
    """Converts errors of pyarrow to RunError with the path of the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise RunError(f"{file.path} cannot be read as a Parquet file: {short(error)}.") from None
