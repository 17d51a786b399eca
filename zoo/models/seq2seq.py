"""Encoder-decoder Transformer (Vaswani et al. 2017, Attention Is All You Need).

A row holds one or more pairs of sentences; several pairs per row save padding. Each source ends
with <end>, and each target begins with <start>. The model derives sentence numbers from these
tokens, and the n-th target attends to the n-th source alone. Axes: B batch, S source positions, T
target positions, C hidden_dim.
"""

import keras
from keras import layers, ops

from zoo.data.text.special_tokens import END, PADDING, START
from zoo.layers.attention import MaskBias, attention_masks, layer_forms
from zoo.layers.dropout import Dropout
from zoo.layers.transformer import TransformerBlock, normalization
from zoo.models.gpt import derive_sizes

EPSILON = 1e-5


def build(
    vocabulary_size: int = 37_000,
    num_encoder_layers: int = 0,
    num_decoder_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.1,
    attention: str = "plain",
    activation: str = "relu",
    norm_first: bool = False,
    tie_weights: bool = True,
    name: str = "seq2seq",
) -> keras.Model:
    """Builds an encoder-decoder Transformer.

    Args:
      vocabulary_size: number of tokens, shared by source and target.
      num_encoder_layers: number of encoder blocks; 0 for `depth`.
      num_decoder_layers: number of decoder blocks; 0 for `depth` or num_encoder_layers.
      hidden_dim: width; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings and residuals (section 5.4), and of attention.
      attention: form of self-attention, such as "chunked" or "window:256", see
        `zoo.layers.attention`; a list separated by commas is repeated over the blocks of the
        encoder and of the decoder. Attention to the encoder's output is plain.
      activation: activation of the feed-forward layers, from `zoo.layers.transformer.ACTIVATIONS`.
      norm_first: whether each sublayer normalizes its input, which trains more stably (Xiong et
        al. 2020, arXiv:2002.04745), instead of its sum with the residual, as in the paper.
      tie_weights: whether the projection onto the vocabulary shares the embedding's weights
        (section 3.4). Source and target always share one embedding.
      name: name of the Keras model.

    Returns:
      A Functional model from {"source": (B, S), "target": (B, T)}, both int32 with 0 for padding,
      to logits (B, T, vocabulary_size) float32 of the token that follows each target position.
      Sequences may have any length, because positions are sinusoidal.

    Raises:
      ValueError: if a size is missing, or hidden_dim is odd.
    """
    sizes = derive_sizes(depth, num_encoder_layers, hidden_dim, num_heads)
    encoders = sizes.pop("num_layers")
    decoders = num_decoder_layers or depth or encoders
    hidden_dim = sizes["hidden_dim"]
    if hidden_dim % 2:
        raise ValueError(
            f"hidden_dim must be even for sinusoidal positions. Received: {hidden_dim}."
        )
    intermediate_dim = intermediate_dim or 4 * hidden_dim
    block = {
        **sizes,
        "intermediate_dim": intermediate_dim,
        "norm_first": norm_first,
        "activation": activation,
        "dropout": dropout,
        "epsilon": EPSILON,
        # Feed-forward kernels: Glorot and Bengio 2010, equation 12.
        "initializer_range": (2 / (hidden_dim + intermediate_dim)) ** 0.5,
    }
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    embedding = layers.ReversibleEmbedding(
        vocabulary_size,
        hidden_dim,
        tie_weights=tie_weights,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        # Gives inputs of unit variance after the factor sqrt(C), and logits of unit variance.
        embeddings_initializer=keras.initializers.RandomNormal(stddev=hidden_dim**-0.5),
        name="embedding",
    )
    positions = Positions(name="positions")
    source_segments = Segments("source", name="source_segments")(source)
    target_segments = Segments("target", name="target_segments")(target)

    def embed(tokens, segments, side):
        x = positions(embedding(tokens), segments)
        return Dropout(dropout, name=f"{side}_dropout")(x) if dropout else x

    x = embed(source, source_segments, "source")
    forms = layer_forms(attention, encoders)
    masks = attention_masks(forms, source_segments, causal=False, layer_name="source_mask")
    for i, (form, mask) in enumerate(zip(forms, masks, strict=True)):
        x = TransformerBlock(**block, attention=form, name=f"encoder_{i}")(x, mask)
    memory = _last_norm(norm_first, "encoder_norm")(x)

    x = embed(target, target_segments, "target")
    forms = layer_forms(attention, decoders)
    masks = attention_masks(forms, target_segments, causal=True, layer_name="target_mask")
    memory_bias = MaskBias(name="memory_mask")(target_segments, source_segments)
    for i, (form, mask) in enumerate(zip(forms, masks, strict=True)):
        x = TransformerBlock(**block, attention=form, causal=True, cross=True, name=f"decoder_{i}")(
            x, mask, memory, memory_bias
        )
    x = _last_norm(norm_first, "final_norm")(x)
    logits = embedding(x, reverse=True)
    logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model({"source": source, "target": target}, logits, name=name)


