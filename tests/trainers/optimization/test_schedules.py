"""Learning-rate schedules: each update's rate against the formula, and in a run."""

import math

import keras
import numpy as np
import pytest

from tests import toys
from trainers.config.base import optimizer, schedule
from trainers.config.schedule import SCHEDULES
from trainers.optimization.schedules import make_schedule
from trainers.run.workdir import read_metrics
from zoo.errors import UsageError

CASES = [
    ("constant", 30, {"warmup_steps": 4}),
    ("constant", 4, {"warmup_steps": 4}),
    ("cosine", 30, {}),
    ("cosine", 30, {"warmup_steps": 1}),
    ("cosine", 30, {"warmup_steps": 7, "final_fraction": 0.1}),
    ("cosine", 8, {"warmup_steps": 7}),
    ("linear", 30, {"final_fraction": 0.2}),
    ("linear", 30, {"warmup_steps": 7}),
    ("linear", 2, {}),
    ("exponential", 30, {"final_fraction": 0.01}),
    ("exponential", 30, {"warmup_steps": 7, "final_fraction": 0.5}),
    ("wsd", 30, {}),
    ("wsd", 5, {"warmup_steps": 4}),
    ("wsd", 30, {"decay_steps": 2}),
    ("wsd", 30, {"warmup_steps": 7, "decay_steps": 10, "final_fraction": 0.3}),
    ("wsd", 30, {"warmup_steps": 7, "decay_steps": 23}),
    ("wsd", 5, {"decay_steps": 5}),
]


def curve(name, steps, warmup_steps=0, decay_steps=None, final_fraction=0.0):
    """Returns the rates of all updates for a peak of 1: rise, plateau and fall."""
    rise = [(u + 1) / warmup_steps for u in range(warmup_steps)]
    if name == "constant":
        return rise + [1.0] * (steps - warmup_steps)
    if name == "wsd":
        falling = decay_steps or max(1, steps // 10)
    else:
        falling = steps - max(warmup_steps, 1)  # the update before them has the peak rate
    stable = [1.0] * (steps - warmup_steps - falling)
    shares = [n / falling for n in range(1, falling + 1)]
    if name == "exponential":
        return rise + stable + [final_fraction**t for t in shares]
    if name == "cosine":
        decay = [0.5 * (1 + math.cos(math.pi * t)) for t in shares]
    else:
        decay = [1 - t for t in shares]
    fall = [final_fraction + (1 - final_fraction) * share for share in decay]
    return rise + stable + fall


@pytest.mark.parametrize(("name", "steps", "arguments"), CASES)
def test_the_whole_curve(name, steps, arguments):
    rate = make_schedule(name, 2.0, steps, **arguments)
    expected = 2.0 * np.array(curve(name, steps, **arguments))
    actual = np.array(rate(np.arange(steps)))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    if name != "constant":
        final = 2.0 * arguments.get("final_fraction", 0.0)
        assert actual[-1] == pytest.approx(final, abs=1e-7)
        assert actual[-2] > actual[-1]
    # A callback may evaluate the rate beyond the last update.
    assert float(rate(steps + 5)) == actual[-1]


def test_exponential_rises_for_a_range_test():
    rates = np.array(make_schedule("exponential", 1e-6, 101, final_fraction=1e6)(np.arange(101)))
    np.testing.assert_allclose(rates, np.geomspace(1e-6, 1, 101), rtol=1e-4)
    with pytest.raises(UsageError, match="final_fraction must be positive with exponential"):
        make_schedule("exponential", 1.0, 3, final_fraction=0.0)


def test_every_schedule_has_a_case():
    assert {name for name, *_ in CASES} == set(SCHEDULES)
    assert make_schedule("constant", 0.5, 10) == 0.5


def test_cosine_is_keras_own():
    """A run of 91 updates equals Keras' CosineDecay with decay_steps=90."""
    ours = make_schedule("cosine", 0.3, 91)
    stock = keras.optimizers.schedules.CosineDecay(0.3, 90)
    for step in (0, 1, 45, 89, 90):
        assert float(ours(step)) == pytest.approx(float(stock(step)), abs=1e-7)


def test_phases_longer_than_the_run_are_refused():
    with pytest.raises(UsageError, match="warmup_steps=80, schedule.decay_steps=30 for 100 steps"):
        make_schedule("wsd", 1.0, 100, warmup_steps=80, decay_steps=30)
    with pytest.raises(UsageError, match="warmup_steps=4 for 3 steps"):
        make_schedule("cosine", 1.0, 3, warmup_steps=4)


def test_the_updates_of_a_run_have_these_rates(run):
    """Checks logged rates and Adam's weights: the last update, with rate 0, changes no weight."""
    weights = []

    class Remember(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights.append(np.concatenate([v.numpy().ravel() for v in self.model.net.weights]))

    config = toys.recipe(steps=5, log_every=1)
    config.optimizer = optimizer("adam", learning_rate=0.1)
    config.schedule = schedule("wsd", warmup_steps=2, decay_steps=2)
    trainer = run(config, toys.token_data(), callbacks=[Remember()])
    rates = [x["learning_rate"] for x in read_metrics(trainer.workdir.path) if "loss" in x]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.1, 0.05, 0.0], rtol=1e-5)
    changed = [not np.array_equal(a, b) for a, b in zip(weights, weights[1:], strict=False)]
    assert changed == [True, True, True, False]
