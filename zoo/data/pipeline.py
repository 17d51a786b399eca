"""Batches as a function of (seed, epoch, index): exact and instant resume, at any replica count.

Nothing here holds a position. Step `s` of a run is batch `s mod steps_per_epoch` of epoch
`s div steps_per_epoch`; its rows are read by their place in that epoch's permutation.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from zoo.data.rows import is_held, steps_per_epoch
from zoo.data.windows import Windows


def epoch_order(positions, epoch, seed: int, examples: int):
    """Returns which example stands at the given positions of an epoch's permutation.

    Args:
      positions: `(n,)` int64 in [0, examples).
      epoch: int64 scalar.
      seed: of the run.
      examples: size of the split.

    Returns:
      `(n,)` int64. Over all positions it is a permutation (a block cipher with cycle walking,
      `tf.random.experimental.index_shuffle`), so no array of indices is ever held.
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.index_shuffle(positions, seed=key, max_index=examples - 1)


def training_batches(
    arrays: Mapping[str, np.ndarray],
    prepare: Callable,
    *,
    batch_size: int,
    replicas: int,
    seed: int,
    first_step: int,
    last_step: int,
    shares: range | None = None,
) -> tf.data.Dataset:
    """Batches of steps `first_step` to `last_step - 1`.

    Args:
      arrays: equally long arrays of a split, in memory or mapped, or `zoo.data.windows.Windows`.
      prepare: `prepare(batch, uniform, training)`, see `zoo.tasks.base.Task.prepare`.
      batch_size: of all replicas together.
      replicas: each element is one replica's share; replica 0's comes first, then replica 1's.
      seed: of the run.
      first_step: 0, or where a resumed run goes on.
      last_step: where the run ends.
      shares: of which replicas, those of this process; None for all of them.

    Returns:
      A dataset of dicts with static shapes. Rows beyond the epoch's end have weight 0.
    """
    examples = len(next(iter(arrays.values())))
    steps = steps_per_epoch(examples, batch_size)
    share = batch_size // replicas
    shares = range(replicas) if shares is None else shares
    read = _reader(arrays)

    @tf.autograph.experimental.do_not_convert  # rewriting its source takes a second
    def element(number):
        step, replica = number // len(shares), shares.start + number % len(shares)
        position = (step % steps) * batch_size + replica * share + tf.range(share, dtype=tf.int64)
        epoch = step // steps
        index = epoch_order(tf.minimum(position, examples - 1), epoch, seed, examples)
        batch = read(index, tf.stack([tf.constant(seed, tf.int64), epoch]))
        batch["weight"] = tf.cast(position < examples, tf.float32)
        key = tf.stack([tf.constant(seed, tf.int64), step])
        return _with_weight(
            prepare(batch, _uniform(key, batch_size, replica * share, share), True), batch
        )

    numbers = tf.data.Dataset.range(first_step * len(shares), last_step * len(shares))
    batches = numbers.map(element, num_parallel_calls=2, deterministic=True)
    return batches.prefetch(2 * len(shares)).with_options(options())


def evaluation_batches(
    arrays: Mapping[str, np.ndarray],
    prepare: Callable,
    *,
    batch_size: int,
    replicas: int,
    training: bool = False,
    seed: int = 0,
    shares: range | None = None,
) -> tf.data.Dataset:
    """All examples once, in stored order; the last batch is padded with weight 0.

    Elements are one replica's share each, as in `training_batches`. With `training` they are
    changed at random as for an update, by the given seed. What is drawn for an example is a
    function of the seed and its place, whatever the size of the batches.
    """
    examples = len(next(iter(arrays.values())))
    share = batch_size // replicas
    shares = range(replicas) if shares is None else shares
    read = _reader(arrays)

    @tf.autograph.experimental.do_not_convert
    def element(number):
        batch_number, replica = number // len(shares), shares.start + number % len(shares)
        position = batch_number * batch_size + replica * share + tf.range(share, dtype=tf.int64)
        batch = read(tf.minimum(position, examples - 1), None)
        batch["weight"] = tf.cast(position < examples, tf.float32)
        return _with_weight(prepare(batch, _uniform_of_rows(seed, position), training), batch)

    numbers = tf.data.Dataset.range(steps_per_epoch(examples, batch_size) * len(shares))
    batches = numbers.map(element, num_parallel_calls=2, deterministic=True)
    return batches.prefetch(2 * len(shares)).with_options(options())


def _with_weight(prepared: dict, batch: Mapping) -> dict:
    """Adds which rows are padding where the task has left it out."""
    return {"weight": batch["weight"], **prepared}


def _uniform(key, batch_size: int, first_row, share: int) -> Callable:
    """Rows of one replica out of the numbers of the whole batch, whatever the replicas are."""

    salts = itertools.count()

    def uniform(count):
        numbers = tf.random.stateless_uniform((batch_size, count), _salted(key, next(salts)))
        rows = tf.slice(numbers, (first_row, 0), (share, count))
        return tf.ensure_shape(rows, (share, count))

    return uniform


def _uniform_of_rows(seed: int, places) -> Callable:
    """Numbers of examples at given places of a split, each by itself."""
    salts = itertools.count()

    def uniform(count):
        salt = next(salts)

        def row(place):
            key = tf.stack([tf.constant(seed, tf.int64), place])
            return tf.random.stateless_uniform((count,), _salted(key, salt))

        return tf.map_fn(row, places, fn_output_signature=tf.TensorSpec((count,), tf.float32))

    return uniform


def _salted(key, turn: int):
    """The key of the first, second, … numbers that are asked for: no two the same."""
    return tf.random.experimental.stateless_fold_in(key, turn) if turn else key


def all_held(arrays: Mapping) -> bool:
    """Whether batches are made without Python, and so on any host."""
    return all(map(is_held, arrays.values()))


def _reader(arrays: Mapping) -> Callable:
    """Returns `read(index, key)`, which gives the rows of each array.

    Small arrays are held in memory, as tensors; large and sharded ones are read by NumPy.
    """
    with tf.device("CPU"):  # not in the accelerator's memory
        held = {key: tf.constant(array) for key, array in arrays.items() if is_held(array)}

    def read(index, key):
        batch = {}
        for name, array in arrays.items():
            if name in held:
                batch[name] = tf.gather(held[name], index)
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

    return read


def options() -> tf.data.Options:
    """Those of a pipeline whose order and parallelism are given."""
    found = tf.data.Options()
    found.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    found.deterministic = True
    found.autotune.enabled = False
    return found
