"""Reads gzip and Zstandard as a stream, safe against bombs, truncation and damage."""

import gzip
import io
import zlib

from zoo.errors import RunError
from zoo.storage.disk import open_file

# Uncompressed size up to which every compression ratio is allowed.
FREE_BYTES = 64 << 20


def is_bomb(size: int, compressed_size: int, max_ratio: float) -> bool:
    """Returns whether `compressed_size` bytes that expand to `size` are a decompression bomb."""
    return size > FREE_BYTES and size > max(1, compressed_size) * max_ratio


def open_input(path: str) -> io.BufferedReader:
    """Opens a regular file; raises OSError for others, because opening a pipe would block."""
    try:
        return open_file(path)
    except RunError as error:
        raise OSError(0, "cannot be read") from error


class UnpackedFile(io.RawIOBase):
    """Reads the bytes of a file, decompressed if its name ends in .gz or .zst.

    Args:
      path: path of the file.
      max_ratio: compression ratio above which a file of more than FREE_BYTES is a bomb.

    Attributes:
      problem: why the file ended early: "damaged", "truncated" or "bomb"; "" if it did not.
    """

    def __init__(self, path: str, max_ratio: float):
        self._raw = open_input(path)
        self._max_ratio, self._read, self.problem = max_ratio, 0, ""
        if path.lower().endswith(".gz"):
            self._file = gzip.GzipFile(fileobj=self._raw)
        elif path.lower().endswith(".zst"):
            self._file = _Zstandard(self._raw)
        else:
            self._file, self._max_ratio = self._raw, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self.problem:
            return 0
        try:
            # One piece at a time, so that data before the damage is not lost.
            data = self._file.read1(len(buffer))
        except EOFError:
            return self._end("truncated")
        except (zlib.error, gzip.BadGzipFile):
            return self._end("damaged")
        except Exception as error:
            # Compares the name, because zstandard may not be installed.
            if type(error).__name__ != "ZstdError":
                raise
            return self._end("damaged")
        self._read += len(data)
        if self._max_ratio and is_bomb(self._read, self._raw.tell(), self._max_ratio):
            return self._end("bomb")
        buffer[: len(data)] = data
        return len(data)

    def _end(self, problem: str) -> int:
        self.problem = problem
        return 0

    def close(self):
        if not self.closed:
            self._file.close()
            self._raw.close()
        super().close()


class _Zstandard:
    """Reads Zstandard frames and detects a truncated frame, as gzip.GzipFile does."""

    _PIECE = 1024  # may decompress to 32 MB

    def __init__(self, raw):
        import zstandard

        self._raw, self._packed, self._data = raw, b"", memoryview(b"")
        self._frames = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._frame = None

    def read1(self, size: int) -> bytes | memoryview:
        """Returns at most `size` bytes, b"" at the end; raises EOFError in a truncated frame."""
        while not self._data:
            compressed = self._packed or self._raw.read(self._PIECE)
            if not compressed:
                if self._frame:
                    raise EOFError
                return b""
            self._packed = b""
            self._frame = self._frame or self._frames.decompressobj()
            self._data = memoryview(self._frame.decompress(compressed))
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        data, self._data = self._data[:size], self._data[size:]
        return data

    def close(self) -> None:
        """Does nothing, because `UnpackedFile` closes the file."""


def open_unpacked(path: str, max_ratio: float) -> io.BufferedReader:
    """Returns a buffered `UnpackedFile`; its `raw.problem` tells how it ended."""
    return io.BufferedReader(UnpackedFile(path, max_ratio), 1 << 16)
