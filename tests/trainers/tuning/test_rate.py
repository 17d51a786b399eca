"""The range test of learning rates."""

import numpy as np
import pytest

from tests import toys
from trainers.run.workdir import read_metrics
from trainers.train.trainer import Trainer
from trainers.tuning.rate import average, evaluate, range_test
from zoo.errors import UsageError


def test_the_rate_is_chosen_before_the_lowest_loss():
    rates = np.geomspace(1e-6, 1, 121)
    # Falls around 1e-3 by two, and grows from 0.1 on.
    losses = 3 - 2 / (1 + (1e-3 / rates) ** 2) + 50 * np.clip(np.log10(rates) + 1, 0, None) ** 2
    result = evaluate(rates, losses)
    assert 5e-4 < result.steepest < 3e-3
    assert 0.05 < result.lowest < 0.3
    assert result.suggested == min(result.steepest, result.lowest / 10)


def test_averages_have_no_bias_at_the_start():
    assert average([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert average([1.0, 2.0]) == pytest.approx([1.0, (0.09 + 0.2) / 0.19])


@pytest.fixture(scope="module")
def tested(tmp_path_factory, devices):
    """Returns the result of a range test and its work directory, between two equal runs."""
    folder = tmp_path_factory.mktemp("rate")
    config, data = toys.recipe(), toys.token_data()
    runs = [Trainer(config, folder / "before", dataset=data)]
    runs[0].train()
    result = range_test(config, folder / "rate", lowest=1e-4, highest=1e4, steps=60, dataset=data)
    runs.append(Trainer(config, folder / "after", dataset=data))
    runs[1].train()
    return result, folder, runs


def test_the_loss_falls_and_then_the_test_ends(tested):
    result, folder, _ = tested
    assert result.diverged
    assert 10 <= len(result.losses) < 60
    # By the averaged loss, before it is infinite.
    assert "stopped" in [row.get("event") for row in read_metrics(folder / "rate")]
    assert result.losses == pytest.approx(
        [row["loss"] for row in read_metrics(folder / "rate") if "loss" in row][
            : len(result.losses)
        ]
    )
    rates = np.geomspace(1e-4, 1e4, 60)[: len(result.rates)]
    np.testing.assert_allclose(result.rates, rates, rtol=1e-6)
    logged = [row["learning_rate"] for row in read_metrics(folder / "rate") if "loss" in row]
    np.testing.assert_allclose(logged[: len(rates)], rates, rtol=1e-4)
    assert 1e-3 < result.suggested < 10


def test_no_other_run_changes(tested):
    _, _, (before, after) = tested
    for one, other in zip(before.step.net.weights, after.step.net.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("lowest", "highest", "steps"), [(1, 1, 20), (0, 1, 20), (2, 1, 20), (0.1, 1, 9)]
)
def test_what_is_no_range_is_refused(lowest, highest, steps, tmp_path):
    with pytest.raises(UsageError, match="A range test requires"):
        range_test(toys.recipe(), tmp_path, lowest=lowest, highest=highest, steps=steps)
    assert not list(tmp_path.iterdir())
