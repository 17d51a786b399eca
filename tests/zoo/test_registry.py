"""The registry, the rows of the catalog, and `zoo describe`."""

import inspect
import json
import math

import keras
import numpy as np
import pytest

import zoo
from trainers.cli.main import main
from trainers.config.recipe import list_recipes, load_recipe, recipes_of
from zoo import registry
from zoo.catalog import CATALOG
from zoo.description import build_abstract
from zoo.errors import UsageError

# Layers of the classifier: name, class, output shape, parameters counted by hand.
CNN = (
    ("image", "InputLayer", (28, 28, 1), 0),
    ("convolution_1", "Conv2D", (26, 26, 32), 3 * 3 * 1 * 32 + 32),
    ("pooling_1", "MaxPooling2D", (13, 13, 32), 0),
    ("convolution_2", "Conv2D", (11, 11, 64), 3 * 3 * 32 * 64 + 64),
    ("pooling_2", "MaxPooling2D", (5, 5, 64), 0),
    ("convolution_3", "Conv2D", (3, 3, 64), 3 * 3 * 64 * 64 + 64),
    ("flatten", "Flatten", (576,), 0),
    ("hidden", "Dense", (64,), 576 * 64 + 64),
    ("probabilities", "Dense", (10,), 64 * 10 + 10),
)
# Two operations per multiply-add: outputs x inputs of each.
CNN_FLOPS = 2 * (
    26 * 26 * 32 * 9 + 11 * 11 * 64 * 9 * 32 + 3 * 3 * 64 * 9 * 64 + 576 * 64 + 64 * 10
)


def small(units=2, name="small"):
    image = keras.Input((3,), name="x")
    return keras.Model(image, keras.layers.Dense(units, name="dense")(image), name=name)


@pytest.fixture
def register(monkeypatch):
    """Returns `zoo.register`, whose effects end with the test."""
    monkeypatch.setattr(registry, "_models", dict(registry._models))
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    return zoo.register


@pytest.mark.parametrize(
    ("pattern", "task", "expected"),
    [
        ("cnn*", None, ["cnn_classifier"]),
        ("*", "image_classification", ["cnn_classifier"]),
        ("cnn_classifier", "image_classification", ["cnn_classifier"]),
        ("no_such_*", None, []),
        ("CNN*", None, []),
    ],
)
def test_list_takes_a_pattern_and_a_task(pattern, task, expected):
    assert [n for n in zoo.list_models(pattern, task) if n.startswith("cnn_")] == expected


