"""Random-access records: a folder of equally long arrays in shards, read through the page cache.

    with RecordWriter(folder, {"tokens": ((257,), "uint16")}) as writer:
        writer.append(tokens=chunk)                     # (n, 257), as often as wanted
    records = open_records(folder)
    records.arrays["tokens"][[7, 1_000_000]]            # (2, 257), in memory

On disk: `NAME-00000.bin`, `NAME-00001.bin`, … hold the rows of an array one after the other,
without a header (`np.fromfile(path, dtype).reshape(-1, *row_shape)` reads one); `manifest.json`
holds the layout, the sha256 of every shard and its own. The folder gets its name when all of it
is on the disk, so a kill at any moment leaves either the whole or nothing.
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

from zoo.data.bounds import MOST_AXES
from zoo.data.disk import (
    file_digest,
    fsync_file,
    fsync_folder,
    is_leftover,
    lies_at,
    naming,
    open_file,
    open_in_place,
    read_json,
)
from zoo.errors import RunError, UsageError, short
from zoo.locks import lock_file

FORMAT = 2
MANIFEST = "manifest.json"
SUFFIX = ".bin"
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class _Layout:
    """Where the rows of one array lie; every shard but the last holds `rows_per_shard`."""

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype
    rows_per_shard: int = 1

    def __post_init__(self):
        if not self.name.isidentifier():
            raise UsageError(f"An array's name must be a Python name. Received: {self.name!r}.")
        # What the type's text does not bring back (objects, structures, bfloat16) is refused.
        if self.dtype.hasobject or np.dtype(self.dtype.str) != self.dtype:
            raise UsageError(
                f"Records hold plain NumPy types. Received: {self.dtype} for {self.name!r}."
            )
        if min(self.row_shape, default=1) < 1 or not self.dtype.itemsize:
            raise UsageError(
                f"A row must hold something. Received: {self.row_shape} {self.dtype} for "
                f"{self.name!r}."
            )

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)

    def file_name(self, shard: int) -> str:
        return f"{self.name}-{shard:05d}{SUFFIX}"

    def shard_rows(self, rows: int) -> list[int]:
        """Returns the number of rows in each shard where there are `rows` in all."""
        whole, rest = divmod(rows, self.rows_per_shard)
        return [self.rows_per_shard] * whole + [rest] * bool(rest)


def _fingerprint(content: Mapping) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# --- writing ------------------------------------------------------------------------------------


class RecordWriter:
    """Writes a folder of records, row after row, in constant memory; a context manager.

    The folder appears when the `with` block ends well; an exception leaves nothing, a kill leaves
    a hidden folder beside it that the next writer of the same folder removes. Where two write
    the same folder at once, the first to end gives it its contents and the other one checks that
    its own were the same.

    Args:
      folder: what is made; its parents are made too.
      arrays: name -> (shape of a row, dtype).
      shard_bytes: how large a shard becomes at most, unless a single row is larger.
      metadata: what JSON can hold; comes back as `Records.metadata`.

    Raises:
      UsageError: a layout or metadata that cannot be written, rows that do not fit the layout.
      RunError: `folder` is there and is not the same records; nothing was appended.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        arrays: Mapping[str, tuple],
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping | None = None,
    ):
        # Absolute: a writer that lives for hours must not follow a change of the current folder.
        self.folder = Path(folder).expanduser().absolute()
        if not arrays:
            raise UsageError(f"Records need an array. Received none for {self.folder}.")
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
            # Said before the work and not after it; the same records may be made once more.
            there = open_records(self.folder, verify=False)
            if there.metadata != self.metadata or list(there.arrays) != [
                layout.name for layout in self._layouts
            ]:
                raise self._taken()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished, self._lock = _unfinished_folder(self.folder)
        self._shards = [_ShardWriter(self._unfinished, layout) for layout in self._layouts]
        return self

    def append(self, **rows: np.ndarray):
        """Adds `(n, *row shape)` of every array; n may be anything, also 0.

        Integers of another type are taken where all their values fit.
        """
        layouts = {layout.name: layout for layout in self._layouts}
        if rows.keys() != layouts.keys():
            raise UsageError(
                f"Records {self.folder} take {', '.join(layouts)}. Received: {', '.join(rows)}."
            )
        fitted = {name: _fitted(layouts[name], array) for name, array in rows.items()}
        if len({len(array) for array in fitted.values()}) > 1:
            lengths = ", ".join(f"{name} {len(array):,}" for name, array in fitted.items())
            raise UsageError(f"All arrays must get equally many rows. Received: {lengths}.")
        for shards in self._shards:
            shards.append(fitted[shards.layout.name])
        self.rows += len(next(iter(fitted.values())))

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._finish()
        finally:
            for shards in self._shards:
                shards.close()
            # Under its own name no longer, where it has become `folder`.
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._lock.lock.release()

    def _finish(self):
        if not self.rows:
            raise RunError(f"No rows were written for {self.folder}: there is nothing to keep.")
        content = {
            "rows": self.rows,
            "arrays": {shards.layout.name: shards.finish() for shards in self._shards},
            "metadata": self.metadata,
        }
        manifest = {"format": FORMAT, "fingerprint": _fingerprint(content), **content}
        path = self._unfinished / MANIFEST
        with naming(path), open_in_place(path) as file:  # empty so far, and locked
            json.dump(manifest, file, indent=1)
            fsync_file(file)
        # mkdtemp makes a folder for its owner alone; records may be shared.
        self._unfinished.chmod(0o755)
        fsync_folder(self._unfinished)
        try:
            self._unfinished.rename(self.folder)
        except OSError:
            if not self.folder.is_dir():
                raise
            # Another process was first.
            if open_records(self.folder, verify=False).fingerprint != manifest["fingerprint"]:
                raise self._taken() from None
        fsync_folder(self.folder.parent)

    def _taken(self) -> RunError:
        return RunError(
            f"{self.folder} holds other records already: delete that folder or name another one."
        )


