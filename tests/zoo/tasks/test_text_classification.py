"""The task of texts and pairs of texts: outputs, metrics, class weights, trimming, weights."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn.metrics import f1_score

import zoo
from tests import toys
from trainers.config.base import optimizer
from trainers.train.init_from import initialize
from trainers.train.trainer import Trainer
from zoo import registry
from zoo.data import Dataset
from zoo.errors import UsageError
from zoo.generation.text_logits import text_logits
from zoo.models.heads import POOLINGS, add_head, has_head, text_trunk

TINY = {
    "vocabulary_size": 16, "sequence_length": 32, "num_layers": 2, "hidden_dim": 16,
    "num_heads": 2,
}  # fmt: skip
MODELS = {
    "encoder_nano": TINY,
    "bert_tiny": TINY,
    "gpt_nano": TINY,
    "lstm_generator": {"vocabulary_size": 16, "embedding_dim": 8, "hidden_dim": 8, "num_layers": 1},
}


def make_data(examples=96, output="class", classes=3, **arguments):
    """Returns a dataset of the task's synthetic texts with a training and a test split."""
    task = registry.build_task("text_classification", output=output, num_classes=classes)
    model = add_head(zoo.build("encoder_nano", **TINY), 1 if output == "number" else classes)
    splits = {s: task.synthetic(model, examples, i) for i, s in enumerate(("train", "test"))}
    names = () if output == "number" else tuple("abcdef"[:classes])
    return Dataset("synthetic", splits, names, f"{output}-{examples}-{classes}")


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Returns a trained encoder."""
    config = toys.recipe(
        "encoder_nano", "text_classification", model_arguments=TINY, steps=30, log_every=30
    )
    config.optimizer = optimizer("adamw", learning_rate=1e-2)
    run = Trainer(config, tmp_path_factory.mktemp("classes") / "run", dataset=data)
    run.metrics = run.train()
    return run


def test_a_saved_encoder_classifies_as_in_training(trained, data):
    assert trained.metrics["accuracy"] > 0.95
    model = zoo.load(trained.workdir.path)
    assert has_head(model)
    arrays = data.splits["test"]
    logits = text_logits(model, arrays)
    assert np.mean(logits.argmax(-1) == arrays["label"]) == pytest.approx(
        trained.metrics["accuracy"]
    )


def first_batch(task, data, count=8, training=False):
    arrays = data.splits["train"]
    batch = {key: tf.constant(value[:count]) for key, value in arrays.items()}
    return task.prepare(batch | {"weight": tf.ones(count)}, None, training)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_every_family_gets_a_gradient(data, name):
    task = registry.build_task("text_classification")
    model = task.with_head(zoo.build(name, **MODELS[name]), data)
    task.bind(model, data, MODELS[name]).check(model, data)
    batch = first_batch(task, data)
    with tf.GradientTape() as tape:
        loss = task.forward(model, batch, True).sums["loss"]
    gradients = tape.gradient(loss, model.trainable_weights)
    without = [
        variable.path
        for variable, gradient in zip(model.trainable_weights, gradients, strict=True)
        if gradient is None
    ]
    assert not without
    assert len(gradients) == len(text_trunk(model).trainable_weights) + 2


def test_poolings_ignore_padding():
    model, generator = zoo.build("encoder_nano", **TINY), np.random.default_rng(0)
    tokens = generator.integers(6, 16, (2, 12)).astype("int32")
    types = np.int32(np.arange(12) > 5) * np.ones((2, 1), "int32")
    segments = np.int32(np.arange(12) < 9) * np.ones((2, 1), "int32")
    for pooling in POOLINGS:
        head = add_head(model, 3, pooling=pooling)

        def outputs(tokens, types, end, head=head):
            batch = {"tokens": tokens, "types": types, "segments": segments}
            return np.array(head({t.name: batch[t.name][:, :end] for t in head.inputs}))

        expected = outputs(np.where(segments, tokens, 0), types, 12)
        other = np.where(segments, tokens, 7)
        np.testing.assert_allclose(outputs(other, types, 12)[:, :9], expected[:, :9], atol=1e-6)
        if pooling:
            np.testing.assert_allclose(outputs(tokens, types, 9), expected, atol=1e-6)
    assert expected.shape == (2, 12, 3)


def test_pair_head_is_computed_from_the_means_of_both_texts():
    head = add_head(zoo.build("encoder_nano", **TINY), 2, pooling="pair")
    tokens = np.int32([[2, 6, 7, 4, 8, 9, 10, 4, 0, 0]])
    types = np.int32([[0, 0, 0, 0, 1, 1, 1, 1, 0, 0]])
    segments = np.int32(tokens > 0)
    x = np.array(text_trunk(head)({"tokens": tokens, "segments": segments}))[0]
    a, b = x[:4].mean(0), x[4:8].mean(0)
    h = head.get_layer("hidden")(np.concatenate([a, b, abs(a - b), a * b])[None])
    expected = np.array(head.get_layer("logits")(h))
    batch = {"tokens": tokens, "segments": segments, "types": types}
    np.testing.assert_allclose(np.array(head(batch)), expected, atol=1e-6)


def test_weights_below_the_head_come_from_pretraining(tmp_path, data):
    source = zoo.build("encoder_nano", **TINY)
    source.save(tmp_path / "pretrained.keras")
    model = add_head(zoo.build("encoder_nano", **TINY), 3)
    head = model.get_layer("logits").kernel.numpy()
    message = initialize(model, tmp_path / "pretrained.keras")
    trunk = {v.path: v for v in text_trunk(model).weights}
    source_trunk = {v.path: v for v in text_trunk(source).weights}
    assert trunk.keys() == source_trunk.keys()
    assert f"{len(trunk)} of {len(trunk)}" in message
    for path, variable in trunk.items():
        np.testing.assert_array_equal(variable, source_trunk[path])
    np.testing.assert_array_equal(model.get_layer("logits").kernel, head)


def test_weights_of_another_architecture_are_refused(tmp_path):
    zoo.build("encoder_nano", **TINY, neighbors=0).save(tmp_path / "other.keras")
    model = add_head(zoo.build("encoder_nano", **TINY), 3)
    with pytest.raises(UsageError, match="same architecture.*neighbors"):
        initialize(model, tmp_path / "other.keras")


def test_trimmed_batches_give_the_same_loss(data):
    losses = []
    for trim in (0, 4):
        task = registry.build_task("text_classification", trim=trim)
        keras.utils.set_random_seed(0)
        model = task.with_head(zoo.build("encoder_nano", **TINY), data)
        task.bind(model, data)
        short = np.argsort((data.splits["train"]["tokens"] > 0).sum(1))[:8]
        arrays = {key: value[short] for key, value in data.splits["train"].items()}
        batch = first_batch(task, dataclasses.replace(data, splits={"train": arrays}))
        losses.append(float(task.forward(model, batch, False).sums["loss"]))
        lengths = batch["tokens"].shape[1]
    assert lengths < data.splits["train"]["tokens"].shape[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_trimming_cuts_after_the_longest_text():
    task = registry.build_task("text_classification", trim=4)
    tokens = np.zeros((2, 16), "int32")
    tokens[0, :3], tokens[1, :5] = 7, 7
    batch = {"tokens": tf.constant(tokens), "types": tf.zeros((2, 16), "uint8"),
             "label": tf.zeros(2, "int32"), "weight": tf.ones(2)}  # fmt: skip
    assert task.prepare(batch, None, True)["tokens"].shape == (2, 8)


def test_texts_are_grouped_by_their_number_of_tokens():
    tokens = np.int32([[7, 7, 7, 0], [7, 0, 0, 0]])
    task = registry.build_task("text_classification", group_by_length=True)
    assert task.lengths({"tokens": tokens}).tolist() == [3, 1]
    assert registry.build_task("text_classification").lengths({"tokens": tokens}) is None
    task = registry.build_task("text_classification", group_by_length=True, trim=0)
    assert task.lengths({"tokens": tokens}) is None


def test_class_weights_balance_the_training_loss():
    label = np.int32([0] * 6 + [1] * 2)
    task = registry.build_task("text_classification", class_weights=True, dropout=0.0)
    arrays = {"tokens": np.full((8, 4), 7, "int32"), "types": np.zeros((8, 4), "uint8"),
              "label": label}  # fmt: skip
    data = Dataset("rare", {"train": arrays}, ("a", "b"), "rare")
    model = task.with_head(zoo.build("encoder_nano", **TINY), data)
    task.bind(model, data)
    batch = {key: tf.constant(value) for key, value in arrays.items()} | {"weight": tf.ones(8)}
    training = task.prepare(batch, None, True)
    counts = training["counts"].numpy()
    assert counts[label == 0].sum() == pytest.approx(counts[label == 1].sum())
    assert float(task.term_counts(training)["loss"]) == pytest.approx(8.0)
    np.testing.assert_array_equal(task.prepare(batch, None, False)["counts"], np.ones(8))
    loss = task.forward(model, training, True).sums["loss"]
    logits = np.array(model({k: training[k] for k in ("tokens", "segments")}))
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(8), label]
    assert float(loss) == pytest.approx(float((losses * counts).sum()), rel=1e-5)


@pytest.mark.parametrize("output", ["labels", "number"])
def test_metrics_of_labels_and_numbers(output):
    data = make_data(40, output)
    task = registry.build_task("text_classification", output=output)
    model = task.with_head(zoo.build("encoder_nano", **TINY), data)
    head = model.get_layer("logits")
    head.kernel.assign(np.random.default_rng(0).normal(0, 3, head.kernel.shape))
    task.bind(model, data).check(model, data)
    metrics, _ = task.evaluate_split(model, data, "test")
    arrays = data.splits["test"]
    logits = text_logits(model, arrays)
    if output == "labels":
        target, predicted = arrays["labels"], logits > 0
        assert metrics["micro_f1"] == pytest.approx(f1_score(target, predicted, average="micro"))
        assert metrics["macro_f1"] == pytest.approx(
            f1_score(target, predicted, average="macro", zero_division=0)
        )
    else:
        assert metrics["pearson"] == pytest.approx(
            np.corrcoef(logits[:, 0], arrays["target"])[0, 1], abs=1e-6
        )
        ranks = stats.rankdata(logits[:, 0]), stats.rankdata(arrays["target"])
        assert metrics["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)
    batch = {key: tf.constant(value[:8]) for key, value in arrays.items()} | {"weight": tf.ones(8)}
    result = task.forward(model, task.prepare(batch, None, False), False)
    losses = (
        np.square(logits[:8, 0] - arrays["target"][:8])
        if output == "number"
        else np.mean(
            np.logaddexp(0, logits[:8]) - logits[:8] * arrays["labels"][:8].astype("float32"), -1
        )
    )
    assert float(result.sums["loss"]) == pytest.approx(float(losses.sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.int32([5] * 96)}, "less than the number of classes, 3"),
        ({"types": None}, "requires the array 'types'"),
        ({"label": None}, "requires the array 'label'"),
        ({"tokens": np.ones((96, 40), "int32"), "types": np.ones((96, 40), "uint8")}, "positions"),
    ],
)
def test_data_that_do_not_match_are_refused(data, change, message):
    arrays = {**data.splits["test"], **change}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    other = dataclasses.replace(data, splits={**data.splits, "test": arrays}, class_names=())
    task = registry.build_task("text_classification", num_classes=3)
    model = task.with_head(zoo.build("encoder_nano", **TINY), other)
    task.bind(model, other, TINY)
    with pytest.raises(UsageError, match=message):
        task.check(model, other)


@pytest.mark.parametrize("name", ["transformer_tiny", "axial_text_nano"])
def test_models_without_a_trunk_are_refused(name):
    with pytest.raises(UsageError, match="requires an encoder"):
        add_head(registry.build(name, **registry.entry(name).tiny or {}), 2)


def test_wrong_arguments_are_refused():
    with pytest.raises(UsageError, match="class, labels, number"):
        registry.build_task("text_classification", output="clas")
    with pytest.raises(UsageError, match="class_weights requires"):
        registry.build_task("text_classification", output="number", class_weights=True)
    with pytest.raises(UsageError, match="num_classes must be positive"):
        registry.build_task("text_classification").with_head(zoo.build("encoder_nano", **TINY))


def test_a_head_survives_saving_in_safe_mode(tmp_path):
    head = add_head(zoo.build("encoder_nano", **TINY), 2, pooling="pair", dropout=0.1)
    head.save(tmp_path / "head.keras")
    model = keras.saving.load_model(tmp_path / "head.keras", safe_mode=True)
    batch = {t.name: np.ones((2, 8), "int32") for t in head.inputs}
    np.testing.assert_array_equal(np.array(model(batch)), np.array(head(batch)))