def test_list_is_sorted_and_whole(register):
    register("aaa_first", small, "image_classification")
    names = zoo.list_models()
    assert names == sorted(names)
    catalog = {row.name for row in CATALOG}
    assert len(catalog) == len(CATALOG), "a name occurs twice in the catalog"
    assert {"aaa_first", *catalog} <= set(names)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zoo.build("cnn_clasifier"), ["'cnn_clasifier'", "Did you mean 'cnn_classifier'"]),
        (lambda: zoo.describe("cnn"), ["No model is named 'cnn'", "zoo list"]),
        (lambda: zoo.list_models(task="image_clasification"), ["Did you mean 'image_classifi"]),
        (lambda: registry.build_task("images"), ["No task is named 'images'", "Known: "]),
        (
            lambda: zoo.build("cnn_classifier", num_clases=3),
            ["has no argument 'num_clases'", "Did you mean 'num_classes'", "hidden_dim"],
        ),
        (
            lambda: registry.build_task("image_classification", label_smooting=0.1),
            ["has no argument 'label_smooting'", "Did you mean 'label_smoothing'"],
        ),
        (
            lambda: zoo.build("cnn_classifier", filters=(8, 8)),
            ["filters must be of type tuple[int, int, int] from 0", "Received: (8, 8)"],
        ),
        (lambda: zoo.build("cnn_classifier", filters=(8, 8, 8, 8)), ["Received: (8, 8, 8, 8)"]),
        (lambda: zoo.build("cnn_classifier", name=None), ["must be of type str. Received: None"]),
        (lambda: zoo.build(3), ["No model is named 3"]),
        (lambda: registry.entry(["cnn_classifier"]), ["No model is named ['cnn_classifier']"]),
        (lambda: registry.build_task(None), ["No task is named None"]),
        (lambda: zoo.build("dcgan_mnist", noise_dim=0), ["noise_dim must be at least 1. Received"]),
        (lambda: zoo.describe("cnn_classifier", 0), ["batch_size must be an integer >= 1"]),
        (lambda: zoo.data.load(None), ["The name of a dataset must be a string. Received: None"]),
        (lambda: zoo.data.load("folder:x", image_size=28), ["(224, 224). Received: 28"]),
        (lambda: zoo.build("cnn_classifier", input_shape=(8, 8, 1)), ["cannot be built"]),
        (lambda: zoo.build("cnn_classifier", num_classes=0), ["cannot be built", "num_classes=0"]),
    ],
)
def test_a_wrong_name_or_value_is_answered_with_the_way_out(call, words):
    with pytest.raises(UsageError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_sizes_may_be_numbers_of_numpy():
    model = zoo.build("cnn_classifier", num_classes=np.int64(3), hidden_dim=np.int32(4))
    assert model.output_shape == (None, 3)


def test_a_name_is_registered_once(register):
    register("mine", small, "image_classification")
    for name in ("mine", "cnn_classifier"):
        with pytest.raises(UsageError, match=f"registered only once. Received: '{name}'"):
            register(name, small, "image_classification")
    zoo.register_task("my_task", object)
    for name in ("my_task", "image_classification"):
        with pytest.raises(UsageError, match=f"registered only once. Received: '{name}'"):
            zoo.register_task(name, object)


def test_a_users_model_is_built_by_name(register):
    register("mine", small, "image_classification", arguments={"units": 5}, parameters=20)
    assert zoo.build("mine").count_params() == 20
    assert zoo.build("mine", units=1, name="other").name == "other"
    assert zoo.describe("mine").trainable == 20
    register("lost", "no_such_module:build", "image_classification")
    with pytest.raises(UsageError, match="Cannot import 'no_such_module:build'"):
        zoo.build("lost")


def test_the_classifier_layer_for_layer():
    model = zoo.build("cnn_classifier")
    described = [
        (layer.name, type(layer).__name__, tuple(layer.output.shape[1:]), layer.count_params())
        for layer in model.layers
    ]
    assert tuple(described) == CNN
    assert model.count_params() == sum(row[-1] for row in CNN) == 93_322


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_classifier_gives_probabilities(policy):
    from trainers.optimization.precision import precision

    with precision(policy):
        model = zoo.build("cnn_classifier")
    images = np.random.default_rng(0).uniform(0, 1, (5, 28, 28, 1)).astype("float32")
    probabilities = model.predict(images * 50, verbose=0)
    assert probabilities.shape == (5, 10)
    assert probabilities.dtype == np.float32
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert model.get_layer("convolution_1").compute_dtype == policy.removeprefix("mixed_")
    assert keras.config.dtype_policy().name == "float32"


def test_describe_equals_a_count_by_hand():
    description = zoo.describe("cnn_classifier", batch_size=4)
    assert tuple((x.name, x.kind, x.shape, x.parameters) for x in description.layers) == CNN
    assert description.parameters == description.trainable == 93_322
    assert description.flops == pytest.approx(CNN_FLOPS, rel=0.05)
    outputs = sum(int(np.prod(row[2])) for row in CNN)
    assert description.memory == 4 * (4 * 93_322 + 4 * outputs)
    assert {"cnn_digits", "cnn_mnist"} <= set(recipes_of("cnn_classifier"))


def test_describe_counts_the_experts_that_process_a_token(capsys):
    dense, sparse = zoo.describe("llama_nano", intermediate_dim=384), zoo.describe("moe_nano")
    router = 4 * (128 * 8 + 8)
    assert sparse.active == dense.parameters + router
    assert sparse.parameters == sparse.active + 4 * 6 * 3 * 128 * 128
    assert dense.active == dense.parameters
    assert main(["zoo", "describe", "moe_nano"]) == 0
    assert "active parameters  824,480 per token" in capsys.readouterr().out


def test_describe_counts_all_positions():
    """Also with rotary positions, which no layer limits."""
    learned, rotary = (
        zoo.describe(name, vocabulary_size=50, sequence_length=128, num_layers=1, hidden_dim=16,
                     num_heads=2)
        for name in ("gpt_nano", "llama_nano")
    )  # fmt: skip
    assert (learned.positions, rotary.positions) == (128, 128)
    assert rotary.flops > 0.5 * learned.flops
    small = {"vocabulary_size": 5000, "sequence_length": 128, "num_layers": 1, "hidden_dim": 16,
             "num_heads": 2}  # fmt: skip
    # The head computes 15 % of the positions.
    head = 2 * 20 * 16 * 5000
    assert head < zoo.describe("bert_mini", **small).flops < 1.8 * head


def test_describe_allocates_nothing_then_or_later():
    model = build_abstract("cnn_classifier")
    assert len(model.variables) == 10
    with keras.StatelessScope():  # its end initializes variables that Keras has deferred
        pass
    assert [v.path for v in model.variables if v._value is not None] == []


def test_describe_as_json_and_as_text(capsys):
    assert main(["zoo", "describe", "cnn_classifier", "--json", "--batch_size=4"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameters"] == 93_322
    assert answer["batch_size"] == 4
    assert [row["kind"] for row in answer["layers"]] == [row[1] for row in CNN]
    assert main(["zoo", "describe", "cnn_classifier"]) == 0
    text = capsys.readouterr().out
    assert "93,322 (93,322 trainable)" in text
    assert "convolution_2" in text


def test_list_as_json(capsys):
    assert main(["zoo", "list", "cnn_c*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "cnn_classifier"
    assert row["parameters"] == 93_322


# --- every row of the catalog ---------------------------------------------------------------------


def arguments_of(function):
    return set(inspect.signature(function).parameters) - {"name", "self"}


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_a_row_of_the_catalog_is_true(row):
    assert row.task in registry._tasks
    assert callable(registry.resolve(row.builder))
    assert build_abstract(row.name).count_params() == row.parameters
    if row.tiny:  # trainable parts are small; a frozen backbone has its published sizes
        learning = build_abstract(row.name, **row.tiny).trainable_variables
        assert sum(math.prod(variable.shape) for variable in learning) < 20_000
    registry.build_task(row.task, **row.task_arguments)
    assert row.paper
    assert row.licence
    family = [other.name for other in CATALOG if other.family == row.family]
    assert any(map(recipes_of, family)), f"no recipe in configs/ trains a model of {row.family}"


@pytest.mark.parametrize("recipe", list_recipes())
def test_no_default_hides_behind_a_recipe(recipe):
    """A recipe has exactly the arguments of its builder and its task."""
    config = load_recipe(recipe)
    if not config.model.name:  # the model comes from init_from
        config = load_recipe(f"{recipe}:debug")
    builder = registry.resolve(registry.entry(config.model.name).builder)
    assert set(config.model) - {"name"} == arguments_of(builder)
    task = registry.resolve(registry._tasks[config.task.name])
    assert set(config.task) - {"name"} == arguments_of(task)


@pytest.mark.parametrize(
    "arguments",
    [
        {"hidden_dim": 4.0}, {"hidden_dim": True}, {"hidden_dim": -1}, {"hidden_dim": 2**62},
        {"hidden_dim": float("nan")}, {"filters": (True, 4, 4)}, {"filters": 5},
        {"filters": (4.0, 4, 4)}, {"num_classes": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_an_argument_of_another_type_or_size_is_one_line(arguments):
    (name,) = arguments
    with pytest.raises(zoo.registry.UsageError, match=f"{name} must be of type .* from 0 to 2.*31"):
        zoo.build("cnn_classifier", **arguments)
    with pytest.raises(zoo.registry.UsageError, match="label_smoothing must be of type float"):
        zoo.registry.build_task("image_classification", label_smoothing=True)
