"""Evaluates a model on a whole split, and writes the result for the report."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainers.distributed.strategy import distribute, gather_results
from trainers.evaluation.grad_cam import choose, grad_cam
from trainers.evaluation.means import Means, evaluate_batch
from trainers.evaluation.text_samples import text_samples
from zoo.data.pipeline import evaluation_batches
from zoo.errors import RunError
from zoo.formatting import number
from zoo.storage.disk import atomic, read_object, write_json
from zoo.tasks.base import Task


class Evaluator:
    """Evaluation of a model on one split, any number of times with a single trace.

    Args:
      model: a built model.
      task: the task that the model was trained on.
      arrays: name -> array of the split, all of the same length.
      batch_size: number of examples per batch, over all replicas.
      strategy: strategy of the scope that the model was created in.
    """

    def __init__(
        self,
        model,
        task: Task,
        arrays: Mapping[str, np.ndarray],
        batch_size: int,
        strategy: tf.distribute.Strategy,
    ):
        self.strategy = strategy
        with strategy.scope():
            self.means = Means(task)
        self.batches = distribute(
            strategy,
            lambda shares: evaluation_batches(
                arrays, task.prepare, batch_size=batch_size,
                replicas=strategy.num_replicas_in_sync, local_replicas=shares,
            ),
        )  # fmt: skip
        self.examples = len(next(iter(arrays.values())))

        def one_batch(data):
            result = evaluate_batch(model, task, self.means, data)
            return task.predictions(result.outputs, data)

        self._run = tf.function(lambda data: strategy.run(one_batch, args=(data,)), autograph=False)

    def __call__(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the metrics, and the task's predictions for all examples in order."""
        self.means.take()
        batches: dict[str, list] = {}
        for data in self.batches:
            for name, values in self._run(data).items():
                batches.setdefault(name, []).append(gather_results(self.strategy, values))
        predictions = {k: np.concatenate(v)[: self.examples] for k, v in batches.items()}
        return self.means.logs(self.means.take()), predictions


@dataclasses.dataclass(frozen=True)
class Result:
    """Metrics of one evaluation, with the split and the weights.

    Attributes:
      split: split of the dataset; "training" for the means of the last log window.
      weights: name of the weights, see `weights_name`.
      step: number of updates before the weights were saved.
      metrics: name -> value. A text value describes the measurement of other metrics.
    """

    split: str
    weights: str
    step: int
    metrics: Mapping[str, float | str]

    def __str__(self) -> str:
        values = "  ".join(
            f"{name} {value if isinstance(value, str) else number(value)}"
            for name, value in self.metrics.items()
        )
        values = values or "no value (no target has a positive weight)"
        return f"{self.split} ({self.weights} weights, step {self.step:,}): {values}"


def weights_name(checkpoint: str, config: Mapping) -> str:
    """Returns the name of a checkpoint's weights, such as "final" or "best averaged"."""
    return f"{checkpoint} averaged" if config["trainer"]["ema"] else checkpoint


def write_evaluation(
    workdir, result: Result, checkpoint: str, predictions, dataset, samples=(), model=None
) -> None:
    """Writes evaluation/SPLIT.json, SPLIT.npz for a classifier, and SPLIT_samples.json.

    The files of the best model are named SPLIT_best and do not replace those of the final model.

    Args:
      workdir: path of the work directory.
      result: the metrics.
      checkpoint: "final" or "best".
      predictions: result of an `Evaluator`.
      dataset: dataset with the split.
      samples: rows of `Task.evaluate_split`, such as translations. Those of a text classifier are
        computed here, see `text_samples`.
      model: classifier to compute heat maps of images and attributions of tokens, or None.
    """
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    split, arrays = result.split, dataset.splits[result.split]
    name = split if checkpoint == "final" else f"{split}_{checkpoint}"
    write_json(
        folder / f"{name}.json",
        {
            "split": split,
            "checkpoint": checkpoint,
            "weights": result.weights,
            "step": result.step,
            "examples": len(next(iter(arrays.values()))),
            "metrics": result.metrics,
        },
    )
    if "probabilities" in predictions:
        path = folder / f"{name}.npz"
        samples = _write_classification(path, predictions, dataset, arrays, model) or samples
    if samples:
        write_json(folder / f"{name}_samples.json", samples)


def _write_classification(path, predictions, dataset, arrays, model) -> list[dict]:
    """Writes SPLIT.npz; returns the samples of texts, [] for images."""
    probabilities = predictions["probabilities"].astype(np.float32)
    labels, predicted = predictions["labels"], probabilities.argmax(-1)
    confidence = probabilities.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:36]
    inputs, samples = {}, []
    if "image" in arrays:
        inputs["worst_inputs"] = arrays["image"][worst]
        if model is not None:
            inputs |= _heat_maps(model, arrays["image"], labels, probabilities, worst)
    elif "tokens" in arrays and dataset.tokenizer is not None:
        samples = text_samples(
            model, dataset.tokenizer, arrays, dataset.class_names, probabilities, worst
        )
    with atomic(path) as file:
        np.savez_compressed(
            file,
            labels=labels,
            predictions=predicted,
            confidences=confidence,
            class_names=np.array(dataset.class_names, dtype=np.str_),
            worst_index=worst,
            worst_probabilities=probabilities[worst],
            **inputs,
        )
    return samples


def _heat_maps(model, images, labels, probabilities, worst) -> dict[str, np.ndarray]:
    """Returns images and heat maps of their predicted classes; {} if there are no heat maps."""
    index = choose(labels, probabilities, worst)
    if not len(index):
        return {}
    maps = grad_cam(model, np.float32(images[index]) / 255, probabilities[index].argmax(-1))
    if maps is None:
        return {}
    maps = np.uint8(np.round(maps * 255))
    return {"heat_index": index, "heat_inputs": images[index], "heat_maps": maps}


def read_evaluation(workdir, split: str) -> Result | None:
    """Returns the final model's result from `write_evaluation`, or None if the file is missing."""
    path = workdir / "evaluation" / f"{split}.json"
    if not path.exists():
        return None
    result = read_object(path, weights=str, step=int, metrics=dict)
    for name, value in result["metrics"].items():
        if not isinstance(value, int | float | str):
            raise RunError(f"{path} is damaged: the metric {name!r} is {repr(value)[:100]}.")
    return Result(split, result["weights"], result["step"], result["metrics"])
