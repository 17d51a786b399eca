"""Reads the rows of a Parquet file in bounded memory.

A few hundred bytes can declare any number of rows, and store one value of any size for all of them.
So the footer is asked first, then the header of each page (which is what pyarrow allocates by), and
the values that come out are counted. Columns of text are read as dictionaries, so that a value that
many rows share is held once.
"""

import os
from collections.abc import Callable, Iterator, Sequence

from zoo.prep.reading.unpack import is_bomb, open_input

ROWS = 256  # that are read at once
_ROW_BYTES = 64  # a row counts as at least so many
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
        texts = [name for name in names if _is_text(schema.field(name).type)]
        packed, size = os.fstat(file.fileno()).st_size, 0

        def rows(number: int) -> Iterator[dict]:
            nonlocal size
            try:
                _check(file, about.row_group(number), names, max_ratio)
                for batch in table.iter_batches(ROWS, [number], columns=names):
                    # Of all rows, so that it does not depend on which of them are `mine`.
                    size += sum(map(_bytes_of, batch.columns))
                    if is_bomb(size, packed, max_ratio):
                        raise Bomb
                    for place in range(batch.num_rows):
                        if mine():
                            yield {name: _value(batch.column(name)[place]) for name in names}
            except (pyarrow.ArrowException, OSError) as error:
                raise DamagedRows from error

        with pyarrow.parquet.ParquetFile(file, read_dictionary=texts) as table:
            yield from map(rows, range(about.num_row_groups))


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
    except (ValueError, OverflowError):
        return DAMAGED


# --- what a row group declares --------------------------------------------------------------------


def _check(file, group, names: list[str], max_ratio: float) -> None:
    """Raises `Bomb` where the rows or the pages of a row group are too many for its bytes."""
    columns = [group.column(i) for i in range(group.num_columns)]
    packed = sum(column.total_compressed_size for column in columns)
    size, place = group.num_rows * _ROW_BYTES, file.tell()
    for column in columns:
        size += column.total_uncompressed_size
        if column.path_in_schema in names:
            pages = sum(_page_sizes(file, column))
            size += max(0, pages - column.total_uncompressed_size)
    file.seek(place)
    if is_bomb(size, packed, max_ratio):
        raise Bomb


def _page_sizes(file, column) -> Iterator[int]:
    """Yields the unpacked size of each page of a column, as the page's header has it."""
    place = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        place = min(place, column.dictionary_page_offset)
    end = place + column.total_compressed_size
    while place < end:
        file.seek(place)
        fields = _Thrift(file).struct()
        unpacked, packed = fields.get(2), fields.get(3)
        if (
            not isinstance(unpacked, int)
            or not isinstance(packed, int)
            or min(unpacked, packed) < 0
        ):
            raise OSError("a page without a size")
        yield unpacked
        place = file.tell() + packed


class _Thrift:
    """Reads a structure in Thrift's compact protocol, as the headers of pages are written.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    _DEEPEST = 8

    def __init__(self, file):
        self._file = file

    def struct(self, depth: int = 0) -> dict[int, int | None]:
        """Returns the fields by their number: integers, and None for all others."""
        fields, number = {}, 0
        if depth > self._DEEPEST:
            raise OSError("a header that is none")
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else _signed(self._varint())
            fields[number] = self._field(head & 15, depth)
        return fields

    def _field(self, kind: int, depth: int) -> int | None:
        if kind in (4, 5, 6):
            return _signed(self._varint())
        if kind == 3:
            self._byte()
        elif kind == 8:
            self._file.seek(self._varint(), 1)
        elif kind == 12:
            self.struct(depth + 1)
        elif kind not in (1, 2):
            raise OSError("a header that is none")
        return None

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
