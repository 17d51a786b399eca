"""What may be read of a file that someone else made: the bounds of every reader, in one place.

A few kilobytes can declare, or decompress to, more than a machine has. The size of a file says
nothing: a model of 30 GB and a corpus of 100 GB are fine. So no reader bounds the size of what it
reads as it lies on the disk, and all bound the following.

1. Expansion (`check_expansion`). Beyond `FREE_BYTES`, data may take at most `MAX_RATIO` times the
   bytes that they are stored in: what a header declares before anything is allocated, and what
   comes out of a decompressor while it is read. Text compressed by gzip or Zstandard has a ratio
   of 2 to 20, weights about 1, a bomb about 1,000. The way out for honest data is to store them
   uncompressed.
2. Memory (`check_memory`). What has to be held at once (a JSON document, the arrays of a file, the
   weights of a model, a document of a corpus) must fit in the memory that is available now.
   What is read as a stream or mapped (shards, lines, tensors one by one) counts one piece at a
   time.

A file that is not a regular file is refused before: `zoo.storage.disk.open_file`.
"""

import gzip
import io
import resource
import zipfile
from pathlib import Path

from zoo.errors import RunError

FREE_BYTES = 256 << 20
MAX_RATIO = 100
# Bytes of Python objects per byte of JSON, at worst: "[]," is a list of 56 bytes and a pointer.
JSON_EXPANSION = 32
TEXT_EXPANSION = 5  # bytes for each byte of UTF-8, at worst: itself, and four for each character
MOST_MEMBERS = 50_000  # of a zip archive; reading hundreds of thousands takes minutes
MOST_AXES = 64  # of an array: NumPy's own bound. The product of millions of sizes takes hours.
LONGEST_LINE = 64 << 20  # bytes of a line, which is a JSON object or a pair of sentences


def check_expansion(path, size: int, stored: int) -> None:
    """Checks that data are not far larger than what they are stored in.

    Args:
      path: of the file, for the message.
      size: bytes that the data take, declared or decompressed so far.
      stored: bytes of the file that hold them.

    Raises:
      RunError: where they are.
    """
    if size > FREE_BYTES and size > MAX_RATIO * stored:
        raise RunError(
            f"{path} cannot be read: its data take {size:,} bytes or more and are stored in "
            f"{stored:,}; beyond {FREE_BYTES >> 20} MiB, data may take at most {MAX_RATIO} times "
            "what they are stored in. If the file is genuine, store it uncompressed."
        )


def check_memory(path, size: int) -> None:
    """Checks that what must be held at once fits in memory.

    Args:
      path: of the file, for the message.
      size: bytes.

    Raises:
      RunError: where it does not.
    """
    if size > FREE_BYTES and size > (free := available_memory()):
        raise RunError(
            f"{path} cannot be read: it takes {size:,} bytes of memory, {free:,} are available."
        )


def check_zip(path, archive: zipfile.ZipFile, stored: int) -> int:
    """Checks what the members of a zip archive declare, which is where zipfile ends them.

    Args:
      path: of the file, for the message.
      archive: the open archive.
      stored: bytes of the file. Members may overlap, so their own sizes say nothing.

    Returns:
      The bytes of all members together.

    Raises:
      RunError: where they are too many, far larger than the file, or compressed in a way that
        nothing reads in bounded memory.
    """
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise RunError(f"{path} cannot be read: it has more than {MOST_MEMBERS:,} members.")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RunError(
                f"{path} cannot be read: {member.filename!r} is neither stored nor deflated."
            )
    size = sum(member.file_size for member in members)
    check_expansion(path, size, stored)
    return size


class Decompressed(io.RawIOBase):
    """The decompressed bytes of an open gzip file, which is closed with it.

    Reading raises RunError once more comes out than `check_expansion` lets pass.

    Args:
      path: of the file, for the message.
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
    """Returns the bytes that this process can still allocate: of the machine, swap included, the
    control group (containers) and the address space (`ulimit -v`)."""
    import psutil

    limits = [psutil.virtual_memory().available + psutil.swap_memory().free]
    limits += filter(None, map(_free_of_group, _GROUPS))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space - psutil.Process().memory_info().vms)
    return max(0, min(limits))


# Folder and names of the files of control groups, version 2 and 1.
_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)  # fmt: skip


def _free_of_group(group: tuple[str, str, str, str]) -> int | None:
    folder, limit, usage, cached = group
    try:
        most = int((Path(folder) / limit).read_text())  # "max" where there is none
        used = int((Path(folder) / usage).read_text())
        lines = (Path(folder) / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        return max(1, most - used + int(stat.get(cached, 0)))  # the page cache can be given up
    except (OSError, ValueError):
        return None
