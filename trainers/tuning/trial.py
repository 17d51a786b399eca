"""One trial of a sweep: a training run in a child process, which the sweep may stop early."""

import json
import math
import os
import threading
import time
from pathlib import Path

import keras

from trainers.config.recipe import resolve
from trainers.train.loop import Terminated
from trainers.train.trainer import Trainer
from zoo.errors import RunError
from zoo.storage.disk import write_json

# In the work directory of the trial.
RESULT = "trial.json"
PRUNED = "pruned.json"  # written before a pruned run ends, so that a kill meanwhile loses nothing
_PARENT_EVERY = 1.0  # seconds


def main(
    storage: str, study_name: str, number: str, workdir: str, source: str, overrides: str
) -> int:
    """Trains the run of a trial and writes `WORKDIR/trial.json`: its value, or why it has none.

    Args:
      storage: URL of the study.
      study_name: name of the study.
      number: number of the trial.
      workdir: work directory of the trial; an interrupted run is resumed.
      source: the recipe.
      overrides: JSON of the `(key, text)` pairs of the trial.

    Returns:
      Exit status: 0, or 143 if the run was stopped and can be resumed.
    """
    import optuna

    _end_with_parent()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=study_name, storage=storage)
    # Optuna has no public way to report values of a trial that another process asked for.
    trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[int(number)]._trial_id)
    pairs = [(key, text) for key, text in json.loads(overrides)]
    pruning = _Pruning(trial, Path(workdir) / PRUNED)
    result = {"value": None, "pruned": False, "reason": ""}
    try:
        trainer = Trainer(
            resolve(source, pairs), workdir, source=source, callbacks=[pruning], read_test=False
        )
        pruning.trainer = trainer
        trainer.train()
        result["value"] = trainer.state.best
        result["pruned"] = (Path(workdir) / PRUNED).exists()
    except Terminated:
        return 143
    except RunError as error:
        if "not finite" not in str(error):
            raise
        result["reason"] = "diverged"
    if result["value"] is not None and not math.isfinite(result["value"]):
        result.update(value=None, reason="diverged")
    write_json(Path(workdir) / RESULT, result)
    return 0


def _end_with_parent() -> None:
    """Ends this process as by a kill once its parent is gone; the run can be resumed."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(_PARENT_EVERY)
        os._exit(137)

    threading.Thread(target=watch, daemon=True).start()


class _Pruning(keras.callbacks.Callback):
    """Reports each validation to the study and stops the run if the study prunes it."""

    def __init__(self, trial, marker: Path):
        super().__init__()
        self._trial, self._marker, self._seen = trial, marker, None
        self.trainer: Trainer | None = None

    def on_train_batch_end(self, batch, logs=None):
        self._report(self.trainer.windows.evaluated)

    def on_epoch_end(self, epoch, logs=None):
        self._report(logs or {})

    def _report(self, logs):
        value = logs.get(self.trainer.task.monitor)
        done = self.trainer.state.done
        if value is None or not math.isfinite(value) or (value, done) == self._seen:
            return
        self._seen = value, done
        self._trial.report(float(value), done)
        if self._trial.should_prune():
            write_json(self._marker, {"step": done})
            self.model.stop_training = True
