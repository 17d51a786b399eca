"""Reads gzip and Zstandard as a stream that bombs, cuts and damage cannot hurt."""

import gzip
import io
import zlib

# Below this a bomb does no harm, and a file of one page may well be all spaces.
FREE_BYTES = 64 << 20


class Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked where its name ends in .gz or .zst.

    What cannot be unpacked ends the file early, and `problem` says why: "damaged", "truncated" or
    "bomb"; "" where all was well. A Zstandard file that is cut off is not told from a whole one.

    Args:
      path: of the file.
      max_ratio: unpacked to packed bytes, above which a file of more than FREE_BYTES is a bomb.
    """

    def __init__(self, path: str, max_ratio: float):
        self._raw = open(path, "rb")  # noqa: SIM115
        self._max_ratio, self._read, self.problem = max_ratio, 0, ""
        if path.lower().endswith(".gz"):
            self._file = gzip.GzipFile(fileobj=self._raw)
        elif path.lower().endswith(".zst"):
            import zstandard

            unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            self._file = unpacker.stream_reader(self._raw, read_across_frames=True)
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
        if self._max_ratio and self._read > FREE_BYTES:
            packed = max(1, self._raw.tell())
            if self._read > packed * self._max_ratio:
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


def opened(path: str, max_ratio: float) -> io.BufferedReader:
    """Returns an `Unpacked` file behind a buffer; its `raw.problem` tells how it ended."""
    return io.BufferedReader(Unpacked(path, max_ratio), 1 << 16)
