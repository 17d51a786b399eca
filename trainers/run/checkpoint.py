"""Checkpoints: every bit that decides what a run does next, in one file.

A checkpoint is an uncompressed .npz (a zip, so every array carries a CRC) of all variables in
order, and a header with their paths, the step and the run's own counters. Arrays are matched by
place; shapes, types and paths must agree, but for the numbers in Keras' automatic names, which
differ from process to process.
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

_READERS = 2  # threads; reading and checking a CRC leave Python to others
_NAME = re.compile(r"step_(\d{10})\.npz")
_NUMBER = re.compile(r"_(\d+)(?=[_/]|$)")  # in a variable's path


def variables_of(step) -> list:
    """Every variable of a `TrainStep` that decides what comes next, in a fixed order."""
    return [
        *step.net.trainable_variables,
        *step.net.non_trainable_weights,
        *step.seed_states,
        *(variable for optimizer in step.optimizers for variable in optimizer.variables),
        step.count,
        *(variable for compressor in step.compressors for variable in compressor.variables),
        *step.task.variables,
    ]


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns `(step, path)` of the whole checkpoints in a folder, oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.npz")]
    return sorted((int(match[1]), path) for match, path in found if match)


def save(folder: Path, step, counters: dict, keep: int) -> Path:
    """Writes a checkpoint atomically, then deletes the oldest beyond `keep`.

    Args:
      folder: created where it is missing.
      step: a `TrainStep`.
      counters: the run's own state, JSON values.
      keep: how many to keep, at least 1.
    """
    return store(folder, Snapshot(step, counters), keep)


class Snapshot:
    """A copy of what a checkpoint holds, so that it can be written while training goes on.

    Args:
      step: a `TrainStep`.
      counters: the run's own state, JSON values.
      buffers: arrays that `allocate` made, into which the copy goes; None makes new ones.
    """

    def __init__(self, step, counters: dict, buffers: Sequence[np.ndarray] | None = None):
        variables = variables_of(step)
        self.step = int(step.count.numpy())
        paths = [variable.path for variable in variables]
        self.header = json.dumps({"step": self.step, "counters": counters, "paths": paths})
        self.arrays = list(buffers or allocate(step))
        for array, variable in zip(self.arrays, variables, strict=True):
            np.copyto(array, _portable(_read(variable)), casting="no")


def allocate(step) -> list[np.ndarray]:
    """Arrays for a `Snapshot`, in memory that the system has truly given."""
    arrays = []
    for variable in variables_of(step):
        arrays.append(np.empty(tuple(variable.shape), _stored_type(variable)))
        arrays[-1].fill(0)  # touched: the first copy would wait for each page else
    return arrays


def store(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Does what `save` does, with a copy made before."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)
    path = folder / f"step_{snapshot.step:010d}.npz"
    with atomic(path) as file:
        write(file, snapshot)
    for _, old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def write(file, snapshot: Snapshot) -> None:
    """Writes what a checkpoint holds to an open file."""
    arrays = {f"{i:05d}": array for i, array in enumerate(snapshot.arrays)}
    np.savez(file, header=np.frombuffer(snapshot.header.encode(), np.uint8), **arrays)


def digest(step) -> str:
    """Hash of every bit that a checkpoint of the step would hold."""
    found = hashlib.sha256()
    for variable in variables_of(step):
        found.update(np.ascontiguousarray(_portable(variable.numpy())).reshape(-1).view(np.uint8))
    return found.hexdigest()


def restore(path: Path | bytes, step) -> dict:
    """Puts a checkpoint, or what `write` wrote, into a `TrainStep`; all of it or nothing.

    Returns:
      The counters it was saved with.

    Raises:
      RunError: where the file is damaged.
      UsageError: where it belongs to another model or optimizer.
    """
    header, arrays = read(path)
    path = "What was sent" if isinstance(path, bytes) else path
    variables = variables_of(step)
    if len(arrays) != len(variables):
        raise UsageError(
            f"{path} belongs to another model or optimizer: it holds {len(arrays)} variables, "
            f"this run has {len(variables)}."
        )
    for variable, array, name in zip(variables, arrays, header["paths"], strict=True):
        saved, here = (array.shape, array.dtype), (tuple(variable.shape), _stored_type(variable))
        if saved != here:
            raise UsageError(
                f"{path} belongs to another model: {name} is {saved[0]} {saved[1]}, "
                f"here {here[0]} {here[1]}."
            )
    paths = [variable.path for variable in variables]
    if (place := _first_other(header["paths"], paths)) is not None:
        raise UsageError(
            f"{path} belongs to another model: variable {place} is {header['paths'][place]!r}, "
            f"here {paths[place]!r}."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array.view(variable.dtype) if variable.dtype == "bfloat16" else array)
    return header["counters"]


def _first_other(saved: Sequence[str], here: Sequence[str]) -> int | None:
    """Returns where two lists of paths first name different variables; None if nowhere.

    Keras counts layers without a name of their own through a process: `dense_1` may be `dense_5`
    elsewhere. So words must be equal, and of the numbers behind a word ("block" in
    `block_0/dense_1/kernel`) those that both lists use alike. Two layers of one shape without
    names that changed places cannot be told apart.
    """
    pairs = list(zip(map(_words_and_numbers, saved), map(_words_and_numbers, here), strict=True))
    used, used_here = (
        {number for sides in pairs for number in sides[side][1].items()} for side in (0, 1)
    )
    counted = {word for word, _ in used ^ used_here}
    for place, ((words, numbers), (other_words, other_numbers)) in enumerate(pairs):
        fixed = (numbers.keys() | other_numbers.keys()) - counted
        if words != other_words or any(numbers.get(x) != other_numbers.get(x) for x in fixed):
            return place
    return None


def _words_and_numbers(path: str) -> tuple[str, dict[str, str]]:
    """Returns a path without its numbers, and each number by the words before it."""
    numbers = {_NUMBER.sub("", path[: m.start()]): m[1] for m in _NUMBER.finditer(path)}
    return _NUMBER.sub("", path), numbers


def read(path: Path | bytes) -> tuple[dict, list[np.ndarray]]:
    """Returns header and arrays of a checkpoint, or of what `write` wrote.

    Raises:
      RunError: where the file is damaged or cannot be read.
    """
    try:
        with open_npz(path) as archive:
            header = json.loads(archive["header"].tobytes())
            names = [f"{i:05d}" for i in range(len(header["paths"]))]
            with ThreadPoolExecutor(_READERS) as readers:
                arrays = list(readers.map(archive.__getitem__, names))
        return {key: header[key] for key in ("step", "counters", "paths")}, arrays
    except RunError:
        raise
    # NumPy, zipfile and json raise about ten kinds for a damaged file, MemoryError among them.
    except Exception as error:
        path = "that was sent" if isinstance(path, bytes) else path
        raise RunError(
            f"The checkpoint {path} is damaged: {short(error) or type(error).__name__}."
        ) from None


def _portable(array: np.ndarray) -> np.ndarray:
    # npz has no bfloat16; its bits travel as uint16.
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _read(variable) -> np.ndarray:
    """A variable's value, without a copy where it lies in this machine's memory."""
    if variable.dtype == "bfloat16":  # which buffers cannot tell
        return variable.numpy()
    with tf.device("CPU"):
        return np.asarray(memoryview(tf.identity(tf.convert_to_tensor(variable))))


def _stored_type(variable) -> np.dtype:
    return np.dtype("uint16" if variable.dtype == "bfloat16" else variable.dtype)
