"""Layers that mix rows ignore padding: a short batch equals Keras' `fit` on the real rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import zoo
from tests import toys
from trainers.train.build import synchronize_normalization
from trainers.train.step import TrainStep
from zoo import registry
from zoo.errors import UsageError
from zoo.tasks.gan import GenerativeAdversarial
from zoo.tasks.image_classification import ImageClassification

BOUND = 1e-5
SHAPE = (4, 4, 2)


def classifier(*mixing, activity=None):
    """Returns a small classifier that contains the given layers."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(3, 3, activity_regularizer=activity, name="convolution")(image)
    for layer in mixing:
        x = layer(x)
    x = layers.Dense(2, activation="softmax", name="probabilities")(layers.Flatten()(x))
    return keras.Model(image, x)


def norm(**arguments):
    return layers.BatchNormalization(momentum=0.8, name="norm", **arguments)


def short_batch(real, rows=8):
    """Returns a batch of real rows followed by padding with values (1e3) that spoil statistics."""
    generator = np.random.default_rng(0)
    image = generator.normal(1.0, 2.0, (rows, *SHAPE)).astype("float32")
    image[real:] = 1e3
    label = np.arange(rows, dtype="int32") % 2
    return {"image": image, "label": label, "weight": np.float32(np.arange(rows) < real)}


def updated(model, batch, task=None, micro=0, replicas=1, steps=2, jit=False):
    """Trains a model for `steps` updates on one batch; returns the `TrainStep`."""
    from trainers.distributed.strategy import make_strategy

    strategy = make_strategy("mirrored", replicas) if replicas > 1 else make_strategy("one_device")
    with strategy.scope():
        model = model()
        if replicas > 1:
            synchronize_normalization(model)
        task = task or ImageClassification()
        count = len(task.model_parts(model))
        optimizers = [keras.optimizers.SGD(0.1) for _ in range(count)]
        step = TrainStep(model, task, optimizers, micro_batch_size=micro, jit_compile=jit)
    share = len(batch["weight"]) // replicas

    def part(context):
        place = context.replica_id_in_sync_group * share
        return {key: tf.constant(value[place : place + share]) for key, value in batch.items()}

    data = strategy.experimental_distribute_values_from_function(part)
    update = tf.function(lambda: strategy.run(step.update, args=(data,)), autograph=False)
    for _ in range(steps):
        update()
    return step


def fitted(model, batch, steps=2):
    """Trains a model with Keras' `fit` on the real rows of the batch; returns the model."""
    model = model()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    real = batch["weight"] > 0
    rows = batch["image"][real], batch["label"][real]
    model.fit(*rows, batch_size=len(rows[0]), epochs=steps, shuffle=False, verbose=0)
    return model


class Masked(layers.Layer):
    """Layer with a Keras mask that excludes the first position."""

    def compute_mask(self, x, previous=None):
        return ops.concatenate([ops.zeros_like(x[..., :1, 0]), ops.ones_like(x[..., 1:, 0])], -1)

    def call(self, x):
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def norm_of_vectors():
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = norm(axis=1)(layers.Dense(5)(layers.Flatten()(image)))
    return keras.Model(image, layers.Dense(2, activation="softmax")(x))


MODELS = {
    "plain": lambda: classifier(norm()),
    "channels first": lambda: classifier(norm(axis=1)),
    "renorm": lambda: classifier(norm(renorm=True)),
    "vectors": norm_of_vectors,
    "masked": lambda: classifier(Masked(), norm()),
    "activity": lambda: classifier(activity=keras.regularizers.L2(0.1)),
}


@pytest.mark.filterwarnings("ignore:Layer 'flatten")
@pytest.mark.parametrize("name", MODELS)
def test_a_short_batch_equals_fit_on_its_rows(name):
    batch = short_batch(5)
    reference = fitted(MODELS[name], batch)
    assert toys.difference(reference, updated(MODELS[name], batch).net) <= BOUND


