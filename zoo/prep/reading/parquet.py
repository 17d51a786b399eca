"""Reads the rows of a Parquet file in bounded memory.

A few hundred bytes can declare any number of rows and store one large value for all of them. So the
sizes in the footer and in each page header (by which pyarrow allocates) are checked first, and the
bytes of the values are counted. Text columns are read as dictionaries, which hold a shared value
once; other columns with large pages are read a few rows at a time.

The footer is parsed here, because pyarrow's objects for damaged columns crash the process.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence

from zoo.prep.reading.unpack import FREE_BYTES, is_bomb, open_input

ROWS = 256  # per batch, at most
_ROW_BYTES = 64  # minimum size that a row is counted with
_MAX_STRING = 1 << 16  # bytes; longer strings of a header or footer are skipped
DAMAGED = object()  # a value that Python cannot hold: invalid UTF-8, or a date after the year 9999


class Bomb(Exception):
    """A decompression bomb: a file that expands to more than `max_ratio` times its size."""


class DamagedRows(Exception):
    """The rest of a row group cannot be read; the next row group may be readable."""


def row_groups(
    path: str, columns: Sequence[str], is_selected: Callable[[], bool], max_ratio: float
) -> Iterator[Iterator[dict]]:
    """Yields the rows of each row group as dictionaries of the wanted columns that exist.

    Nested columns are left out.

    Args:
      path: path of the file.
      columns: names of columns.
      is_selected: called once per row; returns whether the row is wanted.
      max_ratio: compression ratio above which a large file is a decompression bomb.

    Raises:
      Bomb: the declared or actual ratio is higher.
      DamagedRows: while iterating over rows.
      pyarrow.ArrowException, OSError: the file cannot be read.
    """
    import pyarrow.parquet
    from pyarrow import types

    with open_input(path) as file:
        metadata = pyarrow.parquet.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
        names = [field.name for field in schema if not types.is_nested(field.type)]
        names = [name for name in names if name in columns]
        groups = _row_groups(file)
        if len(groups) != metadata.num_row_groups:
            raise OSError("invalid footer")
        delta_encoded = {
            _path(column)
            for group in groups
            for column in _columns(group)
            if _is_delta_encoded(column)
        }
        text_columns = [
            name
            for name in names
            if _is_text(schema.field(name).type) and name not in delta_encoded
        ]
        file_size, size = os.fstat(file.fileno()).st_size, 0

        def rows(number: int) -> Iterator[dict]:
            nonlocal size
            try:
                count, batch_size = _check(file, groups[number], names, text_columns, max_ratio)
                if not count:
                    return
                for batch in table.iter_batches(batch_size, [number], columns=names):
                    count -= batch.num_rows
                    # Counts all rows, so that the result is the same for every stripe.
                    size += sum(map(_bytes_of, batch.columns))
                    if is_bomb(size, file_size, max_ratio):
                        raise Bomb
                    for index in range(batch.num_rows):
                        if is_selected():
                            yield {name: _value(batch.column(name)[index]) for name in names}
                if count:  # pyarrow ignores some damage
                    raise OSError("missing rows")
            except (pyarrow.ArrowException, OSError) as error:
                raise DamagedRows from error

        with pyarrow.parquet.ParquetFile(
            file, read_dictionary=text_columns, page_checksum_verification=True
        ) as table:
            yield from map(rows, range(len(groups)))


def _is_text(kind) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind)


def _bytes_of(column) -> int:
    """Returns the bytes of a column's values, counting a shared value once per row."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pyarrow.compute.binary_length(column.dictionary)
    return pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0


def _value(field):
    try:
        return field.as_py()
    except (ValueError, OverflowError, LookupError):  # LookupError: an unknown time zone
        return DAMAGED


# --- sizes that a row group declares --------------------------------------------------------------


def _row_groups(file) -> list[dict]:
    """Returns the row groups of the footer as dictionaries from Thrift field number to value.

    https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
    """
    file.seek(-8, os.SEEK_END)
    size = int.from_bytes(file.read(4), "little")
    file.seek(-8 - size, os.SEEK_END)
    groups = _list(_Thrift(io.BytesIO(file.read(size))).struct(), 4)
    return [group for group in groups if isinstance(group, dict)]


def _columns(group: dict) -> list[dict]:
    """Returns the metadata of the columns of a row group."""
    columns = [column.get(3) for column in _list(group, 1) if isinstance(column, dict)]
    return [column for column in columns if isinstance(column, dict)]


def _path(column: dict) -> str:
    parts = (part for part in _list(column, 3) if isinstance(part, bytes))
    return b".".join(parts).decode(errors="replace")


def _is_delta_encoded(column: dict) -> bool:
    """Returns whether pages are delta encoded, which pyarrow cannot read as dictionaries."""
    return any(encoding in (6, 7) for encoding in _list(column, 2))


def _list(fields: dict, number: int) -> list:
    value = fields.get(number)
    return value if isinstance(value, list) else []


def _number(fields: dict, number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise OSError("invalid size")
    return value


def _check(
    file, group, names: list[str], text_columns: list[str], max_ratio: float
) -> tuple[int, int]:
    """Checks the sizes that a row group declares.

    Returns:
      The number of rows, and the number of rows per batch.

    Raises:
      Bomb: the row group declares too many rows or bytes for its compressed size.
      OSError: the row group is damaged.
    """
    columns, rows, place = _columns(group), _number(group, 3), file.tell()
    compressed = sum(_number(column, 7) for column in columns)
    size, largest = rows * _ROW_BYTES, 1
    for column in columns:
        column_bytes, name = _number(column, 6), _path(column)
        size += column_bytes
        if name in names and _number(column, 5) != rows:
            raise OSError("columns of different lengths")
        if name in names and rows:
            pages = list(_page_sizes(file, column))
            size += max(0, sum(pages) - column_bytes)
            # A row may be as large as a page, if it repeats a value of the dictionary.
            if name not in text_columns:
                largest = max(largest, *pages)
    file.seek(place)
    if is_bomb(size, compressed, max_ratio):
        raise Bomb
    return rows, max(1, min(ROWS, FREE_BYTES // largest))


def _page_sizes(file, column: dict) -> Iterator[int]:
    """Yields the uncompressed size of each page of a column, from the page headers."""
    offset = _number(column, 9)
    if column.get(11):
        offset = min(offset, _number(column, 11))
    end = offset + _number(column, 7)
    while offset < end:
        file.seek(offset)
        fields = _Thrift(file).struct()
        yield _number(fields, 2)
        offset = file.tell() + _number(fields, 3)


class _Thrift:
    """Reads structures in Thrift's compact protocol, the format of footers and page headers.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    _DEEPEST = 12

    def __init__(self, file):
        self._file = file

    def struct(self, depth: int = 0) -> dict:
        """Returns field number -> value: an integer, bytes, a list or a structure."""
        fields, number = {}, 0
        if depth > self._DEEPEST:
            raise OSError("invalid header")
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else _signed(self._varint())
            # The kind of a boolean field encodes its value.
            fields[number] = None if head & 15 in (1, 2) else self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int):
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return _signed(self._varint())
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10) and depth < self._DEEPEST:
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise OSError("invalid header")

    def _bytes(self, size: int) -> bytes:
        if size > _MAX_STRING:  # no field that is used is that long
            self._file.seek(size, os.SEEK_CUR)
            return b""
        data = self._file.read(size)
        if len(data) < size:
            raise OSError("truncated header")
        return data

    def _byte(self) -> int:
        data = self._file.read(1)
        if not data:
            raise OSError("truncated header")
        return data[0]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise OSError("invalid header")


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)
