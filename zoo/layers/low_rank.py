"""Layers with a low-rank kernel: a product of smaller kernels.

Each replaces the Keras layer of its name and contains Keras layers, so that pruning, quantization
and export support it. `trainers/compression/low_rank.py` chooses the ranks.
"""

import keras
from keras import layers, ops


class LowRank(layers.Layer):
    """Base of low-rank layers: a sequence of Keras layers.

    Attributes:
      ranks: a tuple of the widths between the parts.
      parts: the sublayers in order.
    """

    def _inside(self, **arguments) -> dict:
        """Returns arguments of a sublayer, with the outer dtype policy and trainability."""
        return {"dtype": self.dtype_policy, "trainable": self.trainable, **arguments}

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x

    def compute_output_shape(self, shape):
        for part in self.parts:
            shape = part.compute_output_shape(shape)
        return shape

    @property
    def bias(self):
        """Bias of the last part, or None."""
        return getattr(self.parts[-1], "bias", None)


@keras.saving.register_keras_serializable("zoo")
class LowRankDense(LowRank):
    """`keras.layers.Dense` with a kernel (inputs, rank) @ (rank, units).

    Args:
      units: size of the output.
      rank: at least 1.
      activation: activation of the output.
      use_bias: whether the output has a bias.
    """

    def __init__(self, units, rank, activation=None, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.units, self.ranks = units, (rank,)
        self.activation, self.use_bias = keras.activations.get(activation), use_bias
        self.parts = [
            layers.Dense(rank, **self._inside(use_bias=False, name="first")),
            layers.Dense(
                units, **self._inside(activation=activation, use_bias=use_bias, name="second")
            ),
        ]

    def build(self, shape):
        self.parts[0].build(shape)
        self.parts[1].build((*shape[:-1], *self.ranks))

    @property
    def kernel(self):
        """The product (inputs, units)."""
        return ops.matmul(self.parts[0].kernel, self.parts[1].kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(), "units": self.units, "rank": self.ranks[0],
            "activation": keras.activations.serialize(self.activation), "use_bias": self.use_bias,
        }  # fmt: skip


@keras.saving.register_keras_serializable("zoo")
class LowRankEinsumDense(LowRank):
    """`keras.layers.EinsumDense` with a low-rank kernel.

    Args:
      equation: such as "abc,cde->abde": the first axes of the kernel are summed over, the others
        are axes of the output.
      output_shape: without the batch.
      rank: at least 1.
      activation: activation of the output.
      bias_axes: axes of the output that have a bias, or None.
    """

    def __init__(self, equation, output_shape, rank, activation=None, bias_axes=None, **kwargs):
        super().__init__(**kwargs)
        first, second = split_equation(equation)
        self.ranks = (rank,)
        self.settings = {
            "equation": equation, "output_shape": output_shape, "rank": rank,
            "activation": activation, "bias_axes": bias_axes,
        }  # fmt: skip
        middle = (None,) * (len(first.rpartition("->")[2].replace("...", "")) - 2)
        self.parts = [
            layers.EinsumDense(first, (*middle, rank), **self._inside(name="first")),
            layers.EinsumDense(
                second, output_shape,
                **self._inside(activation=activation, bias_axes=bias_axes, name="second"),
            ),
        ]  # fmt: skip

    def build(self, shape):
        self.parts[0].build(shape)
        self.parts[1].build(self.parts[0].compute_output_shape(shape))

    @property
    def kernel(self):
        """The product, in the shape of the replaced layer's kernel."""
        return ops.tensordot(self.parts[0].kernel, self.parts[1].kernel, 1)

    def get_config(self):
        return {**super().get_config(), **self.settings}


def split_equation(equation: str) -> tuple[str, str]:
    """Returns the equations of the two layers that replace an EinsumDense layer.

    Raises:
      ValueError: if the first axes of the kernel are not those that are summed over.
    """
    inputs, _, rest = equation.partition(",")
    kernel, _, output = rest.partition("->")
    summed_letters = [letter for letter in kernel if letter in inputs]
    count = len(summed_letters)
    if (
        kernel[:count] != "".join(summed_letters)
        or set(summed_letters) & set(output)
        or count == len(kernel)
    ):
        raise ValueError(
            "The first axes of the kernel must be the summed axes, the others axes of the output. "
            f"Received: {equation!r}."
        )
    rank = next(letter for letter in "zyxwvutsrqponm" if letter not in equation)
    middle = "".join(letter for letter in inputs if letter not in summed_letters) + rank
    return (
        f"{inputs},{kernel[:count]}{rank}->{middle}",
        f"{middle},{rank}{kernel[count:]}->{output}",
    )


_CONVOLUTIONS = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}


