"""Locks between processes, by the library filelock: one process per folder, one writer per file.

A process locks a file. The kernel releases the lock when the process ends for any reason, so a kill
leaves nothing to clean up. Only the holder may delete the file: filelock takes the lock again if
the locked file was deleted.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from zoo.errors import RunError
from zoo.storage.disk import open_file, open_in_place

_LOG = logging.getLogger(__name__)

_NAME = ".lock"
_FOLDER_TIMEOUT = 0.2  # seconds: `is_held` of another process takes a lock for an instant
_SILENT_TIMEOUT = 5.0  # seconds of waiting before a message on stderr
_TIMEOUT = 6 * 3600.0  # seconds; a teacher model may translate for hours


def lock_file(path: Path) -> FileLock:
    """Returns a lock, not yet acquired, on a file, which is created if missing.

    Raises:
      RunError: if the path is a link or not a regular file.
      OSError: if the file cannot be written.
    """
    open_in_place(path).close()
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def lock_folder(folder: Path) -> AcquireReturnProxy:
    """Locks a folder for this process by the file `.lock` in it.

    Returns:
      A context manager that releases the lock on exit; its `lock.release()` does so too.

    Raises:
      RunError: if another process works in the folder, or `.lock` is not a regular file.
      OSError: if the folder cannot be written.
    """
    lock = lock_file(folder / _NAME)
    try:
        return lock.acquire(timeout=_FOLDER_TIMEOUT)
    except Timeout:
        raise RunError(
            f"Another process works in {folder}{_holder(folder / _NAME)}. Wait until it ends, or "
            "use another folder."
        ) from None


def is_held(folder: Path) -> bool:
    """Returns whether a process has locked a folder, without writing in the folder.

    filelock would create the file and take an exclusive lock. A shared lock only reads, and several
    processes may ask at once.
    """
    try:
        with open_file(folder / _NAME) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, RunError):
        return False
    return False


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`, after waiting for other processes and threads.

    Args:
      path: path of a file or folder that may not exist yet; the lock file is next to it.

    Raises:
      RunError: if another process holds the lock for hours, or the lock is not a regular file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    lock = lock_file(file)
    try:
        lock.acquire(timeout=_SILENT_TIMEOUT)
    except Timeout:
        _LOG.warning(f"waiting for another process that works on {path}{_holder(file)}")
        try:
            lock.acquire(timeout=_TIMEOUT)
        except Timeout:
            raise RunError(
                f"Another process still works on {path}{_holder(file)} after "
                f"{_TIMEOUT / 3600:.0f} hours. Stop that process if it hangs, then start again."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Returns " (process N)" for the holder of a lock by /proc/locks, or "" if unknown."""
    with contextlib.suppress(OSError, RunError), open_file("/proc/locks") as table:
        stat = os.stat(path)
        device = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
        for line in table:
            words = line.decode().split()  # 1: FLOCK ADVISORY WRITE 4711 fe:00:2146337 0 EOF
            if words[1] == "FLOCK" and words[5] == device:
                return f" (process {words[4]})"
    return ""
