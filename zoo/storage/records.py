"""Random-access records: a folder of equally long arrays in shards, read by memory mapping.

    with RecordWriter(folder, {"tokens": ((257,), "uint16")}) as writer:
        writer.append(tokens=chunk)                     # (n, 257), any number of times
    records = open_records(folder)
    records.arrays["tokens"][[7, 1_000_000]]            # (2, 257), in memory

`NAME-00000.bin`, `NAME-00001.bin`, … hold the rows of an array without a header:
`np.fromfile(path, dtype).reshape(-1, *row_shape)` reads one. `manifest.json` holds the layout, the
sha256 of every shard, and a fingerprint of its own content. The folder gets its name when all of it
is on the disk, so a kill leaves the whole folder or nothing.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import Timeout

from zoo.errors import RunError, UsageError, short
from zoo.storage.bounds import MAX_AXES
from zoo.storage.disk import (
    content_of,
    file_digest,
    fsync_file,
    fsync_folder,
    is_leftover,
    json_digest,
    named_errors,
    open_file,
    open_in_place,
    read_json,
)
from zoo.storage.locks import lock_file

FORMAT = 2
MANIFEST = "manifest.json"
SUFFIX = ".bin"
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class _Layout:
    """Layout of one array; every shard but the last holds `rows_per_shard` rows."""

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype
    rows_per_shard: int = 1

    def __post_init__(self):
        if not self.name.isidentifier():
            raise UsageError(
                f"The name of an array must be a Python identifier. Received: {self.name!r}."
            )
        # dtype.str does not identify objects, structures and bfloat16.
        if self.dtype.hasobject or np.dtype(self.dtype.str) != self.dtype:
            raise UsageError(
                f"Records support only plain NumPy types. Received: {self.dtype} for {self.name!r}."
            )
        if min(self.row_shape, default=1) < 1 or not self.dtype.itemsize:
            raise UsageError(
                f"A row must not be empty. Received: {self.row_shape} {self.dtype} for "
                f"{self.name!r}."
            )

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)

    def file_name(self, shard: int) -> str:
        return f"{self.name}-{shard:05d}{SUFFIX}"

    def shard_rows(self, rows: int) -> list[int]:
        """Returns the number of rows of each shard of an array of `rows` rows."""
        full_shards, remaining_rows = divmod(rows, self.rows_per_shard)
        return [self.rows_per_shard] * full_shards + [remaining_rows] * bool(remaining_rows)


# --- writing ------------------------------------------------------------------------------------


class RecordWriter:
    """Writes a folder of records in constant memory; a context manager.

    The folder appears when the `with` block ends without an exception. An exception leaves nothing.
    A kill leaves a hidden folder, which the next writer of the same folder removes. If two
    processes write the same folder at once, the first to finish creates it, and the other checks
    that its own records are equal.

    Args:
      folder: folder to create, with its parents.
      arrays: name -> (shape of a row, dtype).
      shard_bytes: largest size of a shard, unless a single row is larger.
      metadata: JSON values; returned as `Records.metadata`.

    Raises:
      UsageError: if the layout or the metadata cannot be written, or rows do not match the layout.
      RunError: if `folder` holds other records.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        arrays: Mapping[str, tuple],
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping | None = None,
    ):
        # Absolute, so that a later change of the current folder has no effect.
        self.folder = Path(folder).expanduser().absolute()
        if not arrays:
            raise UsageError(
                f"Records require at least one array. Received none for {self.folder}."
            )
        self._layouts = []
        for name, (row_shape, dtype) in arrays.items():
            layout = _Layout(name, tuple(row_shape), np.dtype(dtype))
            rows_per_shard = max(1, shard_bytes // layout.row_bytes)
            self._layouts.append(dataclasses.replace(layout, rows_per_shard=rows_per_shard))
        try:
            self.metadata = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"The metadata must be JSON: {short(error)}.") from None
        self.rows = 0

    def __enter__(self) -> "RecordWriter":
        if self.folder.exists() and any(self.folder.iterdir()):
            # Refused before the work. The same records may be written again.
            existing = open_records(self.folder, verify=False)
            if existing.metadata != self.metadata or list(existing.arrays) != [
                layout.name for layout in self._layouts
            ]:
                raise self._other_records_error()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished, self._lock = _unfinished_folder(self.folder)
        self._shards = [_ShardWriter(self._unfinished, layout) for layout in self._layouts]
        return self

    def append(self, **rows: np.ndarray):
        """Adds rows.

        Args:
          **rows: `(n, *row_shape)` of every array, n >= 0. Integers of another type are accepted if
            all values fit.
        """
        layouts = {layout.name: layout for layout in self._layouts}
        if rows.keys() != layouts.keys():
            raise UsageError(
                f"Records in {self.folder} must have the arrays {', '.join(layouts)}. "
                f"Received: {', '.join(rows)}."
            )
        converted_rows = {name: _convert_rows(layouts[name], array) for name, array in rows.items()}
        if len({len(array) for array in converted_rows.values()}) > 1:
            lengths = ", ".join(f"{name} {len(array):,}" for name, array in converted_rows.items())
            raise UsageError(f"All arrays must have the same number of rows. Received: {lengths}.")
        for shards in self._shards:
            shards.append(converted_rows[shards.layout.name])
        self.rows += len(next(iter(converted_rows.values())))

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._finish()
        finally:
            for shards in self._shards:
                shards.close()
            # Does not exist if it was renamed to `folder`.
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._lock.lock.release()

    def _finish(self):
        if not self.rows:
            raise RunError(f"No rows were written to {self.folder}. Append at least one row.")
        content = {
            "rows": self.rows,
            "arrays": {shards.layout.name: shards.finish() for shards in self._shards},
            "metadata": self.metadata,
        }
        manifest = {"format": FORMAT, "fingerprint": json_digest(content), **content}
        path = self._unfinished / MANIFEST
        with named_errors(path), open_in_place(path) as file:  # empty so far, and locked
            json.dump(manifest, file, indent=1)
            fsync_file(file)
        # mkdtemp creates a private folder; records may be shared.
        self._unfinished.chmod(0o755)
        fsync_folder(self._unfinished)
        try:
            self._unfinished.rename(self.folder)
        except OSError:
            if not self.folder.is_dir():
                raise
            # Another process finished first.
            if open_records(self.folder, verify=False).fingerprint != manifest["fingerprint"]:
                raise self._other_records_error() from None
        fsync_folder(self.folder.parent)

    def _other_records_error(self) -> RunError:
        return RunError(
            f"{self.folder} already contains other records: delete that folder or choose "
            "another one."
        )


