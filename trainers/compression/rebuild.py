"""Rebuilds a model with some of its layers changed."""

from collections.abc import Callable

import keras
from keras import layers


def rebuild(model: keras.Model, change: Callable) -> keras.Model:
    """Returns a copy of a model with fresh weights and some layers changed.

    Args:
      model: a Functional or Sequential model; models inside it are rebuilt too.
      change: `change(layer, config)` returns the layer that replaces `layer`, or None. For None, a
        layer of the same class is made from `config`, which `change` may modify in place.
    """

    def clone(layer):
        if not isinstance(layer, layers.Layer):
            return layer  # an operation without weights
        config = layer.get_config()
        return change(layer, config) or type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=clone, recursive=True)
