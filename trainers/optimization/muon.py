"""Which variables Muon leaves to AdamW: embeddings and output layers.

Muon orthogonalizes the update of a matrix that maps hidden activations to hidden activations. Its
authors, and Keras' docstring, exclude embeddings and the last layer (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). Both are found by the model's graph and its layers'
classes, not by layer names.
"""

import keras
from keras import layers

from zoo import keras_internals
from zoo.errors import UsageError, compiled
from zoo.layers.low_rank import LowRankEmbedding
from zoo.layers.positions import LearnedPositions

_EMBEDDINGS = (layers.Embedding, LearnedPositions, LowRankEmbedding)


def left_to_adamw(
    models, variables, *, exclude_embeddings: bool, exclude_outputs: bool, exclude: str
) -> list:
    """Returns the variables that Muon must not train.

    Args:
      models: the trained part of the network, and the network around it.
      variables: those that the optimizer trains.
      exclude_embeddings: whether embeddings are among them.
      exclude_outputs: whether the layers that compute the models' outputs are among them.
      exclude: regular expression of further paths; "" for none.

    Raises:
      UsageError: where `exclude_outputs` is set, no model is a graph of layers that shows its
        output layers, and `exclude` does not name them.
    """
    excluded = []
    if exclude_embeddings:
        excluded += [v for model in models for v in _embeddings(model)]
    if exclude_outputs:
        graphs = [model for model in models if keras_internals.is_graph(model)]
        if not graphs and not exclude:
            raise UsageError(
                f"The output layers of {models[-1].name!r}, a subclassed model, are not known, and "
                "Muon must not train them: name them by optimizer.exclude, a regular expression of "
                "variable paths, or set optimizer.exclude_outputs=False."
            )
        excluded += [v for model in graphs for layer in output_layers(model) for v in layer.weights]
    ids = {id(v) for v in excluded}
    matches = compiled("optimizer.exclude", exclude).search
    return [v for v in variables if id(v) in ids or exclude and matches(v.path)]


def output_layers(model: keras.Model) -> list:
    """Returns the layers whose kernels compute a model's outputs.

    They are the last ones with a weight of two or more axes on each path to an output: activations,
    reshapes and biases behind them are passed over.
    """
    parents = {}
    for layer, _, before in keras_internals.connections(model):
        parents.setdefault(id(layer), []).extend(before)
    found, seen = [], set()
    pending = keras_internals.final_layers(model)
    while pending:
        layer = pending.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if keras_internals.is_graph(layer):
            inside = output_layers(layer)
            found += inside
            if inside:
                continue
        elif any(len(v.shape) > 1 for v in layer.weights):
            found.append(layer)
            continue
        pending += parents.get(id(layer), [])
    return found


def _embeddings(model) -> list:
    found = []
    for layer in keras_internals.all_layers(model):
        if isinstance(layer, _EMBEDDINGS):
            found += layer.weights
        else:  # a position table of a class that is not ours
            found += [v for v in layer.weights if "embedding" in v.name]
    return found
