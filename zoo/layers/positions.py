"""Position embeddings: learned vectors, and rotation of queries and keys.

Axes: B batch, T positions, C hidden_dim, H heads, D head size.
"""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class LearnedPositions(layers.Layer):
    """Adds a learned vector per position (Radford et al. 2019; Devlin et al. 2018).

    Args:
      sequence_length: largest number of positions.
      initializer_range: standard deviation of the initial vectors.
    """

    def __init__(self, sequence_length, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be positive. Received: {sequence_length}.")
        self.sequence_length, self.initializer_range = sequence_length, initializer_range

    def build(self, shape):
        self.embeddings = self.add_weight(
            shape=(self.sequence_length, shape[-1]), name="embeddings",
            initializer=keras.initializers.RandomNormal(stddev=self.initializer_range),
        )  # fmt: skip

    def call(self, x, first=0):
        """Adds the vectors of positions `first` and following to x (B, T, C)."""
        length = ops.shape(x)[1]
        is_static = isinstance(first, int) and isinstance(length, int)
        if is_static and first + length > self.sequence_length:
            raise ValueError(
                f"The number of positions must not exceed {self.sequence_length}. "
                f"Received: {first + length}."
            )
        table = ops.convert_to_tensor(self.embeddings)
        rows = ops.slice(table, (first, 0), (length, table.shape[1]))
        return x + ops.cast(rows, x.dtype)[None]

    def compute_output_spec(self, x, first=0):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "initializer_range": self.initializer_range,
        }


def rotate(x, positions, base=10_000.0):
    """Applies rotary position embedding (Su et al. 2021, RoFormer, equation 34).

    Args:
      x: (B, T, H, D), D even; dimension i is paired with i + D/2, as in Llama's published code.
      positions: (T,) or (B, T) integers.
      base: base of the wavelengths.

    Returns:
      (B, T, H, D) in the dtype of x; angles are float32.
    """
    size = x.shape[-1]
    frequencies = base ** (-ops.arange(0, size, 2, dtype="float32") / size)
    angles = ops.cast(positions, "float32")[..., None] * frequencies
    angles = angles[..., None, :]  # over heads
    cosine, sine = ops.cast(ops.cos(angles), x.dtype), ops.cast(ops.sin(angles), x.dtype)
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
