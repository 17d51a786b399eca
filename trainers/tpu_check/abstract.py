"""A recipe's train step whose variables take no memory, and batches of the shapes it would get."""

import dataclasses

import numpy as np
import tensorflow as tf

from trainers.config.compress_rules import check_sizes
from trainers.config.recipe import check_batch, check_tpu
from trainers.input.features import made_up
from trainers.train.build import build_step
from zoo import registry
from zoo.data import pipeline
from zoo.errors import UsageError
from zoo.keras_internals import variables_without_values

# The arguments of builders that say how many equal blocks there are.
_DEPTHS = ("num_layers", "num_encoder_layers", "num_decoder_layers")
_FAMILIES = ("gpt", "llama", "bert", "seq2seq")  # whose blocks are equal
# Tokens of a stored example beyond data.sequence_length: the one that is predicted last.
_MORE_TOKENS = {"clm": 1}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one core computes of an update.

    Attributes:
      rows: examples at once.
      micro_batches: how often.
    """

    rows: int
    micro_batches: int

    @property
    def examples(self) -> int:
        """Of one update, on one core."""
        return self.rows * self.micro_batches


def share_of(config, cores: int) -> Share:
    """Returns one core's share of the recipe's global batch.

    Raises:
      UsageError: where it does not divide.
    """
    check_batch(config, cores)
    examples = config.trainer.global_batch_size // cores
    rows = config.trainer.micro_batch_size or examples
    return Share(rows, examples // rows)


def check_recipe(config) -> None:
    """Raises `UsageError` for what a TPU, or a program without values, cannot do."""
    check_tpu(config)
    check_sizes(config.compress)
    if config.compress.distill.teacher:
        raise UsageError(
            "compress.distill reads a teacher's weights, and there are none here: leave it out."
        )


def depth_of(config) -> int:
    """Returns how many equal blocks a recipe's model has; 0 where it has none, or unequal parts."""
    given = {**registry.arguments(config.model.name), **config.model.to_dict()}
    if registry.entry(config.model.name).family not in _FAMILIES:
        return 0
    found = {given[key] or given.get("depth", 0) for key in _DEPTHS if key in given} - {0}
    return found.pop() if len(found) == 1 else 0


class AbstractStep:
    """A recipe's `TrainStep` for one core, built without values.

    Args:
      config: a resolved recipe.
      depth: blocks of the model; 0 for as many as the recipe says.

    Attributes:
      step: the `trainers.train.step.TrainStep`.
      parameters: of the model.
    """

    def __init__(self, config, depth: int = 0):
        check_recipe(config)
        self.config = config.copy_and_resolve_references().unlock()
        trainer = self.config.trainer
        trainer.strategy, trainer.replicas, trainer.jit_compile = "one_device", 0, False
        model = self.config.model
        if depth:
            known = registry.arguments(model.name)
            model.update({key: depth for key in _DEPTHS if key in known or key in model})
        if registry.entry(model.name).family == "transfer":
            model.weights = "none"  # their values do not matter, their file may be missing
        dataset = None
        if registry.makes_data(self.config.task.name) and not model.get("vocabulary_size", 1):
            model.vocabulary_size = self.config.data.vocabulary_size
            if not model.vocabulary_size:  # it has as many tokens as the text has characters
                dataset = registry.load_data(self.config.data.to_dict(), self.config.task.to_dict())
        with variables_without_values():
            strategy = tf.distribute.get_strategy()
            self.step, self.task = build_step(self.config, strategy, 10**9, dataset)
        self.parameters = self.step.net.count_params()

    def batch(self, share: Share) -> dict[str, tf.TensorSpec]:
        """Returns names, shapes and types of what `update` gets."""
        arrays = self.stored(share.examples)
        return pipeline.training_batches(
            arrays, self.task.prepare, batch_size=share.examples, replicas=1, seed=0,
            first_step=0, last_step=1,
        ).element_spec  # fmt: skip

    def stored(self, examples: int) -> dict[str, np.ndarray]:
        """Returns made-up stored examples of the recipe's lengths."""
        few = made_up(self.task, self.step.net, 2, 0)
        name, length = self.config.task.name, self.config.data.sequence_length
        if registry.makes_data(name) and length:
            length += _MORE_TOKENS.get(name, 0)
            few = {k: v[:, :1].repeat(length, 1) if v.ndim == 2 else v for k, v in few.items()}
        return {key: np.zeros((examples, *v.shape[1:]), v.dtype) for key, v in few.items()}
