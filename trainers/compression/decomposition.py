"""One kernel as a product: which ranks keep how much of it, and its factors."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from zoo.errors import UsageError
from zoo.layers.low_rank import (
    LowRankConv,
    LowRankEinsumDense,
    LowRankEmbedding,
    split_equation,
)

CONVOLUTIONS = {layers.Conv1D: 1, layers.Conv2D: 2, layers.Conv3D: 3}


@dataclasses.dataclass
class Kernel:
    """A kernel's values and what can be made of them.

    Attributes:
      value: as the layer has it.
      inputs: how many of a matrix' axes, the first ones, are summed over; 0 for a convolution.
      held: numbers that its layer holds: its own, or those of its factors.
    """

    value: np.ndarray
    inputs: int

    @classmethod
    def of(cls, layer: layers.Layer) -> "Kernel":
        """The kernel of a layer, or the product of one of `zoo.layers.low_rank`."""
        value = keras.ops.convert_to_numpy(_values(layer)).astype(np.float32)
        return cls(value, _inputs(layer))

    def __post_init__(self):
        shape = self.value.shape
        self.held = self.value.size
        self.points = int(np.prod(shape[:-2])) if not self.inputs else 0
        rows = int(np.prod(shape[: self.inputs])) if self.inputs else self.value.size // shape[-1]
        self._view = self.value.reshape(rows, -1)  # of a convolution, by the channels that go out

    @functools.cached_property
    def _kept(self) -> np.ndarray:
        """Shares of the energy that a matrix keeps with 1, 2, … singular values."""
        small = self._view.astype(np.float64)
        small = small.T @ small if small.shape[0] > small.shape[1] else small @ small.T
        values = np.maximum(np.linalg.eigvalsh(small)[::-1], 0)
        return np.cumsum(values) / max(values.sum(), 1e-30)

    @functools.cached_property
    def _kept_by_channels(self) -> np.ndarray:
        """Shares of the energy that a convolution keeps with (1 … I, 1 … O) mixed channels.

        Those of the truncated higher-order SVD (De Lathauwer et al. 2000), which Tucker's
        decomposition starts from and improves.
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
        """The ranks with the fewest numbers that keep that share of the energy.

        A convolution has 0 in place of a rank for channels that all stay and need no mixing.
        """
        if self.inputs:
            return (min(int(np.searchsorted(self._kept, energy - 1e-9)) + 1, len(self._kept)),)
        kept = self._kept_by_channels
        inputs, outputs = kept.shape
        into = range(1, inputs + 1) if self.points > 1 else [inputs]  # 1 x 1 is a matrix
        found = []
        for i in into:
            out = min(int(np.searchsorted(kept[i - 1], energy - 1e-9)) + 1, outputs)
            if kept[i - 1, out - 1] >= energy - 1e-9:
                ranks = (0 if i == inputs else i, 0 if out == outputs else out)
                found.append((self.size_at(ranks), -kept[i - 1, out - 1], ranks))
        return min(found)[2]

    def size_at(self, ranks: Sequence[int]) -> int:
        """Numbers in its factors."""
        if self.inputs:
            return ranks[0] * sum(self._view.shape)
        (into, out), (inputs, outputs) = ranks, self.value.shape[-2:]
        middle = self.points * (into or inputs) * (out or outputs)
        return inputs * into + middle + out * outputs

    def factors(self, ranks: Sequence[int]) -> list[np.ndarray]:
        """Returns the kernels of the parts of a layer of `zoo.layers.low_rank`, in order."""
        shape = self.value.shape
        if self.inputs:
            left, right = _two(self._view, ranks[0])
            return [
                left.reshape(*shape[: self.inputs], ranks[0]),
                right.reshape(ranks[0], *shape[self.inputs :]),
            ]
        into, out = ranks
        if not into:
            left, right = _two(self._view, out)
            return [left.reshape(*shape[:-1], out), right.reshape(*self._ones(), out, shape[-1])]
        core, mixes = _tucker(self.value, into, out)
        parts = [mixes[0].reshape(*self._ones(), shape[-2], into), core]
        return parts + ([mixes[1].T.reshape(*self._ones(), out, shape[-1])] if out else [])

    def product(self, ranks: Sequence[int]) -> np.ndarray:
        """The kernel that these factors stand for."""
        factors = self.factors(ranks)
        if self.inputs:
            return np.tensordot(*factors, 1)
        (into, out), (inputs, outputs) = ranks, self.value.shape[-2:]
        value = factors[1 if into else 0]
        if into:
            value = np.einsum("...io,ci->...co", value, factors[0].reshape(inputs, into))
        return value @ factors[-1].reshape(out, outputs) if out else value

    def _ones(self) -> tuple[int, ...]:
        return (1,) * (self.value.ndim - 2)


def largest_ranks(layer: layers.Layer) -> tuple[int, ...]:
    """Those of a layer's kernel: one, or of a convolution's channels that come in and go out."""
    shape, inputs = _values(layer).shape, _inputs(layer)
    if not inputs:
        return tuple(shape[-2:])
    return (min(math.prod(shape[:inputs]), math.prod(shape[inputs:])),)


def _values(layer: layers.Layer):
    embedding = isinstance(layer, (layers.Embedding, LowRankEmbedding))
    return layer.embeddings if embedding else layer.kernel


def _inputs(layer: layers.Layer) -> int:
    if isinstance(layer, LowRankConv) or type(layer) in CONVOLUTIONS:
        return 0
    if isinstance(layer, LowRankEinsumDense):
        return layer.parts[0].kernel.ndim - 1
    if isinstance(layer, layers.EinsumDense):
        first = split_equation(layer.equation)[0]
        return len(first.partition(",")[2].partition("->")[0]) - 1
    return 1


def _two(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest product of that rank (Eckart and Young 1936), its factors of one size."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _tucker(kernel: np.ndarray, into: int, out: int):
    """Returns the core (..., into, out or outputs) and the mixes of both axes of channels."""
    try:
        from tensorly.decomposition import partial_tucker
    except ImportError:
        raise UsageError(
            "Convolutions take the package tensorly: pip install 'keras-zoo[compress]', or leave "
            "them out by compress.low_rank.pattern."
        ) from None
    axes = [kernel.ndim - 2, *([kernel.ndim - 1] if out else [])]
    ranks = [into, *([out] if out else [])]
    (core, mixes), _ = partial_tucker(kernel, rank=ranks, modes=axes, n_iter_max=10)
    return core, mixes