def _unfinished_folder(folder: Path):
    """Returns a new hidden folder beside `folder`, and the lock on its empty manifest.

    The lock tells the folder of a living writer from that of a killed one, which is removed.
    """
    prefix = f".{folder.name}.tmp"
    for other in folder.parent.iterdir():
        if not other.name.startswith(prefix) or not is_leftover(other, MANIFEST):
            continue
        with contextlib.suppress(OSError), lock_file(other / MANIFEST).acquire(timeout=0):
            shutil.rmtree(other)
    while True:
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        # Until it is locked, another writer may take it for a dead one and remove it.
        with contextlib.suppress(FileNotFoundError, Timeout):
            return made, lock_file(made / MANIFEST).acquire(timeout=0)


class _ShardWriter:
    """The shards of one array: cuts, hashes and writes what is appended."""

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
            with naming(path):
                self.file.write(data)
            self.rows += len(piece)
            array = array[len(piece) :]
            if self.rows == self.layout.rows_per_shard:
                self._end_shard()

    def _end_shard(self):
        with naming(Path(self.file.name)):
            fsync_file(self.file)
        self.file.close()
        self.file = None
        self.digests.append(self.digest.hexdigest())

    def finish(self) -> dict:
        """Ends the last shard; returns the array's row of the manifest."""
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
            # What could not be written is given up: the folder is removed next.
            with contextlib.suppress(OSError):
                self.file.close()


