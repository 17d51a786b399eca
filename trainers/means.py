"""Weighted means of loss terms and statistics over many batches and replicas."""

import keras
import tensorflow as tf

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
        """The means so far, with the whole loss under "loss"."""
        return self._with_loss({name: mean.result() for name, mean in self.metrics.items()})

    def take(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (total, count) since the last call, and starts again."""
        taken = {}
        for name, mean in self.metrics.items():
            taken[name] = float(mean.total.numpy()), float(mean.count.numpy())
            mean.reset_state()
        return taken

    def logs(self, taken: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Turns totals and counts into means, with the whole loss under "loss"."""
        means = {
            name: total / count if count else 0.0
            for name, (total, count) in taken.items()
            if count or name != "regularization"
        }
        derived = self.task.derived({**means, "loss": self._loss(means)})  # of the data alone
        return {**self._with_loss(means), **derived}

    def _loss(self, means: dict):
        return sum(c * means[name] for name, c in self.task.terms.items())

    def _with_loss(self, means: dict) -> dict:
        return {**means, "loss": self._loss(means) + means.get("regularization", 0.0)}


def evaluate_batch(model, task: Task, means: Means, data) -> Forward:
    """Adds one batch to the means without changing the model."""
    with keras.StatelessScope():
        result = task.forward(model, data, training=False)
    means.add(result.sums, result.statistics, task.weights(data))
    return result
