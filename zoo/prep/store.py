"""Reads and writes the files between the steps; equal content gives equal bytes."""

import contextlib
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zoo.errors import RunError, short
from zoo.prep.document import Document
from zoo.storage.arrays import read_npy_header
from zoo.storage.disk import atomic, open_file


@contextlib.contextmanager
def open_line_writer(path: Path) -> Iterator:
    """Yields `write(line)` into a file that is compressed by its suffix, .gz or .zst.

    The file appears under its name when the block ends.
    """
    with atomic(path) as raw:
        if path.suffix == ".gz":
            # No name or time in the header: they would differ between runs.
            compressor = gzip.GzipFile("", "wb", 6, raw, mtime=0)
        else:
            import zstandard

            compressor = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
        with compressor:
            buffer = io.BufferedWriter(compressor, 1 << 18)
            yield lambda line: buffer.write(f"{line}\n".encode())
            buffer.flush()
            buffer.detach()


def read_documents(path: Path) -> Iterator[Document]:
    """Yields the documents of a compressed JSONL file that a step wrote.

    Raises:
      RunError: the file is damaged.
    """
    import zstandard

    with open_file(path) as raw:
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        else:
            stream = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)
        try:
            if not os.fstat(raw.fileno()).st_size:
                raise EOFError("it is empty")
            for line in io.BufferedReader(stream, 1 << 18):
                yield Document.from_json(line.decode())
        except (OSError, EOFError, zlib.error, zstandard.ZstdError, ValueError, TypeError) as error:
            raise _damaged(path, error) from None


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as .npy."""
    with atomic(path) as file:
        np.save(file, array)


def load_array(path: Path) -> np.ndarray:
    """Returns a read-only memory map of an .npy file; an empty array is not mapped.

    Raises:
      RunError: the file is missing or damaged.
    """
    try:
        with open_file(path) as file:
            shape, fortran_order, dtype = read_npy_header(file)
            if not math.prod(shape):
                return np.empty(shape, dtype)
            order = "F" if fortran_order else "C"
            return np.memmap(file, dtype, "r", file.tell(), shape, order)
    except (OSError, EOFError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path} is damaged ({short(error)}). Delete the folder {path.parents[1]} to start again."
    )


def hash_slice(sorted_array: np.ndarray, part: int, parts: int) -> slice:
    """Returns the slice of sorted uint64 hashes in range `part` of `parts` equal ranges."""
    low = np.uint64((part << 64) // parts)
    start = int(np.searchsorted(sorted_array, low))
    if part + 1 == parts:
        return slice(start, len(sorted_array))
    high = np.uint64(((part + 1) << 64) // parts)
    return slice(start, int(np.searchsorted(sorted_array, high)))
