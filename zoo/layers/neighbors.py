"""A layer that mixes the vectors of neighboring positions, channel by channel.

Depthwise convolutions beside attention are known from Primer (So et al. 2021, arXiv:2109.08668),
where they follow the projections of queries, keys and values.
Axes: B batch, T positions, C hidden_dim.
"""

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("zoo")
class NeighborMix(layers.Layer):
    """Adds a depthwise convolution of the neighbors within the same document.

    The kernel starts at zero, so the layer starts as the identity.

    Args:
      width: number of positions of the convolution, odd and at least 3.
    """

    def __init__(self, width=3, **kwargs):
        super().__init__(**kwargs)
        if width < 3 or width % 2 == 0:
            raise ValueError(f"width must be odd and at least 3. Received: {width}.")
        self.width = width

    def build(self, shape, *_):
        self.kernel = self.add_weight(
            shape=(self.width, shape[-1]), initializer="zeros", name="kernel"
        )

    def call(self, x, segments):
        """Mixes the positions of x.

        Args:
          x: (B, T, C).
          segments: (B, T) integers, the document of each position, 0 for padding.

        Returns:
          (B, T, C); positions of other documents do not take part.
        """
        kernel, reach = ops.cast(self.kernel, x.dtype), self.width // 2
        length = ops.shape(x)[1]
        padded_x = ops.pad(x, ((0, 0), (reach, reach), (0, 0)))
        padded_segments = ops.pad(segments, ((0, 0), (reach, reach)), constant_values=-1)
        result = x
        for i in range(self.width):
            neighbors = padded_x[:, i : i + length]
            if i != reach:
                is_same = ops.equal(padded_segments[:, i : i + length], segments)
                neighbors = neighbors * ops.cast(is_same, x.dtype)[:, :, None]
            result = result + kernel[i] * neighbors
        return result

    def compute_output_spec(self, x, segments):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "width": self.width}
