"""Downloads original files and checks their size and sha256."""

import contextlib
import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.datasets import dataset_entry
from zoo.errors import RunError, UsageError, short
from zoo.progress import progress
from zoo.storage.disk import atomic, open_file
from zoo.storage.paths import data_dir

_LOG = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FetchFile:
    """An original file: its URL, its name on disk, its size in bytes and its hex sha256."""

    url: str
    file_name: str
    size: int
    sha256: str

    def __post_init__(self):
        if self.file_name in ("", "..") or Path(self.file_name).name != self.file_name:
            raise UsageError(f"file_name must not be a path. Received: {self.file_name!r}.")


def fetch(
    name: str,
    destination: str | os.PathLike | None = None,
    log: Callable[[str], None] = _LOG.info,
) -> Path:
    """Downloads the missing original files of a dataset.

    Args:
      name: name of a registered dataset.
      destination: folder in which the folder `name` is created; `data_dir()` by default.
      log: called with one line per file.

    Returns:
      The folder of the files.

    Raises:
      UsageError: if the name is unknown.
      RunError: if a file cannot be downloaded or differs from the registered one. Nothing of that
        file is left behind, and existing files are not changed.
    """
    files = dataset_entry(name).original_files()
    folder = Path(destination or data_dir()).expanduser() / name
    if not files:
        log(f"{name}: has no files to download")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for file in files:
            path = folder / file.file_name
            present = is_valid(path, file)
            if not present:
                _download(file, path)
            status = "already present" if present else "downloaded"
            log(f"{name}: {path}, {file.size:,} bytes, {status}")
    finally:
        # An empty folder would look like the dataset.
        with contextlib.suppress(OSError):
            folder.rmdir()
    return folder


def is_valid(path: Path, file: FetchFile) -> bool:
    """Returns whether `path`, or decompressed `path`.gz, has the size and sha256 of `file`."""
    gzip_path = path.with_name(f"{path.name}.gz")
    if not path.exists() and gzip_path.is_file():
        with (
            contextlib.suppress(OSError, EOFError, zlib.error),
            open_file(gzip_path) as raw,
            gzip.GzipFile(fileobj=raw) as stream,
        ):
            return _stream_digest(stream, file.size) == file.sha256
        return False
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with open_file(path) as stream:
        return _stream_digest(stream, file.size) == file.sha256


def _stream_digest(stream, size: int) -> str:
    """Returns the hex sha256 of a stream, or "" if the stream is longer than `size`."""
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > size:
            return ""
        digest.update(chunk)
    return digest.hexdigest()


def is_present(path: Path, file: FetchFile) -> bool:
    """Returns whether `path` has the size of `file`, or `path`.gz exists; reads no content."""
    gzip_path = path.with_name(f"{path.name}.gz")
    return gzip_path.is_file() or (path.is_file() and path.stat().st_size == file.size)


def _download(file: FetchFile, path: Path):
    digest, size = hashlib.sha256(), 0
    bar = progress(title=file.file_name, unit="B", total=file.size, unit_scale=True)
    with bar, atomic(path) as stream:
        for chunk in _chunks(file):
            size += len(chunk)
            if size > file.size:
                # An endless response must not fill the disk.
                raise _mismatch(file, f"{file.size:,} bytes", f"more than {file.size:,}")
            digest.update(chunk)
            stream.write(chunk)
            bar.update(len(chunk))
        if size != file.size:
            raise _mismatch(file, f"{file.size:,} bytes", f"{size:,}")
        if digest.hexdigest() != file.sha256:
            raise _mismatch(file, f"sha256 {file.sha256}", digest.hexdigest())


def _chunks(file: FetchFile) -> Iterator[bytes]:
    """Yields the response body; converts network errors to RunError."""
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as response:
            while chunk := response.read(CHUNK_BYTES):
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    else:
        return
    raise RunError(f"{file.file_name} cannot be downloaded from {file.url}: {short(reason)}.")


def _mismatch(file: FetchFile, expected: str, received: str) -> RunError:
    return RunError(
        f"{file.file_name} from {file.url} is not the registered file: "
        f"expected {expected}, received {received}."
    )
