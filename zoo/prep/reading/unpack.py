"""Reads gzip and Zstandard as a stream that bombs, cuts and damage cannot hurt."""

import gzip
import io
import zlib

from zoo.errors import RunError
from zoo.storage.disk import open_file

# Below this a bomb does no harm, and a file of one page may well be all spaces.
FREE_BYTES = 64 << 20


def is_bomb(unpacked: int, packed: int, max_ratio: float) -> bool:
    """Returns whether so many bytes out of `packed` ones are more than a file may hold."""
    return unpacked > FREE_BYTES and unpacked > max(1, packed) * max_ratio


def open_input(path: str) -> io.BufferedReader:
    """Opens a regular file; raises OSError for all others: opening a pipe would wait for ever."""
    try:
        return open_file(path)
    except RunError as error:
        raise OSError(0, "cannot be read") from error


class Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked where its name ends in .gz or .zst.

    What cannot be unpacked ends the file early, and `problem` says why: "damaged", "truncated" or
    "bomb"; "" where all was well.

    Args:
      path: of the file.
      max_ratio: unpacked to packed bytes, above which a file of more than FREE_BYTES is a bomb.
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
            # One piece at a time: what stands before the damage is not lost with it.
            data = self._file.read1(len(buffer))
        except EOFError:
            return self._end("truncated")
        except (zlib.error, gzip.BadGzipFile):
            return self._end("damaged")
        except Exception as error:
            # zstandard may not be imported here, so its error is known by its name.
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
    """Reads Zstandard frames, and tells a frame that is cut off, as gzip.GzipFile does."""

    _PIECE = 1024  # may unpack to 32 MB

    def __init__(self, raw):
        import zstandard

        self._raw, self._packed, self._data = raw, b"", memoryview(b"")
        self._frames = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._frame = None

    def read1(self, size: int) -> bytes | memoryview:
        """Returns at most `size` bytes; none at the end. Raises EOFError where it comes early."""
        while not self._data:
            packed = self._packed or self._raw.read(self._PIECE)
            if not packed:
                if self._frame:
                    raise EOFError
                return b""
            self._packed = b""
            self._frame = self._frame or self._frames.decompressobj()
            self._data = memoryview(self._frame.decompress(packed))
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        data, self._data = self._data[:size], self._data[size:]
        return data

    def close(self) -> None:
        """Does nothing: whoever opened the file closes it."""


def opened(path: str, max_ratio: float) -> io.BufferedReader:
    """Returns an `Unpacked` file behind a buffer; its `raw.problem` tells how it ended."""
    return io.BufferedReader(Unpacked(path, max_ratio), 1 << 16)
