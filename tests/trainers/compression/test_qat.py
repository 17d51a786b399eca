"""Quantization-aware training equals TF-MOT's, in all trainer settings and in files."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from tests import toys
from tests.commands import ROOT
from tests.trainers.train.test_resume import cut_at
from trainers.compression.prune import sparsities
from trainers.config.base import optimizer
from trainers.optimization.precision import precision
from zoo import registry
from zoo.errors import RunError, UsageError
from zoo.layers.backbone import Backbone
from zoo.layers.rounding import is_quantized, quantize, rounded_kernels, update_kernel_ranges

FAKE_QUANT = tf.quantization.fake_quant_with_min_max_vars


def recipe(model="toy_tokens", task="toy_token", arguments=None, compress=None, **trainer):
    config = toys.recipe(model, task, model_arguments=arguments, **trainer)
    config.optimizer = optimizer("adam", learning_rate=0.01)
    config.compress.update({"qat": {"on": True, "decay": 0.5}, **(compress or {})})
    return config


def ranges(model):
    return {v.path: v.numpy() for v in model.non_trainable_weights if "_ranges/" in v.path}


def off_the_grid(values, step):
    """Returns distances to the nearest multiple, in steps; the 8-bit grid contains 0."""
    places = np.asarray(values) / step
    return np.abs(places - np.round(places)).max()


def image_model():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="convolution")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="second")(x)
    x = layers.Add(name="sum")([x, y])
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(5, activation="gelu", name="hidden")(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="probabilities")(x))


def test_what_rounds_is_what_tf_mot_rounds():
    """Rounded are kernels, the network's input, and outputs into which no layer is folded."""
    model = image_model()
    assert quantize(model) == [
        "convolution", "norm", "relu", "second", "sum", "mean", "hidden", "probabilities",
    ]  # fmt: skip
    names = sorted(ranges(model))
    ends = [name.removesuffix("_min") for name in names if name.endswith("_min")]
    assert ends == [
        "convolution_ranges/input", "convolution_ranges/kernel", "hidden_ranges/before_activation",
        "hidden_ranges/kernel", "hidden_ranges/output", "mean_ranges/output",
        "probabilities_ranges/before_activation", "probabilities_ranges/kernel",
        "relu_ranges/output", "second_ranges/kernel", "second_ranges/output", "sum_ranges/output",
    ]  # fmt: skip
    shapes = {name: value.shape for name, value in ranges(model).items()}
    assert shapes["convolution_ranges/kernel_min"] == (4,)  # one range per channel
    assert shapes["hidden_ranges/kernel_min"] == ()


