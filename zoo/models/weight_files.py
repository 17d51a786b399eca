"""Checks .keras and .weights.h5 files before Keras reads them: their declared sizes, and no links.

Keras allocates what config.json declares and decompresses what the HDF5 file declares, whatever
the size of the file itself. See `zoo.data.bounds`.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from zoo.data.bounds import FREE_BYTES, check_expansion, check_memory, check_zip
from zoo.data.disk import open_file
from zoo.errors import RunError

WEIGHTS = "model.weights.h5"
_DEEPEST = 200  # groups in groups
_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name


@contextlib.contextmanager
def open_weights(path: str | Path) -> Iterator[h5py.File]:
    """Opens the HDF5 file of a .keras file; raises RunError where the archive is a bomb."""
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        size = check_zip(path, archive, file.seek(0, 2))
        member = archive.getinfo(WEIGHTS)
        if member.compress_type == zipfile.ZIP_STORED:
            # Not by zipfile, which reads all that lies before a place to go there.
            weights = _Part(file, member)
        else:
            check_memory(path, size)
            weights = io.BytesIO(archive.read(member))
        with h5py.File(weights, "r") as found:
            yield found


def check_keras(path: str | Path) -> int:
    """Checks a .keras file.

    Returns:
      Number of elements of all its weights.

    Raises:
      RunError: where it is no regular file, or what it declares is far larger than the file, does
        not fit in memory, or lies in another file.
      Exception: what zipfile and h5py raise where it is damaged.
    """
    with open_weights(path) as file:
        return _check(path, file)


def check_h5(path: str | Path) -> None:
    """Checks a .weights.h5 file; raises as `check_keras`."""
    with open_file(path) as file, h5py.File(file, "r") as found:
        _check(path, found)


def _check(path, file: h5py.File) -> int:
    datasets = []

    def elsewhere(name, link):
        if name.count("/") > _DEEPEST:  # HDF5 finds each name from the top
            raise RunError(
                f"{path} cannot be read: its groups are nested {_DEEPEST} times and more."
            )
        if not isinstance(link, h5py.HardLink):
            return name
        if isinstance(found := file[name], h5py.Dataset):
            datasets.append(found)
            return name if found.is_virtual or found.external else None
        return None

    if name := file.visititems_links(elsewhere):
        raise RunError(f"{path} cannot be read: {name!r} in it is a link, or lies in another file.")
    elements = sum(math.prod(found.shape or ()) for found in datasets)
    size = sum(math.prod(found.shape or ()) * found.dtype.itemsize for found in datasets)
    check_expansion(path, size, Path(path).stat().st_size)
    check_memory(path, size)
    return elements


@contextlib.contextmanager
def at_most(path: str | Path, elements: int) -> Iterator[None]:
    """Refuses to build a model with more elements than its file holds, beyond `FREE_BYTES`.

    Args:
      path: of the file, for the message.
      elements: number of elements of the weights in the file.

    Raises:
      RunError: from the creation of the variable that is too much.
    """
    create, made = keras.Variable.__init__, 0

    def counting(variable, initializer, shape=None, *args, **kwargs):
        nonlocal made
        made += math.prod(shape if shape is not None else getattr(initializer, "shape", ()))
        if made > elements + FREE_BYTES // 4:
            raise RunError(
                f"{path} cannot be read: its model has {made:,} parameters or more, and its "
                f"weights are {elements:,}."
            )
        create(variable, initializer, shape, *args, **kwargs)

    keras.Variable.__init__ = counting
    try:
        yield
    finally:
        keras.Variable.__init__ = create


class _Part(io.RawIOBase):
    """A stored member of an open zip file; reads at any place."""

    def __init__(self, file, member: zipfile.ZipInfo):
        self._file, self._size, self._at = file, member.file_size, 0
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        self._start = member.header_offset + _LOCAL_HEADER + sum(lengths)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
