"""Heads of the supervised tasks on text, on the trunk of any encoder or decoder.

    model = zoo.build("encoder_nano")                       # predicts masked tokens
    classifier = add_head(model, 3, pooling="mean")         # shares all weights below the head

Axes: B batch, T positions, C hidden_dim, K outputs.
"""

from collections.abc import Iterable

import keras
from keras import layers, ops

from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.dropout import Dropout
from zoo.models.adapter import Adapter
from zoo.models.bert import TakePositions, dense
from zoo.models.electra import ReplacedTokenInput, ReplaceTokens, discriminator

# "" leaves the positions apart, for answers in a text.
POOLINGS = ("mean", "first", "last", "pair", "")


def add_head(
    model: keras.Model, outputs: int, *, pooling: str = "mean", dropout: float = 0.0
) -> keras.Model:
    """Puts a new head on the trunk of a model.

    Args:
      model: a model that `text_trunk` supports. Its own head is left out.
      outputs: K.
      pooling: one of `POOLINGS`, see `PoolTokens`; the pooling "pair" adds a hidden layer.
      dropout: dropout rate before the last layer.

    Returns:
      A Functional model from {"tokens", "segments"}, and "types" if the trunk or the pooling
      requires it, all (B, T) int32, to logits in float32: (B, K), or (B, T, K) for the pooling "".

    Raises:
      UsageError: if the model has no trunk.
    """
    trunk = text_trunk(model)
    inputs = head_inputs(trunk, ("segments", *(["types"] if pooling == "pair" else [])))
    types = [inputs["types"]] if pooling == "pair" else []
    x = PoolTokens(pooling, name="pool")(trunk.output, inputs["segments"], *types)
    if pooling == "pair":
        x = dense(trunk.output.shape[-1], "hidden", activation="gelu")(x)
    return keras.Model(inputs, head_logits(x, outputs, dropout), name=model.name)


def head_inputs(trunk: keras.Model, names: Iterable[str]) -> dict:
    """Returns the inputs of a trunk by name, with new (B, T) int32 inputs for absent names."""
    inputs = {tensor.name: tensor for tensor in trunk.inputs}
    for name in names:
        if name not in inputs:
            inputs[name] = keras.Input((None,), dtype="int32", name=name)
    return inputs


def head_logits(x, outputs: int, dropout: float):
    """Applies dropout and the last layer of a head; returns logits (..., outputs) in float32."""
    if dropout:
        x = Dropout(dropout, name="head_dropout")(x)
    return dense(outputs, "logits", dtype="float32")(x)


def has_head(model: keras.Model) -> bool:
    """Returns whether a model ends with a head of `add_head`."""
    return bool(_first_inputs(model, PoolTokens))


def text_trunk(model: keras.Model) -> keras.Model:
    """Returns the part of a model that computes a vector per position; weights are shared.

    Args:
      model: an encoder with a head for masked or replaced tokens, a decoder, an LSTM, or a model
        with a head of `add_head`.

    Returns:
      A Functional model from the inputs that it requires to (B, T, C).

    Raises:
      UsageError: for other models.
    """
    if _first_inputs(model, ReplaceTokens):
        model = discriminator(model)
    tensor = _last_vectors(model)
    names = _input_names(tensor)
    inputs = {tensor.name: tensor for tensor in model.inputs if tensor.name in names}
    return keras.Model(inputs, tensor, name=model.name)


def _last_vectors(model):
    for kind in (PoolTokens, ReplacedTokenInput, TakePositions):
        if inputs := _first_inputs(model, kind):
            return inputs[0]
    adapter = Adapter(model)
    if adapter.family not in ("decoder", "recurrent"):
        raise UsageError(
            "The task requires an encoder that predicts masked tokens, a decoder of text or an "
            f"LSTM. Received: {model.name!r}."
        )
    return adapter.split()[0].output


def _first_inputs(model, kind) -> list:
    """Returns the first input of each call of a layer of a class."""
    calls = keras_internals.connections(model) if keras_internals.is_graph(model) else ()
    return [inputs[0] for layer, inputs, _ in calls if isinstance(layer, kind)]


def _input_names(tensor) -> set[str]:
    """Returns the names of the model inputs that a tensor depends on."""
    names, seen, pending = set(), set(), [tensor]
    while pending:
        layer, tensors = keras_internals.origin(tensor := pending.pop())
        if isinstance(layer, layers.InputLayer):
            names.add(tensor.name)
        pending += [x for x in tensors if id(x) not in seen]
        seen |= {id(x) for x in tensors}
    return names


@keras.saving.register_keras_serializable("zoo")
class PoolTokens(layers.Layer):
    """Pools the positions of a text; every head begins with this layer.

    Args:
      pooling: "mean" of all positions that are not padding; the "first" or the "last" of them;
        "pair": means a and b of both texts, |a - b| and a * b (Mou et al. 2016, arXiv:1512.08422);
        "" to keep the positions.
    """

    def __init__(self, pooling="mean", **kwargs):
        super().__init__(**kwargs)
        if pooling not in POOLINGS:
            raise ValueError(
                f"pooling must be one of {', '.join(map(repr, POOLINGS))}. Received: {pooling!r}."
            )
        self.pooling = pooling

    def call(self, x, segments, types=None):
        """Pools the positions of x.

        Args:
          x: (B, T, C).
          segments: (B, T) integers, 0 for padding.
          types: (B, T) integers, 0 in the first text and 1 in the second; for the pooling "pair".

        Returns:
          (B, C); (B, 4 C) for the pooling "pair", (B, T, C) for "".
        """
        is_token = ops.not_equal(segments, 0)
        if self.pooling == "mean":
            return _mean(x, is_token)
        if self.pooling == "first":
            return x[:, 0]
        if self.pooling == "last":
            length = ops.shape(x)[1]
            places = ops.where(is_token, ops.arange(length, dtype="int32"), 0)
            last = ops.one_hot(ops.max(places, axis=1), length, dtype=x.dtype)
            return ops.einsum("btc,bt->bc", x, last)
        if self.pooling == "pair":
            is_second = ops.equal(types, 1)
            a = _mean(x, ops.logical_and(is_token, ops.logical_not(is_second)))
            b = _mean(x, ops.logical_and(is_token, is_second))
            return ops.concatenate([a, b, ops.abs(a - b), a * b], -1)
        return x

    def compute_output_spec(self, x, *_):
        batch, length, width = x.shape
        shape = {"": (batch, length, width), "pair": (batch, 4 * width)}
        return keras.KerasTensor(shape.get(self.pooling, (batch, width)), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "pooling": self.pooling}


def _mean(x, is_chosen):
    """Returns the mean (B, C) of the chosen positions (B, T) of x (B, T, C); 0 without any."""
    weights = ops.cast(is_chosen, x.dtype)
    total = ops.einsum("btc,bt->bc", x, weights)
    return total / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1)