def _fitted(layout: _Layout, array) -> np.ndarray:
    """Returns the rows contiguous and of the layout's dtype, values unchanged."""
    array = np.asarray(array)
    wanted = f"Array {layout.name!r} takes rows of {layout.row_shape} {layout.dtype}"
    if array.shape[1:] != layout.row_shape or not array.ndim:
        raise UsageError(f"{wanted}. Received: an array of {array.shape} {array.dtype}.")
    if array.dtype != layout.dtype and not np.can_cast(array.dtype, layout.dtype, "safe"):
        if array.dtype.kind not in "iu" or layout.dtype.kind not in "iu":
            raise UsageError(f"{wanted}. Received: {array.dtype}.")
        limits = np.iinfo(layout.dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise UsageError(f"{wanted}. Received: values {array.min()} … {array.max()}.")
    return np.ascontiguousarray(array, layout.dtype)


# --- reading ------------------------------------------------------------------------------------


class ShardedArray:
    """A read-only array `(N, *row shape)` whose rows lie in several mapped pieces.

    `array[7]`, `array[2:5]` and `array[[9, 0, 3]]` are arrays in memory, the caller's own. An
    index may have any shape: `(a, b)` gives `(a, b, *row shape)`. `np.asarray(array)` is the map
    itself, read-only and not read yet, where there is a single piece, otherwise a copy of all.

    Args:
      shards: `(n, *row shape)` each; all but the last hold equally many rows.
    """

    def __init__(self, shards: list[np.ndarray]):
        self._shards = shards
        self._per_shard = len(shards[0])
        rows = sum(len(shard) for shard in shards)
        self.shape, self.dtype = (rows, *shards[0].shape[1:]), shards[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"ShardedArray({self.shape}, {self.dtype}, {len(self._shards)} shards)"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if len(self._shards) == 1:
            return np.array(self._shards[0], dtype, copy=copy)
        if copy is False:
            raise ValueError(f"{self!r} cannot become one array without a copy.")
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
            raise IndexError(f"Rows are found by their numbers or a slice. Received: {index!r}.")
        return self._gather(index)[()]  # a single number of rows without axes is a scalar

    def part(self, start: int, stop: int) -> np.ndarray:
        """Those rows: of the map itself where they lie in one piece, otherwise a copy of them."""
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
                raise IndexError(f"{low if low < 0 else high} is not among {len(self):,} rows.")
            if low < 0:
                places = np.where(places < 0, places + len(self), places)
        rows = np.empty((places.size, *self.shape[1:]), self.dtype)
        if len(self._shards) == 1:
            # "clip", after the check above: NumPy's default makes a second copy.
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
      arrays: name -> `ShardedArray`, all of one length.
      metadata: as given to the writer, as JSON keeps it.
      fingerprint: sha256 over the digests of all shards, the layout and the metadata; in hex.
    """

    arrays: dict[str, ShardedArray]
    metadata: dict
    fingerprint: str


def open_records(folder: str | os.PathLike, verify: bool = True) -> Records:
    """Opens what a `RecordWriter` wrote.

    Args:
      folder: of the writer.
      verify: compares the sha256 of every shard, which reads all of them once, on all cores.
        Names, sizes and the manifest are checked always.

    Raises:
      UsageError: there is no such folder.
      RunError: a shard is missing, cut, altered or not of these records, or the manifest is
        damaged or of another version; names the file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}. {lies_at(folder)}")
    manifest = _read_manifest(folder)
    try:
        content = {key: manifest[key] for key in ("rows", "arrays", "metadata")}
        if _fingerprint(content) != manifest["fingerprint"]:
            raise ValueError
        rows, digests, layouts = content["rows"], {}, []
        for name, row in content["arrays"].items():
            layout = _Layout(
                name, tuple(row["row_shape"]), np.dtype(row["dtype"]), row["rows_per_shard"]
            )
            numbers = [rows, layout.rows_per_shard, *layout.row_shape]
            # Each shard has a digest: what is declared is no longer than the manifest itself.
            counts = all(type(number) is int and number > 0 for number in numbers)
            if (
                not counts
                or len(layout.row_shape) >= MOST_AXES
                or (-(-rows // layout.rows_per_shard) != len(row["sha256"]))
            ):
                raise ValueError
            layouts.append(layout)
            digests |= {layout.file_name(i): digest for i, digest in enumerate(row["sha256"])}
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError):
        raise _refused(folder, MANIFEST, "is damaged") from None
    if strange := {path.name for path in folder.glob(f"*{SUFFIX}")} - set(digests):
        raise _refused(folder, min(strange), "does not belong to these records")
    arrays = {layout.name: ShardedArray(_map(folder, layout, rows)) for layout in layouts}
    if verify:
        _verify(folder, digests)
    return Records(arrays, content["metadata"], manifest["fingerprint"])


def _read_manifest(folder: Path) -> dict:
    if not (folder / MANIFEST).exists():
        raise _refused(folder, MANIFEST, "is missing")
    try:
        manifest = read_json(folder / MANIFEST)
        version = manifest["format"]
    except (RunError, KeyError, TypeError):
        raise _refused(folder, MANIFEST, "is damaged") from None
    if version != FORMAT:
        raise _refused(folder, MANIFEST, f"has format {version!r}, this version reads {FORMAT}")
    return manifest


def _map(folder: Path, layout: _Layout, rows: int) -> list[np.ndarray]:
    maps = []
    for shard, count in enumerate(layout.shard_rows(rows)):
        path = folder / layout.file_name(shard)
        expected = count * layout.row_bytes
        if not path.is_file():
            raise _refused(folder, path.name, "is missing")
        if (size := path.stat().st_size) != expected:
            raise _refused(folder, path.name, f"has {size:,} bytes of {expected:,}")
        with open_file(path) as file:
            mapped = np.memmap(file, layout.dtype, "r", shape=(count, *layout.row_shape))
        # The bare array: every slice of a np.memmap costs microseconds of bookkeeping.
        maps.append(mapped.view(np.ndarray))
    return maps


def _verify(folder: Path, digests: Mapping[str, str]):
    # Threads: hashing lets go of Python's lock.
    with ThreadPoolExecutor(min(len(digests), os.cpu_count() or 1)) as pool:
        found = pool.map(file_digest, [folder / name for name in digests])
        for name, digest in zip(digests, found, strict=True):
            if digest != digests[name]:
                pool.shutdown(wait=False, cancel_futures=True)
                raise _refused(folder, name, "was altered: its sha256 is another one")


def _refused(folder: Path, name: str, what: str) -> RunError:
    return RunError(f"{folder / name} {what}: delete the folder {folder}; it is made again.")
