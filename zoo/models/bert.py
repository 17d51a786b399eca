"""BERT (Devlin et al. 2018, arXiv:1810.04805) and RoBERTa (Liu et al. 2019, arXiv:1907.11692).

An encoder with two heads: one predicts masked tokens, the other whether the second sentence follows
the first. RoBERTa has neither the second head nor sentence types. `encoder` builds both, and the
Longformer of longformer.py.
Axes: B batch, T positions, M positions to predict, C hidden_dim, V vocabulary.
"""

from collections.abc import Callable

import keras
from keras import layers, ops

from zoo.layers.attention import attention_masks, layer_forms
from zoo.layers.dropout import Dropout
from zoo.layers.positions import LearnedPositions
from zoo.layers.transformer import TransformerBlock
from zoo.models.gpt import derive_sizes

INITIALIZER_RANGE = 0.02


def build(
    vocabulary_size: int = 30_522,
    sequence_length: int = 512,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.1,
    attention: str = "plain",
    token_types: int = 2,
    epsilon: float = 1e-12,
    next_sentence: bool = True,
    name: str = "bert",
) -> keras.Model:
    """Builds a BERT with its heads for pretraining.

    Args:
      vocabulary_size: number of tokens, V.
      sequence_length: largest number of positions.
      num_layers: number of blocks; 0 for `depth`.
      hidden_dim: width C; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings, attention and residuals.
      attention: form of attention, such as "chunked" or "window:256", see `zoo.layers.attention`; a
        list separated by commas is repeated over the blocks.
      token_types: number of sentence types; unused without `next_sentence`.
      epsilon: epsilon of the normalization layers.
      next_sentence: whether the model has sentence types, pooler and next-sentence head.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments", "types"}, all (B, T) int32, and "masked"
      (B, M) int32 to {"mlm": (B, M, V), "nsp": (B, 2)}, logits in float32. Positions attend to
      positions of the same segment; segment 0 is padding. "types" is 0 in the first sentence and
      1 in the second. "masked" holds the positions to predict. The first logit of "nsp" is that
      of a second sentence that follows the first. Without `next_sentence` there are neither
      "types" nor "nsp".
    """
    if next_sentence and token_types < 2:
        raise ValueError(
            f"token_types must be at least 2 with next_sentence. Received: {token_types}."
        )
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    return encoder(
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
        **sizes,
        intermediate_dim=intermediate_dim or 4 * sizes["hidden_dim"],
        dropout=dropout,
        attention=attention,
        token_types=token_types if next_sentence else 0,
        epsilon=epsilon,
        name=name,
    )


def encoder(
    *,
    vocabulary_size: int,
    sequence_length: int,
    num_layers: int,
    hidden_dim: int,
    dropout: float,
    attention: str,
    epsilon: float,
    name: str,
    token_types: int = 0,
    global_tokens: Callable | None = None,
    **block,
) -> keras.Model:
    """Builds a BERT, a RoBERTa or a Longformer.

    Args:
      vocabulary_size: see `build`.
      sequence_length: see `build`.
      num_layers: number of blocks.
      hidden_dim: width C.
      dropout: see `build`.
      attention: see `build`.
      epsilon: see `build`.
      name: see `build`.
      token_types: number of sentence types; 0 for a model without sentence types, pooler and
        next-sentence head.
      global_tokens: layer that computes the mask of global tokens (B, T) from tokens and segments,
        for blocks with `max_global`.
      **block: further arguments of `TransformerBlock`.
    """
    inputs = {
        key: keras.Input((None,), dtype="int32", name=key)
        for key in ("tokens", "segments", *(["types"] if token_types else []), "masked")
    }
    embedding = layers.ReversibleEmbedding(
        vocabulary_size,
        hidden_dim,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        embeddings_initializer=_normal(),
        name="embedding",
    )
    x = embedding(inputs["tokens"])
    if token_types:
        types = layers.Embedding(
            token_types, hidden_dim, embeddings_initializer=_normal(), name="type_embedding"
        )
        x = layers.Add(name="with_types")([x, types(inputs["types"])])
    x = LearnedPositions(sequence_length, INITIALIZER_RANGE, name="positions")(x)
    x = layers.LayerNormalization(epsilon=epsilon, name="embedding_norm")(x)
    if dropout:
        x = Dropout(dropout, name="dropout")(x)
    forms = layer_forms(attention, num_layers)
    masks = attention_masks(forms, inputs["segments"], causal=False, layer_name="mask")
    is_global = {}
    if global_tokens is not None:
        is_global["global_mask"] = global_tokens(inputs["tokens"], inputs["segments"])
    for i, (form, mask) in enumerate(zip(forms, masks, strict=True)):
        x = TransformerBlock(
            hidden_dim,
            **block,
            norm_first=False,
            activation="gelu",
            attention=form,
            dropout=dropout,
            epsilon=epsilon,
            initializer_range=INITIALIZER_RANGE,
            name=f"block_{i}",
        )(x, mask, **is_global)
    outputs = {"mlm": masked_token_head(x, inputs["masked"], embedding, epsilon)}
    if token_types:
        pooled = dense(hidden_dim, "pooler", activation="tanh")(x[:, 0])
        outputs["nsp"] = dense(2, "nsp", dtype="float32")(pooled)
    return keras.Model(inputs, outputs, name=name)


def masked_token_head(x, masked, embedding, epsilon: float, prefix: str = ""):
    """Predicts the tokens at some positions.

    Args:
      x: (B, T, C) symbolic tensor, output of an encoder.
      masked: (B, M) symbolic int32 tensor, the positions to predict.
      embedding: `keras.layers.ReversibleEmbedding` of the tokens.
      epsilon: epsilon of the normalization layer.
      prefix: prefix of the names of all layers.

    Returns:
      Logits (B, M, V) in float32.
    """
    # Only the positions to predict are projected: the projection costs more than a block.
    h = TakePositions(name=f"{prefix}at_masked")(x, masked)
    h = dense(embedding.output_dim, f"{prefix}transform", activation="gelu")(h)
    h = layers.LayerNormalization(epsilon=epsilon, name=f"{prefix}transform_norm")(h)
    return LogitsBias(name=f"{prefix}mlm")(embedding(h, reverse=True))


def _normal():
    return keras.initializers.RandomNormal(stddev=INITIALIZER_RANGE)


def dense(units: int, name: str, **kwargs) -> layers.Dense:
    """Returns a dense layer with BERT's initial kernel."""
    return layers.Dense(units, kernel_initializer=_normal(), name=name, **kwargs)


@keras.saving.register_keras_serializable("zoo")
class TakePositions(layers.Layer):
    """Layer that selects the vectors at some positions of each sequence."""

    def call(self, x, positions):
        """Selects positions (B, M), integers below T, of x (B, T, C); returns (B, M, C)."""
        batch, length, width = ops.shape(x)
        # Takes whole rows of one matrix; `take_along_axis` would index every number separately.
        rows = ops.arange(batch, dtype="int32")[:, None] * length + ops.cast(positions, "int32")
        return ops.take(ops.reshape(x, (batch * length, width)), rows, axis=0)

    def compute_output_spec(self, x, positions):
        return keras.KerasTensor((*positions.shape, x.shape[-1]), x.dtype)


@keras.saving.register_keras_serializable("zoo")
class LogitsBias(layers.Layer):
    """Bias (V,) added to logits (B, M, V) in float32."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def build(self, shape):
        self.bias = self.add_weight(shape=(shape[-1],), initializer="zeros", name="bias")

    def call(self, logits):
        return logits + self.bias

    def compute_output_spec(self, logits):
        return keras.KerasTensor(logits.shape, "float32")
