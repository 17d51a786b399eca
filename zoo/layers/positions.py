"""Position embeddings: learned vectors, axial vectors, and rotation of queries and keys.

Axes: B batch, T positions, C hidden_dim, H heads, D head size.
"""

import math

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
        length = _checked_length(x, first, self.sequence_length)
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


@keras.saving.register_keras_serializable("zoo")
class AxialPositions(layers.Layer):
    """Adds a vector per position that is joined from a vector of its row and one of its column.

    Position p is in row p // S and column p % S of a grid of R rows and S columns, so that R + S
    vectors are learned instead of R S: the axial position embeddings in the published code of
    Kitaev et al. 2020 (arXiv:2001.04451) and in transformers.

    Args:
      sequence_length: largest number of positions, at most R S.
      shape: (R, S).
      widths: widths of the vectors of rows and of columns; their sum is C.
      initializer_range: standard deviation of the initial vectors.
    """

    def __init__(self, sequence_length, shape, widths, initializer_range=0.02, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.widths = tuple(shape), tuple(widths)
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be positive. Received: {sequence_length}.")
        if len(self.shape) != 2 or len(self.widths) != 2 or min(*self.shape, *self.widths) < 1:
            raise ValueError(
                "shape and widths must be two positive numbers each. Received: "
                f"shape={self.shape}, widths={self.widths}."
            )
        if sequence_length > self.shape[0] * self.shape[1]:
            raise ValueError(
                f"sequence_length must not exceed the product of shape {self.shape}. Received: "
                f"{sequence_length}."
            )
        self.sequence_length, self.initializer_range = sequence_length, initializer_range

    def build(self, shape):
        if sum(self.widths) != shape[-1]:
            raise ValueError(
                f"The sum of widths must be {shape[-1]}, the width of the input. Received: "
                f"widths={self.widths}."
            )
        self.rows, self.columns = (
            self.add_weight(
                shape=(count, width), name=name,
                initializer=keras.initializers.RandomNormal(stddev=self.initializer_range),
            )
            for name, count, width in zip(
                ("rows", "columns"), self.shape, self.widths, strict=True
            )
        )  # fmt: skip

    def call(self, x, first=0):
        """Adds the vectors of positions `first` and following to x (B, T, C)."""
        length = _checked_length(x, first, self.sequence_length)
        positions = first + ops.arange(length, dtype="int32")
        row = ops.take(self.rows, positions // self.shape[1], axis=0)
        column = ops.take(self.columns, positions % self.shape[1], axis=0)
        return x + ops.cast(ops.concatenate([row, column], axis=-1), x.dtype)[None]

    def compute_output_spec(self, x, first=0):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "shape": self.shape,
            "widths": self.widths,
            "initializer_range": self.initializer_range,
        }


def _checked_length(x, first, limit: int):
    """Returns T of x (B, T, C); raises ValueError if its positions are known to exceed a limit."""
    length = ops.shape(x)[1]
    is_static = isinstance(first, int) and isinstance(length, int)
    if is_static and first + length > limit:
        raise ValueError(
            f"The number of positions must not exceed {limit}. Received: {first + length}."
        )
    return length


def parse_scaling(text: str) -> list[float]:
    """Returns the numbers of a scaling of rotary positions such as "linear:4"; [] for "".

    Raises:
      ValueError: if there is no such scaling, or a number is missing or wrong.
    """
    kind, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    is_known = len(values) == {"": 0, "linear": 1, "llama3": 4}.get(kind)
    if not is_known or min(values, default=1.0) <= 0 or (values[1:] and values[1] >= values[2]):
        raise ValueError(
            'rotary_scaling must be "", linear:FACTOR or llama3:FACTOR:LOW:HIGH:LENGTH, with '
            f"positive numbers and LOW < HIGH. Received: {text!r}."
        )
    return values


def rotate(x, positions, base=10_000.0, scaling=""):
    """Applies rotary position embedding (Su et al. 2021, RoFormer, equation 34).

    A scaling extends the context. "linear:F" divides all frequencies by F (Chen et al. 2023,
    arXiv:2306.15595). "llama3:F:LOW:HIGH:N" divides those with fewer than LOW periods in the N
    positions of the original context, keeps those with more than HIGH, and interpolates between
    them (Llama 3.1, Grattafiori et al. 2024, and its published code).

    Args:
      x: (B, T, H, D), D even; dimension i is paired with i + D/2, as in Llama's published code.
      positions: (T,) or (B, T) integers.
      base: base of the wavelengths.
      scaling: scaling of the frequencies; "" for none.

    Returns:
      (B, T, H, D) in the dtype of x; angles are float32.
    """
    size = x.shape[-1]
    frequencies = base ** (-ops.arange(0, size, 2, dtype="float32") / size)
    factor, *bounds = parse_scaling(scaling) or [1.0]
    if bounds:
        low, high, length = bounds
        periods = frequencies * (length / (2 * math.pi))
        kept = ops.clip((periods - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * (kept + (1.0 - kept) / factor)
    elif factor != 1.0:
        frequencies = frequencies / factor
    angles = ops.cast(positions, "float32")[..., None] * frequencies
    angles = angles[..., None, :]  # over heads
    cosine, sine = ops.cast(ops.cos(angles), x.dtype), ops.cast(ops.sin(angles), x.dtype)
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
