"""RETRO: a decoder that reads neighbors of its chunks (Borgeaud et al. 2022, arXiv:2112.04426).

A text is cut into chunks. A frozen retriever finds passages similar to each chunk, its neighbors; a
small bidirectional encoder reads them, and blocks of the decoder attend to them. Positions from the
last one of a chunk on read the chunk's neighbors, so that no position depends on later tokens.

Unlike in the paper, cross-attention stands before a block and not inside it, and the encoder of
neighbors does not see the chunk. Axes: B batch, N chunks of M positions, T = N M positions, K
neighbors, L = 2 M tokens of a neighbor, C hidden_dim.
"""

import keras
from keras import layers, ops

from zoo.data.text.special_tokens import PADDING
from zoo.layers.attention import attention_masks
from zoo.layers.attention_forms.plain import MASKED, attend
from zoo.layers.composite import Composite
from zoo.layers.dropout import Dropout
from zoo.layers.low_rank import below
from zoo.layers.transformer import Attention, TransformerBlock, normalization
from zoo.models.gpt import derive_sizes

EPSILON = 1e-5


def build(
    vocabulary_size: int = 8192,
    sequence_length: int = 256,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.0,
    rotary_base: float = 10_000.0,
    neighbors: int = 2,
    chunk_size: int = 64,
    num_encoder_layers: int = 2,
    cross_every: int = 2,
    tie_weights: bool = True,
    name: str = "retro",
) -> keras.Model:
    """Builds a RETRO.

    Args:
      vocabulary_size: number of tokens.
      sequence_length: largest number of positions in training; a multiple of chunk_size.
      num_layers: number of blocks of the decoder; 0 for `depth`.
      hidden_dim: width; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings, attention and residuals.
      rotary_base: base of rotary positions of decoder and encoder.
      neighbors: K; 0 for the plain decoder, whose layers have the same names and shapes.
      chunk_size: M, at least 2.
      num_encoder_layers: number of blocks that encode a neighbor.
      cross_every: every n-th block of the decoder has cross-attention to neighbors before it.
      tie_weights: whether embedding and projection share weights.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments"}, both (B, T) int32, and "neighbors"
      (B, N, K, L) int32 with 0 for padding, to logits (B, T, vocabulary_size) float32.

    Raises:
      ValueError: if a size is missing or too small.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    num_layers, width = sizes.pop("num_layers"), sizes["hidden_dim"]
    if neighbors and (chunk_size < 2 or sequence_length % chunk_size):
        raise ValueError(
            "chunk_size must be at least 2 and a divisor of sequence_length. Received: "
            f"chunk_size={chunk_size}, sequence_length={sequence_length}."
        )
    if neighbors and not (1 <= cross_every <= num_layers and num_encoder_layers >= 1):
        raise ValueError(
            f"cross_every must be from 1 to {num_layers}, the number of blocks, and "
            f"num_encoder_layers at least 1. Received: cross_every={cross_every}, "
            f"num_encoder_layers={num_encoder_layers}."
        )
    if not rotary_base:
        raise ValueError(f"rotary_base must be positive. Received: {rotary_base}.")
    heads = {"dropout": dropout, "output_range": 0.02 * (2 * num_layers) ** -0.5, **sizes}
    block = {
        "intermediate_dim": intermediate_dim or 4 * width, "activation": "gelu_tanh",
        "rotary_base": rotary_base, "epsilon": EPSILON, **heads,
    }  # fmt: skip
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    segments = keras.Input((None,), dtype="int32", name="segments")
    inputs = {"tokens": tokens, "segments": segments}
    embedding = layers.ReversibleEmbedding(
        vocabulary_size,
        width,
        tie_weights=tie_weights,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name="embedding",
    )
    if neighbors:
        shape = (None, neighbors, 2 * chunk_size)
        inputs["neighbors"] = keras.Input(shape, dtype="int32", name="neighbors")
        memory_tokens = JoinNeighbors(name="join_neighbors")(inputs["neighbors"])
        present = IsToken(name="is_neighbor_token")(memory_tokens)
        memory = embedding(memory_tokens)
        for i in range(num_encoder_layers):
            # Each neighbor is a row of a grid, so that it attends to itself alone.
            memory = TransformerBlock(
                **block, attention=f"row:{2 * chunk_size}", name=f"neighbor_block_{i}"
            )(memory, present)
        memory = normalization("layer", EPSILON, "neighbor_norm")(memory)
    x = embedding(tokens)
    if dropout:
        x = Dropout(dropout, name="dropout")(x)
    (mask,) = attention_masks(["plain"], segments, causal=True, layer_name="mask")
    for i in range(num_layers):
        if neighbors and i % cross_every == cross_every - 1:
            x = ChunkedCrossAttention(
                neighbors=neighbors, chunk_size=chunk_size, **heads, name=f"cross_{i}"
            )(x, memory, present)
        x = TransformerBlock(**block, causal=True, name=f"block_{i}")(x, mask)
    x = normalization("layer", EPSILON, "final_norm")(x)
    logits = embedding(x, reverse=True)
    logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model(inputs, logits, name=name)


@keras.saving.register_keras_serializable("zoo")
class JoinNeighbors(layers.Layer):
    """Makes one row of the neighbors of all chunks."""

    def call(self, neighbors):
        """Returns neighbors (B, N, K, L) as rows (B, N K L)."""
        batch, chunks, count, length = ops.shape(neighbors)
        return ops.reshape(neighbors, (batch, chunks * count * length))

    def compute_output_spec(self, neighbors):
        return keras.KerasTensor((neighbors.shape[0], None), neighbors.dtype)


@keras.saving.register_keras_serializable("zoo")
class IsToken(layers.Layer):
    """Segments of rows with one text: 1 for tokens, 0 for padding."""

    def call(self, tokens):
        """Returns segments (B, T) int32 of tokens (B, T) int32."""
        return ops.cast(ops.not_equal(tokens, PADDING), "int32")

    def compute_output_spec(self, tokens):
        return keras.KerasTensor(tokens.shape, "int32")


@keras.saving.register_keras_serializable("zoo")
class ChunkedCrossAttention(Composite):
    """Attention of positions to the neighbors of a chunk, with a residual (section 2.4).

    The neighbors of chunk u may depend on its last token, at position (u + 1) M - 1. They are read
    by the M positions from there on. The first M - 1 positions read nothing.

    Args:
      hidden_dim: C.
      num_heads: number of heads.
      neighbors: K.
      chunk_size: M.
      dropout: dropout rate of the probabilities and of the output.
      output_range: standard deviation of the initial output kernel.
      width: remaining heads after pruning; 0 for all.
      ranks: ranks of low-rank kernels by path; see `zoo.layers.low_rank`.
    """

    def __init__(
        self,
        hidden_dim,
        num_heads,
        neighbors,
        chunk_size,
        dropout=0.0,
        output_range=0.0,
        width=0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ranks = dict(ranks or {})
        self.settings = {
            "hidden_dim": hidden_dim, "num_heads": num_heads, "neighbors": neighbors,
            "chunk_size": chunk_size, "dropout": dropout, "output_range": output_range,
            "width": width,
        }  # fmt: skip
        self.neighbors, self.chunk_size = neighbors, chunk_size
        self.norm = normalization("layer", EPSILON, "norm", self.dtype_policy)
        self.attention = Attention(
            hidden_dim, num_heads, dropout=dropout, output_range=output_range, memory=True,
            width=width, name="attention", ranks=below(ranks, "attention"),
            dtype=self.dtype_policy,
        )  # fmt: skip
        self.dropout = (
            Dropout(dropout, name="dropout", dtype=self.dtype_policy) if dropout else None
        )

    def build(self, shape, *_, **__):
        self.norm.build(shape)
        self.attention.build(shape)

    def call(self, x, memory, present, training=None):
        """Adds what positions read from neighbors.

        Args:
          x: (B, T, C), T = N M.
          memory: (B, N K L, C), the encoded neighbors.
          present: (B, N K L) integers, 0 for padding of neighbors.

        Returns:
          (B, T, C).
        """
        shift, size, attention = self.chunk_size - 1, self.chunk_size, self.attention
        read = 2 * size * self.neighbors  # tokens that a chunk reads
        h = self.norm(x)
        h = ops.concatenate([h[:, shift:], ops.zeros_like(h[:, :shift])], axis=1)
        # The projections see whole rows of the batch; each chunk is a row of the attention alone.
        query = attention.project_query(h)
        key, value = attention.project_memory(memory)
        shape = ops.shape(query)
        query = ops.reshape(query, (-1, size, *query.shape[2:]))
        key, value = (ops.reshape(part, (-1, read, *part.shape[2:])) for part in (key, value))
        is_token = ops.reshape(present, (-1, read)) > 0
        bias = ops.where(is_token, 0.0, MASKED)[:, None, None, :]
        dropout = attention.dropout if training else None
        out = attend(query, key, value, bias, dropout and (lambda p: dropout(p, training=True)))
        # A chunk without neighbors reads nothing.
        has_neighbors = ops.any(is_token, axis=-1)[:, None, None, None]
        out = ops.where(has_neighbors, out, ops.zeros_like(out))
        out = attention.combine(ops.reshape(out, shape))
        out = ops.concatenate([ops.zeros_like(out[:, :shift]), out[:, :-shift]], axis=1)
        if self.dropout is not None:
            out = self.dropout(out, training=training)
        return x + out

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}