def _last_norm(norm_first: bool, name: str) -> layers.Layer:
    """Returns the layer after a stack of blocks: with `norm_first`, a normalization layer."""
    return normalization("layer", EPSILON, name) if norm_first else layers.Identity(name=name)


@keras.saving.register_keras_serializable("zoo")
class Segments(layers.Layer):
    """Sentence number of each token of a row: 1, 2, ...; 0 is padding.

    Args:
      side: "source" for sentences that end with <end>, "target" for those that begin with <start>.
    """

    def __init__(self, side, **kwargs):
        super().__init__(**kwargs)
        if side not in ("source", "target"):
            raise ValueError(f"side must be 'source' or 'target'. Received: {side!r}.")
        self.side = side

    def call(self, tokens):
        """Returns the sentence numbers (B, T) int32 of tokens (B, T) int32."""
        marks = ops.cast(ops.equal(tokens, END if self.side == "source" else START), "int32")
        numbers = ops.cumsum(marks, axis=1)
        numbers = 1 + numbers - marks if self.side == "source" else ops.maximum(numbers, 1)
        return ops.where(ops.equal(tokens, PADDING), 0, numbers)

    def compute_output_spec(self, tokens):
        return keras.KerasTensor(tokens.shape, "int32")

    def get_config(self):
        return {**super().get_config(), "side": self.side}


@keras.saving.register_keras_serializable("zoo")
class Positions(layers.Layer):
    """Embeddings times sqrt(C) (section 3.4), plus sinusoidal positions (section 3.5).

    Sines fill the first half of the width and cosines the second, as in the authors' code. The
    paper's equation interleaves them; only the order of the columns differs.
    """

    def call(self, x, segments=None, first=0):
        """Scales embeddings and adds positions.

        Args:
          x: (B, T, C), C even.
          segments: (B, T) integers; each segment counts from 0. None for one sentence per row.
          first: index of the first position, used without segments.

        Returns:
          (B, T, C) in the dtype of x.
        """
        length, width = ops.shape(x)[1], x.shape[-1]
        table = sinusoids(first + ops.arange(length), width)[None]
        if segments is not None:
            same_segment = ops.equal(segments[:, :, None], segments[:, None, :])
            steps = ops.arange(length)
            is_earlier = ops.logical_and(same_segment, steps[None, :] < steps[:, None])
            table = ops.take(table[0], ops.sum(ops.cast(is_earlier, "int32"), -1), axis=0)
        return x * ops.cast(width**0.5, x.dtype) + ops.cast(table, x.dtype)

    def compute_output_spec(self, x, segments=None, first=0):
        return keras.KerasTensor(x.shape, x.dtype)


def sinusoids(positions, width: int):
    """Returns sines and cosines with wavelengths from 2 pi to 20,000 pi.

    Args:
      positions: (T,) integers.
      width: C, even.

    Returns:
      (T, C) float32.
    """
    frequencies = 10_000.0 ** (-ops.arange(0, width, 2, dtype="float32") / width)
    angles = ops.cast(positions, "float32")[:, None] * frequencies
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
