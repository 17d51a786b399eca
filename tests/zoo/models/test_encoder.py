"""The encoder with a mix of neighbors, and ELECTRA: graph, samples, losses, discriminator."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from trainers.train.init_from import initialize
from zoo import registry
from zoo.data import Dataset
from zoo.layers.neighbors import NeighborMix
from zoo.models.electra import ReplaceTokens, discriminator
from zoo.models.heads import add_head, text_trunk

TINY = registry.entry("encoder_nano").tiny


def test_neighbors_are_a_depthwise_convolution_within_documents():
    layer, generator = NeighborMix(3), np.random.default_rng(0)
    x = generator.normal(size=(2, 6, 4)).astype("float32")
    segments = np.int32([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(layer(x, segments), x)  # the identity before training
    kernel = generator.normal(size=(3, 4)).astype("float32")
    layer.kernel.assign(kernel)
    expected = x.copy()
    for row in range(2):
        for t in range(6):
            for i, neighbor in enumerate(range(t - 1, t + 2)):
                if 0 <= neighbor < 6 and segments[row, neighbor] == segments[row, t]:
                    expected[row, t] += kernel[i] * x[row, neighbor]
    np.testing.assert_allclose(layer(x, segments), expected, atol=1e-6)


@pytest.mark.parametrize("width", [0, 2, 1])
def test_wrong_widths_are_refused(width):
    with pytest.raises(ValueError, match="odd and at least 3"):
        NeighborMix(width)


def test_documents_do_not_see_each_other():
    model = zoo.build("encoder_nano", **TINY)
    for layer in model.layers:
        if isinstance(layer, NeighborMix):
            layer.kernel.assign(np.full(layer.kernel.shape, 0.3))
    tokens = np.random.default_rng(0).integers(6, 16, (1, 12)).astype("int32")
    masked = np.int32([[1, 4]])
    two = {"tokens": tokens, "segments": np.int32([[1] * 6 + [2] * 6]), "masked": masked}
    other = {**two, "tokens": np.where(np.arange(12) < 6, tokens, 7).astype("int32")}
    one = {**two, "segments": np.ones((1, 12), "int32")}
    np.testing.assert_allclose(model(two)["mlm"], model(other)["mlm"], atol=1e-6)
    assert np.abs(np.array(model(two)["mlm"]) - np.array(model(one)["mlm"])).max() > 1e-4


# --- ELECTRA --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def electra():
    """Returns a tiny ELECTRA with its task, a batch and the result of its forward pass."""
    keras.utils.set_random_seed(1)
    model = zoo.build("electra_nano", **TINY)
    for variable in model.trainable_weights:  # so that the predictions differ
        variable.assign(variable + np.random.default_rng(0).normal(0, 0.1, variable.shape))
    task = registry.build_task("electra")
    data = Dataset("synthetic", {"train": task.synthetic(model, 8, 0)}, (), "synthetic")
    task.bind(model, data, TINY).check(model, data)
    batch = {key: tf.constant(value) for key, value in data.splits["train"].items()}
    batch["weight"] = tf.constant([1.0] * 7 + [0.0])
    salt = iter(range(9))
    prepared = task.prepare(
        batch, lambda n: tf.random.stateless_uniform((8, n), (0, next(salt))), True
    )
    return model, task, prepared, task.forward(model, prepared, True)


def test_replacements_are_drawn_from_the_predictions():
    probabilities = np.float32([0.1, 0.6, 0.0, 0.3])
    noise = np.linspace(0, 1, 1000, endpoint=False).astype("float32")[None]
    logits = np.broadcast_to(np.log(probabilities + 1e-30), (1, 1000, 4))
    tokens = np.full((1, 1200), 9, "int32")
    masked = np.random.default_rng(0).permutation(1200)[None, :1000].astype("int32")
    is_target = np.int32(np.arange(1000) < 900)[None]
    replaced, sampled = map(np.array, ReplaceTokens()(tokens, logits, masked, is_target, noise))
    counts = np.bincount(sampled[0, :900], minlength=4) / 1000
    np.testing.assert_allclose(counts, [0.1, 0.6, 0.0, 0.2], atol=2e-3)
    np.testing.assert_array_equal(sampled[0, 900:], 9)
    np.testing.assert_array_equal(replaced[0, masked[0]], sampled[0])
    others = np.setdiff1d(np.arange(1200), masked[0])
    np.testing.assert_array_equal(replaced[0, others], 9)


def test_losses_are_those_of_the_paper(electra):
    _, task, batch, result = electra
    batch = {key: value.numpy() for key, value in batch.items()}
    logits = result.outputs["rtd"].numpy()
    is_replaced = np.zeros(logits.shape, bool)
    for row, column in np.argwhere(batch["counts"] > 0):
        position, target = batch["masked"][row, column], batch["targets"][row, column]
        is_replaced[row, position] = result.outputs["sampled"][row, column] != target
    counts = (batch["segments"] > 0) * np.float32([1] * 7 + [0])[:, None]
    losses = np.logaddexp(0, logits) - is_replaced * logits
    assert float(result.sums["rtd"]) == pytest.approx((losses * counts).sum(), rel=1e-5)
    assert float(task.term_counts(batch)["rtd"]) == counts.sum()
    correct, total = result.statistics["rtd_accuracy"]
    assert float(correct) == (((logits > 0) == is_replaced) * counts).sum()
    assert float(total) == counts.sum()
    detected, replaced = result.statistics["rtd_recall"]
    assert float(replaced) == is_replaced.sum() > 0
    assert float(detected) == ((logits > 0) & is_replaced).sum()


def test_the_generator_gets_no_gradient_from_the_discriminator(electra):
    model, task, batch, _ = electra
    with tf.GradientTape() as tape:
        loss = task.forward(model, batch, True).sums["rtd"]
    gradients = tape.gradient(loss, model.trainable_weights)
    by_path = dict(zip((v.path for v in model.trainable_weights), gradients, strict=True))
    assert by_path["block_0/attention/output/kernel"] is not None
    assert all(g is None for path, g in by_path.items() if path.startswith("generator_"))


def test_the_discriminator_sees_the_replaced_tokens(electra):
    model, _, batch, result = electra
    tokens = batch["tokens"].numpy()
    for row in range(len(tokens)):
        tokens[row, batch["masked"][row]] = result.outputs["sampled"][row]
    inputs = {"tokens": tokens, "segments": batch["segments"].numpy()}
    logits = discriminator(model)(inputs)["rtd"]
    np.testing.assert_allclose(logits, result.outputs["rtd"], atol=1e-5)


def test_a_classifier_takes_the_weights_of_the_discriminator(electra, tmp_path):
    model, *_ = electra
    model.save(tmp_path / "electra.keras")
    classifier = add_head(zoo.build("encoder_nano", **TINY), 2)
    initialize(classifier, tmp_path / "electra.keras")
    batch = {"tokens": np.int32([[6, 7, 8, 0]]), "segments": np.int32([[1, 1, 1, 0]])}
    np.testing.assert_allclose(text_trunk(classifier)(batch), text_trunk(model)(batch), atol=1e-6)
