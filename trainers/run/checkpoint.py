"""Checkpoints: the complete state of a run in one file.

A checkpoint is an uncompressed .npz file (a zip archive, so every array has a CRC) of all variables
in order, with a header that holds the variables' paths, the step and the counters of `RunState`.
Arrays are matched by position. Shapes, types and paths must agree, except for the numbers in Keras'
automatic names, which differ between processes.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from zoo.errors import RunError, UsageError, short
from zoo.storage.arrays import open_npz
from zoo.storage.disk import atomic, remove_temporary

_READERS = 2  # threads; reading and checking a CRC release the GIL
_NAME = re.compile(r"step_(\d{10})\.npz")
_NUMBER = re.compile(r"_(\d+)(?=[_/]|$)")  # in a variable's path


def variables_of(step) -> list:
    """Returns every variable of a `TrainStep` that a checkpoint holds, in a fixed order.

    The weights that adapters leave frozen are not among them.
    """
    frozen = {id(v) for v in step.lora.frozen} if step.lora else ()
    variables = [
        *step.net.trainable_variables,
        *step.net.non_trainable_weights,
        *step.seed_states,
        *(variable for optimizer in step.optimizers for variable in optimizer.variables),
        step.count,
        *(variable for compressor in step.compressors for variable in compressor.variables),
        *step.task.variables,
    ]
    return [v for v in variables if id(v) not in frozen]


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns `(step, path)` of the complete checkpoints in a folder, oldest first."""
    names = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.npz")]
    return sorted((int(match[1]), path) for match, path in names if match)


def save(folder: Path, step, counters: dict, keep: int) -> Path:
    """Writes a checkpoint atomically, then deletes the oldest beyond `keep`.

    Args:
      folder: the folder of the checkpoints; created if missing.
      step: a `TrainStep`.
      counters: the run's own state, JSON values.
      keep: number of checkpoints to keep, at least 1.
    """
    return store(folder, Snapshot(step, counters), keep)


class Snapshot:
    """A copy of the content of a checkpoint, which can be written while training continues.

    Args:
      step: a `TrainStep`.
      counters: the run's own state, JSON values.
      buffers: arrays from `allocate` to copy into; None allocates new ones.
    """

    def __init__(self, step, counters: dict, buffers: Sequence[np.ndarray] | None = None):
        variables = variables_of(step)
        self.step = int(step.count.numpy())
        paths = [variable.path for variable in variables]
        header = {"step": self.step, "counters": counters, "paths": paths}
        if step.lora:
            header["frozen"] = step.lora.digest
        self.header = json.dumps(header)
        self.arrays = list(buffers or allocate(step))
        for array, variable in zip(self.arrays, variables, strict=True):
            np.copyto(array, _portable(_read(variable)), casting="no")


def allocate(step) -> list[np.ndarray]:
    """Returns arrays for a `Snapshot`, in memory that is already mapped."""
    arrays = []
    for variable in variables_of(step):
        arrays.append(np.empty(tuple(variable.shape), _stored_type(variable)))
        arrays[-1].fill(0)  # maps the pages now, so that the first copy does not wait for them
    return arrays


