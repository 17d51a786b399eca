"""Base class of tasks, and the data classes of its interface.

A loss is a set of named terms. Each term has a SUM over the batch, a WEIGHT and a coefficient. The
weight is the number of samples or tokens that count; it depends on the batch alone. The train step
adds the weights of all replicas and micro-batches before the backward pass and minimizes

    sum over terms of  coefficient * sum / global weight

The loss is therefore independent of the number of replicas and micro-batches, of padding and of a
short last batch; a mean of means would depend on them. Layers that mix rows, such as batch
normalization, read from `zoo.row_weights` which rows are padding.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import UsageError

# Tensors with a common first axis. "weight" (batch,) float32 is 0 for rows that pad the last batch
# of an epoch, and 1 otherwise.
Batch = Mapping[str, Any]


@dataclasses.dataclass
class Forward:
    """Result of one forward pass of a batch or micro-batch.

    Attributes:
      sums: loss term -> sum over the batch, float32 scalars.
      statistics: metric -> (sum, weight), float32 scalars; the metric is their quotient.
      outputs: the model's outputs, for `Task.predictions`.
      totals: name -> sum over the batch, float32 of any shape, for `Task.end_update`.
    """

    sums: dict[str, Any]
    statistics: dict[str, tuple[Any, Any]]
    outputs: Any = None
    totals: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelPart:
    """One part of a model with its own optimizer, such as the generator of a GAN.

    Attributes:
      name: name in the logs.
      model: the whole model or a part; the optimizer updates its trainable variables.
      terms: coefficients of the loss terms that the optimizer minimizes.
      forward: function like `Task.forward` that returns these terms and their statistics.
      rate: factor on the recipe's learning rate.
      averaged: whether `trainer.ema` applies to this part.
    """

    name: str
    model: Any
    terms: Mapping[str, float]
    forward: Callable
    rate: float = 1.0
    averaged: bool = True


@dataclasses.dataclass(frozen=True)
class FrozenPart:
    """The frozen part of a model, run once per example to cache its features.

    Attributes:
      model: model from the prepared "image" to a feature vector (B, F); None for no frozen part.
      views: number of augmented views cached per training example; 0 for the unchanged example.
      reason: log message that says why features are not cached; "" for no message.
    """

    model: Any = None
    views: int = 0
    reason: str = ""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the cached features of one example: (F,) or (views, F)."""
        width = self.model.output_shape[-1]
        return (self.views, width) if self.views else (width,)


