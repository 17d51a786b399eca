"""Weighted means of loss terms and statistics over many batches and replicas.

A mean over nothing has no value: where no target counted, its name is absent.
"""

import math

import keras
import tensorflow as tf

from zoo.rows import use_row_weights
from zoo.tasks.base import Forward, Task


class Means:
    """One `keras.metrics.Mean` a loss term and statistic; made inside the strategy's scope.

    Args:
      task: names the terms and statistics.
      penalty: whether to keep the mean of what layers add to the loss; left out of the logs
        where they add nothing.
    """

    def __init__(self, task: Task, penalty: bool = False):
        self.task = task
        names = [*task.terms, *task.statistics, *(["regularization"] if penalty else [])]
        self.metrics = {name: keras.metrics.Mean(name=name) for name in names}

    def add(self, sums, statistics, weights) -> None:
        """Adds one batch's sums; runs inside a replica.

        Args:
          sums: name -> sum of a loss term.
          statistics: name -> (sum, weight).
          weights: name of a sum -> its weight in this replica's batch.
        """
        for name, total in sums.items():
            self._add(name, total, weights[name])
        for name, (total, weight) in statistics.items():
            self._add(name, total, weight)

    def _add(self, name, total, weight) -> None:
        weight = tf.cast(weight, tf.float32)
        mean = tf.math.divide_no_nan(total, weight)
        self.metrics[name].update_state(mean, sample_weight=weight)

    def result(self) -> dict:
        """Returns the means so far, with the whole loss under "loss"; NaN where nothing counted."""
        means = {name: mean.total / mean.count for name, mean in self.metrics.items()}
        if "regularization" in means:
            means["regularization"] = self.metrics["regularization"].result()
        return {**means, "loss": self._loss(means) + means.get("regularization", 0.0)}

    def read(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (total, weight) since the last `take`; on all workers, or none."""
        return {
            name: (float(mean.total.numpy()), float(mean.count.numpy()))
            for name, mean in self.metrics.items()
        }

    def take(self) -> dict[str, tuple[float, float]]:
        """Does what `read` does, and starts again."""
        taken = self.read()
        for mean in self.metrics.values():
            mean.reset_state()
        return taken

    def put(self, taken: dict[str, tuple[float, float]]) -> None:
        """Goes on from what `read` returned."""
        for name, mean in self.metrics.items():
            total, weight = taken.get(name, (0.0, 0.0))
            mean.total.assign(total)
            mean.count.assign(weight)

    def logs(self, taken: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Turns totals and weights into means, with the whole loss under "loss".

        Returns:
          name -> value. What no target counted in is absent, and so is what follows from it: the
          loss where one of its terms is absent, the perplexity where the loss is.
        """
        means = {
            name: total / weight if weight else math.nan
            for name, (total, weight) in taken.items()
            if weight or name != "regularization"
        }
        unknown = {name for name in means if not taken[name][1]}
        if any(self.task.terms.get(name) for name in unknown):
            unknown.add("loss")
        data_loss = self._loss(means)  # without penalties of the weights
        derived = self.task.derived({**means, "loss": data_loss})
        if unknown:
            derived = {name: value for name, value in derived.items() if not math.isnan(value)}
        means["loss"] = data_loss + means.get("regularization", 0.0)
        return {k: v for k, v in means.items() if k not in unknown} | derived

    def _loss(self, means: dict):
        return sum(c * means[name] for name, c in self.task.terms.items() if c)


def evaluate_batch(model, task: Task, means: Means, data) -> Forward:
    """Adds one batch to the means without changing the model."""
    with keras.StatelessScope(), use_row_weights(data.get("weight")):
        result = task.forward(model, data, training=False)
    means.add(result.sums, result.statistics, task.term_counts(data))
    return result
