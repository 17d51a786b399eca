"""Files between the steps: they appear whole, and equal content gives equal bytes."""

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
def lines_into(path: Path) -> Iterator:
    """Gives `write(line)` into a file packed as its name says, .gz or .zst."""
    with atomic(path) as raw:
        if path.suffix == ".gz":
            # Neither name nor time in the head: they differ from run to run.
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0)
        else:
            import zstandard

            packed = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
        with packed:
            buffer = io.BufferedWriter(packed, 1 << 18)
            yield lambda line: buffer.write(f"{line}\n".encode())
            buffer.flush()
            buffer.detach()


def read_documents(path: Path) -> Iterator[Document]:
    """Yields the documents of a file of JSON lines that a step left."""
    import zstandard

    with open_file(path) as raw:
        if path.suffix == ".gz":
            lines = gzip.GzipFile(fileobj=raw)
        else:
            lines = zstandard.ZstdDecompressor().stream_reader(raw, closefd=False)
        try:
            if not os.fstat(raw.fileno()).st_size:
                raise EOFError("it is empty")
            for line in io.BufferedReader(lines, 1 << 18):
                yield Document.from_json(line.decode())
        except (OSError, EOFError, zlib.error, zstandard.ZstdError, ValueError, TypeError) as error:
            raise _damaged(path, error) from None


def save(path: Path, array: np.ndarray) -> None:
    """Writes an array."""
    with atomic(path) as file:
        np.save(file, array)


def load(path: Path) -> np.ndarray:
    """Maps an array into memory; an empty one is read.

    Raises:
      RunError: where it is damaged, or no file.
    """
    try:
        with open_file(path) as file:
            shape, by_columns, dtype = read_npy_header(file)
            if not math.prod(shape):
                return np.empty(shape, dtype)
            order = "F" if by_columns else "C"
            return np.memmap(file, dtype, "r", file.tell(), shape, order)
    except (OSError, EOFError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path} is damaged ({short(error)}): delete the folder {path.parents[1]} to begin anew."
    )


def slice_of(sorted_array: np.ndarray, part: int, parts: int) -> slice:
    """Returns where the hashes (uint64) of a part of all values lie in a sorted array."""
    low = np.uint64((part << 64) // parts)
    start = int(np.searchsorted(sorted_array, low))
    if part + 1 == parts:
        return slice(start, len(sorted_array))
    high = np.uint64(((part + 1) << 64) // parts)
    return slice(start, int(np.searchsorted(sorted_array, high)))