class Task:
    """Base class of all tasks; its attributes and methods are the whole interface.

    `complete` and `check_arguments` need no model. After the model is built, `bind` is called
    first. All other methods may follow in any order.

    Attributes:
      terms: coefficient of each loss term; a single term is named "loss".
      statistics: names of the statistics that `forward` returns.
      monitor: validation metric that selects the best checkpoint.
      monitor_mode: "max" or "min", the better direction of `monitor`.
      keeps_best: whether the best checkpoint is saved.
      unit: name of the items that the first term's weight counts, for the throughput in the logs.
      sample_kind: "text" or "images" if each evaluation saves a generated sample; else "".
      variables: variables that the task trains in addition to the model; checkpoints contain them.
    """

    terms: Mapping[str, float] = {"loss": 1.0}
    statistics: tuple[str, ...] = ()
    monitor = "val_loss"
    monitor_mode = "min"
    keeps_best = True
    unit = "samples"
    sample_kind = ""
    variables: tuple = ()

    def complete(self, arguments: dict, dataset) -> dict:
        """Returns the model builder's arguments, completed by those that follow from the data."""
        return arguments

    def check_arguments(self, arguments: Mapping[str, Any], dataset) -> None:
        """Raises `UsageError` if the builder's arguments do not match the dataset.

        The check runs before TensorFlow is loaded and gets the result of `complete`. An argument
        may be missing, because builders may use another name for it.
        """

    def with_head(self, model, dataset=None):
        """Returns the model that the task trains: the built model, or its trunk with a new head.

        Called once, in the strategy's scope, before `bind`. Saved models have the head.

        Raises:
          UsageError: if the task cannot use the model.
        """
        return model

    def bind(self, model, dataset=None, arguments: Mapping[str, Any] | None = None) -> "Task":
        """Reads properties of the model and the data that other methods use; returns the task.

        Args:
          model: built model that the task trains or evaluates.
          dataset: dataset of the run; None for examples from `synthetic`.
          arguments: the recipe's builder arguments.

        Raises:
          UsageError: if the model lacks a part that the task trains.
        """
        return self

    def check(self, model, dataset) -> None:
        """Raises `UsageError` if the model does not match the dataset."""

    def data_warnings(self, dataset) -> list[str]:
        """Returns warnings about the data to log before training, one line each.

        Raises:
          UsageError: if a model of this task cannot be evaluated on the data.
        """
        return []

    def prepare(self, batch: dict, uniform, training: bool) -> dict:
        """Converts stored examples to model inputs; runs inside tf.data, without AutoGraph.

        Args:
          batch: tensors of a dataset's split, plus "weight" (batch,).
          uniform: `uniform(count)` returns `(batch, count)` random numbers in [0, 1). They depend
            only on the seed, the step and the index in the global batch; outside training the
            seed is fixed.
          training: whether the batch is used for an update.
        """
        return batch

    def term_counts(self, batch: Batch) -> dict[str, Any]:
        """Returns the weight of each loss term in the batch, float32 scalars."""
        raise NotImplementedError

    def forward(self, model, batch: Batch, training: bool) -> Forward:
        """Runs a forward pass on a batch."""
        raise NotImplementedError

    def end_update(self, model, totals: Mapping[str, Any]) -> None:
        """Changes non-trainable variables of the model after an update; by default none.

        Runs inside each replica.

        Args:
          model: the model.
          totals: `Forward.totals`, summed over all micro-batches and replicas of the update.
        """

    def model_parts(self, model) -> tuple[ModelPart, ...]:
        """Returns the parts in the order of their updates in a step; by default the whole model."""
        return (ModelPart("", model, self.terms, self.forward),)

    def frozen_part(self, model) -> FrozenPart:
        """Returns the frozen part of the model; by default none.

        Stored examples then contain its output "feature" in place of "image".
        """
        return FrozenPart()

    def add_training_arrays(self, arrays):
        """Returns the training split, with the task's own arrays added; called once per run."""
        return arrays

    def lengths(self, arrays) -> Any:
        """Returns the lengths (examples,) by which training batches are grouped; None for none."""
        return None

    def serving_model(self, model):
        """Returns the Functional model to export, which includes the preprocessing of `prepare`.

        Its inputs have the names of the stored arrays, or of the tensors that `prepare` returns.
        """
        return model

    def derived_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns metrics computed from mean metrics, such as the perplexity."""
        return {}

    def warning(self, logs: dict[str, float]) -> str:
        """Returns a warning about the mean metrics of a log interval; "" for none."""
        return ""

    def predictions(self, outputs, batch: Batch) -> dict[str, Any]:
        """Returns per-example arrays for the report on the test split; empty by default."""
        return {}

    def evaluate_split(
        self, model, dataset, split: str
    ) -> tuple[dict[str, float | str], list[dict]]:
        """Computes metrics that are not means over batches, such as the BLEU of a split.

        The trainer calls it with the final weights at the end of a run, `zoo evaluate` on demand.

        Returns:
          `(metrics, samples)`: a metric that is a string says how the others were measured.
          Samples are dicts of strings for the report: "source", "prediction", "reference".
        """
        return {}, []

    def synthetic(self, model, examples: int, seed: int) -> dict[str, Any]:
        """Returns synthetic stored examples for the model, for `zoo bench` and `tpu_check`."""
        raise UsageError(
            f"This command requires synthetic examples: the task {type(self).__name__} must define "
            "the method synthetic(model, examples, seed)."
        )
