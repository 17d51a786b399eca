"""A small encoder for pretraining on few cores: masked tokens from the context on both sides.

A BERT (zoo.models.bert) with normalization before each part, rotary positions, and a depthwise mix
of neighboring positions before each block; without sentence types and biases, as in ModernBERT
(Warner et al. 2024, arXiv:2412.13663). docs/pretraining_log.md tells why.
"""

import keras
from keras import layers

from zoo.layers.attention import attention_masks, layer_forms
from zoo.layers.dropout import Dropout
from zoo.layers.neighbors import NeighborMix
from zoo.layers.transformer import TransformerBlock, normalization
from zoo.models.bert import INITIALIZER_RANGE, masked_token_head
from zoo.models.gpt import derive_sizes


def build(
    vocabulary_size: int = 4096,
    sequence_length: int = 128,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.0,
    rotary_base: float = 10_000.0,
    neighbors: int = 3,
    attention: str = "plain",
    activation: str = "gelu",
    epsilon: float = 1e-5,
    name: str = "encoder",
) -> keras.Model:
    """Builds an encoder with its head for pretraining.

    Args:
      vocabulary_size: number of tokens, V.
      sequence_length: largest number of positions.
      num_layers: number of blocks; 0 for `depth`.
      hidden_dim: width; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings, attention and residuals.
      rotary_base: base of the rotary positions.
      neighbors: width of the depthwise mix of neighbors, odd; 0 for none.
      attention: form of attention, such as "chunked" or "window:256", see `zoo.layers.attention`; a
        list separated by commas is repeated over the blocks.
      activation: activation of the feed-forward layers, "gelu" or "swiglu".
      epsilon: epsilon of the normalization layers.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments", "masked"} to {"mlm"}, as that of
      `zoo.models.bert.build` without `next_sentence`.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    hidden_dim = sizes["hidden_dim"]
    inputs = {
        key: keras.Input((None,), dtype="int32", name=key)
        for key in ("tokens", "segments", "masked")
    }
    embedding = layers.ReversibleEmbedding(
        vocabulary_size,
        hidden_dim,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        embeddings_initializer=keras.initializers.RandomNormal(stddev=INITIALIZER_RANGE),
        name="embedding",
    )
    x = encode(
        embedding(inputs["tokens"]),
        inputs["segments"],
        **sizes,
        intermediate_dim=intermediate_dim or 4 * hidden_dim,
        dropout=dropout,
        rotary_base=rotary_base,
        neighbors=neighbors,
        attention=attention,
        activation=activation,
        epsilon=epsilon,
    )
    logits = masked_token_head(x, inputs["masked"], embedding, epsilon)
    return keras.Model(inputs, {"mlm": logits}, name=name)


def encode(
    x,
    segments,
    *,
    num_layers: int,
    hidden_dim: int,
    dropout: float,
    neighbors: int,
    attention: str,
    epsilon: float,
    prefix: str = "",
    **block,
):
    """Applies the blocks of an encoder to embedded tokens.

    Args:
      x: (B, T, C) symbolic tensor.
      segments: (B, T) symbolic int32 tensor, the document of each position, 0 for padding.
      num_layers: number of blocks.
      hidden_dim: width C.
      dropout: see `build`.
      neighbors: see `build`.
      attention: see `build`.
      epsilon: see `build`.
      prefix: prefix of the names of all layers.
      **block: further arguments of `TransformerBlock`.

    Returns:
      (B, T, C), normalized.
    """
    x = normalization("layer", epsilon, f"{prefix}embedding_norm")(x)
    if dropout:
        x = Dropout(dropout, name=f"{prefix}dropout")(x)
    forms = layer_forms(attention, num_layers)
    masks = attention_masks(forms, segments, causal=False, layer_name=f"{prefix}mask")
    for i, (form, mask) in enumerate(zip(forms, masks, strict=True)):
        if neighbors:
            x = NeighborMix(neighbors, name=f"{prefix}neighbors_{i}")(x, segments)
        x = TransformerBlock(
            hidden_dim,
            **block,
            norm_first=True,
            attention=form,
            use_bias=False,
            dropout=dropout,
            epsilon=epsilon,
            initializer_range=INITIALIZER_RANGE,
            output_range=INITIALIZER_RANGE * (2 * num_layers) ** -0.5,
            name=f"{prefix}block_{i}",
        )(x, mask)
    return normalization("layer", epsilon, f"{prefix}final_norm")(x)
