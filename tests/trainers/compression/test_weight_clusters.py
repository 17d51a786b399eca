"""Weight clustering in the train step: few trained values, in every trainer setting."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from tests import toys
from tests.trainers.train.test_resume import cut_at
from trainers.compression.cluster import Centroids, _centroids, cluster
from trainers.compression.prune import prunable
from trainers.config.base import optimizer
from zoo.errors import UsageError


def recipe(compress=None, **trainer):
    config = toys.recipe("toy_tokens", "toy_token", **{"checkpoint_every": 1, "keep": 9, **trainer})
    config.optimizer = optimizer("adam", learning_rate=0.01)
    config.compress.update({"cluster": {"number": 4}, **(compress or {})})
    return config


def values(model):
    return {v.path: np.unique(v.numpy()) for v, _ in prunable(model) if "centroids" not in v.path}


def centroids(model):
    return {v.path: v.numpy() for v in model.trainable_variables if "centroids" in v.path}


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"ema": 0.5},
        {"micro_batch_size": 4},
        {"strategy": "mirrored", "replicas": 2},
        {"remat": "block_.*"},
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain",
)
def test_every_kernel_has_few_values(trainer, trained_once):
    done = trained_once(recipe(**trainer), toys.token_data())
    saved = values(zoo.load(done.workdir.path))
    assert len(saved) == 6  # embedding, four of the blocks, logits
    assert {len(distinct) for distinct in saved.values()} <= {2, 3, 4}
    assert (
        max(len(distinct) for distinct in values(done.step.net).values()) > 4
    )  # the weights that are trained stay unrounded
    if trainer.keys() - {"ema"}:
        plain = trained_once(recipe(), toys.token_data())
        assert toys.difference(plain.step.net, done.step.net) < 1e-5


def test_centroids_learn(run):
    start_values = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            start_values.append(centroids(self.model.net))

    done = run(recipe(), toys.token_data(), callbacks=[Watch()])
    for path, value in centroids(done.step.net).items():
        assert np.abs(value - start_values[0][path]).max() > 1e-4, path
    assert len(start_values[0]) == 6


def test_a_centroid_gets_its_weights_gradients():
    """The straight-through gradient of each weight is the gradient of its rounded value."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(5, use_bias=False, name="only")(x))
    cluster(model, 3)
    Centroids(model).begin()
    data = tf.constant(np.random.default_rng(0).normal(size=(7, 6)), tf.float32)
    layer = model.get_layer("only")
    centroid_variable = layer.centroids.weights[0]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(data) ** 2)
    kernel_gradient, gradient = tape.gradient(loss, [layer.kernel.value, centroid_variable.value])
    kernel, start = layer.kernel.numpy(), centroid_variable.numpy()
    nearest = np.abs(kernel[..., None] - start).argmin(-1)
    assert set(np.unique(nearest)) == {0, 1, 2}
    expected = 2 * data.numpy().T @ (data.numpy() @ start[nearest])
    np.testing.assert_allclose(kernel_gradient, expected, rtol=1e-4)
    sums = [expected[nearest == i].sum() for i in range(3)]
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), sums, rtol=1e-4)


def test_zeros_stay_zeros(run, tmp_path):
    pruning = {"prune": {"sparsity": 0.5, "frequency": 2}, "cluster": {"number": 0}}
    first = run(recipe(pruning), toys.token_data(), tmp_path / "pruned")
    config = recipe({"prune": {"keep_zeros": True}})
    config.init_from = str(tmp_path / "pruned")
    second = zoo.load(run(config, toys.token_data()).workdir.path)
    weights = {v.path: v.numpy() for v in second.weights}
    for variable, _ in prunable(first.step.net):
        zeros = variable.numpy() == 0
        assert zeros.mean() == pytest.approx(0.5, abs=0.01)
        assert (weights[variable.path][zeros] == 0).all()  # and weights whose nearest centroid is 0
        assert 2 <= len(values(second)[variable.path]) <= 4


@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_run_has_the_same_centroids(stop, run, trained_once, tmp_path):
    whole = trained_once(recipe(), toys.token_data())
    parts = cut_at(whole.workdir.path, tmp_path / "parts", stop)
    resumed = run(recipe(), toys.token_data(), parts)
    assert toys.difference(whole.step.net, resumed.step.net) == 0


def test_what_cannot_be_clustered(run, tmp_path):
    with pytest.raises(UsageError, match="compress.cluster.number must be at least 2"):
        run(recipe({"cluster": {"number": 1}}), toys.token_data(), tmp_path / "run")
    with pytest.raises(UsageError, match="XLA cannot compile weight clustering"):
        run(recipe(jit_compile=True), toys.token_data(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    x = keras.Input((6,))
    bare = keras.Model(x, layers.LayerNormalization()(x), name="bare")
    with pytest.raises(UsageError, match="The model 'bare' has no such layer"):
        cluster(bare, 4)


@pytest.mark.parametrize("zeros", [False, True])
def test_more_clusters_than_weights(zeros):
    """Covers small kernels with few distinct values, as after pruning."""
    values = np.float32([[-2, -1, 3], [4, 4, 5]])
    if zeros:
        values[0, 1:] = 0
    all_centroids = _centroids(values, 16)
    assert set(all_centroids) == set(np.unique(values))
    six_centroids = _centroids(np.float32(np.r_[np.linspace(-9, -1, 9), 0, 7]), 6)
    assert len(np.unique(six_centroids)) == len(six_centroids) <= 6
    assert {0.0, 7.0} <= set(six_centroids)
