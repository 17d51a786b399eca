"""The units of a model that can be taken out, and where their weights lie.

A unit is a neuron of a dense layer, a filter of a convolution, a column of an embedding, a cell of
an LSTM with its four gates, a neuron inside a block's feed-forward part, or a head of attention (of
grouped queries: a key-value head with the queries that share it). Its weights are those that make
it and those that read it, through whatever computes each unit by itself and stands between.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import layers

from trainers.compression.decomposition import CONVOLUTIONS
from zoo import keras_internals
from zoo.layers.low_rank import LowRank
from zoo.layers.transformer import Attention, FeedForward, TransformerBlock

_PRODUCERS = (layers.Dense, layers.Embedding, layers.LSTM, *CONVOLUTIONS)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_READERS = (layers.Dense, *_RECURRENT, *CONVOLUTIONS)
# Their units are others' too, or cannot be told apart.
_NEVER = (layers.EinsumDense, layers.ReversibleEmbedding, layers.GRU, layers.SimpleRNN, LowRank)
_BETWEEN = (
    layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity,
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, layers.Resizing, layers.Flatten,
)  # fmt: skip
_NORMS = (layers.BatchNormalization, layers.LayerNormalization)
_NORM_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
# Activations that see all units at once.
_MIXING = ("softmax", "log_softmax", "sparsemax", "glu")


@dataclasses.dataclass
class Cut:
    """Weights of the units in one variable.

    Attributes:
      variable: of a built model.
      axis: along which they lie.
      places: (units, n) integers: the n indices on that axis of each unit.
      counts: whether these weights say how much a unit matters: those of kernels do.
    """

    variable: keras.Variable
    axis: int
    places: np.ndarray
    counts: bool = True


@dataclasses.dataclass
class Units:
    """What can be taken out of one layer, or of one part of a transformer block.

    Attributes:
      layer: that which makes the units.
      count: how many.
      cuts: all of their weights.
    """

    layer: layers.Layer
    count: int
    cuts: list[Cut]

    def norms(self) -> np.ndarray:
        """L2 norm of the kernels' weights that make and read each unit."""
        total = np.zeros(self.count)
        for cut in self.cuts:
            if cut.counts:
                value = np.moveaxis(cut.variable.numpy().astype(np.float64), cut.axis, 0)
                squares = np.square(value).reshape(len(value), -1).sum(1)
                total += squares[cut.places].sum(1)
        return np.sqrt(total)


def units(model: keras.Model) -> tuple[dict[str, Units], dict[str, str]]:
    """Returns path -> units of what can become smaller, and path -> why not of all else.

    Args:
      model: built, of one graph; models inside it are looked into.
    """
    found, whole = {}, {}
    if not keras_internals.is_graph(model):
        return {}, {model.name: f"it is no graph of layers but a {type(model).__name__}"}
    _visit(model, found, whole)
    return found, whole


def _visit(layer, found: dict, whole: dict) -> None:
    graph = keras_internals.is_graph(layer)
    walk = _Walk(layer) if graph else None
    for child in keras_internals.child_layers(layer):
        if isinstance(child, TransformerBlock):
            parts = {child.attention: _heads, child.feed_forward: _inside}
            if child.cross_attention is not None:
                parts[child.cross_attention] = _heads
            for part, places in parts.items():
                try:
                    found[part.path] = places(part)
                except _Whole as reason:
                    whole[part.path] = str(reason)
        elif type(child) in _PRODUCERS or isinstance(child, _NEVER):
            if not graph:
                whole[child.path] = f"it lies inside a layer of its own, a {type(layer).__name__}"
                continue
            try:
                found[child.path] = walk.units(child)
            except _Whole as reason:
                whole[child.path] = str(reason)
        else:
            _visit(child, found, whole)


class _Whole(Exception):
    """Why a layer keeps all its units."""


class _Walk:
    """Follows units through the graph of one model."""

    def __init__(self, model: keras.Model):
        self.name = model.name
        calls = keras_internals.connections(model)
        self.after, self.calls, self.takes = {}, {}, {}
        for operation, tensors, before in calls:
            self.calls[operation] = self.calls.get(operation, 0) + 1
            self.takes[operation] = len(tensors)
            for one in before:
                self.after.setdefault(one, []).append(operation)
        self.ends = keras_internals.output_layers(model)

    def units(self, layer) -> Units:
        """Raises `_Whole` where there are none to take."""
        if isinstance(layer, _NEVER):
            raise _Whole(f"units of a {type(layer).__name__} are not known")
        self._once(layer)
        places, cuts = _made(layer)
        cuts += self._read(layer, places)
        if _mixes(layer):
            raise _Whole(f"its activation, {layer.activation.__name__}, is of all its units")
        return Units(layer, len(places), cuts)

    def _once(self, layer) -> None:
        if self.calls.get(layer, 0) != 1 or self.takes[layer] > 1:
            raise _Whole(f"{layer.name} is called more than once, or on several tensors")
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise _Whole(f"{layer.name} has its channels first")

    def _read(self, layer, places: np.ndarray) -> list[Cut]:
        """The weights behind a layer of whose outputs, on the last axis, units have places."""
        if layer in self.ends:
            raise _Whole(f"what {layer.name} gives is what the model {self.name} gives")
        cuts = []
        for reader in self.after.get(layer, ()):
            known = isinstance(reader, (*_BETWEEN, *_NORMS, *_READERS))
            if not known or isinstance(reader, layers.Activation) and _mixes(reader):
                raise _Whole(f"its units go into {reader.name}, a {type(reader).__name__}")
            self._once(reader)
            if isinstance(reader, _READERS):
                cuts += _reading(reader, places)
                continue
            cuts += _normalizing(reader, places)
            cuts += self._read(reader, _flattened(reader, places))
        return cuts