def _unfinished_folder(folder: Path):
    """Returns a new hidden folder beside `folder`, and the lock on its empty manifest.

    The lock distinguishes folders of running writers from those of killed ones, which are removed.
    """
    prefix = f".{folder.name}.tmp"
    for other in folder.parent.iterdir():
        if not other.name.startswith(prefix) or not is_leftover(other, MANIFEST):
            continue
        with contextlib.suppress(OSError), lock_file(other / MANIFEST).acquire(timeout=0):
            shutil.rmtree(other)
    while True:
        unfinished_folder = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        # Before it is locked, another writer may remove it as the folder of a killed writer.
        with contextlib.suppress(FileNotFoundError, Timeout):
            return unfinished_folder, lock_file(unfinished_folder / MANIFEST).acquire(timeout=0)


class _ShardWriter:
    """Splits, hashes and writes the appended rows of one array."""

    def __init__(self, folder: Path, layout: _Layout):
        self.folder, self.layout = folder, layout
        self.digests, self.file, self.rows = [], None, 0

    def append(self, array: np.ndarray):
        while len(array):
            path = self.folder / self.layout.file_name(len(self.digests))
            if self.file is None:
                self.file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
                self.digest, self.rows = hashlib.sha256(), 0
            piece = array[: self.layout.rows_per_shard - self.rows]
            data = piece.reshape(-1).view(np.uint8)
            self.digest.update(data)
            with named_errors(path):
                self.file.write(data)
            self.rows += len(piece)
            array = array[len(piece) :]
            if self.rows == self.layout.rows_per_shard:
                self._end_shard()

    def _end_shard(self):
        with named_errors(Path(self.file.name)):
            fsync_file(self.file)
        self.file.close()
        self.file = None
        self.digests.append(self.digest.hexdigest())

    def finish(self) -> dict:
        """Closes the last shard; returns the array's entry in the manifest."""
        if self.file is not None:
            self._end_shard()
        return {
            "dtype": self.layout.dtype.str,
            "row_shape": list(self.layout.row_shape),
            "rows_per_shard": self.layout.rows_per_shard,
            "sha256": self.digests,
        }

    def close(self):
        if self.file is not None:
            # Unwritten data are lost, but the folder is removed next anyway.
            with contextlib.suppress(OSError):
                self.file.close()


