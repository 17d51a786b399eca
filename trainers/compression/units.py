"""The units of a model that can be removed, and the positions of their weights.

A unit is a neuron of a dense layer, a filter of a convolution, a column of an embedding, a cell of
an LSTM with its four gates, a neuron inside a block's feed-forward part, or an attention head (of
grouped queries: a key-value head with the queries that share it). The weights of a unit are those
that compute it and those that read it, also through layers that process each unit separately.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import layers

from trainers.compression.decomposition import CONVOLUTIONS
from zoo import keras_internals
from zoo.layers.low_rank import LowRank
from zoo.layers.transformer import GATED, Attention, FeedForward, TransformerBlock

_PRODUCERS = (layers.Dense, layers.Embedding, layers.LSTM, *CONVOLUTIONS)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_READERS = (layers.Dense, *_RECURRENT, *CONVOLUTIONS)
# Layers with units that also belong to other layers, or that cannot be separated.
_UNSUPPORTED = (
    layers.EinsumDense, layers.ReversibleEmbedding, layers.GRU, layers.SimpleRNN, LowRank,
)  # fmt: skip
_PER_DIMENSION = (
    "SpatialDropout", "MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling",
    "ZeroPadding", "UpSampling",
)  # fmt: skip
_SEPARATE_UNITS = (
    layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity, layers.Dropout,
    layers.Resizing, layers.Flatten,
    *(getattr(layers, f"{name}{n}D") for name in _PER_DIMENSION for n in (1, 2, 3)),
)  # fmt: skip
_NORMS = (layers.BatchNormalization, layers.LayerNormalization)
_NORM_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
# Activations that combine all units.
_MIXING = ("softmax", "log_softmax", "sparsemax", "glu")


@dataclasses.dataclass
class Cut:
    """The weights of units in one variable.

    Attributes:
      variable: variable of a built model.
      axis: axis of the variable along which the units lie.
      indices: (units, n) integers: the n indices of each unit on that axis.
      in_norm: whether the weights count in the norm of a unit; True for kernels.
    """

    variable: keras.Variable
    axis: int
    indices: np.ndarray
    in_norm: bool = True


@dataclasses.dataclass
class Units:
    """The removable units of one layer, or of one part of a transformer block.

    Attributes:
      layer: the layer that computes the units.
      count: number of units.
      cuts: all weights of the units.
    """

    layer: layers.Layer
    count: int
    cuts: list[Cut]

    def norms(self) -> np.ndarray:
        """Returns the L2 norm (units,) of the kernels' weights that compute and read each unit."""
        total = np.zeros(self.count)
        for cut in self.cuts:
            if cut.in_norm:
                value = np.moveaxis(cut.variable.numpy().astype(np.float64), cut.axis, 0)
                squares = np.square(value).reshape(len(value), -1).sum(1)
                total += squares[cut.indices].sum(1)
        return np.sqrt(total)


def units(model: keras.Model) -> tuple[dict[str, Units], dict[str, str]]:
    """Returns path -> removable units, and path -> reason for each layer without such units.

    Args:
      model: a built Functional or Sequential model, which may contain models.
    """
    removable, reasons = {}, {}
    if not keras_internals.is_graph(model):
        return {}, {
            model.name: f"the model is a {type(model).__name__}, not Functional or Sequential"
        }
    _visit(model, removable, reasons)
    return removable, reasons


def _visit(layer, removable: dict, reasons: dict) -> None:
    def add(child, units_of):
        try:
            removable[child.path] = units_of(child)
        except _NotRemovable as reason:
            reasons[child.path] = str(reason)

    walk = _GraphWalk(layer) if keras_internals.is_graph(layer) else None
    for child in keras_internals.child_layers(layer):
        if isinstance(child, TransformerBlock):
            add(child.attention, _heads)
            add(child.feed_forward, _inner_neurons)
            if child.cross_attention is not None:
                add(child.cross_attention, _heads)
        elif type(child) in _PRODUCERS or isinstance(child, _UNSUPPORTED):
            if walk:
                add(child, walk.units)
            else:
                reasons[child.path] = (
                    f"the layer is inside a custom layer, a {type(layer).__name__}"
                )
        else:
            _visit(child, removable, reasons)


class _NotRemovable(Exception):
    """The reason why no unit of a layer can be removed."""


class _GraphWalk:
    """The graph of one model, through which units are followed from layer to layer."""

    def __init__(self, model: keras.Model):
        self.name = model.name
        self.readers, self.calls, self.num_inputs = {}, {}, {}
        for operation, tensors, before in keras_internals.connections(model):
            self.calls[operation] = self.calls.get(operation, 0) + 1
            self.num_inputs[operation] = len(tensors)
            for parent in before:
                self.readers.setdefault(parent, []).append(operation)
        self.model_outputs = keras_internals.output_layers(model)

    def units(self, layer) -> Units:
        """Returns the units of a layer; raises `_NotRemovable` if none can be removed."""
        if isinstance(layer, _UNSUPPORTED):
            raise _NotRemovable(f"units of {type(layer).__name__} are not supported")
        self._check_called_once(layer)
        indices, cuts = _computing_weights(layer)
        cuts += self._reading_weights(layer, indices)
        if _mixes_units(layer):
            raise _NotRemovable(f"the activation, {layer.activation.__name__}, combines all units")
        return Units(layer, len(indices), cuts)

    def _check_called_once(self, layer) -> None:
        if self.calls.get(layer, 0) != 1 or self.num_inputs[layer] > 1:
            raise _NotRemovable(f"{layer.name} is called more than once, or on several tensors")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise _NotRemovable(f"{layer.name} has data_format=channels_first")

    def _reading_weights(self, layer, indices: np.ndarray) -> list[Cut]:
        """Returns the weights that read the units at `indices` of the output of `layer`."""
        if layer in self.model_outputs:
            raise _NotRemovable(f"the output of {layer.name} is an output of the model {self.name}")
        cuts = []
        for reader in self.readers.get(layer, ()):
            is_supported = isinstance(reader, (*_SEPARATE_UNITS, *_NORMS, *_READERS))
            if not is_supported or isinstance(reader, layers.Activation) and _mixes_units(reader):
                raise _NotRemovable(
                    f"the units are inputs of {reader.name}, a {type(reader).__name__}"
                )
            self._check_called_once(reader)
            if isinstance(reader, _READERS):
                cuts += _kernel_rows(reader, indices)
                continue
            cuts += _norm_weights(reader, indices)
            cuts += self._reading_weights(reader, _flattened(reader, indices))
        return cuts


