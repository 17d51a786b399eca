"""What it takes to put something on a disk so that a kill leaves all of it or nothing."""

import contextlib
import json
import os
from pathlib import Path

from zoo.errors import RunError


def fsync_file(file):
    """Puts what was written to an open file on the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path):
    """Puts the names in `folder` on the disk: a rename is not there after a power cut without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(path: Path):
    """Holds the lock file `path`; waits for another process (or thread) that holds it.

    The kernel drops the lock with the process, so a kill leaves nothing to clean up. The file
    stays: deleting it would let a third process lock another file of that name.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def naming(path: Path):
    """Gives an OSError that names no file, such as that of a full disk, the name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic(path: str | Path, mode: str = "wb"):
    """Opens a file that takes its name only once it is whole and on the disk.

    Raises:
      OSError: as the disk says, with the name of the file, which stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, mode) as file:
                yield file
                fsync_file(file)
            os.replace(temporary, path)
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value) -> None:
    """Writes JSON atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_json(path: str | Path):
    """Reads JSON.

    Raises:
      RunError: where the file is damaged or cannot be read.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {path}: {error}.") from None
