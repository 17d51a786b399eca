"""GPTQ and AWQ of one weight matrix: 4-bit integers chosen by the inputs of the layer.

Both minimize the error of a layer's outputs over the calibration inputs. With the Gram matrix G of
these inputs, a change D of the weights has exactly the mean squared error trace(D G D^T) / N. Keras
3.15.1 has both methods, but not as published: its GPTQ uses the inverse Hessian in place of its
Cholesky factor, and its AWQ uses the largest magnitude in place of the mean and has no clipping
search. Keras layers store the result (`trainers.compress_jobs.calibrated`).

Axes: O outputs, I inputs, G groups of neighboring inputs that share a scale.
"""

import dataclasses

import numpy as np

GROUP = 64  # inputs that share a scale and a zero point
_LEVELS = 15  # largest unsigned 4-bit integer
_DAMPING = 0.01  # share of the mean of the Hessian's diagonal, as in the GPTQ paper
_ALPHAS = np.linspace(0, 1, 20, endpoint=False)  # same as the authors of AWQ
_CLIPS = 1 - np.arange(11) / 20  # shares of the largest magnitude, same as the authors of AWQ
_SHRINKS = 1 - np.arange(40) / 100  # shares of a group's range, as in the code of GPTQ's authors


class Inputs:
    """Statistics of the inputs of a layer.

    Attributes:
      rows: N, the number of input vectors.
      gram: float64 (I, I), the sum of x x^T.
      magnitudes: float64 (I,), the sum of |x|.
    """

    def __init__(self, size: int):
        self.rows, self.gram, self.magnitudes = 0, np.zeros((size, size)), np.zeros(size)

    def add(self, inputs) -> None:
        """Adds inputs of shape (..., I)."""
        flat = np.asarray(inputs, np.float32).reshape(-1, len(self.gram))
        self.rows += len(flat)
        self.gram += flat.T @ flat
        self.magnitudes += np.abs(flat).sum(0)

    def error(self, change) -> np.ndarray:
        """Returns the mean squared error (O,) of the outputs if the weights change by (O, I)."""
        return np.einsum("oi,oi->o", change @ self.gram, change) / self.rows


@dataclasses.dataclass
class Int4Matrix:
    """A quantized matrix in the layout of a Keras layer.

    Attributes:
      integers: uint8 (O, I) in [0, 15].
      scale, zero: float32 and uint8 (O, G).
      channels: float32 (I,), factors that the weights were multiplied by before rounding.
    """

    integers: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    channels: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """Weights that the layer computes with, float32 (O, I)."""
        group = np.arange(self.integers.shape[1]) // GROUP
        centered = self.integers - np.float32(self.zero[:, group])
        return centered * self.scale[:, group] / self.channels


def nearest(weights: np.ndarray, channels=None, limits=None) -> Int4Matrix:
    """Rounds each weight to the nearest level of its group's range.

    Args:
      weights: (O, I).
      channels: (I,), positive factors of the weights before rounding.
      limits: (O, G), largest magnitudes of the multiplied weights; larger weights are clipped.
    """
    weights = np.asarray(weights, np.float32)
    channels = np.float32(np.ones(weights.shape[1]) if channels is None else channels)
    scaled_weights = weights * channels
    parts = []
    for group, start in enumerate(range(0, scaled_weights.shape[1], GROUP)):
        part = scaled_weights[:, start : start + GROUP]
        if limits is not None:
            part = np.clip(part, -limits[:, group, None], limits[:, group, None])
        scale, zero = _range(part)
        parts.append((_level(part, scale, zero), scale, zero))
    return Int4Matrix(*(np.concatenate(x, 1) for x in zip(*parts, strict=True)), channels)


