"""Decoded arrays on disk, mapped into memory: what took half a minute opens in milliseconds.

A cached data set is a folder with one .npy file an array and `manifest.json`, which holds the
shape, type, size and sha256 of each. The folder gets its name when all of it is on the disk, so
a kill at any moment leaves either all of it or none.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.data.datasets import Dataset, cache_dir

FORMAT = 1
MANIFEST = "manifest.json"


def folder_of(name: str, version: str) -> Path:
    """Returns where the arrays of this version of the data set are kept."""
    return cache_dir() / "arrays" / f"{name}-{version}"


def read(folder: Path, name: str) -> Dataset | None:
    """Returns the cached data set, or None where it is absent or not as its manifest says.

    Sizes are compared, contents are not: reading all of it is what the cache saves.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return None
        splits = {
            split: {key: _open(folder, row) for key, row in rows.items()}
            for split, rows in manifest["splits"].items()
        }
        class_names = tuple(manifest["class_names"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return Dataset(name, splits, class_names, digest)


def _open(folder: Path, row: Mapping) -> np.ndarray:
    path = folder / row["file"]
    if path.stat().st_size != row["bytes"]:
        raise ValueError(f"{path} is not {row['bytes']} bytes")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if [list(array.shape), array.dtype.str] != [row["shape"], row["dtype"]]:
        raise ValueError(f"{path} is not {row['shape']} {row['dtype']}")
    return array


def fill(
    folder: Path,
    produce: Callable[[], tuple[Mapping[str, Mapping[str, np.ndarray]], Sequence[str]]],
):
    """Makes `folder` unless it is there and whole; safe with other processes doing the same.

    Args:
      folder: from `folder_of`. A damaged one is replaced.
      produce: returns the splits and the class names; called by one process at a time.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{folder.name}.lock"):
        if read(folder, folder.name) is not None:
            return
        # Whoever holds the lock is alone: what lies here was left by a process that was killed.
        for leftover in folder.parent.glob(f".{folder.name}.tmp*"):
            shutil.rmtree(leftover)
        splits, class_names = produce()
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp"))
        try:
            _write(unfinished, splits, class_names)
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        fsync_folder(folder.parent)


@contextlib.contextmanager
def _locked(path: Path):
    import fcntl

    # The kernel drops the lock with the process, so a kill leaves nothing to clean up.
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, splits: Mapping[str, Mapping[str, np.ndarray]], class_names):
    rows = {}
    for split, arrays in splits.items():
        rows[split] = {}
        for key, array in arrays.items():
            file_name = f"{split}_{key}.npy"
            with open(folder / file_name, "wb") as file:
                hashed = _HashedFile(file)
                np.lib.format.write_array(hashed, np.asarray(array), allow_pickle=False)
                _flush(file)
            rows[split][key] = {
                "file": file_name,
                "shape": list(array.shape),
                "dtype": array.dtype.str,
                "bytes": hashed.bytes,
                "sha256": hashed.digest.hexdigest(),
            }
    manifest = {"format": FORMAT, "class_names": list(class_names), "splits": rows}
    with open(folder / MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1)
        _flush(file)
    # mkdtemp makes a folder for its owner alone; a cache may be shared.
    folder.chmod(0o755)
    fsync_folder(folder)


class _HashedFile:
    """Passes bytes on and hashes them.

    Being no real file, it also keeps NumPy from `ndarray.tofile`, which reports a full disk as
    an error without a reason.
    """

    def __init__(self, file):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data):
        self.digest.update(data)
        self.bytes += len(data)
        self.file.write(data)


def _flush(file):
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path):
    """Puts the names in `folder` on the disk: a rename is not there after a power cut without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
