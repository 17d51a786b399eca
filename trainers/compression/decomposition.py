"""Factorization of one kernel: the ranks that keep a share of its energy, and the factors."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from zoo.errors import UsageError
from zoo.layers.low_rank import (
    LowRank,
    LowRankConv,
    LowRankEinsumDense,
    LowRankEmbedding,
    split_equation,
)

CONVOLUTIONS = {layers.Conv1D: 1, layers.Conv2D: 2, layers.Conv3D: 3}


@dataclasses.dataclass
class Kernel:
    """A kernel and its possible factorizations.

    Attributes:
      value: the kernel in the shape of its layer.
      input_axes: number of leading axes that a matrix product sums over; 0 for a convolution.
      stored_size: number of values that the layer stores: those of the kernel or of its factors.
    """

    value: np.ndarray
    input_axes: int

    @classmethod
    def of(cls, layer: layers.Layer) -> "Kernel":
        """Returns the kernel of a layer; for a layer of `zoo.layers.low_rank` the product."""
        value = keras.ops.convert_to_numpy(kernel_of(layer)).astype(np.float32)
        kernel = cls(value, _input_axes(layer))
        if isinstance(layer, LowRank):
            kernel.stored_size = sum(math.prod(kernel_of(part).shape) for part in layer.parts)
        return kernel

    def __post_init__(self):
        shape = self.value.shape
        self.stored_size = self.value.size
        self.positions = int(np.prod(shape[:-2])) if not self.input_axes else 0
        rows = self.value.size // shape[-1]  # the columns of a convolution: output channels
        if self.input_axes:
            rows = int(np.prod(shape[: self.input_axes]))
        self._matrix = self.value.reshape(rows, -1)

    @functools.cached_property
    def _energies(self) -> np.ndarray:
        """Shares of the energy that a matrix keeps with 1, 2, … singular values."""
        gram = self._matrix.astype(np.float64)
        gram = gram.T @ gram if gram.shape[0] > gram.shape[1] else gram @ gram.T
        values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
        return np.cumsum(values) / max(values.sum(), 1e-30)

    @functools.cached_property
    def _channel_energies(self) -> np.ndarray:
        """Shares of the energy that a convolution keeps with (1 … I, 1 … O) mixed channels.

        The shares are those of the truncated higher-order SVD (De Lathauwer et al. 2000). The
        Tucker decomposition starts from this SVD and improves it.
        """
        core = self.value.astype(np.float64)
        for axis in (-2, -1):
            core = np.moveaxis(core, axis, -1)
            flat = core.reshape(-1, core.shape[-1])
            vectors = np.linalg.eigh(flat.T @ flat)[1][:, ::-1]
            core = np.moveaxis(core @ vectors, -1, axis)
        energy = np.sum(core**2, axis=tuple(range(core.ndim - 2)))
        return np.cumsum(np.cumsum(energy, 0), 1) / max(energy.sum(), 1e-30)

    def ranks(self, energy: float) -> tuple[int, ...]:
        """Returns the ranks with the fewest values that keep at least this share of the energy.

        For a convolution the ranks are (input rank, output rank). A rank of 0 means that all these
        channels remain and are not mixed.
        """
        if self.input_axes:
            rank = int(np.searchsorted(self._energies, energy - 1e-9)) + 1
            return (min(rank, len(self._energies)),)
        energies = self._channel_energies
        inputs, outputs = energies.shape
        candidates = []
        # A 1 x 1 convolution is a matrix, which needs no input rank.
        for i in range(1, inputs + 1) if self.positions > 1 else [inputs]:
            output_rank = min(int(np.searchsorted(energies[i - 1], energy - 1e-9)) + 1, outputs)
            if energies[i - 1, output_rank - 1] >= energy - 1e-9:
                ranks = (0 if i == inputs else i, 0 if output_rank == outputs else output_rank)
                candidates.append((self.size_at(ranks), -energies[i - 1, output_rank - 1], ranks))
        return min(candidates)[2]

    def size_at(self, ranks: Sequence[int]) -> int:
        """Returns the number of values in the factors of these ranks."""
        if self.input_axes:
            return ranks[0] * sum(self._matrix.shape)
        (input_rank, output_rank), (inputs, outputs) = ranks, self.value.shape[-2:]
        core = self.positions * (input_rank or inputs) * (output_rank or outputs)
        return inputs * input_rank + core + output_rank * outputs

    def factors(self, ranks: Sequence[int]) -> list[np.ndarray]:
        """Returns the factors: kernels of the parts of a layer of `zoo.layers.low_rank`."""
        shape = self.value.shape
        if self.input_axes:
            left, right = _svd_factors(self._matrix, ranks[0])
            return [
                left.reshape(*shape[: self.input_axes], ranks[0]),
                right.reshape(ranks[0], *shape[self.input_axes :]),
            ]
        (input_rank, output_rank), ones = ranks, (1,) * (len(shape) - 2)
        if not input_rank:
            left, right = _svd_factors(self._matrix, output_rank)
            return [
                left.reshape(*shape[:-1], output_rank),
                right.reshape(*ones, output_rank, shape[-1]),
            ]
        core, channel_factors = _tucker(self.value, input_rank, output_rank)
        parts = [channel_factors[0].reshape(*ones, shape[-2], input_rank), core]
        return parts + (
            [channel_factors[1].T.reshape(*ones, output_rank, shape[-1])] if output_rank else []
        )

    def product(self, ranks: Sequence[int]) -> np.ndarray:
        """Returns the product of the factors, in the shape of the kernel."""
        factors = self.factors(ranks)
        if self.input_axes:
            return np.tensordot(*factors, 1)
        (input_rank, output_rank), (inputs, outputs) = ranks, self.value.shape[-2:]
        value = factors[1 if input_rank else 0]
        if input_rank:
            value = np.einsum("...io,ci->...co", value, factors[0].reshape(inputs, input_rank))
        return value @ factors[-1].reshape(output_rank, outputs) if output_rank else value


def largest_ranks(layer: layers.Layer) -> tuple[int, ...]:
    """Returns the largest rank of a layer's kernel, or (inputs, outputs) of a convolution."""
    shape, inputs = kernel_of(layer).shape, _input_axes(layer)
    if not inputs:
        return tuple(shape[-2:])
    return (min(math.prod(shape[:inputs]), math.prod(shape[inputs:])),)


