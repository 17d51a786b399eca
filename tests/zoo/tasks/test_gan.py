"""GANs: generator and discriminator in one train step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from trainers.config.base import optimizer
from trainers.optimization.optimizers import inner
from trainers.run.workdir import read_metrics
from zoo import registry
from zoo.data import Dataset
from zoo.errors import UsageError
from zoo.tasks.gan import GenerativeAdversarial

TINY = {"noise_dim": 8, "hidden_dim": 16, "filters": 4}


def image_dataset(examples=70, name="gan_mnist", **tiny):
    model = registry.build(name, **(tiny or TINY))
    splits = {"train": GenerativeAdversarial().synthetic(model, examples, 0)}
    return Dataset("pictures", splits, (), f"pictures-{examples}")


def recipe(name="gan_mnist", model=None, task=None, **trainer):
    config = toys.recipe(
        name, "gan", model_arguments=model or TINY, task_arguments=task or {}, **trainer
    )
    config.optimizer = optimizer("adam", learning_rate=2e-3, beta_1=0.5)
    return config


def test_layer_for_layer():
    model = registry.build("gan_mnist")
    generator, discriminator = model.generator, model.discriminator
    assert (generator.count_params(), discriminator.count_params()) == (114_064, 212_865)
    assert generator.output_shape == (None, 28, 28, 1)
    assert discriminator.output_shape == (None, 1)
    kinds = [type(layer).__name__ for layer in discriminator.layers[1:]]
    assert kinds == ["Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Flatten", "Dense"]
    assert [type(layer).__name__ for layer in generator.layers[1:]] == ["Dense", "Dense", "Reshape"]
    assert generator.get_layer("pixels").activation is keras.activations.tanh
    assert generator.get_layer("hidden").activation is keras.activations.relu


@pytest.mark.parametrize("name", ["gan_mnist", "dcgan_mnist"])
def test_both_networks_come_back_from_a_file(name, tmp_path):
    model = registry.build(name, **registry.entry(name).tiny)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    noise = np.random.default_rng(0).standard_normal((3, 8)).astype("float32")
    images = model.generator(noise)
    np.testing.assert_array_equal(images, again.generator(noise))
    np.testing.assert_array_equal(model.discriminator(images), again.discriminator(images))
    assert float(np.abs(images).max()) <= 1


def batches(task, data, steps, size):
    """Returns the batches of a run from the pipeline."""
    from zoo.data import pipeline

    return pipeline.training_batches(
        data.splits["train"], task.prepare, batch_size=size, replicas=1, seed=0, first_step=0,
        last_step=steps,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["non_saturating", "hinge"])
def test_equal_to_the_loop_as_it_is_written_by_hand(run, loss):
    data, config = image_dataset(64), recipe(task={"loss": loss}, steps=6)
    config.optimizer = optimizer("sgd", learning_rate=0.002)  # Adam would enlarge rounding errors
    trainer = run(config, data)

    keras.utils.set_random_seed(0)
    model = registry.build("gan_mnist", **TINY)
    task = GenerativeAdversarial(loss).bind(model)
    sgd = [keras.optimizers.SGD(0.002, momentum=0.9) for _ in range(2)]
    mean = tf.reduce_mean
    for batch in batches(task, data, 6, 16):
        with tf.GradientTape() as tape:
            fake = model.discriminator(model.generator(batch["discriminator_noise"]))
            real = model.discriminator(batch["image"])
            if loss == "hinge":
                value = mean(tf.nn.relu(1 - real)) + mean(tf.nn.relu(1 + fake))
            else:
                value = mean(
                    tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(real), real)
                ) + mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.zeros_like(fake), fake))
        variables = model.discriminator.trainable_variables
        sgd[0].apply(tape.gradient(value, [v.value for v in variables]), variables)
        with tf.GradientTape() as tape:
            fake = model.discriminator(model.generator(batch["noise"]))
            if loss == "hinge":
                value = -mean(fake)
            else:
                value = mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(fake), fake))
        variables = model.generator.trainable_variables
        sgd[1].apply(tape.gradient(value, [v.value for v in variables]), variables)
    assert toys.difference(trainer.step.net, model) <= 1e-5


def test_the_penalty_is_the_slope_at_real_pictures():
    """Compares with finite differences in float64 on a smooth discriminator."""
    image = keras.Input((4, 4, 1), dtype="float64")
    x = keras.layers.Conv2D(3, 3, activation="tanh", dtype="float64")(image)
    x = keras.layers.Dense(1, dtype="float64")(keras.layers.Flatten(dtype="float64")(x))
    discriminator = keras.Model(image, x)
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 1))
    task = GenerativeAdversarial(r1=1.0)
    _, slopes = task._logits_and_gradients(
        discriminator, {"image": tf.constant(pixels), "weight": tf.ones(3)}, False
    )
    expected = np.zeros_like(pixels)
    for place in np.ndindex(4, 4):
        step = np.zeros((4, 4, 1))
        step[place] = 1e-5
        up, down = (np.asarray(discriminator(pixels + s))[:, 0] for s in (step, -step))
        expected[(slice(None), *place, 0)] = (up - down) / 2e-5
    np.testing.assert_allclose(slopes, expected, atol=1e-6)


def test_the_penalty_is_in_the_loss_and_has_its_gradient(run):
    """Compares the penalty's gradient with finite differences in a discriminator weight."""
    model = registry.build("dcgan_mnist", **registry.entry("dcgan_mnist").tiny)
    task, gamma = GenerativeAdversarial(r1=6.0).bind(model), 6.0
    data = image_dataset(8, "dcgan_mnist", **registry.entry("dcgan_mnist").tiny)
    (batch,) = list(batches(task, data, 1, 8))
    kernel = model.discriminator.get_layer("logit").kernel

    def loss():
        sums = task.forward(model, batch, training=False).sums
        return sum(c * sums[name] for name, c in task.terms.items() if name != "generator")

    with tf.GradientTape() as tape:
        tape.watch(kernel.value)
        total = loss()
    slope = np.asarray(tape.gradient(total, kernel.value))
    sums = task.forward(model, batch, training=False).sums
    assert float(total) == pytest.approx(
        float(sums["discriminator"]) + gamma / 2 * float(sums["r1"]), rel=1e-6
    )
    assert float(sums["r1"]) > 0
    start, way = kernel.numpy(), np.sign(slope) * 1e-2
    ends = []
    for sign in (1, -1):
        kernel.assign(start + sign * way)
        ends.append(float(loss()))
    kernel.assign(start)
    assert (ends[0] - ends[1]) / 2 == pytest.approx(float((slope * way).sum()), rel=0.02)


