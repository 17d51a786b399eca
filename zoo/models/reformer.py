"""Reformer (Kitaev et al. 2020, arXiv:2001.04451), a decoder for long sequences.

Local attention and attention by locality-sensitive hashing alternate in a reversible stack. With
`trainer.remat=reversible`, the stack stores its outputs alone during training. Positions are axial.
As in the published code, the logits are computed from both halves of the stack. The published code
also splits the feed-forward layers into chunks of positions; this model does not, because attention
determines the peak of memory (`benchmarks/reformer_memory.py`, case `narrow`).
"""

import math

import keras
from keras import layers

from zoo.layers.dropout import Dropout
from zoo.layers.positions import AxialPositions
from zoo.layers.reversible import ReversibleStack
from zoo.layers.transformer import normalization
from zoo.models.gpt import derive_sizes


def build(
    vocabulary_size: int = 256,
    sequence_length: int = 4096,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.1,
    attention: str = "window:64,lsh:2:64",
    position_shape: tuple[int, ...] = (),
    position_widths: tuple[int, ...] = (),
    activation: str = "relu",
    epsilon: float = 1e-5,
    name: str = "reformer",
) -> keras.Model:
    """Builds a Reformer.

    Args:
      vocabulary_size: number of tokens.
      sequence_length: largest number of positions.
      num_layers: number of reversible pairs of attention and feed-forward; 0 for `depth`.
      hidden_dim: width of each half; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings, attention and outputs of layers.
      attention: forms of attention, separated by commas and repeated over the layers, see
        `zoo.layers.attention`.
      position_shape: rows and columns of the axial positions, whose product is at least
        sequence_length; () for a power of two of columns, close to the square root.
      position_widths: widths of the vectors of rows and columns, whose sum is hidden_dim; () for
        1/4 and 3/4 of it, as in the published models.
      activation: activation of the feed-forward layers, see `zoo.layers.transformer.ACTIVATIONS`.
      epsilon: epsilon of the normalization layers.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments"}, both (B, T) int32, to logits
      (B, T, vocabulary_size) float32. A position attends to itself and to earlier positions of
      its segment; in `lsh` layers, to itself only if it sees no other position.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    width = sizes["hidden_dim"]
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    segments = keras.Input((None,), dtype="int32", name="segments")
    normal = keras.initializers.RandomNormal(stddev=0.02)
    x = layers.Embedding(
        vocabulary_size, width, embeddings_initializer=normal, name="embedding"
    )(tokens)  # fmt: skip
    x = AxialPositions(
        sequence_length,
        position_shape or _shape(sequence_length),
        position_widths or (width // 4, width - width // 4),
        name="positions",
    )(x)
    if dropout:
        x = Dropout(dropout, name="dropout")(x)
    x = ReversibleStack(
        **sizes,
        intermediate_dim=intermediate_dim or 4 * width,
        attention=attention,
        activation=activation,
        dropout=dropout,
        epsilon=epsilon,
        output_range=0.02 * (2 * sizes["num_layers"]) ** -0.5,
        name="reversible",
    )(x, segments)
    x = normalization("layer", epsilon, "final_norm")(x)
    x = layers.Dense(vocabulary_size, kernel_initializer=normal, name="projection")(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model({"tokens": tokens, "segments": segments}, logits, name=name)


def _shape(sequence_length: int) -> tuple[int, int]:
    """Returns the rows and columns of axial positions; columns are a power of two."""
    columns = 2 ** math.ceil(math.log2(max(sequence_length, 1)) / 2)
    return -(-sequence_length // columns), columns
