"""The state of a run apart from its variables."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass
class RunState:
    """The content of a checkpoint apart from variables; its header holds all fields but `done`.

    Attributes:
      done: number of updates so far.
      skipped_batches: number of batches that rollbacks skipped.
      rollbacks: number of rollbacks so far.
      best: value of the monitored metric of the best model; None before the first evaluation.
      evaluations_since_best: number of evaluations after the best one.
      seconds: training time so far.
      useful: seconds of updates that a checkpoint holds or will hold; see `trainers.run.goodput`.
      stopped: whether a callback has stopped the run.
      unevaluated: whether an evaluation is due after the last update.
      windows: state of the log windows; see `trainers.train.hooks.log_windows`.
      lines: number of lines in metrics.jsonl.
    """

    done: int = 0
    skipped_batches: int = 0
    rollbacks: int = 0
    best: float | None = None
    evaluations_since_best: int = 0
    seconds: float = 0.0
    useful: float = 0.0
    stopped: bool = False
    unevaluated: bool = False
    windows: dict | None = None
    lines: int = 0

    def counters(self) -> dict:
        """Returns JSON values for a checkpoint's header."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["done"]  # `TrainStep.count` holds it
        return values

    def restore(self, counters: Mapping) -> None:
        """Sets the fields from a checkpoint's header."""
        for field in dataclasses.fields(self):
            if field.name in counters:
                setattr(self, field.name, counters[field.name])
