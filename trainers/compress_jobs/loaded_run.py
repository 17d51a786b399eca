"""A work directory's model with all that is needed to measure it: its task, its data, its file."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from trainers.evaluation.evaluate import Evaluator, read_evaluation
from trainers.export.formats import examples_of
from trainers.export.litert_file import FileModel
from trainers.run.workdir import read_config
from zoo import registry
from zoo.data.hold_out import evaluation_split, with_hold_out
from zoo.errors import RunError
from zoo.models.float32 import in_float32
from zoo.saved.workdir import FLOATS, LITERT, data_section, is_litert

_BATCH = 64


@dataclasses.dataclass
class LoadedRun:
    """What can be measured.

    Attributes:
      path: the work directory.
      saved: its config.json.
      dataset: with what was held out of the training split as "validation".
      task: with the data's tokenizer.
      model: the Keras model; of a LiteRT file that which it was made of.
      file: the LiteRT file that stands for the model, or None.
    """

    path: Path
    saved: dict
    dataset: Any
    task: Any
    model: Any
    file: Path | None = None

    @property
    def compress(self) -> dict:
        """The section `compress` of the recipe."""
        return self.saved["config"].get("compress", {})

    @property
    def split(self) -> str:
        """The split that it is measured on; "" where there is none but the training's."""
        return evaluation_split(self.dataset.splits)

    @property
    def makes_whole_samples(self) -> bool:
        """Whether `Task.whole_split` can be asked of it: a file holds one forward pass, no more."""
        return self.file is None or self.task.generates == "pictures"

    def served(self):
        """What is exported of the model, in float32."""
        return self.task.served(in_float32(self.model))

    def examples(self, split: str = "", places=range(8)) -> dict:
        """Some examples of a split, as the served model takes them: name -> (N, …)."""
        found = examples_of(self.task, self.dataset.splits[split or self.split or "train"], places)
        return {tensor.name: np.asarray(found[tensor.name]) for tensor in self.served().inputs}

    def representative(self, count: int, seed: int) -> dict:
        """So many examples of the training data, drawn without replacement."""
        size = len(next(iter(self.dataset.splits["train"].values())))
        drawn = np.random.default_rng(seed).permutation(size)[:count]
        return self.examples("train", np.sort(drawn))

    def measured(self):
        """What a task evaluates: the Keras model, or the LiteRT file in its own runtime."""
        if self.file is None:
            return self.model
        model = self.model
        return FileModel(self.file, model, self.task.served(model))

    def evaluate(self) -> tuple[dict[str, float], dict]:
        """Metrics over the whole of `split`, and the task's predictions.

        What is measured of what a model makes step by step (BLEU) is not measured of a file, which
        holds one forward pass.
        """
        import tensorflow as tf

        model = self.measured()
        metrics, predictions = Evaluator(
            model, self.task, self.dataset.splits[self.split], _BATCH, tf.distribute.get_strategy()
        )()
        if self.makes_whole_samples:
            metrics |= self.task.whole_split(model, self.dataset, self.split)[0]
        return metrics, predictions

    def metrics(self) -> dict[str, float]:
        """Metrics of `split` that are numbers: those on record where they are of this model."""
        if not self.split:
            return {}
        result = read_evaluation(self.path, self.split)
        found = self.evaluate()[0] if result is None else result.metrics
        return {name: value for name, value in found.items() if isinstance(value, float)}


def load(workdir: str | Path, dataset=None) -> LoadedRun:
    """Loads a finished work directory.

    Args:
      workdir: the folder.
      dataset: its data, where they are loaded already.

    Raises:
      UsageError: where it is none, or data and model do not fit.
      RunError: where a file is damaged or the data are not here.
    """
    path = Path(workdir)
    saved = read_config(path)
    file = path / LITERT if is_litert(saved) else None
    if file is not None and not file.exists():
        raise RunError(f"{path} is damaged: it lacks {LITERT}.")
    model = registry.load(str(path if file is None else path / FLOATS))
    arguments = dict(saved["config"]["task"])
    task = registry.build_task(arguments.pop("name"), **arguments)
    if dataset is None:
        data = data_section(path, saved)
        dataset = registry.load_data(data, saved["config"]["task"])
        dataset, _ = with_hold_out(dataset, data["validation_size"])
    task.complete(saved["config"]["model"], dataset)
    task.check(model, dataset)
    task.players(model)
    return LoadedRun(path, saved, dataset, task, model, file)