# Real rows of 16: the second of two replicas has 3 real rows, or none.
@pytest.mark.parametrize("real", [11, 5])
@pytest.mark.filterwarnings("ignore:Layer 'flatten")
@pytest.mark.parametrize("name", ["plain", "masked", "activity"])
def test_replicas_count_by_their_real_rows(name, real):
    batch = short_batch(real, 16)
    step = updated(MODELS[name], batch, replicas=2)
    assert toys.difference(fitted(MODELS[name], batch), step.net) <= BOUND


def test_each_micro_batch_has_the_statistics_of_its_rows():
    """Two of four micro-batches are only padding and change neither statistics nor loss."""
    batch = short_batch(6, 16)
    parts = [{k: v[i : i + 4] for k, v in batch.items()} for i in (0, 4)]
    step = updated(MODELS["plain"], batch, micro=4, steps=1)
    model = MODELS["plain"]()
    moving = model.get_layer("norm").moving_mean, model.get_layer("norm").moving_variance
    features = keras.Model(model.input, model.get_layer("convolution").output)
    for part in parts:
        x = features(part["image"][part["weight"] > 0]).numpy()
        for variable, moment in zip(moving, (x.mean((0, 1, 2)), x.var((0, 1, 2))), strict=True):
            variable.assign(0.8 * variable + 0.2 * moment)
    ours = step.net.get_layer("norm")
    np.testing.assert_allclose(ours.moving_mean, moving[0], rtol=BOUND)
    np.testing.assert_allclose(ours.moving_variance, moving[1], rtol=BOUND)
    assert all(np.isfinite(v.numpy()).all() for v in step.net.weights)


