"""Finds the variables that Muon leaves to AdamW: embeddings, output layers, depthwise kernels.

Muon orthogonalizes the update of matrices that map hidden activations to hidden activations. Its
authors and Keras' docstring exclude embeddings and the last layer (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). Both are identified by the model's graph and the
classes of its layers, not by layer names.
"""

import keras
from keras import layers

from zoo import keras_internals
from zoo.errors import UsageError, compile_pattern
from zoo.layers.experts.router import Router
from zoo.layers.low_rank import LowRankEmbedding
from zoo.layers.neighbors import NeighborMix
from zoo.layers.positions import AxialPositions, LearnedPositions

_EMBEDDINGS = (layers.Embedding, LearnedPositions, AxialPositions, LowRankEmbedding)


def variables_for_adamw(
    models, variables, *, exclude_embeddings: bool, exclude_outputs: bool, exclude: str
) -> list:
    """Returns the variables that Muon must not train.

    Args:
      models: the trained part of the network, and the whole network.
      variables: the variables that the optimizer trains.
      exclude_embeddings: whether to exclude embeddings.
      exclude_outputs: whether to exclude the layers that compute the models' outputs.
      exclude: regular expression of further variable paths to exclude; "" for none.

    Raises:
      UsageError: if `exclude_outputs` is set, no model is a graph of layers, and `exclude` is
        empty.
    """
    inside = [layer for model in models for layer in keras_internals.all_layers(model)]
    excluded_variables = [
        v for layer in inside if isinstance(layer, (NeighborMix, Router)) for v in layer.weights
    ]
    if exclude_embeddings:
        excluded_variables += [v for model in models for v in _embeddings(model)]
    if exclude_outputs:
        graphs = [model for model in models if keras_internals.is_graph(model)]
        if not graphs and not exclude:
            raise UsageError(
                f"Muon must not train output layers, and those of a subclassed model are unknown: "
                "set optimizer.exclude to a regular expression of their variable paths, or "
                f"optimizer.exclude_outputs=False. Received: model {models[-1].name!r}."
            )
        excluded_variables += [
            v for model in graphs for layer in output_layers(model) for v in layer.weights
        ]
    ids = {id(v) for v in excluded_variables}
    matches = compile_pattern("optimizer.exclude", exclude).search
    return [v for v in variables if id(v) in ids or exclude and matches(v.path)]


def output_layers(model: keras.Model) -> list:
    """Returns the layers whose kernels compute a model's outputs.

    On each path to an output this is the last layer with a weight of two or more axes. Activations,
    reshapes and biases after that layer are skipped.
    """
    parents = {}
    for layer, _, before in keras_internals.connections(model):
        parents.setdefault(id(layer), []).extend(before)
    outputs, seen = [], set()
    pending = keras_internals.output_layers(model)
    while pending:
        layer = pending.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if keras_internals.is_graph(layer):
            inside = output_layers(layer)
            outputs += inside
            if inside:
                continue
        elif any(len(v.shape) > 1 for v in layer.weights):
            outputs.append(layer)
            continue
        pending += parents.get(id(layer), [])
    return outputs


def _embeddings(model) -> list:
    variables = []
    for layer in keras_internals.all_layers(model):
        if isinstance(layer, _EMBEDDINGS):
            variables += layer.weights
        else:  # position tables of other libraries' layers
            variables += [v for v in layer.weights if "embedding" in v.name]
    return variables
