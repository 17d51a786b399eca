"""Structured pruning: units with zero weights are removed without changing any output."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from tests import toys
from tests.trainers.compression.small_cnn import recipe
from tests.trainers.train.test_resume import assert_same_end, cut_at
from trainers.compression import structured, techniques
from trainers.compression.units import units
from trainers.config.compress import parse_widths
from trainers.train.init_from import initialize
from zoo import registry
from zoo.errors import UsageError
from zoo.layers.rounding import is_quantized

# Layers of each tiny model that lose half of their units.
HALVED = {
    "cnn_classifier": ["convolution_1", "convolution_2", "convolution_3", "hidden"],
    "gpt_nano": ["block_0/attention", "block_0/feed_forward"],
    "llama_nano": ["block_0/attention", "block_0/feed_forward"],
    "axial_image_nano": ["outer_0/attention", "outer_1/attention", "inner_0/feed_forward"],
    "axial_features_nano": ["block_1/attention", "block_1/feed_forward"],
    "bert_tiny": ["block_0/attention", "block_0/feed_forward", "pooler"],
    "longformer_nano": ["block_0/attention", "block_0/feed_forward"],
    "lstm_generator": ["embedding", "lstm_0", "lstm_1"],
    "transformer_tiny": [
        f"{side}_0/{part}"
        for side, parts in (
            ("encoder", ["attention", "feed_forward"]),
            ("decoder", ["attention", "cross_attention", "feed_forward"]),
        )
        for part in parts
    ],
}


def randomized(model, seed=0):
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(0.5 + generator.random(weight.shape))  # variances must be positive
            if not weight.path.endswith(("variance", "gamma")):
                weight.assign(generator.normal(size=weight.shape) * 0.2)
    return model


def zeroed(model, widths, seed=1):
    """Sets the weights of random units to zero, so that `widths` units keep their weights."""
    groups, generator = units(model)[0], np.random.default_rng(seed)
    for path, count in widths.items():
        removed_units = generator.permutation(groups[path].count)[count:]
        for cut in groups[path].cuts:
            value = np.moveaxis(cut.variable.numpy(), cut.axis, 0)
            value[cut.indices[removed_units].ravel()] = 0
            cut.variable.assign(np.moveaxis(value, 0, cut.axis))


def smaller(model, unit_counts):
    """Builds the smaller model as the trainer does, without a work directory."""
    widths = tuple(f"{path}={count}" for path, count in unit_counts.items())
    small = structured.build_smaller(model, widths)
    values = {v.path: v.value for v in model.weights} | structured.initial_values(widths, model)
    for variable in small.weights:
        variable.assign(values[variable.path])
    return small


def outputs(row, model):
    task = registry.build_task(row.task, **row.task_arguments)
    batch = {k: tf.constant(v[:2]) for k, v in task.synthetic(model, 4, 0).items()}
    task.bind(model, arguments=row.tiny)
    batch["weight"] = tf.ones(2)
    batch = task.prepare(batch, lambda n: tf.random.stateless_uniform((2, n), (0, 0)), False)
    return keras.tree.flatten(task.forward(model, batch, False).outputs)


@pytest.mark.parametrize(
    ("name", "arguments"),
    # LSH sees all pairs, because a chunk is longer than the sequence.
    [*((name, {}) for name in HALVED), ("gpt_nano", {"attention": "lsh:1:64,window:4"})],
)
def test_units_without_weights_go_and_nothing_changes(name, arguments, tmp_path):
    """Checks the model and its file, which plain Keras opens."""
    row = registry.entry(name)
    model = randomized(registry.build(name, **{**row.tiny, **arguments}))
    widths = structured.decide(model, 0.5, "")
    assert set(HALVED[name]) <= set(widths)
    groups = units(model)[0]
    assert {path: 2 * count for path, count in widths.items()} == {
        p: groups[p].count for p in widths
    }
    zeroed(model, widths)
    small = smaller(model, widths)
    assert {path: its.count for path, its in units(small)[0].items()} == widths
    assert small.count_params() < 0.75 * model.count_params()
    small.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = outputs(row, model)
    for net in (small, again):
        for one, other in zip(expected, outputs(row, net), strict=True):
            assert np.ptp(one) > 1e-3
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_experts_stay_and_are_named():
    row = registry.entry("moe_nano")
    model = randomized(registry.build(row.name, **row.tiny))
    widths = structured.decide(model, 0.5, "")
    assert widths == {"block_0/attention": 1, "block_1/attention": 1}
    assert "is a mixture of experts" in units(model)[1]["block_0/feed_forward"]
    zeroed(model, widths)
    for one, other in zip(outputs(row, model), outputs(row, smaller(model, widths)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_units_with_the_smallest_norms_go():
    """Norms by hand, over a filter's kernel and the dense kernel rows that read its outputs."""
    row = registry.entry("cnn_classifier")
    model = randomized(registry.build(row.name, **row.tiny))
    convolution = model.get_layer("convolution_3").kernel.numpy()
    hidden = model.get_layer("hidden").kernel.numpy()
    read = hidden.reshape(-1, convolution.shape[-1], hidden.shape[-1])  # points, filters, units
    norms = np.sqrt((convolution**2).sum((0, 1, 2)) + (read**2).sum((0, 2)))
    stay = sorted(np.argsort(norms)[-5:])
    np.testing.assert_allclose(units(model)[0]["convolution_3"].norms(), norms, rtol=1e-6)
    small = smaller(model, {"convolution_3": 5})
    np.testing.assert_array_equal(small.get_layer("convolution_3").kernel, convolution[..., stay])
    small_hidden = small.get_layer("hidden").kernel.numpy().reshape(-1, 5, hidden.shape[-1])
    np.testing.assert_array_equal(small_hidden, read[:, stay])


