"""Balanced training splits."""

import numpy as np
import pytest

from zoo.data import Dataset
from zoo.data.balance import balanced
from zoo.errors import UsageError


def test_rare_classes_are_repeated_up_to_the_largest():
    label = np.int32([0] * 7 + [1] * 3 + [2])
    arrays = {"tokens": np.arange(11)[:, None], "label": label}
    data = Dataset("rare", {"train": arrays, "test": arrays}, ("a", "b", "c"), "rare")
    train = balanced(data).splits["train"]
    assert np.bincount(train["label"]).tolist() == [7, 7, 7]
    counts = np.bincount(train["tokens"][:, 0])
    assert counts[:7].tolist() == [1] * 7
    assert sorted(counts[7:10]) == [2, 2, 3]
    assert counts[10] == 7
    np.testing.assert_array_equal(label[train["tokens"][:, 0]], train["label"])
    assert balanced(data).splits["test"] is arrays


def test_data_without_classes_are_refused():
    data = Dataset("numbers", {"train": {"tokens": np.ones((3, 2))}}, (), "numbers")
    with pytest.raises(UsageError, match=r"data\.balanced requires one integer label"):
        balanced(data)
