"""How long the texts are that a built model takes. Loads no Keras."""


def sequence_length(model) -> int | None:
    """Returns the largest number of positions a model has; None where any number will do."""
    for layer in model.layers:
        if hasattr(layer, "sequence_length"):
            return layer.sequence_length
    return None
