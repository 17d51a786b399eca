"""Reads .npz and .npy files from untrusted sources: no pickles, bounded sizes."""

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
_FORTRAN_ORDER = re.compile(r"'fortran_order':\s*(True|False)\b")
_TYPE = re.compile(r"'descr':\s*'([<>|=]?[a-zA-Z][0-9]*(?:\[[0-9A-Za-z]+\])?)'")


class Arrays(Mapping):
    """Maps the names in an open .npz file to its arrays; each access reads one array.

    A damaged array raises the errors of zipfile and NumPy. Several threads may read.
    """

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._names = [name.removesuffix(".npy") for name in archive.namelist()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        # Reading the whole member makes zipfile check its CRC.
        return array_of(self._archive.read(f"{name}.npy"))


@contextlib.contextmanager
def open_npz(source: Path | str | bytes) -> Iterator[Arrays]:
    """Opens an .npz file.

    Args:
      source: the path, or the content of the file as bytes.

    Raises:
      RunError: if the path is not a regular file, or the arrays exceed `zoo.storage.bounds`.
      Exception: an error of zipfile if the file is damaged.
    """
    in_memory = isinstance(source, bytes)
    # zipfile would leave a damaged file open that it had source_file itself.
    source_file = io.BytesIO(source) if in_memory else open_file(source)
    with source_file as file, zipfile.ZipFile(file) as archive:
        path = "the received .npz content" if in_memory else source
        check_memory(path, check_zip(path, archive, file.seek(0, 2)))
        yield Arrays(archive)


def array_of(data: bytes) -> np.ndarray:
    """Returns a read-only array that shares memory with the content of an .npy file.

    Raises:
      ValueError: if the content is not an array, holds Python objects, or has a wrong size.
    """
    file = io.BytesIO(data)
    shape, fortran_order, dtype = read_npy_header(file)
    content = np.frombuffer(data, np.uint8)[file.tell() :].view(dtype)
    return content.reshape(shape[::-1]).T if fortran_order else content.reshape(shape)


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an .npy file (format of numpy.lib.format, versions 1 and 2).

    NumPy's own reader calls Python's parser, which up to Python 3.12 sometimes fails if two
    threads parse at once (SystemError, https://github.com/python/cpython/issues/106905), and
    checkpoints are read by several threads.

    Returns:
      `(shape, fortran_order, dtype)`.

    Raises:
      ValueError: if the file is not an array, or is an array of records or of Python objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in _LENGTH_BYTES:
        raise ValueError(f"unsupported .npy version {version}")
    length = int.from_bytes(file.read(_LENGTH_BYTES[version]), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"an .npy header of {length} bytes exceeds {_MAX_HEADER}")
    header = file.read(length).decode("latin1")
    fields = [field.search(header) for field in (_SHAPE, _FORTRAN_ORDER, _TYPE)]
    if not all(fields):
        raise ValueError(f"invalid .npy header {short(repr(header))}")
    shape, fortran_order, name = (field[1] for field in fields)
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError("pickled Python objects are not loaded")
    sizes = tuple(int(size) for size in shape.replace(" ", "").split(",") if size)
    return sizes, fortran_order == "True", dtype