def test_each_player_has_its_optimizer_its_rate_and_the_generator_the_average(run):
    config = recipe(task={"discriminator_rate": 4.0}, ema=0.5)
    trainer = run(config, image_dataset())
    step = trainer.step
    first, second = step.optimizers
    for own, part in ((first, step.net.discriminator), (second, step.net.generator)):
        assert int(own.iterations.numpy()) == 10
        assert {v.path for v in own._trainable_variables} == {
            v.path for v in part.trainable_variables
        }
    assert float(first.learning_rate.numpy()) == pytest.approx(8e-3)
    assert float(second.learning_rate.numpy()) == pytest.approx(2e-3)
    line = [x for x in read_metrics(trainer.workdir.path) if "generator" in x][-1]
    assert line["learning_rate_discriminator"] == pytest.approx(8e-3)
    assert line["learning_rate_generator"] == pytest.approx(2e-3)
    assert not inner(first).use_ema
    before = [v.numpy() for v in step.net.trainable_variables]
    with step.averaged():
        changed = [
            np.abs(v.numpy() - b).max() > 0
            for v, b in zip(step.net.trainable_variables, before, strict=True)
        ]
    generators = {id(v) for v in step.net.generator.trainable_variables}
    assert changed == [id(v) in generators for v in step.net.trainable_variables]
    for v, b in zip(step.net.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), b)


def test_a_checkpoint_holds_both_optimizers(run, tmp_path):
    from trainers.run import checkpoint

    trainer = run(recipe(), image_dataset())
    variable_ids = {id(v) for v in checkpoint.variables_of(trainer.step)}
    for own in trainer.step.optimizers:
        assert {id(v) for v in own.variables} <= variable_ids


def test_the_noise_is_drawn_anew_for_each_player_and_step():
    data = image_dataset()
    task = GenerativeAdversarial().bind(registry.build("gan_mnist", **TINY))
    one, other = list(batches(task, data, 2, 16))
    noises = [np.asarray(b[k]) for b in (one, other) for k in ("noise", "discriminator_noise")]
    assert all(n.shape == (16, 8) for n in noises)
    flat = np.concatenate([n.ravel() for n in noises])
    assert len(np.unique(flat)) == len(flat)
    assert abs(flat.mean()) < 0.15
    assert 0.85 < flat.std() < 1.15
    again = next(iter(batches(task, data, 2, 16)))
    np.testing.assert_array_equal(again["noise"], one["noise"])


