"""Metrics of a model over a whole split."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainers.distributed.strategy import distribute, gathered
from trainers.evaluation.grad_cam import choose, grad_cam
from trainers.evaluation.means import Means, evaluate_batch
from zoo.data.pipeline import evaluation_batches
from zoo.errors import RunError
from zoo.formatting import number
from zoo.storage.disk import atomic, read_object, write_json
from zoo.tasks.base import Task


class Evaluator:
    """Evaluates a model on one split, again and again without tracing again.

    Args:
      model: a built model.
      task: what a batch means.
      arrays: equally long arrays of the split.
      batch_size: of all replicas together.
      strategy: under whose scope the model was made.
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
                replicas=strategy.num_replicas_in_sync, shares=shares,
            ),
        )  # fmt: skip
        self.examples = len(next(iter(arrays.values())))

        def one_batch(data):
            result = evaluate_batch(model, task, self.means, data)
            return task.predictions(result.outputs, data)

        self._run = tf.function(lambda data: strategy.run(one_batch, args=(data,)), autograph=False)

    def __call__(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the metrics, and the task's predictions for every example in order."""
        self.means.take()
        found: dict[str, list] = {}
        for data in self.batches:
            for name, values in self._run(data).items():
                found.setdefault(name, []).append(gathered(self.strategy, values))
        predictions = {k: np.concatenate(v)[: self.examples] for k, v in found.items()}
        return self.means.logs(self.means.take()), predictions


@dataclasses.dataclass(frozen=True)
class Result:
    """Metrics, and what they were measured on.

    Attributes:
      split: of the data set; "training" for the means of the last log window.
      weights: see `weights_name`.
      step: updates that these weights have seen.
      metrics: name -> value; a metric that is text says by what others were measured.
    """

    split: str
    weights: str
    step: int
    metrics: Mapping[str, float | str]

    def __str__(self) -> str:
        found = "  ".join(
            f"{name} {value if isinstance(value, str) else number(value)}"
            for name, value in self.metrics.items()
        )
        found = found or "no value: no target of it counts"
        return f"{self.split} ({self.weights} weights, step {self.step:,}): {found}"


def weights_name(checkpoint: str, config: Mapping) -> str:
    """Returns what to call the weights of a checkpoint: "final", "final averaged", "best", …"""
    return f"{checkpoint} averaged" if config["trainer"]["ema"] else checkpoint


def write_evaluation(
    workdir, result: Result, checkpoint: str, predictions, dataset, samples=(), model=None
) -> None:
    """Writes evaluation/<split>.json and what the report shows of it.

    That is <split>.npz for classifiers and, of `Task.whole_split`, <split>_samples.json. With the
    `model`, the first holds where it looks. The best model's are <split>_best: the run's own stay.
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
    if samples:
        write_json(folder / f"{name}_samples.json", samples)
    if "probabilities" not in predictions:
        return
    probabilities = predictions["probabilities"].astype(np.float32)
    labels, predicted = predictions["labels"], probabilities.argmax(-1)
    confidence = probabilities.max(-1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:36]
    heat = {} if model is None else _heat(model, arrays["image"], labels, probabilities, worst)
    with atomic(folder / f"{name}.npz") as file:
        np.savez_compressed(
            file,
            labels=labels,
            predictions=predicted,
            confidences=confidence,
            class_names=np.array(dataset.class_names, dtype=np.str_),
            worst_index=worst,
            worst_inputs=arrays["image"][worst],
            worst_probabilities=probabilities[worst],
            **heat,
        )


def _heat(model, images, labels, probabilities, worst) -> dict[str, np.ndarray]:
    """Some pictures, and where the model saw in them what it took them for."""
    index = choose(labels, probabilities, worst)
    if not len(index):
        return {}
    pictures = images[index]
    maps = grad_cam(model, np.float32(pictures) / 255, probabilities[index].argmax(-1))
    if maps is None:
        return {}
    maps = np.uint8(np.round(maps * 255))
    return {"heat_index": index, "heat_inputs": pictures, "heat_maps": maps}


def read_evaluation(workdir, split: str) -> Result | None:
    """Returns what `write_evaluation` wrote at the run's end; None where it did not."""
    path = workdir / "evaluation" / f"{split}.json"
    if not path.exists():
        return None
    found = read_object(path, checkpoint=str, step=int, metrics=dict)
    for name, value in found["metrics"].items():
        if not isinstance(value, int | float | str):
            raise RunError(f"{path} is damaged: the metric {name!r} is {repr(value)[:100]}.")
    if found["checkpoint"] != "final" or "weights" not in found:
        return None
    return Result(split, str(found["weights"]), found["step"], found["metrics"])
