"""A model built anew, with some of its layers changed."""

from collections.abc import Callable, Mapping

import keras
from keras import layers


def rebuilt(model: keras.Model, change: Callable) -> keras.Model:
    """Returns a graph of layers anew, with fresh weights.

    Args:
      model: a Functional or Sequential model; models inside it are rebuilt too.
      change: `change(layer, config)` gives the layer that stands in place of one, or None for one
        of the same class by its configuration, which it may have changed.
    """

    def clone(layer):
        if not isinstance(layer, layers.Layer):
            return layer  # an operation without weights
        config = layer.get_config()
        return change(layer, config) or type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=clone, recursive=True)


def below(layer: layers.Layer, wanted: Mapping) -> dict:
    """Returns what is wanted inside a layer, by paths that begin there."""
    prefix = f"{layer.path}/"
    return {p.removeprefix(prefix): value for p, value in wanted.items() if p.startswith(prefix)}