def kernel_of(layer: layers.Layer):
    """Returns the kernel or embeddings of a layer: a variable, or a product of factors."""
    embedding = isinstance(layer, (layers.Embedding, LowRankEmbedding))
    return layer.embeddings if embedding else layer.kernel


def _input_axes(layer: layers.Layer) -> int:
    if isinstance(layer, LowRankConv) or type(layer) in CONVOLUTIONS:
        return 0
    if isinstance(layer, LowRankEinsumDense):
        return layer.parts[0].kernel.ndim - 1
    if isinstance(layer, layers.EinsumDense):
        first = split_equation(layer.equation)[0]
        return len(first.partition(",")[2].partition("->")[0]) - 1
    return 1


def _svd_factors(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best factors of a rank (Eckart and Young 1936), scaled to equal norms."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _tucker(kernel: np.ndarray, input_rank: int, output_rank: int):
    """Returns the core (..., input_rank, output_rank) and one matrix per factorized channel axis.

    An `output_rank` of 0 does not factorize the output channels.
    """
    try:
        from tensorly.decomposition import partial_tucker
    except ImportError:
        raise UsageError(
            "compress.low_rank requires the package tensorly for convolutions: pip install "
            "'keras-zoo[compress]', or exclude convolutions by compress.low_rank.pattern."
        ) from None
    axes = [kernel.ndim - 2, *([kernel.ndim - 1] if output_rank else [])]
    ranks = [input_rank, *([output_rank] if output_rank else [])]
    (core, channel_factors), _ = partial_tucker(kernel, rank=ranks, modes=axes, n_iter_max=10)
    return core, channel_factors
