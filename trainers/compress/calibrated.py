"""GPTQ (Frantar et al. 2022, arXiv:2210.17323), AWQ (Lin et al. 2023, arXiv:2306.00978) by Keras.

Both round the kernels of transformer blocks to 4 bits, one block after the other, by what each is
given on examples. Keras runs a block on hidden states alone; here it gets its attention mask too.
"""

import contextlib
import itertools
import re
import sys
from collections.abc import Mapping

import keras
import numpy as np

from trainers import keras_internals
from zoo.errors import UsageError

_GROUP = 64  # neighbours along a kernel's input that share a scale


def quantize(model: keras.Model, form: str, examples: Mapping) -> None:
    """Rounds the blocks of a model in place.

    Args:
      model: Functional, with layers `block_0` and on, called with hidden states and the output of
        the layer `mask`; of zoo.models.gpt, llama or bert.
      form: "gptq" or "awq".
      examples: an array a name of the model's inputs, (N, …).

    Raises:
      UsageError: for a model of another kind.
    """
    blocks = [layer for layer in model.layers if re.fullmatch(r"block_\d+", layer.name)]
    if not blocks or not any(layer.name == "mask" for layer in model.layers):
        raise UsageError(
            f"keras_{form} rounds the blocks of zoo.models.gpt, llama and bert. The model "
            f"{model.name!r} has none: keras_int8 rounds every Dense layer and embedding."
        )
    count = len(next(iter(examples.values())))
    mask = model.get_layer("mask").output
    before = keras.Model(model.inputs, [blocks[0].input[0], mask])
    hidden, biases = zip(
        *(
            before([np.asarray(examples[tensor.name][i : i + 1]) for tensor in model.inputs])
            for i in range(count)
        ),
        strict=True,
    )
    inside = {id(part) for block in blocks for part in keras_internals.all_layers(block)}
    given = itertools.cycle(hidden)
    structure = {
        "pre_block_layers": [lambda tokens: next(given)],
        "sequential_blocks": [_Masked(block, biases) for block in blocks],
    }
    make = {"gptq": keras.quantizers.GPTQConfig, "awq": keras.quantizers.AWQConfig}[form]
    settings = make(
        # What Keras would feed the blocks; here the hidden states are known already.
        dataset=[np.zeros(count, "int32")], tokenizer=_Unused(), num_samples=count,
        sequence_length=1, group_size=_GROUP, quantization_layer_structure=structure,
    )  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):  # Keras' progress: a block takes its time
        model.quantize(form, config=settings, filters=lambda layer: id(layer) in inside)
    for block in blocks:
        for layer in keras_internals.all_layers(block):
            if getattr(layer, "quantization_mode", None) == form:
                layer.quantization_config = None  # it holds the examples
                keras_internals.save_zero_points(layer)


class _Masked(keras.layers.Layer):
    """A block with the masks of the examples, one a call, over and over."""

    def __init__(self, block, biases):
        super().__init__(name=f"masked_{block.name}")
        self.block, self.biases = block, itertools.cycle(biases)

    def call(self, x):
        return self.block(x, next(self.biases))


class _Unused:
    """Keras asks for a tokenizer, and for numbers does not use it."""
