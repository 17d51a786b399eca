"""What a task is.

A loss is a set of named terms. Each term is a SUM over the batch, a WEIGHT (how many samples or
tokens count) that is known from the batch alone, and a coefficient. The train step adds the weights
of all replicas and micro-batches before the backward pass and minimises

    sum over terms of  coefficient * sum / global weight

so that neither the number of replicas, nor of micro-batches, nor padding, nor a short last batch
changes the mathematics: a mean of means would. Layers that mix rows read which of them are padding
from `zoo.row_weights`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import UsageError

# A batch: tensors with a common first axis. "weight" (batch,) float32 is 0 for rows that only pad
# the last batch of an epoch, and 1 otherwise.
Batch = Mapping[str, Any]


@dataclasses.dataclass
class Forward:
    """What one forward pass of a (micro-)batch gives.

    Attributes:
      sums: a scalar a loss term, float32.
      statistics: name -> (sum, weight), float32 scalars: metrics that are means.
      outputs: the model's outputs, for `Task.predictions`.
    """

    sums: dict[str, Any]
    statistics: dict[str, tuple[Any, Any]]
    outputs: Any = None


@dataclasses.dataclass(frozen=True)
class Player:
    """One part of a model that is trained by an optimizer of its own.

    Attributes:
      name: stands in the logs.
      model: whose trainable variables it moves; the whole model or a part of it.
      terms: coefficients of the loss terms that it lowers.
      forward: as `Task.forward`; computes these terms and the statistics that go with them.
      rate: its learning rate, as a multiple of the recipe's.
      averaged: whether `trainer.ema` holds for it.
    """

    name: str
    model: Any
    terms: Mapping[str, float]
    forward: Callable
    rate: float = 1.0
    averaged: bool = True


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The part of a model that is run once an example.

    Attributes:
      model: from what `Task.prepare` makes of an example's "image" to a feature vector; or None.
      views: how many random changes of each training example are kept; 0 for the example itself.
      remark: for the log, where there could be such a part and is none; "" for nothing.
    """

    model: Any = None
    views: int = 0
    remark: str = ""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of what is kept of an example: (F,), or (views, F)."""
        width = self.model.output_shape[-1]
        return (self.views, width) if self.views else (width,)


class Task:
    """Base of all tasks; the attributes and methods below are the whole contract.

    `complete` and `check_arguments` need no model. Once it is built, `bind` takes what the task
    needs of model and data; all other methods are those of a bound task, in any order.

    Attributes:
      terms: coefficient of each loss term; a single one is called "loss".
      statistics: names of the statistics that `forward` gives.
      monitor: the validation value by which the best checkpoint is chosen, and
      monitor_mode: "max" or "min".
      keeps_best: whether the best checkpoint is kept by it.
      unit: what the weight of the first term counts, for the throughput in the logs.
      generates: "text" or "pictures" where its models make some, of which a sample is kept at
        each evaluation.
      variables: what the task itself trains beside the model; checkpoints keep them.
    """

    terms: Mapping[str, float] = {"loss": 1.0}
    statistics: tuple[str, ...] = ()
    monitor = "val_loss"
    monitor_mode = "min"
    keeps_best = True
    unit = "samples"
    generates = ""
    variables: tuple = ()

    def complete(self, arguments: dict, dataset) -> dict:
        """Returns the builder's arguments with those that follow from the data filled in."""
        return arguments

    def check_arguments(self, arguments: Mapping[str, Any], dataset) -> None:
        """Raises `UsageError` where the builder's arguments do not fit the data set.

        It needs no model and runs before TensorFlow is loaded, with what `complete` returned. An
        argument may be missing, where a builder calls it something else.
        """

    def bind(self, model, dataset=None, arguments: Mapping[str, Any] | None = None) -> "Task":
        """Takes what the task needs of model and data, and returns the task.

        Args:
          model: the built model that the task trains or measures.
          dataset: its data; None for examples of `synthetic`.
          arguments: the recipe's builder arguments.

        Raises:
          UsageError: where the model lacks a part that the task trains.
        """
        return self

    def check(self, model, dataset) -> None:
        """Raises `UsageError` where model and data set do not fit each other."""

    def remarks(self, dataset) -> list[str]:
        """Returns what the user should know of the data before training; a line each.

        Raises:
          UsageError: where the data cannot judge a model of this task.
        """
        return []

    def prepare(self, batch: dict, uniform, training: bool) -> dict:
        """Turns stored examples into what the model takes; runs inside tf.data, without AutoGraph.

        Args:
          batch: tensors of a data set's split, plus "weight" (batch,).
          uniform: `uniform(count)` gives `(batch, count)` numbers in [0, 1) that are a function of
            (seed, step, place in the global batch) alone; outside training the seed is fixed.
          training: whether the batch is for an update.
        """
        return batch

    def term_counts(self, batch: Batch) -> dict[str, Any]:
        """Returns the weight of each term in this batch, float32 scalars; no model needed."""
        raise NotImplementedError

    def forward(self, model, batch: Batch, training: bool) -> Forward:
        """Runs the model on a batch."""
        raise NotImplementedError

    def players(self, model) -> tuple[Player, ...]:
        """Returns who takes turns in each step; one player, the whole model, by default."""
        return (Player("", model, self.terms, self.forward),)

    def frozen(self, model) -> Frozen:
        """Returns which part of the model learns nothing, so that it is run once an example.

        Stored examples then hold "feature", its output, in place of its input.
        """
        return Frozen()

    def stored(self, arrays):
        """Returns the training split with what the task keeps of each example; once a run."""
        return arrays

    def served(self, model):
        """Returns the Functional model that is exported: with what `prepare` does inside it.

        Its inputs have the names that stored examples, or what `prepare` makes of them, have.
        """
        return model

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Returns metrics that are functions of the means, such as the perplexity."""
        return {}

    def warning(self, logs: dict[str, float]) -> str:
        """Returns what the user should know about a log interval's means; "" for nothing."""
        return ""

    def predictions(self, outputs, batch: Batch) -> dict[str, Any]:
        """Returns what the test split's report needs of each example; empty by default."""
        return {}

    def whole_split(self, model, dataset, split: str) -> tuple[dict[str, float | str], list[dict]]:
        """Returns what no mean over batches gives, such as the BLEU of a test split.

        It is called with a run's final weights, at its end and by `zoo evaluate`.

        Returns:
          `(metrics, samples)`: a metric that is text says by what the others were measured; the
          samples, for the report, are dicts of text: "source", "prediction", "reference".
        """
        return {}, []

    def synthetic(self, model, examples: int, seed: int) -> dict[str, Any]:
        """Returns made-up stored examples that fit the model, for `zoo bench` and `tpu_check`."""
        raise UsageError(
            f"The task {type(self).__name__} makes no examples up, which this command needs: give "
            "it a method synthetic(model, examples, seed)."
        )
