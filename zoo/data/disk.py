"""How files are opened: for reading, regular files only; for writing, so that a kill leaves all of
a file or nothing, and never through a link that someone else has put there.

Everything in a work directory or a data folder is opened here. Users link data, so links are
followed for reading.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from zoo.data.bounds import JSON_EXPANSION, check_memory
from zoo.errors import RunError, short

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
# Names of files and folders that are not whole yet.
_TEMPORARY = re.compile(r"\.zoo-[0-9a-f]{16}\.tmp")


def lies_at(path: str | Path, shown: int = 5) -> str:
    """Returns a sentence for errors that says what lies at a path.

    Args:
      path: of anything, or of nothing.
      shown: largest number of names of a folder's content.
    """
    try:
        if not os.path.isdir(path):
            return "It is a file." if os.path.lexists(path) else "Nothing lies there."
        names = sorted(short(name) for name in os.listdir(path))
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        return f"It cannot be read: {short(error)}."
    if not names:
        return "It is an empty folder."
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return f"The folder holds {', '.join(names[:shown])}{more}."


# --- reading ------------------------------------------------------------------------------------


def open_file(path: str | Path) -> io.BufferedReader:
    """Opens a regular file for reading its bytes.

    Raises:
      RunError: where it is not there, cannot be opened, or is something else: opening a named pipe
        would wait for ever.
    """
    try:
        _check_kind(path, os.stat(path).st_mode)  # opening a device may do something
        # Not blocking, should it have become a named pipe since.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        raise unreadable(path, error) from None
    try:
        _check_kind(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _check_kind(path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise RunError(f"{path} cannot be read: it is {kind}, not a file.")


def unreadable(path, error: Exception) -> RunError:
    """Returns the `RunError` of a file that an operating system's error keeps from being read."""
    return RunError(f"{path} cannot be read: {short(getattr(error, 'strerror', None) or error)}.")


def read_bytes(path: str | Path, expansion: int = 1) -> bytes:
    """Returns a file's content.

    Args:
      path: of the file.
      expansion: bytes of memory for each byte of the file.

    Raises:
      RunError: as `open_file`, and where the content does not fit in memory.
    """
    with open_file(path) as file:
        check_memory(path, expansion * os.fstat(file.fileno()).st_size)
        try:
            return file.read()
        except OSError as error:
            raise unreadable(path, error) from None


def file_digest(path: str | Path) -> str:
    """Returns the sha256 of a file in hex; raises RunError as `open_file`."""
    with open_file(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from None


def read_json(path: str | Path):
    """Reads JSON; raises RunError as `read_bytes`, and where it is damaged."""
    content = read_bytes(path, JSON_EXPANSION)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: it is no JSON ({short(error)}).") from None


# --- writing ------------------------------------------------------------------------------------


def read_object(path: str | Path, **types: type | tuple) -> dict:
    """Reads a JSON object that holds these keys.

    Args:
      path: the file.
      **types: the type of each key's value, as for `isinstance`; bool is no int here.

    Raises:
      RunError: where the file is damaged, cannot be read, or holds something else.
    """
    return check_object(path, read_json(path), **types)


def check_object(path: str | Path, found, **types: type | tuple) -> dict:
    """Checks what `read_object` checks of a file that was read; returns it."""
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object.")
    for key, wanted in types.items():
        if key not in found:
            raise RunError(f"{path} is damaged: it lacks {key!r}.")
        value = found[key]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise RunError(f"{path} is damaged: {key!r} is {repr(value)[:100]}.")
    return found


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


def open_in_place(path: str | Path, mode: str = "a"):
    """Opens a file for appending ("a" text, "ab" bytes), or as a lock; creates it at need.

    Raises:
      RunError: where it is a link, a named pipe or anything else but a regular file.
      OSError: as the disk says.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if Path(path).is_symlink():
            raise RunError(f"{path} cannot be written: it is a link, not a file.")
        file = os.fdopen(
            os.open(path, flags, 0o666), mode, encoding=None if "b" in mode else "utf-8"
        )
    except IsADirectoryError:
        raise RunError(f"{path} cannot be written: it is a folder, not a file.") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise RunError(f"{path} cannot be written: it is not a regular file.")
    return file


def make_folder(path: Path) -> None:
    """Creates a folder unless it is there.

    Raises:
      RunError: where it is a link, or no folder.
      OSError: as the disk says.
    """
    with contextlib.suppress(FileExistsError):  # of what is no folder
        path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or not path.is_dir():
        kind = "a link" if path.is_symlink() else "no folder"
        raise RunError(f"{path} must be a folder that files are written in: it is {kind}.")


@contextlib.contextmanager
def naming(path: Path):
    """Gives an OSError that names no file, such as that of a full disk, the name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _temporary(path: Path) -> Path:
    """Returns a name beside `path` that nobody can guess."""
    return path.with_name(f".zoo-{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def atomic(path: str | Path, mode: str = "wb"):
    """Opens a file that takes its name only once it is whole and on the disk.

    Raises:
      OSError: as the disk says, with the name of the file, which stays as it was.
    """
    path = Path(path)
    temporary = _temporary(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    encoding = None if "b" in mode else "utf-8"
    with naming(path):
        descriptor = os.open(temporary, flags, 0o666)
    try:
        with naming(path):
            with os.fdopen(descriptor, mode, encoding=encoding) as file:
                yield file
                fsync_file(file)
            os.replace(temporary, path)
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a path for a library that writes a file or a folder itself; as `atomic` otherwise.

    The path has the name of `path`, in a new folder beside it that only this user may enter.

    Raises:
      OSError: as the disk says, with the name of the file, which stays as it was.
    """
    path = Path(path)
    folder = _temporary(path)
    with naming(path):
        os.mkdir(folder, 0o700)
    try:
        made = folder / path.name
        yield made
        with naming(path):
            for file in [made] if made.is_file() else sorted(made.rglob("*")):
                if file.is_file():
                    with open_file(file) as opened:
                        os.fsync(opened.fileno())
            os.replace(made, path)
            fsync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_temporary(folder: Path) -> None:
    """Removes what a kill left of `atomic` and `atomic_path` in a folder that is locked."""
    for path in folder.glob(".zoo-*.tmp"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(folder: Path, first: str) -> bool:
    """Whether a path is a folder, and no link, that is empty or holds the regular file `first`."""
    try:
        whole = not os.listdir(folder) or stat.S_ISREG(os.lstat(folder / first).st_mode)
        return whole and not folder.is_symlink()
    except OSError:
        return False


def write_json(path: str | Path, value) -> None:
    """Writes JSON atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
