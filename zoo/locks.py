"""Locks between processes, by the library filelock: one worker per folder, one maker per file.

A lock is a file that a process has locked. The kernel releases it when the process ends, however
it ends, so a kill leaves nothing to clean up. Only its holder may delete the file: filelock takes
the lock anew if the file that it locked has no name any more.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from zoo.data.disk import open_file, open_in_place
from zoo.errors import RunError

_NAME = ".lock"
_SHORTLY = 0.2  # seconds: `is_held` of another process takes a lock for an instant
_SILENTLY = 5.0  # seconds of waiting before a line tells the user
_AT_MOST = 6 * 3600.0  # seconds; a teacher may translate for hours


def lock_file(path: Path) -> FileLock:
    """Returns a lock, not yet taken, on a file that is created if needed.

    Raises:
      RunError: if the file is a link, a named pipe or anything else but a regular file.
      OSError: if it cannot be written.
    """
    open_in_place(path).close()
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def lock_folder(folder: Path) -> AcquireReturnProxy:
    """Takes a folder for this process alone, by the file `.lock` in it.

    Returns:
      A context manager that releases the folder at its end; so does its `lock.release()`.

    Raises:
      RunError: if another process works in the folder, or something lies in the lock's place.
      OSError: if the folder cannot be written.
    """
    lock = lock_file(folder / _NAME)
    try:
        return lock.acquire(timeout=_SHORTLY)
    except Timeout:
        raise RunError(
            f"Another process works in {folder}{_holder(folder / _NAME)}. Wait until it ends, or "
            "name another folder."
        ) from None


def is_held(folder: Path) -> bool:
    """Returns whether a process works in a folder, without writing there.

    filelock cannot be asked that: it creates the file, and takes a lock that excludes all others.
    A shared lock needs only to read, and does not exclude another process that asks.
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
    """Waits until no other process or thread works on `path`, then excludes them.

    Args:
      path: of a file or folder that may not exist yet; the lock lies beside it.

    Raises:
      RunError: if another process works on it for hours, or something lies in the lock's place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.lock")
    lock = lock_file(place)
    try:
        lock.acquire(timeout=_SILENTLY)
    except Timeout:
        print(
            f"zoo: waiting for another process that works on {path}{_holder(place)}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        try:
            lock.acquire(timeout=_AT_MOST)
        except Timeout:
            raise RunError(
                f"Another process still works on {path}{_holder(place)} after "
                f"{_AT_MOST / 3600:.0f} hours. Stop it if it hangs, and start again."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Returns " (process N)" for the holder of a lock, by the kernel's table; "" if unknown."""
    with contextlib.suppress(OSError, RunError), open_file("/proc/locks") as table:
        there = os.stat(path)
        device = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}:{there.st_ino}"
        for line in table:
            words = line.decode().split()  # 1: FLOCK ADVISORY WRITE 4711 fe:00:2146337 0 EOF
            if words[1] == "FLOCK" and words[5] == device:
                return f" (process {words[4]})"
    return ""
