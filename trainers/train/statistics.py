"""Recomputes batch statistics for averaged weights.

Moving statistics belong to the weights in training, not to their average (`trainer.ema`). For the
averaged weights they are recomputed from training batches (Izmailov et al. 2018, arXiv:1803.05407,
section 3.2; Wu and Johnson 2021, arXiv:2105.07576, section 3): moving means and variances become
the averages of the batches' means and variances, and other state of layers is updated by the
layers' own rules. The result depends on weights and batches only, so checkpoints do not store it.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainers.train import batch_norm
from zoo.data import pipeline
from zoo.rows import use_row_weights

ROWS = 10_000  # enough for ImageNet (Wu and Johnson 2021, figure 3)


def statistics_batches(arrays, prepare: Callable, trainer, replicas: int) -> tf.data.Dataset:
    """Returns the first full training batches of the run, about `ROWS` rows at most.

    Each element holds the rows that an update normalizes together: one micro-batch of all
    replicas. So the number of replicas does not change the statistics.

    Args:
      arrays: the training split, with at least one batch.
      prepare: see `zoo.tasks.base.Task.prepare`.
      trainer: the section `trainer` of the configuration.
      replicas: number of replicas.
    """
    size = trainer.global_batch_size
    full_batches = len(next(iter(arrays.values()))) // size
    rows_together = (trainer.micro_batch_size or size // replicas) * replicas
    return pipeline.training_batches(
        arrays, prepare, batch_size=size, replicas=size // rows_together, seed=trainer.seed,
        first_step=0, last_step=min(full_batches, -(-ROWS // size)),
    )  # fmt: skip


class Statistics:
    """Recomputes batch statistics for the current weights of a network.

    It runs on one device without other replicas or workers, so the chief alone can save a model.

    Args:
      step: a `trainers.train.step.TrainStep`.
      batches: returns the batches.
    """

    def __init__(self, step, batches: Callable):
        self._step, self._batches = step, batches
        self._layers, self._changed = [], []  # filled when `_forward` is traced
        self._run = tf.function(self._forward, autograph=False)

    def __call__(self, variables) -> None:
        """Assigns the moving statistics among `variables`, and no other variable."""
        ids = {id(v) for v in variables}
        totals, count = [], 0
        for data in self._batches():
            moments, changes = self._run(tf.constant(count), data)
            moments = [value.numpy().astype("float64") for value in moments]
            totals = [a + b for a, b in zip(totals, moments, strict=True)] if count else moments
            count += 1
            for variable, value in zip(self._changed, changes, strict=True):
                if id(variable) in ids:
                    variable.assign(value.numpy())
        calls: dict = {}
        for layer, mean, variance in zip(self._layers, totals[::2], totals[1::2], strict=True):
            calls.setdefault(id(layer), (layer, []))[1].append((mean / count, variance / count))
        for layer, values in calls.values():
            for variable, per_call in zip(
                (layer.moving_mean, layer.moving_variance), zip(*values, strict=True), strict=True
            ):
                if id(variable) in ids:
                    variable.assign(sum(per_call) / len(per_call))

    def _forward(self, number, data):
        """Returns the moments of each normalization and new values of the changed variables."""
        step = self._step
        seeds = step._seeds(0, number)
        scope = keras.StatelessScope(step.seeded(seeds))
        unseeded = step.unseeded(seeds)
        recording = batch_norm.recorded_moments()
        with scope, unseeded, use_row_weights(data["weight"]), recording as recorded:
            for part in step.model_parts:
                part.forward(step.net, data, training=True)
        self._layers = [layer for layer, *_ in recorded]
        values = {id(v): scope.get_current_value(v) for v in step.net.non_trainable_weights}
        self._changed = [v for v in step.net.non_trainable_weights if values[id(v)] is not None]
        moments = [value for _, *mean_and_variance in recorded for value in mean_and_variance]
        return moments, [tf.cast(values[id(v)], v.dtype) for v in self._changed]