@pytest.mark.parametrize("replicas", [1, 2])
def test_micro_batches_of_padding_change_nothing(replicas):
    """The real rows fill one micro-batch (half of it on each of two replicas)."""
    small = short_batch(4, 4)
    order = [0, 1, 4, 5, 2, 3, 6, 7] if replicas == 2 else range(8)
    padded = {k: v[list(order)] for k, v in short_batch(4, 8).items()}
    padded["image"][padded["weight"] > 0] = small["image"]
    padded["label"][padded["weight"] > 0] = small["label"]
    step = updated(MODELS["plain"], padded, micro=4 // replicas, replicas=replicas)
    assert toys.difference(fitted(MODELS["plain"], small), step.net) <= BOUND
    # A batch of only padding leaves the statistics bit-identical.
    before = [v.numpy() for v in step.net.non_trainable_weights]
    again = {k: tf.zeros_like(v) for k, v in padded.items()}
    if replicas == 1:
        tf.function(step.update, autograph=False)(again)
        for variable, value in zip(step.net.non_trainable_weights, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
        assert all(np.isfinite(v.numpy()).all() for v in step.net.weights)


def test_a_replica_takes_part_in_micro_batches_of_others():
    """A replica with only padding in its second micro-batch gets the global statistics."""
    # Replica 0 has rows 0 to 7, replica 1 rows 8 to 15, of which rows 8 to 11 are real.
    batch = short_batch(12, 16)
    step = updated(MODELS["plain"], batch, micro=4, replicas=2, steps=1)
    model = MODELS["plain"]()
    moving = model.get_layer("norm").moving_mean
    features = keras.Model(model.input, model.get_layer("convolution").output)
    for rows in ([*range(4), *range(8, 12)], range(4, 8)):
        x = features(batch["image"][list(rows)]).numpy()
        moving.assign(0.8 * moving + 0.2 * x.mean((0, 1, 2)))
    np.testing.assert_allclose(step.net.get_layer("norm").moving_mean, moving, rtol=BOUND)


def test_xla_computes_the_same(xla):
    batch = short_batch(5)
    step = updated(MODELS["plain"], batch, micro=4, jit=True)
    assert toys.difference(updated(MODELS["plain"], batch, micro=4).net, step.net) <= BOUND


def test_recomputed_blocks_see_no_padding():
    from trainers.train.recompute.remat import apply_remat

    def model():
        net = MODELS["plain"]()
        apply_remat(net, "norm")
        return net

    batch = short_batch(5)
    assert toys.difference(fitted(MODELS["plain"], batch), updated(model, batch).net) <= BOUND


def test_a_run_equals_fit_on_its_batches(run):
    """Covers the pipeline and short last batches; Keras trains on the real rows of its batches."""
    from zoo.data.pipeline import training_batches

    config = toys.recipe("toy_norm", "image_classification", steps=6, global_batch_size=16)
    data = toys.image_data(examples=40)
    ours = run(config, data).step.net
    keras.utils.set_random_seed(0)
    stock = toys.norm_model()
    stock.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    for batch in training_batches(
        data.splits["train"], ImageClassification().prepare, batch_size=16, replicas=1, seed=0,
        first_step=0, last_step=6,
    ):  # fmt: skip
        real = batch["weight"] > 0
        stock.train_on_batch(batch["image"][real], batch["label"][real])
    assert toys.difference(stock, ours) <= BOUND


# --- layers of one's own, several model parts -----------------------------------------------------


class MinibatchDeviation(layers.Layer):
    """Minibatch standard deviation as an extra feature (Karras et al. 2018, section 3)."""

    def call(self, x):
        weights = zoo.row_weights(x)
        weights = ops.ones(ops.shape(x)[0]) if weights is None else weights
        count = ops.maximum(ops.sum(weights), 1.0)
        mean = ops.sum(weights[:, None] * x, 0) / count
        variance = ops.sum(weights[:, None] * ops.square(x - mean), 0) / count
        spread = ops.mean(ops.sqrt(variance + 1e-8))
        return ops.concatenate([x, ops.ones_like(x[:, :1]) * spread], -1)


def gan():
    keras.utils.set_random_seed(0)
    noise = keras.Input((3,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(12)(noise))
    x = layers.Dense(32, activation="tanh")(layers.ReLU()(x))
    generator = keras.Model(noise, layers.Reshape(SHAPE)(x), name="generator")
    image = keras.Input(SHAPE)
    x = layers.Dense(6)(layers.Flatten()(layers.BatchNormalization(name="norm")(image)))
    x = MinibatchDeviation(name="deviation")(x)
    discriminator = keras.Model(image, layers.Dense(1)(x), name="discriminator")
    from zoo.models.gan import GAN

    inputs = keras.Input((3,))
    return GAN(inputs, discriminator(generator(inputs)))


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_player_of_a_gan_sees_padding(replicas):
    """Covers real and generated batches, the statistics of both networks, and the metrics."""

    def with_noise(batch):
        generator = np.random.default_rng(1)
        for name in ("discriminator_noise", "noise"):
            batch[name] = generator.normal(size=(8, 3)).astype("float32")[: len(batch["weight"])]
        batch.pop("label")
        return batch

    def task():
        return GenerativeAdversarial(r1=0.1)

    padded = with_noise(short_batch(4 if replicas == 2 else 5))
    real = {k: v[padded["weight"] > 0] for k, v in padded.items()}
    one = updated(gan, real, task())
    other = updated(gan, padded, task(), replicas=replicas)
    assert toys.difference(one.net, other.net) <= BOUND
    logs = [step.means.logs(step.means.take()) for step in (one, other)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "task", "mixed"),
    [
        (gan, GenerativeAdversarial, (True, True)),
        (MODELS["plain"], ImageClassification, (False, True)),
        (MODELS["activity"], ImageClassification, (False, False)),
    ],
    ids=["gan", "norm", "activity"],
)
def test_a_step_tells_whether_its_layers_mix_rows(model, task, mixed):
    net = model()
    task = task()
    optimizers = [keras.optimizers.SGD(0.1) for _ in task.model_parts(net)]
    step = TrainStep(net, task, optimizers)
    batch = {"image": tf.TensorSpec((8, *SHAPE)), "weight": tf.TensorSpec((8,))}
    batch |= {name: tf.TensorSpec((8, 3)) for name in ("discriminator_noise", "noise")}
    batch |= {"label": tf.TensorSpec((8,), tf.int32)}
    rows = step.mixed_rows(batch)
    assert (rows.read, rows.synchronized) == mixed


def test_layers_inside_a_nested_context_count_for_the_one_around_it():
    x = tf.ones((2, 3))
    with zoo.use_row_weights(tf.ones(4)) as outer, zoo.use_row_weights(tf.ones(2)):
        zoo.row_weights(x)
        norm()(x, training=True)
    assert (outer.read, outer.synchronized) == (True, True)
    with zoo.use_row_weights(tf.ones(4)) as outer, zoo.use_row_weights(tf.ones(2)):
        norm()(x, training=True)
    assert (outer.read, outer.synchronized) == (False, True)


def test_a_layer_reads_the_weights_in_an_evaluation():
    from trainers.evaluation.means import Means, evaluate_batch

    model = classifier(layers.Flatten(), MinibatchDeviation())
    task, logs = ImageClassification(), []
    batch = short_batch(5)
    for data in (batch, {k: v[:5] for k, v in batch.items()}):
        means = Means(task)
        evaluate_batch(model, task, means, {k: tf.constant(v) for k, v in data.items()})
        logs.append(means.logs(means.take()))
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_other_rows_than_the_batch_has_are_refused():
    def positions_as_rows():
        image = keras.Input(SHAPE, name="image")
        x = layers.Lambda(lambda x: ops.reshape(x, (-1, 2)), output_shape=(2,))(image)
        x = norm()(x)
        x = layers.Lambda(lambda x: ops.reshape(x, (-1, 32)), output_shape=(32,))(x)
        return keras.Model(image, layers.Dense(2, activation="softmax")(x))

    with pytest.raises(UsageError, match="Received: 128 rows for a batch of 8"):
        updated(positions_as_rows, short_batch(5))


def test_blending_inside_a_network_is_refused():
    class Blends(keras.Sequential):
        pass

    model = lambda: Blends([keras.Input(SHAPE), layers.MixUp(), layers.Flatten(), layers.Dense(2)])  # noqa: E731
    with pytest.raises(UsageError, match="MixUp must not be inside a network"):
        updated(model, short_batch(5))


def test_ranges_of_eight_bits_are_those_of_real_rows():
    from zoo.layers.rounding import quantize

    def model():
        net = classifier(norm())
        quantize(net, decay=0.5)
        return net

    batch = short_batch(5)
    padded = updated(model, batch).net
    alone = updated(model, {k: v[:5] for k, v in batch.items()}).net
    assert toys.difference(alone, padded) <= BOUND
    ends = [v.numpy() for v in padded.weights if "input_max" in v.path]
    assert ends[0] < 100


def test_ranges_of_token_models_see_no_padding():
    """Tasks of token models define no row weights, so the pipeline adds the weights."""
    from zoo.data.pipeline import training_batches

    model = registry.build("gpt_nano", vocabulary_size=11, num_layers=1, hidden_dim=8, num_heads=1)
    task = registry.build_task("clm").bind(model)
    (batch,) = training_batches(
        task.synthetic(model, 5, 0), task.prepare, batch_size=4, replicas=1, seed=0, first_step=1,
        last_step=2,
    )  # fmt: skip
    np.testing.assert_array_equal(batch["weight"], [1, 0, 0, 0])


@pytest.mark.parametrize("frozen", [False, True])
def test_an_unfrozen_base_sees_no_padding(frozen):
    from zoo.layers.backbone import Backbone
    from zoo.models.transfer import TransferClassifier

    def model():
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPE)
        x = norm()(layers.Conv2D(4, 3, name="first")(inputs))
        base = Backbone(inputs, layers.Conv2D(4, 1)(layers.ReLU()(x)), name="base")
        base.get_layer("first").trainable = not frozen
        image = keras.Input(SHAPE, name="image")
        x = layers.Flatten(name="features")(base(image))
        return TransferClassifier(image, layers.Dense(2, activation="softmax")(x))

    batch = short_batch(5)
    reference, step = fitted(model, batch), updated(model, batch)
    assert toys.difference(reference, step.net) <= BOUND
    statistics_changed = np.abs(step.net.base.get_layer("norm").moving_mean.numpy()).max() > 0
    assert statistics_changed == (not frozen)
