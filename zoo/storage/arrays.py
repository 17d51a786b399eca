"""Reads .npz files without trusting what they declare: no pickles, bounded sizes."""

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.storage.bounds import check_memory, check_zip
from zoo.storage.disk import open_file


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
    header = io.BytesIO(data)
    version = np.lib.format.read_magic(header)
    if version == (1, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(header)
    elif version == (2, 0):
        shape, by_columns, dtype = np.lib.format.read_array_header_2_0(header)
    else:
        raise ValueError(f"an array of version {version}")
    if dtype.hasobject:
        raise ValueError("pickled Python objects are not loaded")
    content = np.frombuffer(data, np.uint8)[header.tell() :].view(dtype)
    return content.reshape(shape[::-1]).T if by_columns else content.reshape(shape)
