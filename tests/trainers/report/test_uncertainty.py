"""The interval of an accuracy and the calibration of predictions."""

import numpy as np
import pytest

from trainers.report.uncertainty import accuracy_interval, calibration_bins


def test_the_interval_is_that_of_resampled_examples():
    correct = np.arange(200) < 150
    generator = np.random.default_rng(1)
    resampled = correct[generator.integers(0, 200, (20_000, 200))].mean(1)
    expected = np.percentile(resampled, (2.5, 97.5))
    assert accuracy_interval(correct) == pytest.approx(expected, abs=0.006)
    assert accuracy_interval(correct) == accuracy_interval(correct)
    assert accuracy_interval(np.ones(5, bool)) == (1.0, 1.0)


def test_the_error_equals_a_case_worked_by_hand():
    # Bins of width 1/15: 0.5 and 0.52 are in the same one, 0.9 and 1.0 in two others.
    confidences = np.array([0.5, 0.52, 0.9, 0.9, 1.0], np.float32)
    correct = np.array([True, False, True, True, False])
    bins, error = calibration_bins(confidences, correct)
    assert [number for *_, number in bins] == [2, 2, 1]
    np.testing.assert_allclose(bins, [(0.51, 0.5, 2), (0.9, 1.0, 2), (1.0, 0.0, 1)], atol=1e-6)
    assert error == pytest.approx((2 * 0.01 + 2 * 0.1 + 1.0) / 5, abs=1e-6)


def test_calibrated_predictions_have_a_small_error():
    generator = np.random.default_rng(0)
    confidences = generator.uniform(0.3, 1, 50_000)
    correct = generator.random(50_000) < confidences
    assert calibration_bins(confidences, correct)[1] < 0.01
    assert calibration_bins(confidences, np.ones(50_000, bool))[1] == pytest.approx(0.35, abs=0.01)


def test_a_bin_includes_its_upper_end():
    bins, _ = calibration_bins(np.array([2 / 15, 2.0001 / 15, 0.0]), np.ones(3, bool))
    assert [number for *_, number in bins] == [1, 1, 1]
