"""GPTQ and AWQ of transformer blocks, calibrated on examples and stored in Keras layers.

Keras 3.15.1 replaces `layer.call` to record the inputs of a layer. It sets the quantization mode
before, for which `Layer.__call__` runs `quantized_call` instead, so it records nothing. This file
records the inputs while the layers still have float kernels, one block after the other. Each block
gets the outputs of the quantized blocks before it.
"""

import contextlib
import functools
import itertools
from collections.abc import Mapping

import keras
import numpy as np

from trainers.compress_jobs import int4
from zoo import keras_internals
from zoo.errors import RunError, UsageError
from zoo.layers.transformer import TransformerBlock
from zoo.models.adapter import Adapter
from zoo.progress import progress

_BATCH = 8  # examples in one forward pass


def quantize(model: keras.Model, mode: str, examples: Mapping) -> dict[str, int]:
    """Rounds the kernels of a model's transformer blocks to 4 bits in place.

    Args:
      model: a Functional model of zoo.models.gpt, llama, bert or longformer: one stack of
        transformer blocks, called with hidden states and a mask, and with a mask of global tokens.
      mode: "gptq" or "awq".
      examples: name of an input of the model -> array (N, …).

    Returns:
      Path of each quantized layer -> number of input vectors that calibrated it.

    Raises:
      UsageError: if the model has no such blocks.
      RunError: if a layer of a block got no inputs.
    """
    blocks, *others = Adapter(model).stacks.values() or [[]]
    is_supported = (
        blocks and isinstance(blocks[0], TransformerBlock) and not blocks[0].cross_attention
    ) and all(
        keras.tree.flatten(block.input)[0] is before.output
        for before, block in itertools.pairwise(blocks)
    )
    if others or not is_supported:
        raise UsageError(
            f"keras_{mode} supports models of zoo.models.gpt, llama, bert and longformer. "
            f"Received: {model.name!r}. Use keras_int8, which supports every Dense layer and "
            "embedding."
        )
    # Blocks with different forms of attention have different masks.
    names = ("attention_mask", "global_mask")
    masks = {block.name: dict(zip(names, block.input[1:], strict=False)) for block in blocks}
    stem = keras.Model(model.inputs, [blocks[0].input[0], masks])
    count = len(next(iter(examples.values())))
    batches = [
        stem([np.asarray(examples[x.name][i : i + _BATCH]) for x in model.inputs])
        for i in range(0, count, _BATCH)
    ]
    counts = {}
    for block in progress(blocks, title=f"keras_{mode}", unit="blocks"):
        dense = [x for x in keras_internals.all_layers(block) if type(x) is keras.layers.Dense]
        with _record_inputs(dense) as inputs:
            for hidden, masks in batches:
                block(hidden, **masks[block.name])
        for layer in dense:
            if not inputs[layer].rows:
                raise RunError(
                    f"keras_{mode} cannot calibrate {layer.path}: the layer got no inputs."
                )
            counts[layer.path] = inputs[layer].rows
            # Attention scores are products of two outputs, which the authors of AWQ do not clip.
            clip = not layer.name.endswith("query_key_value")
            _quantize_layer(layer, mode, inputs[layer], clip)
        batches = [(block(hidden, **masks[block.name]), masks) for hidden, masks in batches]
    return counts


@contextlib.contextmanager
def _record_inputs(dense: list):
    """Yields layer -> `Inputs`, to which each call of the layer adds inside the context."""
    inputs = {layer: int4.Inputs(layer.kernel.shape[0]) for layer in dense}
    calls = {layer: layer.call for layer in dense}

    def record(layer, x, *args, **kwargs):
        inputs[layer].add(x)
        return calls[layer](x, *args, **kwargs)

    for layer in dense:
        layer.call = functools.partial(record, layer)
    try:
        yield inputs
    finally:
        for layer, call in calls.items():
            layer.call = call


def _quantize_layer(layer: keras.layers.Dense, mode: str, inputs: int4.Inputs, clip: bool) -> None:
    """Quantizes a layer in this mode of Keras, with the integers of `int4.gptq` or `int4.awq`."""
    weights = layer.kernel.numpy().T
    if mode == "gptq":
        quantized_kernel, settings = int4.gptq(weights, inputs), keras.quantizers.GPTQConfig
    else:
        quantized_kernel, settings = int4.awq(weights, inputs, clip), keras.quantizers.AWQConfig
    layer.quantize(mode, config=settings(None, None, group_size=int4.GROUP))
    keras_internals.assign_int4_kernel(layer, mode, quantized_kernel, int4.GROUP)