def store(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Writes a snapshot as `save` does."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)
    path = folder / f"step_{snapshot.step:010d}.npz"
    with atomic(path) as file:
        write(file, snapshot)
    for _, old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def write(file, snapshot: Snapshot) -> None:
    """Writes a snapshot to an open file."""
    arrays = {f"{i:05d}": array for i, array in enumerate(snapshot.arrays)}
    np.savez(file, header=np.frombuffer(snapshot.header.encode(), np.uint8), **arrays)


def digest(step) -> str:
    """Returns the SHA-256 of all variables that a checkpoint of the step would hold."""
    sha256 = hashlib.sha256()
    for variable in variables_of(step):
        sha256.update(np.ascontiguousarray(_portable(variable.numpy())).reshape(-1).view(np.uint8))
    return sha256.hexdigest()


def restore(path: Path | bytes, step) -> dict:
    """Restores a `TrainStep` from a checkpoint; changes nothing if it raises.

    Args:
      path: a checkpoint's path, or its content as `write` wrote it.
      step: a `TrainStep`.

    Returns:
      The counters that the checkpoint was saved with.

    Raises:
      RunError: if the file is damaged.
      UsageError: if the checkpoint belongs to another model or optimizer, or its adapters to other
        frozen weights.
    """
    header, arrays = read(path)
    path = "The checkpoint of the chief" if isinstance(path, bytes) else path
    variables = variables_of(step)
    if len(arrays) != len(variables):
        raise UsageError(
            f"{path} belongs to another model or optimizer: the file has {len(arrays)} variables, "
            f"this run has {len(variables)}."
        )
    for variable, array, name in zip(variables, arrays, header["paths"], strict=True):
        saved_type, own_type = (
            (array.shape, array.dtype),
            (tuple(variable.shape), _stored_type(variable)),
        )
        if saved_type != own_type:
            raise UsageError(
                f"{path} belongs to another model: {name} is {saved_type[0]} {saved_type[1]}, "
                f"in this run {own_type[0]} {own_type[1]}."
            )
    paths = [variable.path for variable in variables]
    if (index := _first_other(header["paths"], paths)) is not None:
        raise UsageError(
            f"{path} belongs to another model: variable {index} is {header['paths'][index]!r}, "
            f"in this run {paths[index]!r}."
        )
    if header["frozen"] != (digest := step.lora.digest if step.lora else ""):
        raise UsageError(
            f"A resumed run must start from the frozen weights of its checkpoints. Received: "
            f"SHA-256 {digest[:12]}…, {path} has {header['frozen'][:12]}…. Restore the model of "
            "init_from, or use a new work directory."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array.view(variable.dtype) if variable.dtype == "bfloat16" else array)
    return header["counters"]


def _first_other(saved_paths: Sequence[str], paths: Sequence[str]) -> int | None:
    """Returns the first index at which two lists of paths name different variables, or None.

    Keras numbers unnamed layers per process: `dense_1` may be `dense_5` in another process. So the
    words of two paths must be equal, and the numbers after a word ("block" in
    `block_0/dense_1/kernel`) must be equal if both lists use the same set of numbers for that
    word. Two unnamed layers of one shape that were swapped cannot be told apart.
    """
    pairs = list(
        zip(map(_words_and_numbers, saved_paths), map(_words_and_numbers, paths), strict=True)
    )
    used, used_here = (
        {number for sides in pairs for number in sides[side][1].items()} for side in (0, 1)
    )
    differing_words = {word for word, _ in used ^ used_here}
    for index, ((words, numbers), (other_words, other_numbers)) in enumerate(pairs):
        fixed = (numbers.keys() | other_numbers.keys()) - differing_words
        if words != other_words or any(numbers.get(x) != other_numbers.get(x) for x in fixed):
            return index
    return None


def _words_and_numbers(path: str) -> tuple[str, dict[str, str]]:
    """Returns a path without its numbers, and a dict from the words before a number to it."""
    numbers = {_NUMBER.sub("", path[: m.start()]): m[1] for m in _NUMBER.finditer(path)}
    return _NUMBER.sub("", path), numbers


def read(path: Path | bytes) -> tuple[dict, list[np.ndarray]]:
    """Returns header and arrays of a checkpoint, given its path or its content.

    Raises:
      RunError: if the file is damaged or cannot be read.
    """
    try:
        with open_npz(path) as archive:
            header = json.loads(archive["header"].tobytes())
            names = [f"{i:05d}" for i in range(len(header["paths"]))]
            with ThreadPoolExecutor(_READERS) as readers:
                arrays = list(readers.map(archive.__getitem__, names))
        fields = {key: header[key] for key in ("step", "counters", "paths")}
        return {**fields, "frozen": str(header.get("frozen", ""))}, arrays
    except RunError:
        raise
    # For damaged files NumPy, zipfile and json raise about ten types, MemoryError among them.
    except Exception as error:
        path = "of the chief" if isinstance(path, bytes) else path
        raise RunError(
            f"The checkpoint {path} is damaged: {short(error) or type(error).__name__}."
        ) from None


def _portable(array: np.ndarray) -> np.ndarray:
    # npz does not support bfloat16: its bits are stored as uint16.
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _read(variable) -> np.ndarray:
    """Returns a variable's value, without a copy if it is in the memory of the host."""
    if variable.dtype == "bfloat16":  # not supported by memoryview
        return variable.numpy()
    with tf.device("CPU"):
        return np.asarray(memoryview(tf.identity(tf.convert_to_tensor(variable))))


def _stored_type(variable) -> np.dtype:
    return np.dtype("uint16" if variable.dtype == "bfloat16" else variable.dtype)
