"""Opens the files of work directories and data folders.

Only regular files are read; links are followed, because users link data. Writes are atomic: a kill
leaves the whole file or nothing. No write goes through a link, which someone else may have planted.
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

from zoo.errors import RunError, short
from zoo.storage.bounds import JSON_EXPANSION, check_memory

_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
_SHOWN = 5  # names in a folder that a message lists
# Names of unfinished files and folders.
_TEMPORARY = re.compile(r"\.zoo-[0-9a-f]{16}\.tmp")


def content_of(path: str | Path) -> str:
    """Returns a sentence for error messages about the content of a path."""
    try:
        if not os.path.isdir(path):
            return "It is a file." if os.path.lexists(path) else "The path does not exist."
        names = sorted(short(name) for name in os.listdir(path))
    except (OSError, ValueError) as error:  # ValueError: a name that holds a NUL
        return f"It cannot be read: {short(error)}."
    if not names:
        return "It is an empty folder."
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"The folder contains {', '.join(names[:_SHOWN])}{more}."


# --- reading ------------------------------------------------------------------------------------


def open_file(path: str | Path) -> io.BufferedReader:
    """Opens a regular file for reading bytes.

    Raises:
      RunError: if the file does not exist, cannot be opened, or is not a regular file: opening a
        named pipe would block forever.
    """
    try:
        _check_kind(path, os.stat(path).st_mode)  # opening a device may have side effects
        # Non-blocking, in case the file has become a named pipe since.
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
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        raise RunError(f"{path} cannot be read: it is {kind}, not a regular file.")


def unreadable(path, error: Exception) -> RunError:
    """Returns the `RunError` for a file that raised an operating system's error."""
    return RunError(f"{path} cannot be read: {short(getattr(error, 'strerror', None) or error)}.")


def read_bytes(path: str | Path, expansion: int = 1) -> bytes:
    """Returns the content of a file.

    Args:
      path: path of the file.
      expansion: bytes of memory per byte of the file.

    Raises:
      RunError: see `open_file`; also if the content does not fit in memory.
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


def json_digest(value) -> str:
    """Returns the sha256 of a JSON value in hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: str | Path):
    """Reads JSON; raises RunError as `read_bytes`, and if the file is damaged."""
    content = read_bytes(path, JSON_EXPANSION)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: it is not valid JSON ({short(error)}).") from None


def read_object(path: str | Path, **types: type | tuple) -> dict:
    """Reads a JSON object and checks its keys.

    Args:
      path: path of the file.
      **types: required keys and the types of their values, as for `isinstance`; a bool does not
        count as an int.

    Raises:
      RunError: if the file cannot be read or does not hold such an object.
    """
    return check_object(path, read_json(path), **types)


def check_object(path: str | Path, value, **types: type | tuple) -> dict:
    """Checks the JSON value of a file as `read_object` does, and returns it."""
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it contains no JSON object.")
    for key, expected in types.items():
        if key not in value:
            raise RunError(f"{path} is damaged: missing key {key!r}.")
        item = value[key]
        if not isinstance(item, expected) or (isinstance(item, bool) and expected is not bool):
            raise RunError(f"{path} is damaged: {key!r} is {repr(item)[:100]}.")
    return value


# --- writing ------------------------------------------------------------------------------------


def fsync_file(file):
    """Writes the buffers of an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path):
    """Writes the names in a folder to the disk; without it, a power cut can undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_in_place(path: str | Path, mode: str = "a"):
    """Opens a file for appending ("a" text, "ab" bytes) or as a lock; creates a missing file.

    Raises:
      RunError: if the path is a link or not a regular file.
      OSError: if the file cannot be written.
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
    """Creates a folder unless it exists.

    Raises:
      RunError: if the path is a link or not a folder.
      OSError: if the folder cannot be created.
    """
    with contextlib.suppress(FileExistsError):  # a file; refused below
        path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or not path.is_dir():
        kind = "a link" if path.is_symlink() else "not a folder"
        raise RunError(f"{path} must be a folder to write in: it is {kind}. Choose another folder.")


@contextlib.contextmanager
def named_errors(path: Path):
    """Adds the name of a file to an OSError without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def _temporary(path: Path) -> Path:
    """Returns an unguessable path beside `path`."""
    return path.with_name(f".zoo-{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def atomic(path: str | Path, mode: str = "wb"):
    """Opens a temporary file for writing that replaces `path` once it is complete and on the disk.

    Raises:
      OSError: if writing fails, with the name of the file; a previous file at `path` is kept.
    """
    path = Path(path)
    temporary = _temporary(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    encoding = None if "b" in mode else "utf-8"
    with named_errors(path):
        descriptor = os.open(temporary, flags, 0o666)
    try:
        with named_errors(path):
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
    """Yields a temporary path for a library that writes a file or a folder itself; see `atomic`.

    The temporary path has the same name, in a new folder beside `path` that only this user may
    enter.

    Raises:
      OSError: if writing fails, with the name of the file; a previous file at `path` is kept.
    """
    path = Path(path)
    folder = _temporary(path)
    with named_errors(path):
        os.mkdir(folder, 0o700)
    try:
        temporary = folder / path.name
        yield temporary
        with named_errors(path):
            for file in [temporary] if temporary.is_file() else sorted(temporary.rglob("*")):
                if file.is_file():
                    with open_file(file) as stream:
                        os.fsync(stream.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_temporary(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder, which must be locked."""
    for path in folder.glob(".zoo-*.tmp"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_leftover(folder: Path, first: str) -> bool:
    """Returns whether a path is a folder, not a link, and is empty or holds a file `first`."""
    try:
        has_first = not os.listdir(folder) or stat.S_ISREG(os.lstat(folder / first).st_mode)
        return has_first and not folder.is_symlink()
    except OSError:
        return False


def write_json(path: str | Path, value) -> None:
    """Writes JSON atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
