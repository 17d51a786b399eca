"""Builds a recipe's train step with variables that take no memory, and its batch shapes."""

import dataclasses

import numpy as np
import tensorflow as tf

from trainers.config.base import section
from trainers.config.compress import check_sizes
from trainers.config.data import sizes_follow_images
from trainers.config.trainer import check_batch, check_tpu
from trainers.input.features import make_synthetic_arrays
from trainers.train.build import build_step
from zoo import registry
from zoo.data import pipeline
from zoo.errors import UsageError
from zoo.keras_internals import variables_without_values

# Arguments of builders that set the number of equal blocks.
_DEPTHS = ("num_layers", "num_encoder_layers", "num_decoder_layers")
_FAMILIES = ("gpt", "llama", "bert", "longformer", "seq2seq")  # families with equal blocks
# Tokens of a stored example beyond data.sequence_length: the last target.
_MORE_TOKENS = {"clm": 1, "moe": 1, "retro": 1}


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of an update that one core computes.

    Attributes:
      rows: number of examples per forward pass.
      micro_batches: number of micro-batches per update.
    """

    rows: int
    micro_batches: int

    @property
    def examples(self) -> int:
        """Number of examples of one update on one core."""
        return self.rows * self.micro_batches


def share_of(config, cores: int) -> Share:
    """Returns one core's share of the global batch.

    Raises:
      UsageError: if the number of cores does not divide the global batch.
    """
    check_batch(config, cores)
    examples = config.trainer.global_batch_size // cores
    rows = config.trainer.micro_batch_size or examples
    return Share(rows, examples // rows)


def check_recipe(config) -> None:
    """Raises `UsageError` for settings that a TPU or a step without values does not support."""
    compress = section(config, "compress")
    check_tpu(config.trainer, config.task)
    check_sizes(compress)
    if compress.distill.teacher:
        raise UsageError(
            "zoo tpu_check builds models without weights and does not support compress.distill."
        )


def depth_of(config) -> int:
    """Returns the number of equal blocks of a recipe's model; 0 if it has none or unequal parts."""
    model_arguments = {**registry.arguments(config.model.name), **config.model.to_dict()}
    if registry.entry(config.model.name).family not in _FAMILIES:
        return 0
    if "," in model_arguments.get("attention", ""):
        return 0  # the blocks have different forms of attention
    depths = {
        model_arguments[key] or model_arguments.get("depth", 0)
        for key in _DEPTHS
        if key in model_arguments
    } - {0}
    return depths.pop() if len(depths) == 1 else 0


class AbstractStep:
    """A recipe's `TrainStep` for one core, built without values.

    Args:
      config: a resolved recipe.
      depth: number of blocks of the model; 0 for the recipe's number.

    Attributes:
      step: the `trainers.train.step.TrainStep`.
      parameters: number of parameters of the model.
    """

    def __init__(self, config, depth: int = 0):
        check_recipe(config)
        self.config = config.copy_and_resolve_references().unlock()
        trainer = self.config.trainer
        trainer.strategy, trainer.replicas, trainer.jit_compile = "one_device", 0, False
        model = self.config.model
        if depth:
            builder_arguments = registry.arguments(model.name)
            model.update(
                {key: depth for key in _DEPTHS if key in builder_arguments or key in model}
            )
        if registry.entry(model.name).family == "transfer":
            model.weights = "none"  # the values do not matter, and the file may be missing
        dataset = None
        if registry.has_loader(self.config.task.name) and not model.get("vocabulary_size", 1):
            model.vocabulary_size = self.config.data.vocabulary_size
            if not model.vocabulary_size:  # the vocabulary follows from the text
                dataset = registry.load_data(self.config.data.to_dict(), self.config.task.to_dict())
        elif sizes_follow_images(model):
            dataset = registry.load_data(self.config.data.to_dict(), self.config.task.to_dict())
        with variables_without_values():
            strategy = tf.distribute.get_strategy()
            self.step, self.task = build_step(self.config, strategy, 10**9, dataset)
        self.parameters = self.step.net.count_params()

    def batch(self, share: Share) -> dict[str, tf.TensorSpec]:
        """Returns names, shapes and types of the batch of `update`."""
        arrays = self.stored_examples(share.examples)
        return pipeline.training_batches(
            arrays, self.task.prepare, batch_size=share.examples, replicas=1, seed=0,
            first_step=0, last_step=1,
        ).element_spec  # fmt: skip

    def stored_examples(self, examples: int) -> dict[str, np.ndarray]:
        """Returns synthetic stored examples of the recipe's lengths."""
        examples_of_batch = make_synthetic_arrays(self.task, self.step.net, 2, 0)
        name, length = self.config.task.name, self.config.data.sequence_length
        if registry.has_loader(name) and length:
            length += _MORE_TOKENS.get(name, 0)
            examples_of_batch = {
                k: v[:, :1].repeat(length, 1) if v.ndim == 2 else v
                for k, v in examples_of_batch.items()
            }
        return {
            key: np.zeros((examples, *v.shape[1:]), v.dtype) for key, v in examples_of_batch.items()
        }
