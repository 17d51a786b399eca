"""Reads .npz files without trusting what they declare: no pickles, bounded sizes."""

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zoo.errors import short
from zoo.storage.bounds import check_memory, check_zip
from zoo.storage.disk import open_file

_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}
_MAX_HEADER = 10_000
_SHAPE = re.compile(r"'shape':\s*\(([0-9, ]*)\)")
_BY_COLUMNS = re.compile(r"'fortran_order':\s*(True|False)\b")
_TYPE = re.compile(r"'descr':\s*'([<>|=]?[a-zA-Z][0-9]*(?:\[[0-9A-Za-z]+\])?)'")


class Arrays(Mapping):
    """The arrays of an open .npz file by name, each read as a whole when asked for.

    A damaged array raises what zipfile and NumPy raise, about ten kinds of errors. Several threads
    may read.
    """

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._names = [name.removesuffix(".npy") for name in archive.namelist()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        # Read as a whole, so that its CRC is checked whatever the array's own header says.
        return array_of(self._archive.read(f"{name}.npy"))


@contextlib.contextmanager
def open_npz(source: Path | str | bytes) -> Iterator[Arrays]:
    """Opens a file, or its content.

    Raises:
      RunError: where it is no regular file, or its arrays take too much; see `zoo.storage.bounds`.
      Exception: what zipfile raises where it is damaged.
    """
    content = isinstance(source, bytes)
    # Opened here because zipfile leaves a damaged file open.
    opened = io.BytesIO(source) if content else open_file(source)
    with opened as file, zipfile.ZipFile(file) as archive:
        path = "what was sent" if content else source
        check_memory(path, check_zip(path, archive, file.seek(0, 2)))
        yield Arrays(archive)


def array_of(data: bytes) -> np.ndarray:
    """Returns the array of an .npy file's content, without a copy: read-only.

    Raises:
      ValueError: where it is no array, holds Python objects, or declares another size than it has.
    """
    file = io.BytesIO(data)
    shape, by_columns, dtype = read_npy_header(file)
    content = np.frombuffer(data, np.uint8)[file.tell() :].view(dtype)
    return content.reshape(shape[::-1]).T if by_columns else content.reshape(shape)


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads an .npy file up to its values: shape, whether columns lie together, and type.

    NumPy's own reader hands the header to Python's parser, which up to Python 3.12 fails now and
    then where two threads parse at once (SystemError, https://github.com/python/cpython/issues/106905);
    checkpoints are read by several threads. The format is numpy.lib.format's, versions 1 and 2.

    Raises:
      ValueError: where it is no array, one of records, or one of Python objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in _LENGTH_BYTES:
        raise ValueError(f"an array of version {version}")
    length = int.from_bytes(file.read(_LENGTH_BYTES[version]), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"an array's header of {length} bytes")
    header = file.read(length).decode("latin1")
    fields = [field.search(header) for field in (_SHAPE, _BY_COLUMNS, _TYPE)]
    if not all(fields):
        raise ValueError(f"an array's header that reads {short(repr(header))}")
    shape, by_columns, name = (field[1] for field in fields)
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError("pickled Python objects are not loaded")
    sizes = tuple(int(size) for size in shape.replace(" ", "").split(",") if size)
    return sizes, by_columns == "True", dtype
