"""Learning-rate range test (Smith 2017, arXiv:1506.01186).

The recipe trains for some updates while the learning rate rises geometrically. The test is a run of
its own in its own work directory, so that no other run changes.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import keras
import numpy as np

from trainers.config.base import schedule
from trainers.config.recipe import of_workdir
from trainers.run.workdir import read_metrics
from trainers.train.trainer import Trainer
from zoo.errors import RunError, UsageError

_MOMENTUM = 0.9  # of the moving average of the loss, whose bias is corrected
_DIVERGED = 4.0  # the test ends once the averaged loss exceeds this multiple of its minimum
_FEWEST = 10  # updates before the test may end
_NEVER = 2**31 - 1  # updates


@dataclasses.dataclass(frozen=True)
class RateTest:
    """Result of a range test.

    Attributes:
      rates: learning rate of each update.
      losses: training loss of each update.
      averages: moving average of the losses.
      steepest: rate at which the average falls fastest per factor of the rate.
      lowest: rate of the lowest average.
      suggested: a tenth of `lowest`, or `steepest` if that is lower.
      diverged: whether the loss grew or was not finite before the last rate.
    """

    rates: list[float]
    losses: list[float]
    averages: list[float]
    steepest: float
    lowest: float
    suggested: float
    diverged: bool


def range_test(
    config, workdir: str | Path, *, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100,
    source: str = "", dataset=None,
) -> RateTest:  # fmt: skip
    """Trains with a rising learning rate.

    Args:
      config: a resolved configuration; its schedule, length and averaging are replaced.
      workdir: work directory of the test; a test that was interrupted is resumed.
      lowest, highest: first and last learning rate.
      steps: number of updates.
      source: name of the recipe.
      dataset: `zoo.data.Dataset` that replaces the one of `data.source`.

    Raises:
      UsageError: for a range or a number of updates that makes no test.
      RunError: if the loss is not finite from the first updates on.
    """
    if not 0 < lowest < highest or steps < _FEWEST:
        raise UsageError(
            f"A range test requires 0 < lowest < highest and at least {_FEWEST} steps. Received: "
            f"lowest={lowest:g}, highest={highest:g}, steps={steps}."
        )
    trainer = Trainer(
        rising(config, lowest, highest, steps), workdir, source=source, dataset=dataset,
        callbacks=[_StopIfDiverged()], read_test=False,
    )  # fmt: skip
    try:
        trainer.train()
    except RunError as error:
        losses = _losses(workdir)
        if len(losses) < _FEWEST or "not finite" not in str(error):
            raise
    else:
        losses = _losses(workdir)
    factor = (highest / lowest) ** (1 / (steps - 1))
    rates = [lowest * factor**update for update in range(len(losses))]
    return evaluate(rates, losses, diverged=len(losses) < steps)


def rising(config, lowest: float, highest: float, steps: int):
    """Returns the configuration of a range test of a recipe."""
    config = of_workdir(config.to_dict()).unlock()
    config.optimizer.learning_rate = lowest
    config.schedule = schedule("exponential", final_fraction=highest / lowest)
    config.trainer.update(
        steps=steps, epochs=0, log_every=1, steps_per_execution=1, evaluate_every=_NEVER,
        checkpoint_every=_NEVER, patience=0, max_rollbacks=0, ema=0.0, callbacks=(),
    )  # fmt: skip
    return config.lock()


def evaluate(rates, losses, diverged: bool = False) -> RateTest:
    """Chooses a learning rate from the losses of a range test.

    Args:
      rates: rising learning rates.
      losses: training loss at each rate.
      diverged: whether the test ended early.
    """
    averages = average(losses)
    best = int(np.argmin(averages))
    slopes = np.gradient(averages, np.log(rates))[: best + 1]
    steepest, lowest = rates[int(np.argmin(slopes))], rates[best]
    return RateTest(
        list(rates), list(losses), averages, steepest, lowest, min(steepest, lowest / 10), diverged
    )


def average(losses) -> list[float]:
    """Returns the moving average of losses, with the bias of its first values corrected."""
    averages, value = [], 0.0
    for i, loss in enumerate(losses, 1):
        value = _MOMENTUM * value + (1 - _MOMENTUM) * loss
        averages.append(value / (1 - _MOMENTUM**i))
    return averages


def _losses(workdir: str | Path) -> list[float]:
    """Returns the training loss of each update, up to the first one that is not finite."""
    losses = [row["loss"] for row in read_metrics(workdir) if "loss" in row]
    return list(itertools.takewhile(math.isfinite, losses))


class _StopIfDiverged(keras.callbacks.Callback):
    """Ends the test once the averaged loss has grown."""

    def on_train_begin(self, logs=None):
        self._losses: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss", math.nan)
        if not math.isfinite(loss):
            return  # the trainer ends the run
        self._losses.append(loss)
        averages = average(self._losses)
        if len(averages) >= _FEWEST and averages[-1] > _DIVERGED * min(averages):
            self.model.stop_training = True
