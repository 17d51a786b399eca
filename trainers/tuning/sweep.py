"""Searches for the best values of several keys, with the library Optuna.

Each trial is a work directory, and the study is an SQLite file beside them:

    D/study.db  D/trials/0000/  D/trials/0001/ ...

A sweep that was interrupted continues with the same command; an unfinished trial resumes its run.
Several processes, also on several machines that share D, may work on one study. The best validation
value of a run is the value of its trial. The test split is not read.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout

from trainers.config.recipe import as_dict, resolve
from trainers.train import preflight
from trainers.tuning.search import Range
from trainers.tuning.trial import RESULT
from zoo import processes, registry
from zoo.errors import RunError, UsageError
from zoo.formatting import number
from zoo.storage.disk import read_object
from zoo.storage.locks import is_held, lock_file

_LOG = logging.getLogger(__name__)

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "hyperband", "none")
_STUDY = "sweep"
_ORPHAN = 60.0  # seconds until the run of a process that was killed has released its folder


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Summary of one trial.

    Attributes:
      number: number of the trial; its work directory is D/trials/NUMBER.
      state: "complete", "pruned", "diverged", "failed" or "running".
      value: best validation value; None if unknown.
      overrides: key -> text of the searched keys.
      curve: update -> validation value.
    """

    number: int
    state: str
    value: float | None
    overrides: dict[str, str]
    curve: dict[int, float]


