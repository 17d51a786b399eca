"""A language model without its projection onto the vocabulary, and that projection."""

from zoo.errors import UsageError
from zoo.lazy import keras, ops


def has_head(model) -> bool:
    """Whether `split_head` can take a model's last kernel: a file's, or rounded ones, it cannot."""
    return isinstance(model, keras.Model) and not any(
        getattr(layer, "quantization_mode", None) for layer in model.layers
    )


def split_head(model: "keras.Model"):
    """Splits a model in front of its projection onto the vocabulary; both parts share its weights.

    Args:
      model: a Functional model whose outputs are the layer `probabilities` (Dense), or the layer
        `embedding` (`ReversibleEmbedding`) in reverse on the output of `final_norm`.

    Returns:
      `(trunk, head)`: a model from the same inputs to the projection's input (B, T, C), and a
      function without arguments that gives its kernel (V, C) and bias (V,) or None.

    Raises:
      UsageError: for a model of another kind.
    """
    by_name = {layer.name: layer for layer in model.layers}
    if "probabilities" in by_name:
        dense = by_name["probabilities"]
        source = dense.input

        def head():
            return ops.transpose(dense.kernel), dense.bias

    elif {"embedding", "final_norm"} <= set(by_name):
        embedding = by_name["embedding"]
        source = by_name["final_norm"].output

        def head():
            if embedding.tie_weights:
                return ops.convert_to_tensor(embedding.embeddings), None
            return ops.transpose(embedding.reverse_embeddings), None

    else:
        raise UsageError(
            "A chunked loss needs a model with the layer 'probabilities', or 'embedding' and "
            f"'final_norm'. Received: {model.name!r}, with {', '.join(by_name)}."
        )
    return keras.Model(model.input, source, name=f"{model.name}_trunk"), head
