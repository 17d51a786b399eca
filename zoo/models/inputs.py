"""What a built text model takes: its inputs and positions. Loads no Keras."""


def input_names(model) -> list[str]:
    """Returns the names of a Functional model's inputs."""
    return [tensor.name for tensor in model.inputs]


def sequence_length(model) -> int | None:
    """Returns the largest number of positions a model has; None where any number will do."""
    for layer in model.layers:
        if hasattr(layer, "sequence_length"):
            return layer.sequence_length
    return None
