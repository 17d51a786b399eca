"""A finished run, loaded for measurements: model, task, data and LiteRT file."""

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
    """The model of a work directory with the task and data to measure it.

    Attributes:
      path: path of the work directory.
      saved: content of config.json.
      dataset: dataset; "validation" contains the examples held out of the training split.
      task: task of the run, bound to the model and the data.
      model: the Keras model; for a LiteRT file, the model that the file was converted from.
      file: path of the LiteRT file to evaluate in place of the model, or None.
    """

    path: Path
    saved: dict
    dataset: Any
    task: Any
    model: Any
    file: Path | None = None

    @property
    def split(self) -> str:
        """Name of the split to measure on; "" if there is only the training split."""
        return evaluation_split(self.dataset.splits)

    @property
    def supports_whole_split(self) -> bool:
        """Whether `Task.evaluate_split` is possible; a LiteRT file has a single forward pass."""
        return self.file is None or self.task.sample_kind == "images"

    def serving_model(self):
        """Returns the model to export, in float32."""
        return self.task.serving_model(in_float32(self.model))

    def examples(self, split: str = "", indices=range(8)) -> dict:
        """Returns examples of a split as inputs of the exported model: name -> (N, …)."""
        arrays = self.dataset.splits[split or self.split or "train"]
        prepared_examples = examples_of(self.task, arrays, indices)
        return {
            tensor.name: np.asarray(prepared_examples[tensor.name])
            for tensor in self.serving_model().inputs
        }

    def representative(self, count: int, seed: int) -> dict:
        """Returns `count` training examples, sampled without replacement."""
        size = len(next(iter(self.dataset.splits["train"].values())))
        sample = np.random.default_rng(seed).permutation(size)[:count]
        return self.examples("train", np.sort(sample))

    def model_to_evaluate(self):
        """Returns the model to evaluate: the Keras model, or the LiteRT file in its runtime."""
        if self.file is None:
            return self.model
        return FileModel(self.file, self.model, self.task.serving_model(self.model))

    def evaluate(self) -> tuple[dict[str, float], dict]:
        """Returns the metrics of the whole `split`, and the task's predictions.

        Metrics of generated sequences, such as BLEU, need the Keras model, because a LiteRT file
        contains a single forward pass.
        """
        import tensorflow as tf

        model = self.model_to_evaluate()
        metrics, predictions = Evaluator(
            model, self.task, self.dataset.splits[self.split], _BATCH, tf.distribute.get_strategy()
        )()
        if self.supports_whole_split:
            metrics |= self.task.evaluate_split(model, self.dataset, self.split)[0]
        return metrics, predictions

    def metrics(self) -> dict[str, float]:
        """Returns the scalar metrics of `split`, from an earlier evaluation if there is one."""
        if not self.split:
            return {}
        result = read_evaluation(self.path, self.split)
        metrics = self.evaluate()[0] if result is None else result.metrics
        return {name: value for name, value in metrics.items() if isinstance(value, float)}


def load(workdir: str | Path, dataset=None) -> LoadedRun:
    """Loads a finished work directory.

    Args:
      workdir: path of the work directory.
      dataset: dataset of the run; None to load it.

    Raises:
      UsageError: if `workdir` is not a work directory, or the data do not match the model.
      RunError: if a file is damaged, or the data are missing.
    """
    path = Path(workdir)
    saved_config = read_config(path)
    file = path / LITERT if is_litert(saved_config) else None
    if file is not None and not file.exists():
        raise RunError(f"{path} is damaged: {LITERT} is missing.")
    model = registry.load(str(path if file is None else path / FLOATS))
    task = registry.build_task(**saved_config["config"]["task"])
    if dataset is None:
        data = data_section(path, saved_config)
        dataset = registry.load_data(data, saved_config["config"]["task"])
        dataset, _ = with_hold_out(dataset, data["validation_size"])
    task.bind(model, dataset, saved_config["config"]["model"])
    task.check(model, dataset)
    return LoadedRun(path, saved_config, dataset, task, model, file)
