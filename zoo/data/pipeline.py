"""Batches as a function of (seed, epoch, index), for exact and instant resume.

The pipeline has no state. Step `s` of a run is batch `s mod steps_per_epoch` of epoch
`s div steps_per_epoch`; its rows are given by the permutation of that epoch, for any number of
replicas.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from zoo.data.rows import is_in_memory, steps_per_epoch
from zoo.data.windows import Windows

GROUPED_BATCHES = 50  # number of batches whose examples are sorted by length


def epoch_order(positions, epoch, seed: int, examples: int):
    """Returns the examples at the given positions of an epoch's permutation.

    The permutation is a block cipher with cycle walking
    (`tf.random.experimental.index_shuffle`), so no array of indices is needed.

    Args:
      positions: `(n,)` int64 in [0, examples).
      epoch: int64 scalar.
      seed: random seed of the run.
      examples: number of examples of the split.

    Returns:
      `(n,)` int64, indices of examples.
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.index_shuffle(positions, seed=key, max_index=examples - 1)


def group_by_length(lengths: np.ndarray, *, batch_size: int, seed: int) -> Callable:
    """Returns a permutation of the positions of an epoch that gives batches of similar length.

    The examples of `GROUPED_BATCHES` successive batches are sorted by length and cut into batches,
    which follow each other in random order. Every example occurs once per epoch, as without groups.

    Args:
      lengths: `(examples,)` integers, the length of each example.
      batch_size: global batch size.
      seed: random seed of the run.

    Returns:
      A function from positions `(n,)` int64 of one batch and an epoch to `(n,)` int64 positions.
    """
    examples = len(lengths)
    total = steps_per_epoch(examples, batch_size) * batch_size
    group_size = GROUPED_BATCHES * batch_size
    lengths = tf.constant(lengths, tf.int64)

    def grouped(position, epoch):
        group = position[0] // group_size
        first = group * group_size
        members = tf.range(first, tf.minimum(first + group_size, total))
        index = epoch_order(tf.minimum(members, examples - 1), epoch, seed, examples)
        # Rows that pad the last batch of the epoch come last.
        keys = tf.where(members < examples, tf.gather(lengths, index), tf.int64.max)
        batches = tf.size(members, tf.int64) // batch_size
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        key = tf.random.experimental.stateless_fold_in(key, group)
        batch = tf.random.experimental.index_shuffle(
            (position[0] - first) // batch_size, seed=key, max_index=batches - 1
        )
        order = first + tf.cast(tf.argsort(keys, stable=True), tf.int64)
        return tf.gather(order, batch * batch_size + position % batch_size)

    return grouped


def training_batches(
    arrays: Mapping[str, np.ndarray],
    prepare: Callable,
    *,
    batch_size: int,
    replicas: int,
    seed: int,
    first_step: int,
    last_step: int,
    local_replicas: range | None = None,
    lengths: np.ndarray | None = None,
    curriculum: int = 0,
) -> tf.data.Dataset:
    """Returns the batches of steps `first_step` to `last_step - 1`.

    Args:
      arrays: equally long arrays of a split, in memory or mapped, or `zoo.data.windows.Windows`.
      prepare: `prepare(batch, uniform, training)`, see `zoo.tasks.base.Task.prepare`.
      batch_size: global batch size.
      replicas: number of replicas. Each element of the result is a per-replica batch, in the order
        of the replicas.
      seed: random seed of the run.
      first_step: first step; not 0 after a resume.
      last_step: end of the run.
      local_replicas: replicas of this process; None for all.
      lengths: `(examples,)` integers; batches get examples of similar length, see
        `group_by_length`. None for batches of any examples.
      curriculum: number of steps of the curriculum; `prepare` gets "progress" (batch,) float32, the
        share of them that ends with the step, at most 1. 0 for no "progress".

    Returns:
      A `tf.data.Dataset` of dicts with static shapes. Rows beyond the end of the epoch have
      "weight" 0.
    """
    examples = len(next(iter(arrays.values())))
    steps = steps_per_epoch(examples, batch_size)
    size = batch_size // replicas
    local = range(replicas) if local_replicas is None else local_replicas
    read_rows = _reader(arrays)
    grouped = None
    if lengths is not None:
        grouped = group_by_length(lengths, batch_size=batch_size, seed=seed)

    @tf.autograph.experimental.do_not_convert  # autograph would take a second
    def element(number):
        step, replica = number // len(local), local.start + number % len(local)
        position = (step % steps) * batch_size + replica * size + tf.range(size, dtype=tf.int64)
        epoch = step // steps
        if grouped is not None:
            position = grouped(position, epoch)
        index = epoch_order(tf.minimum(position, examples - 1), epoch, seed, examples)
        batch = read_rows(index, tf.stack([tf.constant(seed, tf.int64), epoch]))
        batch["weight"] = tf.cast(position < examples, tf.float32)
        if curriculum:
            progress = tf.cast(tf.minimum(step + 1, curriculum), tf.float32) / curriculum
            batch["progress"] = tf.fill((size,), progress)
        key = tf.stack([tf.constant(seed, tf.int64), step])
        return _with_weight(
            prepare(batch, _uniform(key, batch_size, replica * size, size), True), batch
        )

    numbers = tf.data.Dataset.range(first_step * len(local), last_step * len(local))
    batches = numbers.map(element, num_parallel_calls=2, deterministic=True)
    return batches.prefetch(2 * len(local)).with_options(options())