def _mixes_units(layer) -> bool:
    """Returns whether a layer's activation combines all units."""
    return getattr(getattr(layer, "activation", None), "__name__", "") in _MIXING


def _computing_weights(layer) -> tuple[np.ndarray, list[Cut]]:
    """Returns the indices of units in a layer's output, and the weights that compute them."""
    if isinstance(layer, layers.LSTM):
        if layer.return_state or layer.stateful:
            raise _NotRemovable("the state is used outside of the layer")
        cell, count = layer.cell, layer.units
        indices = np.arange(count)[:, None]
        gates = indices + count * np.arange(4)
        cuts = [Cut(cell.kernel, 1, gates), Cut(cell.recurrent_kernel, 1, gates)]
        cuts.append(Cut(cell.recurrent_kernel, 0, indices))
        return indices, cuts + ([Cut(cell.bias, 0, gates, False)] if cell.use_bias else [])
    embedding = isinstance(layer, layers.Embedding)
    kernel = layer.embeddings if embedding else layer.kernel
    indices = np.arange(kernel.shape[-1])[:, None]
    bias = [] if embedding or layer.bias is None else [Cut(layer.bias, 0, indices, False)]
    return indices, [Cut(kernel, kernel.ndim - 1, indices), *bias]


def _kernel_rows(layer, indices: np.ndarray) -> list[Cut]:
    if getattr(layer, "groups", 1) != 1:
        raise _NotRemovable(f"{layer.name}, which reads the units, is a convolution with groups")
    kernel = layer.cell.kernel if isinstance(layer, _RECURRENT) else layer.kernel
    return [Cut(kernel, kernel.ndim - 2, indices)]


def _norm_weights(layer, indices: np.ndarray) -> list[Cut]:
    if not isinstance(layer, _NORMS):
        return []
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [len(layer.input.shape) - 1]):
        raise _NotRemovable(f"{layer.name} normalizes axes other than the last")
    weights = [getattr(layer, name, None) for name in _NORM_WEIGHTS]
    return [Cut(w, 0, indices, False) for w in weights if w is not None]


def _flattened(layer, indices: np.ndarray) -> np.ndarray:
    """Returns the indices of units after `Flatten`: one per unit and position of the image."""
    if not isinstance(layer, layers.Flatten):
        return indices
    shape = layer.input.shape[1:]
    if None in shape:
        raise _NotRemovable(f"{layer.name} flattens an unknown shape")
    positions = np.arange(math.prod(shape[:-1]))[:, None]
    return (indices[:, None, :] + shape[-1] * positions).reshape(len(indices), -1)


# --- inside a block -----------------------------------------------------------------------------


def _cuts(part, indices: np.ndarray, axis: int) -> list[Cut]:
    """Returns the cut of a dense layer's kernel, and of its bias if the axis holds its outputs."""
    if isinstance(part, LowRank):
        raise _NotRemovable("the kernels are factorized: use structured before low_rank")
    cuts = [Cut(part.kernel, axis, indices)]
    if axis and part.bias is not None:
        cuts.append(Cut(part.bias, 0, indices, False))
    return cuts


def _inner_neurons(part: layers.Layer) -> Units:
    if not isinstance(part, FeedForward):
        raise _NotRemovable("the feed-forward part is a mixture of experts")
    count = part.settings["intermediate_dim"]
    indices = np.arange(count)[:, None]
    halves = 2 if part.activation in GATED else 1
    columns = indices + count * np.arange(halves)  # the gate, and the value that the gate scales
    return Units(part, count, _cuts(part.up, columns, 1) + _cuts(part.down, indices, 0))


def _heads(part: Attention) -> Units:
    count, size = part.groups, part.size
    queries = np.arange(part.heads * size).reshape(count, -1)
    keys = np.arange(count * size).reshape(count, size)
    keys_values = np.concatenate([keys, keys + count * size], axis=1)
    if part.memory:
        cuts = _cuts(part.query, queries, 1) + _cuts(part.key_value, keys_values, 1)
    else:
        others = keys if part.form.shares_query_key else keys_values
        columns = np.concatenate([queries, others + part.heads * size], axis=1)
        cuts = _cuts(part.query_key_value, columns, 1)
        if part.global_query_key_value is not None:
            cuts += _cuts(part.global_query_key_value, columns, 1)
    return Units(part, count, cuts + _cuts(part.output_projection, queries, 0))