def _convert_rows(layout: _Layout, array) -> np.ndarray:
    """Returns the rows as a contiguous array of the layout's dtype, with equal values."""
    array = np.asarray(array)
    rule = f"Array {layout.name!r} must have rows of {layout.row_shape} {layout.dtype}"
    if array.shape[1:] != layout.row_shape or not array.ndim:
        raise UsageError(f"{rule}. Received: an array of {array.shape} {array.dtype}.")
    if array.dtype != layout.dtype and not np.can_cast(array.dtype, layout.dtype, "safe"):
        if array.dtype.kind not in "iu" or layout.dtype.kind not in "iu":
            raise UsageError(f"{rule}. Received: {array.dtype}.")
        limits = np.iinfo(layout.dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise UsageError(f"{rule}. Received: values {array.min()} … {array.max()}.")
    return np.ascontiguousarray(array, layout.dtype)


# --- reading ------------------------------------------------------------------------------------


class ShardedArray:
    """A read-only array `(N, *row_shape)` over several memory-mapped shards.

    `array[7]`, `array[2:5]` and `array[[9, 0, 3]]` return copies. An index of shape `(a, b)`
    returns `(a, b, *row_shape)`. `np.asarray(array)` returns the memory map if there is a single
    shard, otherwise a copy.

    Args:
      shards: arrays `(n, *row_shape)`; all but the last have the same number of rows.
    """

    def __init__(self, shards: list[np.ndarray]):
        self._shards = shards
        self._per_shard = len(shards[0])
        rows = sum(len(shard) for shard in shards)
        self.shape, self.dtype = (rows, *shards[0].shape[1:]), shards[0].dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ShardedArray({self.shape}, {self.dtype}, {len(self._shards)} shards)"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if len(self._shards) == 1:
            return np.array(self._shards[0], dtype, copy=copy)
        if copy is False:
            raise ValueError(f"{self!r} cannot be converted to one array without a copy.")
        return np.concatenate(self._shards, dtype=dtype or self.dtype)

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and start < stop:
                return self._rows(start, stop)
            return self._gather(np.arange(start, stop, step))
        several_axes = isinstance(index, tuple)
        index = np.asarray(index)
        if several_axes or (index.size and index.dtype.kind not in "iu"):
            raise IndexError(f"Rows must be indexed by integers or a slice. Received: {index!r}.")
        return self._gather(index)[()]  # converts an array without axes to a scalar

    def part(self, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop`: a view if they are in one shard, otherwise a copy."""
        shard = start // self._per_shard
        if start < stop and (stop - 1) // self._per_shard == shard:
            first = shard * self._per_shard
            return self._shards[shard][start - first : stop - first]
        return self[start:stop]

    def _rows(self, start: int, stop: int) -> np.ndarray:
        first, last = start // self._per_shard, (stop - 1) // self._per_shard
        return np.concatenate(
            [
                self._shards[shard][
                    max(start - shard * self._per_shard, 0) : stop - shard * self._per_shard
                ]
                for shard in range(first, last + 1)
            ]
        )

    def _gather(self, index: np.ndarray) -> np.ndarray:
        places = index.reshape(-1).astype(np.int64)
        if places.size:
            low, high = places.min(), places.max()
            if low < -len(self) or high >= len(self):
                raise IndexError(
                    f"Row {low if low < 0 else high} is out of bounds for {len(self):,} rows."
                )
            if low < 0:
                places = np.where(places < 0, places + len(self), places)
        rows = np.empty((places.size, *self.shape[1:]), self.dtype)
        if len(self._shards) == 1:
            # Indices are in bounds; NumPy's default mode makes a second copy.
            np.take(self._shards[0], places, axis=0, out=rows, mode="clip")
        elif places.size:
            shards, places = np.divmod(places, self._per_shard)
            order = np.argsort(shards, kind="stable")
            shards, places = shards[order], places[order]
            ends = np.append(np.flatnonzero(np.diff(shards)) + 1, len(shards))
            start = 0
            for end in ends.tolist():
                rows[order[start:end]] = self._shards[shards[start]][places[start:end]]
                start = end
        return rows.reshape(index.shape + self.shape[1:])


@dataclass(frozen=True)
class Records:
    """An open folder of records.

    Attributes:
      arrays: name -> `ShardedArray`, all of the same length.
      metadata: metadata of the writer, after a round trip through JSON.
      fingerprint: hex sha256 over the digests of all shards, the layout and the metadata.
    """

    arrays: dict[str, ShardedArray]
    metadata: dict
    fingerprint: str


def open_records(folder: str | os.PathLike, verify: bool = True) -> Records:
    """Opens a folder that a `RecordWriter` wrote.

    Args:
      folder: folder of the records.
      verify: whether to compare the sha256 of every shard, which reads all shards once. Names,
        sizes and the manifest are always checked.

    Raises:
      UsageError: if the folder does not exist.
      RunError: if a shard is missing, truncated, altered or unknown, or the manifest is damaged or
        has another format version; names the file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. {content_of(folder)}")
    manifest = _read_manifest(folder)
    try:
        content = {key: manifest[key] for key in ("rows", "arrays", "metadata")}
        if json_digest(content) != manifest["fingerprint"]:
            raise ValueError
        rows, digests, layouts = content["rows"], {}, []
        for name, row in content["arrays"].items():
            layout = _Layout(
                name, tuple(row["row_shape"]), np.dtype(row["dtype"]), row["rows_per_shard"]
            )
            numbers = [rows, layout.rows_per_shard, *layout.row_shape]
            # One digest per shard, so the declared number of shards fits in the manifest.
            counts = all(type(number) is int and number > 0 for number in numbers)
            if (
                not counts
                or len(layout.row_shape) >= MAX_AXES
                or (-(-rows // layout.rows_per_shard) != len(row["sha256"]))
            ):
                raise ValueError
            layouts.append(layout)
            digests |= {layout.file_name(i): digest for i, digest in enumerate(row["sha256"])}
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError):
        raise _file_error(folder, MANIFEST, "is damaged") from None
    if unknown := {path.name for path in folder.glob(f"*{SUFFIX}")} - set(digests):
        raise _file_error(folder, min(unknown), "does not belong to these records")
    arrays = {layout.name: ShardedArray(_map(folder, layout, rows)) for layout in layouts}
    if verify:
        _verify(folder, digests)
    return Records(arrays, content["metadata"], manifest["fingerprint"])


def _read_manifest(folder: Path) -> dict:
    if not (folder / MANIFEST).exists():
        raise _file_error(folder, MANIFEST, "is missing")
    try:
        manifest = read_json(folder / MANIFEST)
        version = manifest["format"]
    except (RunError, KeyError, TypeError):
        raise _file_error(folder, MANIFEST, "is damaged") from None
    if version != FORMAT:
        raise _file_error(folder, MANIFEST, f"has format {version!r} instead of {FORMAT}")
    return manifest


def _map(folder: Path, layout: _Layout, rows: int) -> list[np.ndarray]:
    maps = []
    for shard, count in enumerate(layout.shard_rows(rows)):
        path = folder / layout.file_name(shard)
        expected = count * layout.row_bytes
        if not path.is_file():
            raise _file_error(folder, path.name, "is missing")
        if (size := path.stat().st_size) != expected:
            raise _file_error(folder, path.name, f"has {size:,} bytes instead of {expected:,}")
        with open_file(path) as file:
            mapped_array = np.memmap(file, layout.dtype, "r", shape=(count, *layout.row_shape))
        # A plain array, because slicing a np.memmap costs microseconds of bookkeeping.
        maps.append(mapped_array.view(np.ndarray))
    return maps


def _verify(folder: Path, digests: Mapping[str, str]):
    # hashlib releases the GIL.
    with ThreadPoolExecutor(min(len(digests), os.cpu_count() or 1)) as pool:
        actual = pool.map(file_digest, [folder / name for name in digests])
        for name, digest in zip(digests, actual, strict=True):
            if digest != digests[name]:
                pool.shutdown(wait=False, cancel_futures=True)
                raise _file_error(folder, name, "was altered: its sha256 differs from the manifest")


def _file_error(folder: Path, name: str, fault: str) -> RunError:
    return RunError(f"{folder / name} {fault}: delete the folder {folder} to create it again.")