def test_noise_is_finite_at_the_ends():
    task = GenerativeAdversarial().bind(registry.build("gan_mnist", **TINY))
    for end in (0.0, 1 - 2**-23):
        batch = {"image": tf.zeros((2, 28, 28, 1), tf.uint8), "weight": tf.ones(2)}
        output = task.prepare(batch, lambda n, end=end: tf.fill((2, n), end), True)  # noqa: B023
        assert np.isfinite(output["noise"]).all()


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        ({"real_right": 1.0, "fake_right": 1.0, "margin": 9.0}, "the generator learns little"),
        ({"real_right": 0.5, "fake_right": 0.5, "margin": 1e-5}, "has collapsed"),
        ({"real_right": 0.9, "fake_right": 1.0, "margin": 3.0}, ""),
    ],
)
def test_warning_if_one_network_dominates(logs, message):
    warning = GenerativeAdversarial().warning(logs)
    assert message in warning
    assert bool(warning) == bool(message)


class ZeroLogits(keras.callbacks.Callback):
    """Sets the discriminator's output to 0."""

    def on_train_begin(self, logs=None):
        for variable in self.model.net.discriminator.get_layer("logit").weights:
            variable.assign(tf.zeros_like(variable.value))


def test_a_collapse_is_an_event_once(run):
    config = recipe(task={"discriminator_rate": 1e-9}, steps=20)
    trainer = run(config, image_dataset(), callbacks=[ZeroLogits()])
    events = [x for x in read_metrics(trainer.workdir.path) if x.get("event") == "warning"]
    assert len(events) == 1
    assert "has collapsed" in events[0]["detail"]


def test_samples_without_a_validation_split(run):
    trainer = run(recipe(steps=10, evaluate_every=5), image_dataset())
    lines = read_metrics(trainer.workdir.path)
    names = [line["picture"] for line in lines if line.get("event") == "sample"]
    assert names == ["samples/step_0000000005.png", "samples/step_0000000010.png"]
    from PIL import Image

    sheets = [np.asarray(Image.open(trainer.workdir / name)) for name in names]
    assert sheets[0].shape == (4 * 29 - 1, 16 * 29 - 1)
    assert (sheets[0] != sheets[1]).any()
    page = (trainer.workdir / "report.html").read_text()
    places = [page.index(x) for x in ("interpolation<", "<h3>step 10<", "<h3>step 5<")]
    assert places == sorted(places)


def test_a_damaged_sheet_becomes_a_note(run):
    from trainers.report.page import write_report

    trainer = run(recipe(steps=10, evaluate_every=5), image_dataset())
    (trainer.workdir / "samples" / "step_0000000005.png").write_bytes(b"no picture")
    page = write_report(trainer.workdir.path).read_text()
    assert "step_0000000005.png could not be read" in page
    assert "<h3>step 10<" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "wasserstein"}, "task.loss must be one of non_saturating, hinge"),
        ({"r1": -1.0}, "task.r1 must be 0"),
        ({"discriminator_rate": 0.0}, "task.discriminator_rate must be positive"),
        ({"samples": 3}, "task.samples must be at least 100"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        GenerativeAdversarial(**arguments)


def test_refused_models_and_data(run):
    with pytest.raises(UsageError, match="with a generator and a discriminator"):
        GenerativeAdversarial().bind(registry.build("cnn_classifier"))
    small = Dataset("small", {"train": {"image": np.zeros((9, 8, 8, 1), "uint8")}}, (), "small")
    with pytest.raises(UsageError, match=r"\(28, 28, 1\).*\(8, 8, 1\)"):
        GenerativeAdversarial().check(registry.build("gan_mnist", **TINY), small)


def test_slow_variables_of_one_player(run):
    """The pattern may match variables of one network; a pattern without a match is refused."""
    config = recipe(steps=1)
    config.optimizer.slow = "^convolution_1/"
    run(config, image_dataset())
    config.optimizer.slow = "^judge/"
    with pytest.raises(UsageError, match="slow must match a trainable variable"):
        run(config, image_dataset())


def test_no_best_model_is_saved(run):
    """The generator's loss is lowest before the discriminator has learned anything."""
    config = recipe(steps=4, evaluate_every=2)
    config.data.validation_size = 16
    trainer = run(config, image_dataset())
    assert any("val_generator" in line for line in read_metrics(trainer.workdir.path))
    assert not (trainer.workdir / "best").exists()