@keras.saving.register_keras_serializable("zoo")
class LowRankConv(LowRank):
    """`keras.layers.Conv1D` to `Conv3D` with a Tucker-2 kernel (Kim et al. 2016, arXiv:1511.06530).

    A pointwise convolution reduces the channels, a convolution of the full size follows, and a
    pointwise convolution expands the channels.

    Args:
      dimensions: 1, 2 or 3.
      filters: number of output channels.
      kernel_size: kernel size of the middle convolution.
      ranks: input and output channels of the middle convolution; 0 omits the pointwise convolution.
      activation: activation of the output.
      use_bias: whether the output has a bias.
      **kwargs: strides, padding, data_format and dilation_rate of the middle convolution, and
        arguments of any layer.
    """

    _MIDDLE = ("strides", "padding", "data_format", "dilation_rate")

    def __init__(
        self, dimensions, filters, kernel_size, ranks, activation=None, use_bias=True, **kwargs
    ):
        middle = {key: kwargs.pop(key) for key in self._MIDDLE if key in kwargs}
        super().__init__(**kwargs)
        self.ranks = into, out = tuple(ranks)
        self.settings = {
            "dimensions": dimensions, "filters": filters, "kernel_size": kernel_size,
            "ranks": self.ranks, "activation": activation, "use_bias": use_bias, **middle,
        }  # fmt: skip
        kind = _CONVOLUTIONS[dimensions]
        form = {k: v for k, v in middle.items() if k == "data_format"}
        ending = {"activation": activation, "use_bias": use_bias}
        plain = {"use_bias": False}
        self.parts = []
        if into:
            self.parts.append(kind(into, 1, **self._inside(name="first", **plain, **form)))
        self.parts.append(
            kind(
                out or filters, kernel_size,
                **self._inside(name="middle", **(plain if out else ending), **middle),
            )
        )  # fmt: skip
        if out:
            self.parts.append(kind(filters, 1, **self._inside(name="last", **ending, **form)))

    def build(self, shape):
        for part in self.parts:
            part.build(shape)
            shape = part.compute_output_shape(shape)

    @property
    def kernel(self):
        """The product (..., inputs, filters)."""
        into, out = self.ranks
        kernel = self.parts[1 if into else 0].kernel
        if into:
            mixed_kernel = ops.reshape(self.parts[0].kernel, (-1, into))
            kernel = ops.einsum("...io,ci->...co", kernel, mixed_kernel)
        if out:
            kernel = ops.matmul(kernel, ops.reshape(self.parts[-1].kernel, (out, -1)))
        return kernel

    def get_config(self):
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable("zoo")
class LowRankEmbedding(LowRank):
    """`keras.layers.Embedding` with a table (input_dim, rank) @ (rank, output_dim)."""

    def __init__(self, input_dim, output_dim, rank, **kwargs):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim, self.ranks = input_dim, output_dim, (rank,)
        self.parts = [
            layers.Embedding(input_dim, rank, **self._inside(name="first")),
            layers.Dense(output_dim, **self._inside(use_bias=False, name="second")),
        ]

    def build(self, shape=None):
        self.parts[0].build(shape)
        self.parts[1].build((None, *self.ranks))

    @property
    def embeddings(self):
        """The product (input_dim, output_dim)."""
        return ops.matmul(self.parts[0].embeddings, self.parts[1].kernel)

    kernel = embeddings

    def compute_output_shape(self, shape):
        return (*shape, self.output_dim)

    def get_config(self):
        return {
            **super().get_config(), "input_dim": self.input_dim, "output_dim": self.output_dim,
            "rank": self.ranks[0],
        }  # fmt: skip


@keras.saving.register_keras_serializable("zoo")
class LowRankReversibleEmbedding(LowRankEmbedding):
    """`keras.layers.ReversibleEmbedding` with tied weights; see `LowRankEmbedding`.

    Args:
      input_dim: number of tokens.
      output_dim: width.
      rank: at least 1.
      reverse_dtype: dtype of the projection onto the tokens.
    """

    tie_weights = True

    def __init__(self, input_dim, output_dim, rank, reverse_dtype=None, **kwargs):
        super().__init__(input_dim, output_dim, rank, **kwargs)
        self.reverse_dtype = reverse_dtype

    def call(self, x, reverse=False):
        if not reverse:
            return super().call(x)
        kind = self.reverse_dtype or self.compute_dtype
        second, first = (
            ops.transpose(ops.cast(table, kind))
            for table in (self.parts[1].kernel, self.parts[0].embeddings)
        )
        return ops.matmul(ops.matmul(ops.cast(x, kind), second), first)

    def compute_output_shape(self, shape, reverse=False):
        return (*shape[:-1], self.input_dim) if reverse else (*shape, self.output_dim)

    def compute_output_spec(self, x, reverse=False):
        return keras.KerasTensor(self.compute_output_shape(x.shape, reverse), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "reverse_dtype": self.reverse_dtype}


def dense(units, name: str, ranks, **arguments) -> layers.Layer:
    """Returns a `Dense` layer, or a `LowRankDense` layer if `ranks` has its name."""
    if name in ranks:
        others = {k: v for k, v in arguments.items() if k != "kernel_initializer"}
        return LowRankDense(units, ranks[name], name=name, **others)
    return layers.Dense(units, name=name, **arguments)


def below(ranks, name: str) -> dict:
    """Selects ranks by path ("attention/output") inside the layer `name`; removes the name."""
    return {
        path.removeprefix(f"{name}/"): rank
        for path, rank in (ranks or {}).items()
        if path.startswith(f"{name}/")
    }