def _range(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and zero point (O, 1) of weights (O, I); 0 is always a level."""
    low = np.minimum(part.min(1, keepdims=True), 0)
    high = np.maximum(part.max(1, keepdims=True), 0)
    scale = np.float32((high - low) / _LEVELS)
    scale[scale == 0] = 1
    return scale, np.uint8(np.round(-low / scale))


def _searched_range(part, importance) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and zero point (O, 1) of least squared error, weighted by `importance` (I,)."""
    ranges = [_range(share * part) for share in _SHRINKS]
    errors = [
        (part - (_level(part, scale, zero) - np.float64(zero)) * scale) ** 2 @ importance
        for scale, zero in ranges
    ]
    best = np.argmin(errors, 0)[None, :, None]
    scale, zero = (np.take_along_axis(np.stack(x), best, 0)[0] for x in zip(*ranges, strict=True))
    return scale, zero


def _level(part, scale, zero) -> np.ndarray:
    return np.uint8(np.clip(np.round(part / scale + zero), 0, _LEVELS))


def gptq(weights: np.ndarray, inputs: Inputs) -> Int4Matrix:
    """Rounds one column at a time and compensates the error in the following columns.

    Algorithm 1 of Frantar et al. 2022 (arXiv:2210.17323), with one group per block. The range of a
    group has the least rounding error of the group's weights, weighted by the Hessian's diagonal.
    The authors' code searches the range without these weights.

    Args:
      weights: (O, I).
      inputs: statistics of the inputs of the layer.
    """
    weights = np.array(weights, np.float64)
    hessian = 2 * inputs.gram / inputs.rows
    is_unused = np.diag(hessian) == 0
    hessian[is_unused, is_unused] = 1
    weights[:, is_unused] = 0
    hessian[np.diag_indices_from(hessian)] += _DAMPING * np.diag(hessian).mean()
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    parts = []
    for start in range(0, weights.shape[1], GROUP):
        end = min(start + GROUP, weights.shape[1])
        scale, zero = _searched_range(weights[:, start:end], np.diag(hessian)[start:end])
        integers, errors = [], []
        for i in range(start, end):
            column = weights[:, i : i + 1]
            integers.append(_level(column, scale, zero))
            error = column - (integers[-1] - np.float64(zero)) * scale
            errors.append(error / inverse[i, i])
            weights[:, i + 1 : end] -= errors[-1] * inverse[i, i + 1 : end]
        weights[:, end:] -= np.concatenate(errors, 1) @ inverse[start:end, end:]
        parts.append((np.concatenate(integers, 1), scale, zero))
    joined_arrays = (np.concatenate(x, 1) for x in zip(*parts, strict=True))
    return Int4Matrix(*joined_arrays, np.ones(weights.shape[1], np.float32))


def awq(weights: np.ndarray, inputs: Inputs, clip: bool = True) -> Int4Matrix:
    """Scales up important input channels before rounding, then clips outlying weights.

    Lin et al. 2023 (arXiv:2306.00978): channel scales mean|x|^alpha / mean|w|^(1 - alpha), |w|
    relative to the largest |w| of its group, with the alpha of the least output error; scales of 1
    are candidates too. Clipping is searched per group and applied to the outputs that it improves.

    Args:
      weights: (O, I).
      inputs: statistics of the inputs of the layer.
      clip: whether to search for clipping limits.
    """
    weights = np.asarray(weights, np.float32)
    activations = np.maximum(inputs.magnitudes / inputs.rows, 1e-8)
    relative = _relative_magnitudes(weights)
    candidates = [np.ones(weights.shape[1])]
    for alpha in _ALPHAS:
        channels = np.maximum(activations**alpha / (relative ** (1 - alpha) + 1e-4), 1e-4)
        candidates.append(channels / np.sqrt(channels.max() * channels.min()))
    results = [nearest(weights, channels) for channels in candidates]
    best = min(results, key=lambda x: inputs.error(x.weights - weights).sum())
    if not clip:
        return best
    clipped_matrix = nearest(
        weights, best.channels, _clip_limits(weights * best.channels, best, inputs)
    )
    better = inputs.error(clipped_matrix.weights - weights) < inputs.error(best.weights - weights)
    integers, scale, zero = (
        np.where(better[:, None], getattr(clipped_matrix, name), getattr(best, name))
        for name in ("integers", "scale", "zero")
    )
    return Int4Matrix(integers, scale, zero, best.channels)


def _relative_magnitudes(weights: np.ndarray) -> np.ndarray:
    """Returns the mean over outputs (I,) of |w| divided by the largest |w| of its group."""
    means = []
    for start in range(0, weights.shape[1], GROUP):
        part = np.abs(weights[:, start : start + GROUP])
        means.append((part / np.maximum(part.max(1, keepdims=True), 1e-8)).mean(0))
    return np.concatenate(means)


def _clip_limits(scaled_weights: np.ndarray, best: Int4Matrix, inputs: Inputs) -> np.ndarray:
    """Returns the clipping limits (O, G) with the least output error of each group."""
    limits = []
    for start in range(0, scaled_weights.shape[1], GROUP):
        group = slice(start, start + GROUP)
        part, channels = scaled_weights[:, group], best.channels[group]
        gram = inputs.gram[group, group] / np.outer(channels, channels)
        largest = np.abs(part).max(1, keepdims=True)
        errors = []
        for share in _CLIPS:
            change = nearest(part, limits=share * largest).weights - part
            errors.append(np.einsum("oi,oi->o", change @ gram, change))
        limits.append(_CLIPS[np.argmin(errors, 0)][:, None] * largest)
    return np.concatenate(limits, 1)
