"""Contributions of tokens to a prediction: gradient x input at the embedded tokens.

Simonyan et al. 2013 (arXiv:1312.6034) take the gradient of a class's score, Shrikumar et al. 2016
(arXiv:1605.01713) multiply it by the input. Axes: N texts, T positions, C width of the embedding.
"""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from zoo import keras_internals
from zoo.layers.low_rank import LowRankEmbedding
from zoo.models.linear import HashedNgrams

_BATCH = 16


def attributions(
    model: keras.Model, inputs: Mapping[str, np.ndarray], classes: np.ndarray
) -> np.ndarray | None:
    """Computes how much each token of a text supports a class.

    The contribution of a token is the product of its embedding and the gradient of the class's
    logit, summed over C. For a model that is linear in the embeddings, the contributions add up to
    the logit without the bias. For embedded n-grams, the contribution of an n-gram is distributed
    over its tokens.

    Args:
      model: a Functional model from "tokens" and other inputs to logits (N, K).
      inputs: name -> (N, T) integers, at least the inputs of the model.
      classes: (N,) integers.

    Returns:
      (N, T) float32; None for a model that does not embed its tokens in a layer of its graph.
    """
    tensor = embedded_tokens(model)
    if tensor is None:
        return None
    names = [symbol.name for symbol in model.inputs]
    embed = keras.Model(model.inputs, tensor)
    head = keras.Model([tensor, *model.inputs], model.output)

    def batch(rows: slice):
        values = [tf.constant(inputs[name][rows], tf.int32) for name in names]
        vectors = embed(values, training=False)
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            logits = head([vectors, *values], training=False)
            score = tf.gather(logits, classes[rows], batch_dims=1)
        gradient = tf.cast(tape.gradient(score, vectors), tf.float32)
        return tf.reduce_sum(gradient * tf.cast(vectors, tf.float32), -1).numpy()

    starts = range(0, len(classes), _BATCH)
    result = np.concatenate([batch(slice(start, start + _BATCH)) for start in starts])
    source = _embedded_source(tensor)
    return source.over_tokens(result) if isinstance(source, HashedNgrams) else result


def embedded_tokens(model: keras.Model):
    """Returns the tensor of a model's graph that embeds "tokens" or their n-grams, or None."""
    if not keras_internals.is_graph(model):
        return None
    seen, pending = set(), list(model.outputs)
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        layer, tensors = keras_internals.origin(tensor)
        pending += tensors
        if isinstance(layer, (keras.layers.Embedding, LowRankEmbedding)):
            source = _embedded_source(tensor)
            is_input = isinstance(source, keras.layers.InputLayer) and tensors[0].name == "tokens"
            if is_input or isinstance(source, HashedNgrams):
                return tensor
    return None


def _embedded_source(tensor):
    """Returns the layer whose output an embedding takes, for the output of the embedding."""
    _, inputs = keras_internals.origin(tensor)
    return keras_internals.origin(inputs[0])[0]
