"""Axial Transformer (Ho et al. 2019, arXiv:1912.12180), a decoder of sequences folded into a grid.

The grid is filled row by row: position t is in row t // C and column t % C. Images are one token
per value, with the channels of a pixel side by side in the columns; text is folded likewise. The
model is that of section 3.2 of the paper, for inputs that are already shifted by one position, as
in causal language modeling:

    outer: the tokens that the positions predict; blocks along rows, not masked, alternate with
           causal blocks along columns; the result moves down by one row
    inner: the input tokens plus the result of outer; causal blocks along rows

So a position sees all rows above it and the part of its row on the left. The shift to the right is
the shift of the inputs: unlike in the paper, the first position of a row has the last token of the
row above, not a vector of zeros. The first input token is predicted by no position, so it is in no
row: only the first row sees it. In images and documents it is always the same token.
"""

import keras
from keras import layers, ops

from zoo.layers.dropout import Dropout
from zoo.layers.positions import AxialPositions
from zoo.layers.transformer import TransformerBlock, normalization


def build(
    vocabulary_size: int = 256,
    sequence_length: int = 784,
    columns: int = 28,
    num_outer_layers: int = 4,
    num_inner_layers: int = 2,
    hidden_dim: int = 128,
    num_heads: int = 4,
    intermediate_dim: int = 0,
    dropout: float = 0.0,
    activation: str = "gelu_tanh",
    epsilon: float = 1e-5,
    name: str = "axial",
) -> keras.Model:
    """Builds an axial transformer.

    Args:
      vocabulary_size: number of tokens, or of values of a pixel.
      sequence_length: largest number of positions.
      columns: C; for an image, width times channels.
      num_outer_layers: number of outer blocks, which attend along rows and columns by turns.
      num_inner_layers: number of inner blocks.
      hidden_dim: width.
      num_heads: number of attention heads.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      dropout: dropout rate of embeddings, attention and residuals.
      activation: activation of the feed-forward layers, see `zoo.layers.transformer.ACTIVATIONS`.
      epsilon: epsilon of the normalization layers.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens": (B, T) int32} to logits (B, T, vocabulary_size) float32. A
      position sees itself and all earlier positions, also those of other documents; the first
      token is seen by the first row alone.

    Raises:
      ValueError: if num_outer_layers is not even, or a number is not positive.
    """
    if num_outer_layers < 2 or num_outer_layers % 2 or num_inner_layers < 1 or columns < 1:
        raise ValueError(
            "num_outer_layers must be even and positive, num_inner_layers and columns positive. "
            f"Received: num_outer_layers={num_outer_layers}, num_inner_layers={num_inner_layers}, "
            f"columns={columns}."
        )
    normal = keras.initializers.RandomNormal(stddev=0.02)
    positions = AxialPositions(
        sequence_length,
        (-(-sequence_length // columns), columns),
        (hidden_dim // 2, hidden_dim - hidden_dim // 2),
        name="positions",
    )

    def block(kind, causal, block_name):
        return TransformerBlock(
            hidden_dim=hidden_dim, num_heads=num_heads,
            intermediate_dim=intermediate_dim or 4 * hidden_dim, activation=activation,
            attention=f"{kind}:{columns}", causal=causal, dropout=dropout, epsilon=epsilon,
            output_range=0.02 * (2 * (num_outer_layers + num_inner_layers)) ** -0.5,
            name=block_name,
        )  # fmt: skip

    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(
        vocabulary_size, hidden_dim, embeddings_initializer=normal, name="embedding"
    )(tokens)  # fmt: skip
    if dropout:
        x = Dropout(dropout, name="dropout")(x)
    above = positions(Shift(-1, name="next_token")(x))
    for i in range(num_outer_layers):
        kind = ("row", "column")[i % 2]
        above = block(kind, kind == "column", f"outer_{i}")(above)
    above = Shift(columns, name="row_above")(above)
    x = layers.Add(name="add")([positions(x), above])
    for i in range(num_inner_layers):
        x = block("row", True, f"inner_{i}")(x)
    x = normalization("layer", epsilon, "final_norm")(x)
    x = layers.Dense(vocabulary_size, kernel_initializer=normal, name="projection")(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model({"tokens": tokens}, logits, name=name)


@keras.saving.register_keras_serializable("zoo")
class Shift(layers.Layer):
    """Moves the positions of a sequence; positions without an origin become 0.

    Args:
      steps: number of positions by which vectors move; negative toward the start.
    """

    def __init__(self, steps, **kwargs):
        super().__init__(**kwargs)
        self.steps = steps

    def call(self, x):
        """Shifts x (B, T, C)."""
        steps, length = self.steps, ops.shape(x)[1]
        batch, _, width = ops.shape(x)
        zeros = ops.zeros((batch, abs(steps), width), x.dtype)
        if steps < 0:
            return ops.concatenate([x, zeros], axis=1)[:, -steps:]
        return ops.concatenate([zeros, x], axis=1)[:, :length]

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return {**super().get_config(), "steps": self.steps}
