"""Bounds on the memory that an untrusted file can make a reader allocate.

A few kilobytes can declare, or decompress to, more than the memory of a machine. File size itself
is not bounded: a model of 30 GB and a corpus of 100 GB are fine. Every reader checks two bounds:

1. Expansion (`check_expansion`). Beyond `FREE_BYTES`, data may take at most `MAX_RATIO` times their
   stored size. The declared size is checked before anything is allocated, the decompressed size
   while it is read. Text compressed by gzip or Zstandard has a ratio of 2 to 20, weights about 1,
   a decompression bomb about 1,000.
2. Memory (`check_memory`). Data held at once (a JSON document, the arrays of a file, the weights of
   a model, a document of a corpus) must fit in the memory that is available now. Streams and
   memory maps (shards, lines, single tensors) count one piece at a time.

`zoo.storage.disk.open_file` refuses anything but regular files first.
"""

import gzip
import io
import resource
import zipfile
from pathlib import Path

from zoo.errors import RunError

FREE_BYTES = 256 << 20
MAX_RATIO = 100
# Worst case of bytes of Python objects per byte of JSON: "[]," is a list of 56 bytes and a pointer.
JSON_EXPANSION = 32
TEXT_EXPANSION = 5  # worst case of bytes per byte of UTF-8: itself, and four per character
MAX_MEMBERS = 50_000  # of a zip archive; reading hundreds of thousands takes minutes
MAX_AXES = 64  # of an array: NumPy's own bound. The product of millions of sizes takes hours.
MAX_LINE_BYTES = 64 << 20  # a line is a JSON object or a pair of sentences


def check_expansion(path, size: int, stored_size: int) -> None:
    """Checks that data are not far larger than their stored size.

    Args:
      path: path of the file, for the message.
      size: bytes of the data, declared or decompressed so far.
      stored_size: bytes of the file that hold the data.

    Raises:
      RunError: if the data expand more than `MAX_RATIO` times beyond `FREE_BYTES`.
    """
    if size > FREE_BYTES and size > MAX_RATIO * stored_size:
        raise RunError(
            f"{path} cannot be read: {stored_size:,} stored bytes expand to {size:,} bytes or "
            f"more; beyond {FREE_BYTES >> 20} MiB, data may expand at most {MAX_RATIO} times. If "
            "the file is genuine, store it uncompressed."
        )


def check_memory(path, size: int) -> None:
    """Checks that data which must be held at once fit in memory.

    Args:
      path: path of the file, for the message.
      size: bytes of the data in memory.

    Raises:
      RunError: if fewer bytes are available.
    """
    if size > FREE_BYTES and size > (free := available_memory()):
        raise RunError(
            f"{path} cannot be read: it requires {size:,} bytes of memory; {free:,} are available."
        )


def check_zip(path, archive: zipfile.ZipFile, stored_size: int) -> int:
    """Checks the declared sizes of a zip archive's members; zipfile reads no more than these.

    Args:
      path: path of the file, for the message.
      archive: the open archive.
      stored_size: bytes of the file. Members may overlap, so the sum of their sizes is no bound.

    Returns:
      The decompressed bytes of all members together.

    Raises:
      RunError: if the archive has too many members, expands too far, or uses a compression that
        cannot be read in bounded memory.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise RunError(f"{path} cannot be read: it has more than {MAX_MEMBERS:,} members.")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RunError(
                f"{path} cannot be read: {member.filename!r} is neither stored nor deflated."
            )
    size = sum(member.file_size for member in members)
    check_expansion(path, size, stored_size)
    return size


class Decompressed(io.RawIOBase):
    """Reads the decompressed bytes of an open gzip file and closes the file with itself.

    Reading raises RunError when the data exceed `check_expansion`.

    Args:
      path: path of the file, for the message.
      file: the open file.
    """

    def __init__(self, path, file):
        self._path, self._file, self._size = path, file, 0
        self._gzip = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._gzip.read(len(buffer))
        self._size += len(data)
        check_expansion(self._path, self._size, self._file.tell())
        buffer[: len(data)] = data
        return len(data)

    def close(self):
        if not self.closed:
            self._gzip.close()
            self._file.close()
        super().close()


def available_memory() -> int:
    """Returns the bytes that this process can still allocate.

    This is the least of the machine's memory with swap, the limit of the control group (of a
    container) and the limit of the address space (`ulimit -v`).
    """
    import psutil

    limits = [psutil.virtual_memory().available + psutil.swap_memory().free]
    limits += filter(None, map(_group_free_memory, _GROUPS))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space - psutil.Process().memory_info().vms)
    return max(0, min(limits))


# Folder, and names of the files or fields, of control groups version 2 and 1.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)  # fmt: skip


def _group_free_memory(group: tuple[str, str, str, str]) -> int | None:
    folder, limit, usage, cached = group
    try:
        limit_bytes = int(
            (Path(folder) / limit).read_text()
        )  # "max" if there is no limit: ValueError
        used_bytes = int((Path(folder) / usage).read_text())
        lines = (Path(folder) / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        return max(
            1, limit_bytes - used_bytes + int(stat.get(cached, 0))
        )  # the page cache can be given up
    except (OSError, ValueError):
        return None
