"""Reads the rows of a Parquet file in bounded memory.

A few hundred bytes can declare any number of rows, and store one value of any size for all of them.
So the footer is asked first, then the header of each page (which is what pyarrow allocates by), and
the values that come out are counted. Columns of text are read as dictionaries, so that a value that
many rows share is held once; of others few rows at once, where their pages are large.

The footer is read here: pyarrow's objects for damaged columns end the process.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence

from zoo.prep.unpack import FREE_BYTES, is_bomb, open_input

ROWS = 256  # that are read at once, at most
_ROW_BYTES = 64  # a row counts as at least so many
_LONGEST = 1 << 16  # bytes of a string in a header or footer
DAMAGED = object()  # a value that Python cannot hold: broken UTF-8, or a date behind the year 9999


class Bomb(Exception):
    """A file that expands to more than its bytes may hold."""


class DamagedRows(Exception):
    """The rest of a row group cannot be read; the next one may be."""


def row_groups(
    path: str, wanted: Sequence[str], mine: Callable[[], bool], max_ratio: float
) -> Iterator[Iterator[dict]]:
    """Yields the rows of each row group, as dictionaries of the wanted columns that are there.

    Columns of lists and the like are left out.

    Args:
      path: of the file.
      wanted: names of columns.
      mine: called for each row; whether it is wanted.
      max_ratio: unpacked to packed bytes, above which a large file is a bomb.

    Raises:
      Bomb: where the file declares, or gives, more than that.
      DamagedRows: while rows are read.
      pyarrow.ArrowException, OSError: where the file cannot be read.
    """
    import pyarrow.parquet
    from pyarrow import types

    with open_input(path) as file:
        about = pyarrow.parquet.read_metadata(file)
        schema = about.schema.to_arrow_schema()
        names = [field.name for field in schema if not types.is_nested(field.type)]
        names = [name for name in names if name in wanted]
        groups = _row_groups(file)
        if len(groups) != about.num_row_groups:
            raise OSError("a footer that is none")
        plain = {_path(column) for group in groups for column in _columns(group) if _delta(column)}
        texts = [name for name in names if _is_text(schema.field(name).type) and name not in plain]
        packed, size = os.fstat(file.fileno()).st_size, 0

        def rows(number: int) -> Iterator[dict]:
            nonlocal size
            try:
                count, at_once = _check(file, groups[number], names, texts, max_ratio)
                if not count:
                    return
                for batch in table.iter_batches(at_once, [number], columns=names):
                    count -= batch.num_rows
                    # Of all rows, so that it does not depend on which of them are `mine`.
                    size += sum(map(_bytes_of, batch.columns))
                    if is_bomb(size, packed, max_ratio):
                        raise Bomb
                    for place in range(batch.num_rows):
                        if mine():
                            yield {name: _value(batch.column(name)[place]) for name in names}
                if count:  # pyarrow passes over some damage
                    raise OSError("rows are missing")
            except (pyarrow.ArrowException, OSError) as error:
                raise DamagedRows from error

        with pyarrow.parquet.ParquetFile(
            file, read_dictionary=texts, page_checksum_verification=True
        ) as table:
            yield from map(rows, range(len(groups)))


def _is_text(kind) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind)


def _bytes_of(column) -> int:
    """Returns the bytes of a column's values, a shared value as often as it occurs."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pyarrow.compute.binary_length(column.dictionary)
    return pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0


def _value(field):
    try:
        return field.as_py()
    except (ValueError, OverflowError, LookupError):  # the last of unknown time zones
        return DAMAGED


# --- what a row group declares --------------------------------------------------------------------


def _row_groups(file) -> list[dict]:
    """Returns the row groups as the footer has them, by the numbers of their fields.

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


def _delta(column: dict) -> bool:
    """Whether pages are delta encoded: pyarrow does not read these as dictionaries."""
    return any(encoding in (6, 7) for encoding in _list(column, 2))


def _list(fields: dict, number: int) -> list:
    value = fields.get(number)
    return value if isinstance(value, list) else []


def _number(fields: dict, number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise OSError("a size that is none")
    return value


def _check(file, group, names: list[str], texts: list[str], max_ratio: float) -> tuple[int, int]:
    """Checks what a row group declares.

    Returns:
      Its number of rows, and how many of them may be read at once.

    Raises:
      Bomb: where its rows or pages are too many for its bytes.
      OSError: where it is damaged.
    """
    columns, rows, place = _columns(group), _number(group, 3), file.tell()
    packed = sum(_number(column, 7) for column in columns)
    size, largest = rows * _ROW_BYTES, 1
    for column in columns:
        unpacked, name = _number(column, 6), _path(column)
        size += unpacked
        if name in names and _number(column, 5) != rows:
            raise OSError("a column of another length")
        if name in names and rows:
            pages = list(_page_sizes(file, column))
            size += max(0, sum(pages) - unpacked)
            # A row may take as much as a page: a value of a dictionary, or of what is before it.
            if name not in texts:
                largest = max(largest, *pages)
    file.seek(place)
    if is_bomb(size, packed, max_ratio):
        raise Bomb
    return rows, max(1, min(ROWS, FREE_BYTES // largest))


def _page_sizes(file, column: dict) -> Iterator[int]:
    """Yields the unpacked size of each page of a column, as the page's header has it."""
    place = _number(column, 9)
    if column.get(11):
        place = min(place, _number(column, 11))
    end = place + _number(column, 7)
    while place < end:
        file.seek(place)
        fields = _Thrift(file).struct()
        yield _number(fields, 2)
        place = file.tell() + _number(fields, 3)


class _Thrift:
    """Reads a structure in Thrift's compact protocol, as the headers of pages are written.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    _DEEPEST = 12

    def __init__(self, file):
        self._file = file

    def struct(self, depth: int = 0) -> dict:
        """Returns the fields by their number: integers, bytes, lists and structures."""
        fields, number = {}, 0
        if depth > self._DEEPEST:
            raise OSError("a header that is none")
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else _signed(self._varint())
            # A boolean of a structure is in its kind.
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
        raise OSError("a header that is none")

    def _bytes(self, size: int) -> bytes:
        if size > _LONGEST:  # nothing that is needed is so long
            self._file.seek(size, os.SEEK_CUR)
            return b""
        data = self._file.read(size)
        if len(data) < size:
            raise OSError("a header that is cut off")
        return data

    def _byte(self) -> int:
        data = self._file.read(1)
        if not data:
            raise OSError("a header that is cut off")
        return data[0]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise OSError("a header that is none")


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)
