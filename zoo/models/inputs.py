"""Largest input length of a built model. Does not import Keras."""


def sequence_length(model) -> int | None:
    """Returns the largest number of positions of a model; None for no limit."""
    for layer in model.layers:
        if hasattr(layer, "sequence_length"):
            return layer.sequence_length
    return None
