"""Metrics of a model over a whole split."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainers.means import Means, evaluate_batch
from trainers.strategy import distribute, gathered
from zoo.data.disk import atomic, read_object, write_json
from zoo.data.pipeline import evaluation_batches
from zoo.errors import RunError
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


def write_evaluation(
    workdir, split, checkpoint, step, metrics, predictions, dataset, samples=(), model=None
) -> None:
    """Writes evaluation/<split>.json and what the report shows of it.

    That is <split>.npz for classifiers and, of `Task.whole_split`, <split>_samples.json. With the
    `model`, the first holds where it looks. The best model's are <split>_best: the run's own stay.
    """
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    arrays = dataset.splits[split]
    name = split if checkpoint == "final" else f"{split}_{checkpoint}"
    write_json(
        folder / f"{name}.json",
        {
            "split": split,
            "checkpoint": checkpoint,
            "step": step,
            "examples": len(next(iter(arrays.values()))),
            "metrics": metrics,
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
    from trainers.grad_cam import choose, grad_cam

    index = choose(labels, probabilities, worst)
    if not len(index):
        return {}
    pictures = images[index]
    maps = grad_cam(model, np.float32(pictures) / 255, probabilities[index].argmax(-1))
    if maps is None:
        return {}
    maps = np.uint8(np.round(maps * 255))
    return {"heat_index": index, "heat_inputs": pictures, "heat_maps": maps}


def read_evaluation(workdir, split: str) -> dict[str, float]:
    """Returns the metrics that `write_evaluation` wrote of the run's end; none where it did not."""
    path = workdir / "evaluation" / f"{split}.json"
    if not path.exists():
        return {}
    found = read_object(path, checkpoint=str, metrics=dict)
    for name, value in found["metrics"].items():
        if not isinstance(value, int | float | str):
            raise RunError(f"{path} is damaged: the metric {name!r} is {repr(value)[:100]}.")
    return found["metrics"] if found["checkpoint"] == "final" else {}
