"""Stock Keras models and runs, for the tests of Keras' behavior and private names."""

import contextlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

SAME = 1e-5  # largest relative difference of an update due to rounding


def mended(section: str) -> str:
    return f"Keras has mended something: see docs/keras3.md section {section!r}."


def still(section: str, wrong: bool, measured) -> None:
    """Fails if stock Keras no longer has the fault that a section of docs/keras3.md describes."""
    print(f"\n{section}: {measured}")
    assert wrong, f"{mended(section)} Measured: {measured}"


@contextlib.contextmanager
def still_raises(section: str, error: type[Exception], match: str):
    """Fails if stock Keras no longer raises the error that a section describes; see `still`."""
    try:
        yield
    except error as raised:
        result = re.search(match, str(raised))
        if not result:
            raise
        print(f"\n{section}: {type(raised).__name__}: {result[0]}")
    else:
        pytest.fail(mended(section))


def train(
    strategy, build, x, y, optimizer, *, batch_size=4, prepare=lambda model: None, **compiled
):
    """Trains one epoch by stock `compile` and `fit` from fixed weights; returns the model."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build()
        model.compile(optimizer(), "mse", **compiled)
    prepare(model)
    model.before = flat(model)
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    return model


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def difference(a, b) -> float:
    """Returns the distance of two trained models relative to the weight change of the first."""
    np.testing.assert_array_equal(a.before, b.before)
    return float(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(a) - a.before))


def linear():
    return keras.Sequential([keras.Input((3,)), layers.Dense(2)])


def regression(rows):
    """Returns rows of growing magnitude, so that the parts of a batch differ in gradient."""
    generator = np.random.default_rng(0)
    growing = np.arange(1, rows + 1)[:, None] / rows
    x = growing * generator.normal(size=(rows, 3))
    return x.astype("float32"), generator.normal(size=(rows, 2)).astype("float32")


def sgd(**arguments):
    return lambda: keras.optimizers.SGD(0.1, **arguments)


def on_replicas(strategy, function):
    """Returns the result of `function(replica_id)` on each replica, as a list of arrays."""

    @tf.function(autograph=False)
    def run():
        def replica():
            return function(tf.distribute.get_replica_context().replica_id_in_sync_group)

        return strategy.run(replica)

    return [np.asarray(v) for v in strategy.experimental_local_results(run())]
