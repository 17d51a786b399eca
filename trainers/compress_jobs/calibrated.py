"""GPTQ and AWQ of transformer blocks, calibrated on examples, in the layers of Keras.

Keras 3.15.1 replaces `layer.call` to see a layer's inputs, after it has set the quantization mode
for which `Layer.__call__` takes `quantized_call` instead: it sees nothing. Here the inputs are
recorded while the layers are still floats, one block after the other, so that each block is given
what the rounded blocks before it compute.
"""

import contextlib
import re
from collections.abc import Mapping

import keras
import numpy as np

from trainers.compress_jobs import int4
from zoo import keras_internals
from zoo.errors import RunError, UsageError

_BATCH = 8  # examples in one forward pass


def quantize(model: keras.Model, form: str, examples: Mapping) -> dict[str, int]:
    """Rounds the kernels of a model's transformer blocks to 4 bits in place.

    Args:
      model: Functional, with layers `block_0` and on, called with hidden states and the output of
        the layer `mask`; of zoo.models.gpt, llama or bert.
      form: "gptq" or "awq".
      examples: an array a name of the model's inputs, (N, …).

    Returns:
      Path of each layer that was rounded -> number of input vectors that it was calibrated on.

    Raises:
      UsageError: for a model of another kind.
      RunError: where a layer of a block was given no inputs.
    """
    blocks = [layer for layer in model.layers if re.fullmatch(r"block_\d+", layer.name)]
    if not blocks or not any(layer.name == "mask" for layer in model.layers):
        raise UsageError(
            f"keras_{form} rounds the blocks of zoo.models.gpt, llama and bert. The model "
            f"{model.name!r} has none: keras_int8 rounds every Dense layer and embedding."
        )
    before = keras.Model(model.inputs, [blocks[0].input[0], model.get_layer("mask").output])
    count = len(next(iter(examples.values())))
    batches = [
        before([np.asarray(examples[x.name][i : i + _BATCH]) for x in model.inputs])
        for i in range(0, count, _BATCH)
    ]
    counts = {}
    for block in blocks:
        dense = [x for x in keras_internals.all_layers(block) if type(x) is keras.layers.Dense]
        with _recorded(dense) as inputs:
            for hidden, bias in batches:
                block(hidden, bias)
        for layer, seen in zip(dense, inputs, strict=True):
            if not seen.rows:
                raise RunError(f"keras_{form}: {layer.path} was given no inputs to calibrate on.")
            counts[layer.path] = seen.rows
            _round(layer, form, seen)
        batches = [(block(hidden, bias), bias) for hidden, bias in batches]
    return counts


@contextlib.contextmanager
def _recorded(dense: list):
    """Yields the statistics of each layer's inputs, which calls inside the context fill."""
    found = [int4.Inputs(layer.kernel.shape[0]) for layer in dense]

    def recording(call, inputs):
        def record(x, *args, **kwargs):
            inputs.add(x)
            return call(x, *args, **kwargs)

        return record

    calls = [layer.call for layer in dense]
    for layer, call, inputs in zip(dense, calls, found, strict=True):
        layer.call = recording(call, inputs)
    try:
        yield found
    finally:
        for layer, call in zip(dense, calls, strict=True):
            layer.call = call


def _round(layer: keras.layers.Dense, form: str, inputs: int4.Inputs) -> None:
    """Makes a layer one of Keras' own of that form, with our integers."""
    weights = layer.kernel.numpy().T
    if form == "gptq":
        rounded, settings = int4.gptq(weights, inputs), keras.quantizers.GPTQConfig
    else:
        # The scores of attention are products of two outputs: there the authors clip nothing.
        clip = not re.search("query|key", layer.name)
        rounded, settings = int4.awq(weights, inputs, clip), keras.quantizers.AWQConfig
    layer.quantize(form, config=settings(None, None, group_size=int4.GROUP))
    keras_internals.assign_int4_kernel(layer, form, rounded, int4.GROUP)
