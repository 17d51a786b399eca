"""Checks declared sizes and links of .keras and .weights.h5 files before Keras reads them.

Keras allocates the sizes that config.json declares and decompresses the sizes that the HDF5 file
declares, whatever the size of the file itself. See `zoo.storage.bounds`.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from zoo.errors import RunError
from zoo.storage.bounds import FREE_BYTES, check_expansion, check_memory, check_zip
from zoo.storage.disk import open_file

WEIGHTS = "model.weights.h5"
_MAX_DEPTH = 200  # of nested groups
_TOO_DEEP = object()
_LOCAL_HEADER = 30  # bytes of a zip member's local header before its name


@contextlib.contextmanager
def open_weights(path: str | Path) -> Iterator[h5py.File]:
    """Opens the HDF5 file of a .keras file; raises RunError if the archive expands too far."""
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        size = check_zip(path, archive, file.seek(0, 2))
        member = archive.getinfo(WEIGHTS)
        if member.compress_type == zipfile.ZIP_STORED:
            # zipfile would read all preceding bytes to seek.
            weights = _StoredMember(file, member)
        else:
            check_memory(path, size)
            weights = io.BytesIO(archive.read(member))
        with h5py.File(weights, "r") as weight_file:
            yield weight_file


def check_keras(path: str | Path) -> int:
    """Checks a .keras file.

    Returns:
      Total number of elements of its weights.

    Raises:
      RunError: if the path is not a regular file, or if the declared weights are far larger than
        the file, do not fit in memory, or are stored in another file.
      Exception: an error of zipfile or h5py if the file is damaged.
    """
    with open_weights(path) as file:
        return _check(path, file)


def check_h5(path: str | Path) -> None:
    """Checks a .weights.h5 file; raises as `check_keras`."""
    with open_file(path) as file, h5py.File(file, "r") as weight_file:
        _check(path, weight_file)


def _check(path, file: h5py.File) -> int:
    datasets = []

    def visit(name, link):
        """Collects datasets; returns the first name that is refused."""
        if name.count("/") > _MAX_DEPTH:  # HDF5 looks each name up from the root
            return _TOO_DEEP  # h5py loses an error that is raised here
        if not isinstance(link, h5py.HardLink):
            return name
        if isinstance(item := file[name], h5py.Dataset):
            datasets.append(item)
            return name if item.is_virtual or item.external else None
        return None

    name = file.visititems_links(visit)
    if name is _TOO_DEEP:
        raise RunError(f"{path} cannot be read: its groups are nested more than {_MAX_DEPTH} deep.")
    if name:
        raise RunError(f"{path} cannot be read: its item {name!r} is a link or in another file.")
    elements = sum(math.prod(item.shape or ()) for item in datasets)
    size = sum(math.prod(item.shape or ()) * item.dtype.itemsize for item in datasets)
    check_expansion(path, size, Path(path).stat().st_size)
    check_memory(path, size)
    return elements


@contextlib.contextmanager
def limit_elements(path: str | Path, elements: int) -> Iterator[None]:
    """Refuses to build a model with far more parameters than its file has weights.

    Args:
      path: path of the file, for the message.
      elements: number of elements of the weights in the file; `FREE_BYTES` of float32 are allowed
        beyond them.

    Raises:
      RunError: when a created variable exceeds the limit.
    """
    create, total = keras.Variable.__init__, 0

    def counting(variable, initializer, shape=None, *args, **kwargs):
        nonlocal total
        total += math.prod(shape if shape is not None else getattr(initializer, "shape", ()))
        if total > elements + FREE_BYTES // 4:
            raise RunError(
                f"{path} cannot be read: its model has {total:,} parameters or more, but the file "
                f"has {elements:,} weights."
            )
        create(variable, initializer, shape, *args, **kwargs)

    keras.Variable.__init__ = counting
    try:
        yield
    finally:
        keras.Variable.__init__ = create


class _StoredMember(io.RawIOBase):
    """Reads an uncompressed member of an open zip file, with random access."""

    def __init__(self, file, member: zipfile.ZipInfo):
        self._file, self._size, self._position = file, member.file_size, 0
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        self._start = member.header_offset + _LOCAL_HEADER + sum(lengths)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        size = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