class Sweep:
    """A study of a recipe in a folder.

    Args:
      folder: folder of the study; created if missing.
      source: the recipe.
      overrides: `(key, text)` pairs that all trials share.
      ranges: the searched keys.
      sampler: one of `SAMPLERS`.
      pruner: one of `PRUNERS`; stops runs that are behind others at the same update.
      seed: random seed of the sampler.

    Attributes:
      metric: validation metric of the task.
      direction: "maximize" or "minimize".

    Raises:
      UsageError: if a key or value does not exist, the recipe has no validation metric, or the
        folder has a study of another recipe.
    """

    def __init__(
        self, folder: str | Path, source: str, overrides: Sequence[tuple[str, str]],
        ranges: Sequence[Range], *, sampler: str = "tpe", pruner: str = "median", seed: int = 0,
    ):  # fmt: skip
        optuna = _import_optuna()
        self.folder, self.source = Path(folder), source
        self.overrides, self.ranges = list(overrides), tuple(ranges)
        config = self._check_values()
        task = registry.build_task(**config.task.to_dict())
        if not task.keeps_best:
            raise UsageError(
                "A sweep requires a task with a validation metric that selects the best model. "
                f"Received: {config.task.name}."
            )
        self.metric = task.monitor
        self.direction = {"max": "maximize", "min": "minimize"}[task.monitor_mode]
        grid = {item.key: item.grid() for item in self.ranges} if sampler == "grid" else None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._storage = f"sqlite:///{(self.folder / 'study.db').absolute()}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            study_name=_STUDY,
            storage=self._storage,
            direction=self.direction,
            load_if_exists=True,
            sampler=_sampler(optuna, sampler, seed),
            pruner=_pruner(optuna, pruner),
        )
        self._check_study(config, sampler, pruner)
        # Optuna's own grid sampler works only inside `Study.optimize`.
        self._is_grid = grid is not None
        for values in itertools.product(*grid.values()) if grid else ():
            self.study.enqueue_trial(dict(zip(grid, values, strict=True)), skip_if_exists=True)
        self.config = config

    def run(self, trials: int) -> bool:
        """Runs trials until the study has a number of finished ones.

        Args:
          trials: number of trials of the whole study, with those of earlier and other processes.

        Returns:
          Whether all trials have ended; False after SIGTERM, when the run of the trial is saved.

        Raises:
          RunError: if the process of a trial fails for another reason than its loss.
        """
        while True:
            trial, lock = self._claim(trials)
            if trial is None:
                return True
            with lock:
                if not self._run(trial):
                    return False

    def outcomes(self) -> list[Outcome]:
        """Returns all trials, in the order of their numbers."""
        return [
            Outcome(
                trial.number,
                self._state(trial),
                trial.value if trial.value is not None else _last(trial.intermediate_values),
                dict(trial.user_attrs.get("overrides", {})),
                dict(trial.intermediate_values),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name != "WAITING"
        ]

    def best(self) -> Outcome:
        """Returns the best complete trial.

        Raises:
          RunError: if no trial is complete.
        """
        complete = [trial for trial in self.outcomes() if trial.state == "complete"]
        if not complete:
            raise RunError(f"No trial of {self.folder} is complete.")
        sign = 1 if self.direction == "maximize" else -1
        return max(complete, key=lambda trial: sign * trial.value)

    def workdir(self, trial_number: int) -> Path:
        """Returns the work directory of a trial."""
        return self.folder / "trials" / f"{trial_number:04}"

    def _check_values(self):
        """Returns the configuration of the recipe; checks the ends of all ranges."""
        for item in self.ranges:
            if item.key in dict(self.overrides):
                raise UsageError(
                    f"A key must be searched or set, not both. Received: {item.key} twice."
                )
            for text in item.ends():
                config = resolve(self.source, [*self.overrides, (item.key, text)])
                preflight.check_config(config)
        return resolve(self.source, self.overrides)

    def _check_study(self, config, sampler: str, pruner: str) -> None:
        """Stores the question of a new study; compares it with that of an existing one."""
        question = {
            "recipe": json.dumps(as_dict(config), sort_keys=True),
            "search": json.dumps([dataclasses.astuple(item) for item in self.ranges]),
            "sampler": sampler,
            "pruner": pruner,
        }
        for key, value in question.items():
            stored = self.study.user_attrs.get(key)
            if stored is None:
                self.study.set_user_attr(key, value)
            elif stored != value:
                raise UsageError(
                    f"{self.folder} has a study with another {key}. Use another --workdir, or the "
                    "original command."
                )

    def _claim(self, trials: int):
        """Returns a trial to run and its lock; `(None, None)` if nothing is left to do.

        A trial whose process was killed comes first.
        """
        (self.folder / "trials").mkdir(exist_ok=True)
        existing = self.study.get_trials(deepcopy=False)
        for frozen in existing:
            if frozen.state.name == "RUNNING" and (lock := self._lock(frozen.number)):
                state = self.study.get_trials(deepcopy=False)[frozen.number].state
                if state.name == "RUNNING":
                    _LOG.info(f"trial {frozen.number} continues")
                    return frozen, lock
                lock.release()
        waiting = [frozen for frozen in existing if frozen.state.name == "WAITING"]
        if len(existing) - len(waiting) >= trials or (self._is_grid and not waiting):
            return None, None
        trial = self.study.ask()
        lock = self._lock(trial.number)
        texts = {item.key: item.suggest(trial) for item in self.ranges}
        trial.set_user_attr("overrides", texts)
        return self.study.get_trials(deepcopy=False)[trial.number], lock

    def _lock(self, trial_number: int):
        """Returns the acquired lock of a trial; None if another process runs the trial."""
        lock = lock_file(self.folder / "trials" / f".{trial_number:04}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _run(self, trial) -> bool:
        """Runs a trial in a child process; returns whether it ended, not stopped by SIGTERM."""
        workdir, texts = self.workdir(trial.number), trial.user_attrs.get("overrides")
        if texts is None:  # its process was killed before the values were stored
            self.study.tell(trial.number, state=_states().FAIL)
            return True
        values = "  ".join(f"{key}={text}" for key, text in texts.items())
        _LOG.info(f"trial {trial.number}: {values}")
        result_file = workdir / RESULT
        if not result_file.exists():
            deadline = time.monotonic() + _ORPHAN
            while workdir.exists() and is_held(workdir) and time.monotonic() < deadline:
                time.sleep(0.2)
            pairs = json.dumps([*self.overrides, *texts.items()])
            words = [self._storage, _STUDY, str(trial.number), str(workdir), self.source, pairs]
            status = _child(words)
            if status == 143:
                return False
            if status or not result_file.exists():
                self.study.tell(trial.number, state=_states().FAIL)
                raise RunError(
                    f"Trial {trial.number} ({values}) failed with exit status {status}. The same "
                    "command starts further trials."
                )
        result = read_object(result_file)
        self._tell(trial.number, result)
        return True

    def _tell(self, trial_number: int, result: dict) -> None:
        states = _states()
        if result.get("reason"):
            self.study.tell(trial_number, state=states.PRUNED)
            _LOG.warning(f"trial {trial_number}: {result['reason']}; pruned")
        elif result["pruned"]:
            self.study.tell(trial_number, state=states.PRUNED)
            _LOG.info(f"trial {trial_number}: pruned")
        elif result["value"] is None:
            self.study.tell(trial_number, state=states.FAIL)
            raise RunError(
                f"Trial {trial_number} has no value of {self.metric}: a sweep requires a "
                "validation split, such as data.validation_size=500."
            )
        else:
            self.study.tell(trial_number, result["value"])
            _LOG.info(f"trial {trial_number}: {self.metric} {number(result['value'])}")

    def _state(self, trial) -> str:
        result = self.workdir(trial.number) / RESULT
        if result.exists() and (reason := read_object(result).get("reason")):
            return reason
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return names.get(trial.state.name, "running")


def _child(words: list[str]) -> int:
    """Runs `trainers.tuning.trial.main`; passes SIGTERM on; returns the exit status."""
    command = processes.arguments("trainers.tuning.trial:main", *words, tensorflow=True)
    with (
        subprocess.Popen(command, env=processes.environment(), stdin=subprocess.DEVNULL) as child,
        _passing_sigterm(child),
    ):
        return child.wait()


@contextlib.contextmanager
def _passing_sigterm(child: subprocess.Popen):
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _import_optuna():
    try:
        import optuna
    except ImportError:
        raise UsageError("zoo tune sweep requires Optuna: pip install 'keras-zoo[tune]'.") from None
    return optuna


def _states():
    return _import_optuna().trial.TrialState


def _sampler(optuna, name: str, seed: int):
    if name != "tpe":
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed)


def _pruner(optuna, name: str):
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=3)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def _last(values: dict[int, float]) -> float | None:
    return values[max(values)] if values else None