def every_kind():
    """Returns a model with norms, poolings, branches and layers whose units cannot be removed."""
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="convolution")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.AveragePooling2D(2)(layers.ZeroPadding2D()(x))
    left = layers.Conv2D(4, 3, padding="same", name="left")(x)
    right = layers.Conv2D(4, 1, name="right")(x)
    x = layers.Add(name="sum")([left, right])
    x = layers.Conv2D(8, 3, activation="relu", name="last")(x)
    pooled = layers.GlobalAveragePooling2D()(x)
    rows = layers.Reshape((-1, 8), name="rows")(x)
    x = layers.Dense(5, name="gate", activation="softmax")(pooled)
    x = layers.Dense(6, name="dense")(x)
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = layers.Dropout(0.5)(layers.Activation("tanh")(x))
    x = layers.Dense(6, name="between")(x)
    shared = layers.Dense(6, name="shared")
    x = layers.Dense(3, name="out")(shared(shared(x)))
    outputs = {"x": x, "rows": layers.LSTM(4, return_state=True, name="state")(rows)[1]}
    return keras.Model(image, outputs, name="kinds")


def test_through_norms_and_branches():
    model = randomized(every_kind())
    groups, whole = units(model)
    assert {path: its.count for path, its in groups.items()} == {"convolution": 6, "dense": 6}
    axes = [(c.variable.path, c.axis) for c in groups["convolution"].cuts]
    assert axes == [
        ("convolution/kernel", 3), *((f"norm/{w}", 0) for w in
        ("gamma", "beta", "moving_mean", "moving_variance")), ("left/kernel", 2),
        ("right/kernel", 2),
    ]  # fmt: skip
    assert {path: reason.partition(",")[0] for path, reason in whole.items()} == {
        "left": "the units are inputs of sum",
        "right": "the units are inputs of sum",
        "last": "the units are inputs of rows",
        "gate": "the activation",
        "between": "shared is called more than once",
        "shared": "shared is called more than once",
        "out": "the output of out is an output of the model kinds",
        "state": "the state is used outside of the layer",
    }
    widths = {"convolution": 2}
    zeroed(model, widths)
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype("float32")
    for one, other in zip(
        model(image).values(), smaller(model, widths)(image).values(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
    both = smaller(model, {"dense": 2, "convolution": 5})
    assert both.get_layer("layer_norm").gamma.shape == (2,)
    assert both.get_layer("left").kernel.shape == (3, 3, 5, 4)


def test_a_frozen_base_keeps_its_units():
    row = registry.entry("vgg16_transfer")
    model = registry.build(row.name, **row.tiny)
    assert structured.decide(model, 0.25, "") == {"hidden": 6}
    with pytest.raises(
        UsageError, match="No unit can be removed. block1_conv1: the layer is frozen"
    ):
        structured.decide(model, 0.25, "block1_conv1")
    small = smaller(model, {"hidden": 6})
    assert type(small) is type(model)
    trainable_layers = [v.path.partition("/")[0] for v in small.trainable_variables]
    assert trainable_layers == ["hidden"] * 2 + ["probabilities"] * 2
    assert units(model)[0].keys() >= {"block1_conv1", "block5_conv2"}  # if the base is trainable
    assert "an output of the model base" in units(model)[1]["block5_conv3"]


def test_the_trainer_starts_from_what_stays_and_resumes_exactly(digits, run, tmp_path, capsys):
    data = toys.image_data(side=20)
    settings = {"init_from": digits, "sparsity": 0.5, "pattern": "convolution_[12]"}
    end = run(recipe("structured", settings), data, tmp_path / "small")
    message = capsys.readouterr().err
    assert "10 of 10 weights" in message
    assert "of another shape" not in message
    saved = json.loads((tmp_path / "small" / "config.json").read_text())
    widths = saved["config"]["compress"]["structured"]["widths"]
    assert widths == ["convolution_1=2", "convolution_2=4"]
    loaded = zoo.load(tmp_path / "small")
    assert toys.difference(loaded, end.step.net) == 0
    plain = keras.saving.load_model(tmp_path / "small" / "model.keras", safe_mode=True)
    assert plain.get_layer("convolution_2").kernel.shape == (3, 3, 2, 4)
    cut_at(tmp_path / "small", tmp_path / "parts", 5)
    run(recipe("structured", settings), data, tmp_path / "parts")
    assert_same_end(tmp_path / "small", tmp_path / "parts")

    # More units of another layer are removed; removed units are not added again.
    again = {"init_from": str(tmp_path / "small"), "sparsity": 0.25, "pattern": "_2|hidden"}
    twice = run(recipe("structured", again), data)
    expected_widths = {"convolution_1": 2, "convolution_2": 3, "convolution_3": 8, "hidden": 6}
    assert {path: its.count for path, its in units(twice.step.net)[0].items()} == expected_widths
    assert "10 of 10 weights" in capsys.readouterr().err
    for settings, changed in (({"keep": True}, {}), ({"widths": ("hidden=5",)}, {"hidden": 5})):
        settings = {"init_from": str(twice.workdir.path), "sparsity": 0.25, **settings}
        config = recipe("structured", settings)
        techniques.resolve(config, tmp_path / "new")
        before = {"convolution_1": 2, "convolution_2": 3, "hidden": 6}
        assert parse_widths(config.compress.structured.widths) == {**before, **changed}


def test_a_start_begins_with_the_units_that_matter(digits):
    model = zoo.load(digits)
    widths = ("convolution_1=2", "hidden=3")
    small = structured.build_smaller(model, widths)
    config = recipe("structured", {"init_from": digits, "widths": widths})
    assert "10 of 10 weights" in initialize(small, digits, config=config)
    norms = units(model)[0]["hidden"].norms()
    bias = model.get_layer("hidden").bias.numpy()[sorted(np.argsort(norms)[-3:])]
    np.testing.assert_array_equal(small.get_layer("hidden").bias, bias)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"compress.structured.sparsity must be in \[0, 1\)"),
        ({"sparsity": -0.5}, "compress.structured.sparsity must be in"),
        ({"sparsity": 0.9}, "removes all 4 units of convolution_1"),
        ({"sparsity": 0.01}, "must remove at least one unit of a layer"),
        ({"sparsity": 0.5, "pattern": "kernal"}, "pattern matches nothing.*convolution_1"),
        ({"sparsity": 0.5, "pattern": "prob"}, "the output of probabilities is an output of"),
        ({"sparsity": 0.5, "pattern": "("}, "must be a regular expression"),
        ({"widths": ("hidden",)}, "must contain PATH=UNITS"),
        ({"widths": ("hidden=0",)}, "must contain PATH=UNITS"),
        (
            {"widths": ("hiden=3",)},
            "must not exceed the 0 units of hiden. Received: hiden=3; layers with",
        ),
        ({"widths": ("hidden=9",)}, "must not exceed the 8 units of hidden. Received: hidden=9"),
        ({"widths": ("probabilities=2",)}, "No unit of probabilities can be removed"),
    ],
)
def test_what_cannot_be_removed_is_refused(settings, message, digits, run, tmp_path):
    config = recipe("structured", {"init_from": digits, **settings})
    with pytest.raises(UsageError, match=message):
        run(config, toys.image_data(side=20), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_of_ones_own_are_named():
    model = toys.token_model()
    with pytest.raises(UsageError, match="block_0/up: the layer is inside a custom layer, a Block"):
        structured.decide(model, 0.5, "block_0/up")


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_a_chain_keeps_the_widths(chain, zoo_command):
    result = chain("structured+qat")
    filters = [model.get_layer("convolution_2").filters for model in (result.first, result.last)]
    assert filters == [32, 32]
    assert (is_quantized(result.first), is_quantized(result.last)) == (False, True)
    before, after = result.summary["before"], result.summary["after"]
    assert after["parameters"] == result.first.count_params() < 0.27 * 93_322
    assert after["bytes"] < 0.12 * before["bytes"]  # of LiteRT files
    assert zoo_command("evaluate", result.out).status == 0