def _mixes(layer) -> bool:
    """Whether a layer's activation sees all units at once."""
    return getattr(getattr(layer, "activation", None), "__name__", "") in _MIXING


def _made(layer) -> tuple[np.ndarray, list[Cut]]:
    """Returns the places of units in a layer's output, and the weights that make them."""
    if isinstance(layer, layers.LSTM):
        if layer.return_state or layer.stateful:
            raise _Whole("its state is kept outside")
        cell, count = layer.cell, layer.units
        gates = np.arange(count)[:, None] + count * np.arange(4)
        alone = np.arange(count)[:, None]
        cuts = [Cut(cell.kernel, 1, gates), Cut(cell.recurrent_kernel, 1, gates)]
        cuts.append(Cut(cell.recurrent_kernel, 0, alone))
        return alone, cuts + ([Cut(cell.bias, 0, gates, False)] if cell.use_bias else [])
    embedding = isinstance(layer, layers.Embedding)
    kernel = layer.embeddings if embedding else layer.kernel
    axis = kernel.ndim - 1
    places = np.arange(kernel.shape[-1])[:, None]
    bias = [] if embedding or layer.bias is None else [Cut(layer.bias, 0, places, False)]
    return places, [Cut(kernel, axis, places), *bias]


def _reading(layer, places: np.ndarray) -> list[Cut]:
    if getattr(layer, "groups", 1) != 1:
        raise _Whole(f"{layer.name}, which reads them, is a convolution in groups")
    kernel = layer.cell.kernel if isinstance(layer, _RECURRENT) else layer.kernel
    return [Cut(kernel, kernel.ndim - 2, places)]


def _normalizing(layer, places: np.ndarray) -> list[Cut]:
    if not isinstance(layer, _NORMS):
        return []
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    last = len(layer.input.shape) - 1
    if axes not in ([-1], [last]):
        raise _Whole(f"{layer.name} normalises other axes than the last")
    weights = [getattr(layer, name, None) for name in _NORM_WEIGHTS]
    return [Cut(w, 0, places, False) for w in weights if w is not None]


def _flattened(layer, places: np.ndarray) -> np.ndarray:
    """Places behind a `Flatten`: those before, once a point of the picture."""
    if not isinstance(layer, layers.Flatten):
        return places
    shape = layer.input.shape[1:]
    if None in shape:
        raise _Whole(f"{layer.name} flattens a shape that is not known")
    points = math.prod(shape[:-1])
    spread = places[:, None, :] + shape[-1] * np.arange(points)[:, None]
    return spread.reshape(len(places), -1)


# --- inside a block -----------------------------------------------------------------------------


def _cuts(part, places: np.ndarray, axis: int) -> list[Cut]:
    """Of a dense layer's kernel along an axis, and its bias where these are its outputs."""
    if isinstance(part, LowRank):
        raise _Whole("its kernels are products: take units out before low_rank")
    cuts = [Cut(part.kernel, axis, places)]
    if axis and part.bias is not None:
        cuts.append(Cut(part.bias, 0, places, False))
    return cuts


def _inside(part: FeedForward) -> Units:
    count = part.settings["intermediate_dim"]
    alone = np.arange(count)[:, None]
    halves = 2 if part.activation == "swiglu" else 1
    made = alone + count * np.arange(halves)  # its gate, and what it lets through
    return Units(part, count, _cuts(part.up, made, 1) + _cuts(part.down, alone, 0))


def _heads(part: Attention) -> Units:
    count, size = part.groups, part.size
    queries = np.arange(part.heads * size).reshape(count, -1)
    keys = np.arange(count * size).reshape(count, size)
    both = np.concatenate([keys, keys + count * size], axis=1)  # and values
    if part.memory:
        cuts = _cuts(part.query, queries, 1) + _cuts(part.key_value, both, 1)
    else:
        made = np.concatenate([queries, both + part.heads * size], axis=1)
        cuts = _cuts(part.query_key_value, made, 1)
    return Units(part, count, cuts + _cuts(part.output_projection, queries, 0))