def evaluation_batches(
    arrays: Mapping[str, np.ndarray],
    prepare: Callable,
    *,
    batch_size: int,
    replicas: int,
    training: bool = False,
    seed: int = 0,
    local_replicas: range | None = None,
) -> tf.data.Dataset:
    """Returns all examples once, in stored order; padding of the last batch has "weight" 0.

    Each element is a per-replica batch, as in `training_batches`. With `training`, examples are
    augmented; the random numbers of an example depend on the seed and its index, not on the batch
    size.
    """
    examples = len(next(iter(arrays.values())))
    size = batch_size // replicas
    local = range(replicas) if local_replicas is None else local_replicas
    read_rows = _reader(arrays)

    @tf.autograph.experimental.do_not_convert
    def element(number):
        batch_number, replica = number // len(local), local.start + number % len(local)
        position = batch_number * batch_size + replica * size + tf.range(size, dtype=tf.int64)
        batch = read_rows(tf.minimum(position, examples - 1), None)
        batch["weight"] = tf.cast(position < examples, tf.float32)
        return _with_weight(prepare(batch, _uniform_of_rows(seed, position), training), batch)

    numbers = tf.data.Dataset.range(steps_per_epoch(examples, batch_size) * len(local))
    batches = numbers.map(element, num_parallel_calls=2, deterministic=True)
    return batches.prefetch(2 * len(local)).with_options(options())


def _with_weight(prepared_batch: dict, batch: Mapping) -> dict:
    """Adds the weights of rows if the task has removed them."""
    return {"weight": batch["weight"], **prepared_batch}


def _uniform(key, batch_size: int, first_row, size: int) -> Callable:
    """Returns a source of random numbers for the rows of one replica.

    The numbers are drawn for the global batch, so they do not depend on the number of replicas.
    """
    salts = itertools.count()

    def uniform(count):
        numbers = tf.random.stateless_uniform((batch_size, count), _fold_in_salt(key, next(salts)))
        rows = tf.slice(numbers, (first_row, 0), (size, count))
        return tf.ensure_shape(rows, (size, count))

    return uniform


def _uniform_of_rows(seed: int, positions) -> Callable:
    """Returns a source of random numbers that depend only on the seed and an example's index."""
    salts = itertools.count()

    def uniform(count):
        salt = next(salts)

        def row(position):
            key = tf.stack([tf.constant(seed, tf.int64), position])
            return tf.random.stateless_uniform((count,), _fold_in_salt(key, salt))

        return tf.map_fn(row, positions, fn_output_signature=tf.TensorSpec((count,), tf.float32))

    return uniform


def _fold_in_salt(key, salt: int):
    """Returns a distinct key for each call of a source of random numbers."""
    return tf.random.experimental.stateless_fold_in(key, salt) if salt else key


def all_in_memory(arrays: Mapping) -> bool:
    """Returns whether batches need no Python function, so that any host can run the pipeline."""
    return all(map(is_in_memory, arrays.values()))


def _reader(arrays: Mapping) -> Callable:
    """Returns `read(index, key)`, which returns rows of each array.

    Small arrays become tensors; large and sharded arrays are read by NumPy.
    """
    with tf.device("CPU"):  # not in the accelerator's memory
        tensors = {key: tf.constant(array) for key, array in arrays.items() if is_in_memory(array)}

    def read_rows(index, key):
        batch = {}
        for name, array in arrays.items():
            if name in tensors:
                batch[name] = tf.gather(tensors[name], index)
                continue
            if isinstance(array, Windows):
                phase = tf.constant(0, tf.int64)
                if key is not None:
                    phase = tf.random.stateless_uniform(
                        (), key, maxval=array.stride, dtype=tf.int64
                    )
                rows = tf.numpy_function(array.take, [index, phase], array.dtype)
            else:
                rows = tf.numpy_function(array.__getitem__, [index], array.dtype)
            batch[name] = tf.ensure_shape(rows, (index.shape[0], *array.shape[1:]))
        return batch

    return read_rows


def options() -> tf.data.Options:
    """Returns options for a deterministic pipeline without sharding and autotuning."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    options.autotune.enabled = False
    return options