def test_kernels_and_outputs_lie_on_the_grid():
    model = image_model()
    quantize(model, decay=0.5)
    model(np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32"), training=True)
    range_values = ranges(model)
    image = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")
    output = keras.Model(model.input, model.get_layer("sum").output)(image).numpy()
    low, high = range_values["sum_ranges/output_min"], range_values["sum_ranges/output_max"]
    step = (high - low) / 255
    assert off_the_grid(output, step) < 1e-3
    assert len(np.unique(np.round(output / step))) > 20
    assert output.max() <= high + step
    with rounded_kernels(model):
        kernel = model.get_layer("hidden").kernel.numpy()
        high = range_values["hidden_ranges/kernel_max"]
        assert off_the_grid(kernel, high / 127) < 1e-3
        assert not is_quantized(model)
    assert is_quantized(model)
    assert np.abs(kernel - model.get_layer("hidden").kernel.numpy()).max() > 0


def test_bfloat16_trains_the_integers_of_the_file():
    """Kernels are rounded from their float32 values, as in the file, not from bfloat16."""
    with precision("mixed_bfloat16"):
        image = keras.Input((64,))
        model = keras.Model(image, layers.Dense(64, use_bias=False, name="only")(image))
    quantize(model)
    layer, kernels = model.get_layer("only"), []
    kernel = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    layer.kernel.assign(kernel)
    plain = layer.call.original_call
    layer.call.original_call = lambda *a, **k: kernels.append(layer.kernel.value) or plain(*a, **k)
    model(np.ones((1, 64), "float32"), training=True)
    step = np.abs(kernel).max() / 127
    assert ranges(model)["only_ranges/kernel_max"] == np.abs(kernel).max()
    assert kernels[0].dtype == tf.bfloat16
    with rounded_kernels(model):
        integers = np.round(layer.kernel.numpy() / step)
    np.testing.assert_array_equal(np.round(kernels[0].numpy().astype("float32") / step), integers)


def with_open_ends(inputs, min, max, num_bits, narrow_range):
    """TensorFlow's rounding, with gradients up to 1 % of the range beyond its ends.

    TensorFlow moves a range's ends by up to half a step and gives no gradient beyond them. So the
    last bit of an output near an end of its moving range decides whether it has one: after ten
    updates the weights of bfloat16 are 0.31 away from those of float32, and 0.037 with open ends
    (0.31 where only kernels' ranges have them).
    """
    values = FAKE_QUANT(inputs, min, max, num_bits=num_bits, narrow_range=narrow_range)
    low, high = tf.convert_to_tensor(min), tf.convert_to_tensor(max)
    beyond = 0.01 * (high - low)
    inside = (inputs >= low - beyond) & (inputs <= high + beyond)
    passed = tf.where(inside, inputs, 0.0)
    return passed + tf.stop_gradient(values - passed)


@pytest.mark.parametrize(
    "trainer",
    [
        {"precision": "mixed_bfloat16"},
        {"jit_compile": True},
        {"steps_per_execution": 5},
        {"remat": "block_.*"},
        {"micro_batch_size": 4},
        {"strategy": "mirrored", "replicas": 2},
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_every_setting_trains_much_the_same(trainer, run, trained_once, monkeypatch):
    """Micro-batches and replicas have separate ranges, so results are close, not equal."""
    train_plain = trained_once
    if "precision" in trainer:
        train_plain = run
        monkeypatch.setattr(tf.quantization, "fake_quant_with_min_max_vars", with_open_ends)
    configs = [recipe(**settings) for settings in ({}, trainer)]
    for config in configs:
        config.optimizer = optimizer("sgd", learning_rate=0.1)
    data = toys.token_data()
    plain, other = train_plain(configs[0], data), run(configs[1], data)
    same = trainer.keys() & {"steps_per_execution", "remat"}
    bound = 1e-6 if same else 0.4 if "micro_batch_size" in trainer else 0.1
    counts = [
        {v.path: v for v in done.step.net.weights if v.path.endswith("_updates")}
        for done in (plain, other)
    ]
    # Of the 40 micro-batches, two in each short last batch (6 of 16 rows) have only padding.
    passes = 36 if "micro_batch_size" in trainer else 10
    for path, variable in counts[1].items():
        assert counts[0][path].numpy() == 10
        assert variable.numpy() == passes
        variable.assign(10)
    assert toys.difference(plain.step.net, other.step.net) <= bound
    before = quantized_start()
    for path, value in ranges(other.step.net).items():
        assert np.abs(value - before[path]).max() > 0, path  # the value has changed
        if same:
            np.testing.assert_allclose(value, ranges(plain.step.net)[path], atol=1e-5)


def quantized_start():
    config = recipe()
    arguments = config.model.to_dict()
    model = registry.build(arguments.pop("name"), **arguments)
    quantize(model)
    return ranges(model)


@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_run_has_the_same_ranges(stop, run, trained_once, tmp_path):
    config = recipe(checkpoint_every=1, keep=9)
    whole = trained_once(config, toys.token_data())
    parts = cut_at(whole.workdir.path, tmp_path / "parts", stop)
    resumed = run(config, toys.token_data(), parts)
    assert toys.difference(whole.step.net, resumed.step.net) == 0
    for path, value in ranges(resumed.step.net).items():
        np.testing.assert_array_equal(value, ranges(whole.step.net)[path])


def test_averaged_weights_have_their_own_ranges(run):
    done = run(recipe(ema=0.5), toys.token_data())
    saved = zoo.load(done.workdir.path)
    range_values = ranges(saved)
    for layer, rounding in ((x, x.call) for x in saved._flatten_layers() if hasattr(x, "kernel")):
        (variable, *_), path = rounding.kernels[0], layer.path.replace("/", "_")
        largest = np.abs(variable.numpy()).max()
        assert range_values[f"{path}_ranges/kernel_max"] == pytest.approx(largest), path
    plain = done.step.net.get_layer("logits").kernel.numpy()
    assert np.abs(plain - saved.get_layer("logits").kernel.numpy()).max() > 0


def test_zeros_stay_where_pruning_put_them(run, tmp_path):
    first = run(
        recipe(compress={"prune": {"sparsity": 0.5, "frequency": 2}, "qat": {"on": False}}),
        toys.token_data(), tmp_path / "pruned",
    )  # fmt: skip
    config = recipe(compress={"prune": {"keep_zeros": True}})
    config.init_from = str(tmp_path / "pruned")
    second = run(config, toys.token_data())
    zeros = {v.path: v.numpy() == 0 for v in first.step.net.trainable_variables}
    for variable in second.step.net.trainable_variables:
        if variable.path in sparsities(first.step.net):
            assert zeros[variable.path].mean() == pytest.approx(0.5, abs=0.01)
            np.testing.assert_array_equal(variable.numpy() == 0, zeros[variable.path])
            start = next(v for v in first.step.net.weights if v.path == variable.path)
            assert np.abs(variable.numpy() - start.numpy()).max() > 0


def test_generation_computes_what_the_model_does():
    """Decoding one token at a time uses the rounded kernels and outputs, too."""
    from zoo.generation.decoding import project

    keras.utils.set_random_seed(0)
    model = registry.build(
        "gpt_nano", vocabulary_size=20, sequence_length=8, num_layers=1, hidden_dim=8, num_heads=1
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    embedding = model.get_layer("embedding")
    before = project(embedding, x).numpy()
    quantize(model)
    update_kernel_ranges(model)
    after = project(embedding, x).numpy()
    assert np.abs(before - after).max() > 1e-4
    np.testing.assert_allclose(after, embedding(x, reverse=True).numpy(), rtol=1e-6)


def test_what_learns_nothing_stays_as_it_is():
    model = image_model()
    model.get_layer("second").trainable = model.get_layer("norm").trainable = False
    names = quantize(model)
    assert "second" not in names
    assert "norm" not in names


def test_a_base_that_is_partly_frozen_stays_as_it_is():
    """A partly frozen base runs in inference mode, in which ranges are not updated."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(image)
    x = layers.Conv2D(4, 3, name="last")(layers.ReLU(name="relu")(x))
    base = Backbone(image, x, name="base")
    x = layers.GlobalAveragePooling2D(name="mean")(base(image))
    model = keras.Model(image, layers.Dense(3, name="head")(x))
    base.get_layer("first").trainable = False
    assert quantize(model) == ["mean", "head"]
    base.trainable = False
    again = keras.Model(image, layers.Dense(3, name="other")(model.get_layer("mean").output))
    assert quantize(again) == ["other"]


def test_kernels_have_their_own_ranges_from_the_start():
    model = image_model()
    quantize(model)
    update_kernel_ranges(model)
    for layer in (model.get_layer(name) for name in ("second", "hidden")):
        largest = np.abs(layer.kernel.numpy()).max()
        kernel_max = ranges(model)[f"{layer.name}_ranges/kernel_max"]
        assert kernel_max.max() == pytest.approx(largest)


@pytest.mark.parametrize(
    ("decay", "words"), [(0.0, "must be in"), (1.0, "must be in"), (-1.0, "must be in")]
)
def test_a_decay_out_of_bounds(decay, words, run, tmp_path):
    with pytest.raises(UsageError, match=f"compress.qat.decay {words}"):
        run(
            recipe(compress={"qat": {"on": True, "decay": decay}}),
            toys.token_data(),
            tmp_path / "x",
        )
    assert not (tmp_path / "x").exists()


def test_a_model_without_kernels():
    image = keras.Input((8,))
    model = keras.Model(image, layers.LayerNormalization()(image), name="bare")
    with pytest.raises(UsageError, match="No quantizable trainable layer in model 'bare'"):
        quantize(model)


@pytest.mark.slow
def test_it_learns_as_tf_mot_does():
    """Losses, weights and predictions of 120 updates equal those of TF-MOT bit for bit."""
    code = "import json\nfrom tests.official_qat import compare\nprint(json.dumps(compare()))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert differences.pop("learned") > 1
    assert differences == {"loss": 0.0, "weights": 0.0, "predictions": 0.0}


def test_a_model_inside_another_keeps_its_ranges(tmp_path):
    """Tests a classifier inside a model with preprocessing, saved and opened again."""
    from trainers.run.workdir import save_model
    from zoo.saved.model import open_model

    model = registry.build("cnn_classifier", num_classes=3, filters=(2, 2, 2))
    quantize(model)
    serving_model = registry.build_task("image_classification").serving_model(model)
    save_model(serving_model, tmp_path / "model.keras")
    opened = open_model(tmp_path / "model.keras")
    assert is_quantized(opened)
    image = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1)).astype("uint8")
    np.testing.assert_array_equal(opened(image), serving_model(image))


def test_ranges_of_a_short_run_are_those_of_the_outputs(tmp_path):
    """After 20 updates with outputs in [0, 0.8], the file uses almost all of its 256 levels."""
    from trainers.run.workdir import save_model
    from zoo.saved.model import open_model

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4, activation="relu", name="only")(inputs))
    quantize(model, decay=0.99)
    model.get_layer("only").kernel.assign(np.eye(4))
    update_kernel_ranges(model)
    batches = np.random.default_rng(0).uniform(0, 0.8, (20, 16, 4)).astype("float32")
    batches[0] *= 0.5  # the first batch must not have a larger weight than the others
    for batch in batches:
        model(batch, training=True)
    save_model(model, tmp_path / "model.keras")
    loaded = open_model(tmp_path / "model.keras")
    range_values = ranges(loaded)
    weights = 0.99 ** np.arange(19, -1, -1)
    expected = np.sum(weights * batches.max((1, 2))) / np.sum(weights)
    assert range_values["only_ranges/output_max"] == pytest.approx(expected, abs=0.005)
    assert range_values["only_ranges/output_min"] == pytest.approx(0, abs=1e-5)
    values = np.linspace(0, 0.8, 1000, dtype="float32")[:, None] * np.ones(4, "float32")
    assert len(np.unique(loaded(values))) > 240


def test_a_file_of_tokens_is_compared_with_the_kernels_that_it_holds(tmp_path, monkeypatch):
    """Ranges that clip outputs do not affect the file; a wrong scale of a kernel does."""
    from tests.trainers.compress_jobs.test_ptq import loaded_run
    from trainers.export import formats as export
    from trainers.export.saved_model import structure_inputs

    run = loaded_run("bert_tiny")
    quantize(run.model)
    update_kernel_ranges(run.model)
    examples = run.examples()
    run.model(structure_inputs(run.model, examples), training=True)
    for variable in run.model.non_trainable_weights:
        if variable.path.endswith(("nsp_ranges/output_min", "nsp_ranges/output_max")):
            variable.assign(variable / 2)
    path = str(tmp_path / "model.tflite")
    written = export.write_checked(run.model, run.task, examples, "litert", path)
    assert written["largest_difference"] > export.TOLERANCE_ROUNDED  # from the rounded model
    write, kernel = export.WRITERS["litert"], run.model.get_layer("nsp").kernel

    def scaled(model, out, inputs):
        value = kernel.numpy()
        kernel.assign(1.2 * value)
        write(model, out, inputs)
        kernel.assign(value)

    monkeypatch.setitem(export.WRITERS, "litert", scaled)
    with pytest.raises(RunError, match="outputs of the exported model differ by 0.2"):
        export.write_checked(run.model, run.task, examples, "litert", path)


def test_the_file_of_a_token_model_holds_the_trained_integers(tmp_path):
    """Each kernel is rounded once: its values are the file's integers times their scale."""
    from tests.litert_files import constants
    from tests.trainers.compress_jobs.test_ptq import loaded_run
    from trainers.export import formats as export
    from trainers.export.saved_model import structure_inputs

    run = loaded_run("gpt_nano")
    size = {"vocabulary_size": 80, "hidden_dim": 32, "num_layers": 1}
    keras.utils.set_random_seed(1)
    run.model = registry.build("gpt_nano", **{**registry.entry("gpt_nano").tiny, **size})
    quantize(run.model)
    update_kernel_ranges(run.model)
    examples = run.examples()
    for _ in range(20):
        run.model(structure_inputs(run.model, examples), training=True)
    path = tmp_path / "model.tflite"
    written = export.write_checked(run.model, run.task, examples, "litert", str(path))
    assert written["largest_difference"] < 0.05
    file_kernels = [values * scales for values, scales in constants(path) if values.dtype == "int8"]
    with rounded_kernels(run.model):
        trained = {v.path: v.numpy() for v in run.model.trainable_variables if v.ndim == 2}
    trained = {path: value for path, value in trained.items() if value.size >= 1024}
    assert (
        len(file_kernels) == len(trained) == 5
    )  # the embedding, which also computes the logits, counts once
    for path, value in trained.items():
        gaps = [
            np.abs(x - one).max()
            for x in file_kernels
            for one in (value, value.T)
            if x.shape == one.shape
        ]
        assert min(gaps) < 1e-6, path


def test_kernels_of_token_models_have_one_scale_in_their_file():
    """Training rounds tied and untied kernels with one scale; other models have one per output."""
    from trainers.export import litert

    arguments = {**registry.entry("gpt_nano").tiny, "tie_weights": False, "num_layers": 1}
    model = registry.build("gpt_nano", **arguments)
    assert not litert.needs_single_scale(model, "dynamic")
    quantize(model)
    assert litert.needs_single_scale(model, "dynamic")
    images = image_model()
    quantize(images)
    assert not litert.needs_single_scale(images, "dynamic")
