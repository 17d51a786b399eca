"""Uncertainty of a classifier: the interval of its accuracy, and its calibration."""

import numpy as np

RESAMPLES = 1000
BINS = 15


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the accuracy (Efron 1979), the same in every call.

    Args:
      correct: (N,) booleans, N at least 1.

    Returns:
      The 2.5th and the 97.5th percentile of the accuracy of `RESAMPLES` resamples.
    """
    size = len(correct)
    # The number of correct examples among N that are drawn with replacement is binomial.
    counts = np.random.default_rng(0).binomial(size, np.mean(correct), RESAMPLES)
    low, high = np.percentile(counts / size, (2.5, 97.5))
    return float(low), float(high)


def calibration_bins(
    confidences: np.ndarray, correct: np.ndarray
) -> tuple[list[tuple[float, float, int]], float]:
    """Computes the calibration of predictions (Guo et al. 2017, arXiv:1706.04599, section 2).

    Args:
      confidences: (N,) probabilities of the predicted classes, N at least 1.
      correct: (N,) booleans.

    Returns:
      `(bins, error)`: mean confidence, accuracy and number of predictions of each of the `BINS`
      intervals of equal width that is not empty; and the expected calibration error, the mean
      distance between confidence and accuracy over all predictions.
    """
    # A bin includes its upper end, as in the paper.
    index = np.clip(np.ceil(confidences.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    sums = [np.bincount(index, values, BINS) for values in (confidences, correct)]
    confidence, accuracy = (total / np.maximum(counts, 1) for total in sums)
    error = float((counts * abs(confidence - accuracy)).sum() / len(correct))
    rows = zip(confidence.tolist(), accuracy.tolist(), counts.tolist(), strict=True)
    return [row for row in rows if row[-1]], error
