"""Evaluation during training: validation metrics, the best model, and samples."""

import math
from collections.abc import Callable

import tensorflow as tf

from trainers.evaluation.evaluate import Evaluator, weights_name
from trainers.run.events import Events
from trainers.run.state import RunState
from trainers.run.workdir import save_model
from trainers.train.hooks.base import ValidationHook
from trainers.train.hooks.log_windows import LogWindows
from trainers.train.hooks.periods import Periods
from trainers.train.hooks.progress import Progress, format_metrics
from zoo.errors import short
from zoo.storage.disk import write_json


class Validation(ValidationHook):
    """Evaluates the averaged weights, saves the best model so far, and saves a sample.

    Args:
      state: the run's `RunState`.
      periods: the run's periods.
      step: the `TrainStep`.
      task: the recipe's task; its `monitor` defines the best model.
      config: the configuration.
      windows: the run's log windows, which store the metrics for the end of the epoch.
      workdir: the work directory.
      events: receives warnings.
      progress: prints the metrics.
      evaluator: evaluates the validation split; None without such a split.
      writer: saves a sample, see `trainers.train.hooks.samples`; None for models that generate
        nothing.
      chief: whether this process writes files.
    """

    def __init__(
        self, state: RunState, periods: Periods, step, task, config, windows: LogWindows, workdir,
        events: Events, progress: Progress, *, evaluator: Evaluator | None,
        writer: Callable[[], dict] | None, chief: bool,
    ):  # fmt: skip
        self._state, self._periods, self._step, self._task = state, periods, step, task
        self._config, self._windows, self._workdir = config, windows, workdir
        self._events, self._progress, self._chief = events, progress, chief
        self._evaluator, self._writer = evaluator, writer

    def evaluate(self) -> None:
        with self._step.averaged():
            logs = self._validate() if self._evaluator else {}
            sample = self._sample() if self._writer and self._chief else {}
        state = self._state
        if logs:
            epoch = round(state.done / self._periods.steps_per_epoch, 4)
            self._workdir.log(step=state.done, epoch=epoch, **logs)
        if self._evaluator:
            weights = weights_name("current", self._config)
            plain = {name.removeprefix("val_"): value for name, value in logs.items()}
            line = f"validation ({weights} weights): {format_metrics(plain)}"
            self._progress.print_line(line + self._best_so_far())
        if sample:
            self._workdir.log(step=state.done, event="sample", **sample)
        state.unevaluated = False
        self._windows.evaluated = logs

    def _best_so_far(self) -> str:
        """Returns how the last evaluation compares with the best one; "" if none is best."""
        if self._state.best is None:
            return ""
        if not self._state.evaluations_since_best:
            return "  best so far"
        name = self._task.monitor.removeprefix("val_")
        return f"  (best: {format_metrics({name: self._state.best})})"

    def _sample(self) -> dict:
        try:
            return self._writer()
        except tf.errors.OpError as error:  # such as out of memory, which must not end the run
            self._events("warning", f"no more samples are saved: {short(error.message)}")
            self._writer = None
            return {}

    def _validate(self) -> dict[str, float]:
        metrics, _ = self._evaluator()
        logs = {f"val_{name}": value for name, value in metrics.items()}
        if not self._task.keeps_best:
            return logs
        value, best = logs.get(self._task.monitor), self._state.best
        if value is None:
            self._events(
                "warning",
                f"no best model is saved: {self._task.monitor}, the metric that selects it, has no "
                "value, because no target of the validation split has a positive weight",
            )
            return logs
        sign = 1 if self._task.monitor_mode == "max" else -1
        self._state.evaluations_since_best += 1
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            self._state.best = value
            self._state.evaluations_since_best = 0
            if self._chief:
                self._save_best(logs)
        patience = self._config.trainer.patience
        if patience and self._state.evaluations_since_best >= patience:
            self._step.stop_training = True
        return logs

    def _save_best(self, logs: dict[str, float]) -> None:
        """Saves the current model as the best one."""
        folder = self._workdir / "best"
        with self._step.merged():
            save_model(self._step.net, folder / "model.keras")
        origin = {
            "step": self._state.done,
            "split": "validation",
            "weights": weights_name("best", self._config),
        }
        write_json(folder / "metrics.json", {**origin, **logs})
