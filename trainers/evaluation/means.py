"""Weighted means of loss terms and statistics over many batches and replicas.

A mean with a total weight of 0 has no value, so its name is absent from the logs.
"""

import math

import keras
import tensorflow as tf

from zoo.rows import use_row_weights
from zoo.tasks.base import Forward, Task


class Means:
    """One `keras.metrics.Mean` per loss term and statistic of a task.

    It must be created inside the strategy's scope.

    Args:
      task: task that declares the terms and statistics.
      penalty: whether to track "regularization", the mean of the losses that layers add. The logs
        omit "regularization" if no layer adds a loss.
    """

    def __init__(self, task: Task, penalty: bool = False):
        self.task = task
        names = [*task.terms, *task.statistics, *(["regularization"] if penalty else [])]
        self.metrics = {name: keras.metrics.Mean(name=name) for name in names}

    def add(self, sums, statistics, weights) -> None:
        """Adds one per-replica batch; must be called inside a replica.

        Args:
          sums: name of a loss term -> sum over the batch.
          statistics: name of a statistic -> (sum, weight).
          weights: name of a loss term -> weight of its sum.
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
        """Returns the means so far and the total "loss"; NaN if the total weight is 0."""
        means = {name: mean.total / mean.count for name, mean in self.metrics.items()}
        if "regularization" in means:
            means["regularization"] = self.metrics["regularization"].result()
        return {**means, "loss": self._loss(means) + means.get("regularization", 0.0)}

    def read(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (total, weight) since the last `take`.

        All workers must call it together, because it reads variables of all replicas.
        """
        return {
            name: (float(mean.total.numpy()), float(mean.count.numpy()))
            for name, mean in self.metrics.items()
        }

    def take(self) -> dict[str, tuple[float, float]]:
        """Returns the same as `read`, then resets all means."""
        totals = self.read()
        for mean in self.metrics.values():
            mean.reset_state()
        return totals

    def put(self, totals: dict[str, tuple[float, float]]) -> None:
        """Restores the state that `read` returned."""
        for name, mean in self.metrics.items():
            total, weight = totals.get(name, (0.0, 0.0))
            mean.total.assign(total)
            mean.count.assign(weight)

    def logs(self, totals: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Computes the means and the total "loss" from the result of `read` or `take`.

        Returns:
          Name -> value. A mean with a total weight of 0 is absent, and so are the values that
          depend on it: the loss without one of its terms, the perplexity without the loss.
        """
        means = {
            name: total / weight if weight else math.nan
            for name, (total, weight) in totals.items()
            if weight or name != "regularization"
        }
        unknown = {name for name in means if not totals[name][1]}
        if any(self.task.terms.get(name) for name in unknown):
            unknown.add("loss")
        data_loss = self._loss(means)  # without regularization
        derived_metrics = self.task.derived_metrics({**means, "loss": data_loss})
        if unknown:
            derived_metrics = {
                name: value for name, value in derived_metrics.items() if not math.isnan(value)
            }
        means["loss"] = data_loss + means.get("regularization", 0.0)
        return {k: v for k, v in means.items() if k not in unknown} | derived_metrics

    def _loss(self, means: dict):
        return sum(c * means[name] for name, c in self.task.terms.items() if c)


def evaluate_batch(model, task: Task, means: Means, data) -> Forward:
    """Evaluates a batch and adds the result to `means`; does not change the model's variables."""
    with keras.StatelessScope(), use_row_weights(data.get("weight")):
        result = task.forward(model, data, training=False)
    means.add(result.sums, result.statistics, task.term_counts(data))
    return result
