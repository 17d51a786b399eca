"""LoRA: adapters train on a frozen model, and files hold plain kernels with the update added."""

import gc
import json
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from tests import toys
from tests.trainers.train.test_resume import assert_same_end, cut_at, last_arrays
from trainers.compress_jobs.chain import plan
from trainers.compress_jobs.methods import METHODS
from trainers.config.base import base, optimizer
from trainers.config.lora import KEYS
from trainers.config.recipe import as_dict, check
from trainers.distributed.strategy import make_strategy
from trainers.lora.adapters import Lora, updates_of
from trainers.lora.quantized import QuantizedKernel
from trainers.lora.updates import kernels_of
from trainers.run.workdir import read_metrics
from trainers.train.build import build_step
from trainers.train.init_from import initialize
from trainers.train.preflight import check_start
from trainers.train.recompute.remat import apply_remat
from zoo import keras_internals, registry
from zoo.errors import UsageError
from zoo.saved.model import open_model


def every_kind():
    """Returns a model with every kind of layer that can have an adapter."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(40, 12, name="words")(tokens)
    x = layers.Conv1D(16, 3, padding="causal", activation="relu", name="convolution")(x)
    x = layers.EinsumDense("abc,cde->abde", (None, 4, 6), bias_axes="de", name="heads")(x)
    x = layers.EinsumDense("abde,dec->abc", (None, 16), activation="tanh", name="out")(x)
    x = layers.EinsumDense("...c,cd->...d", 10, name="any_rank")(x)
    x = layers.Dense(9, activation="relu", name="dense")(x)
    x = layers.LSTM(6, return_sequences=True, name="recurrent")(x)
    x = layers.GRU(5, name="gated")(x)
    return keras.Model(tokens, layers.Dense(7, name="last")(x), name="kinds")


KINDS = "convolution|heads|out|any_rank|dense|recurrent|gated"


def adapted(model, **settings):
    """Returns the adapters of a model, with random values in B."""
    lora = Lora(model, {**KEYS, "rank": 2, **settings})
    lora.begin()
    for layer in lora.adapted:
        for i, update in enumerate(updates_of(layer)):
            update.b.assign(np.random.default_rng(i).normal(0, 0.3, update.b.shape))
    return lora


def tiny(name):
    return registry.build(name, **registry.entry(name).tiny)


def inputs_of(model):
    """Returns valid inputs of two rows for a tiny model."""

    def array(x):
        shape = (2, *[size or 8 for size in x.shape[1:]])
        return np.random.default_rng(0).integers(0, 2, shape).astype(x.dtype)

    return keras.tree.map_structure(array, model.input)


def gap(one, other):
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in pairs)


def bound(outputs):
    """Returns the rounding error that equal outputs may have."""
    return 1e-5 * max(1.0, *(float(np.abs(x).max()) for x in keras.tree.flatten(outputs)))


def state(model):
    return [(v.path, v.trainable, v.numpy()) for v in model.weights]


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (every_kind, {"pattern": KINDS, "alpha": 5.0}),
        *((name, {}) for name in ("gpt_nano", "bert_tiny", "reformer_nano", "cnn_classifier")),
        *(
            pytest.param(name, {}, marks=pytest.mark.slow)
            for name in ("llama_nano", "transformer_tiny", "lstm_generator", "longformer_nano")
        ),
        ("gpt_nano", {"base": "int4"}),
        pytest.param("gpt_nano", {"base": "int8"}, marks=pytest.mark.slow),
    ],
)
def test_merged_layers_are_plain_and_compute_the_same(build, settings, tmp_path):
    model = tiny(build) if isinstance(build, str) else build()
    x, plain = inputs_of(model), state(model)
    flags = [layer.trainable for layer in keras_internals.all_layers(model)]
    before = model(x)
    lora = adapted(model, **settings)
    is_float = settings.get("base", "float") == "float"
    start, adapters = {path: value for path, _, value in plain}, state(model)
    expected = {}
    for layer in lora.adapted:
        for update, kernel in zip(updates_of(layer), kernels_of(layer).values(), strict=True):
            scale = settings.get("alpha", 16.0) / 2
            base_value = start[kernel.path] if is_float else layer.lora_base.dequantize().numpy()
            product = (update.a.numpy() @ update.b.numpy()).reshape(base_value.shape)
            expected.setdefault(layer.path, []).append(base_value + scale * product)
    outputs = model(x)
    with lora.merged():
        assert gap(outputs, model(x)) < bound(outputs)
        for layer in lora.adapted:
            kernels = kernels_of(layer).values()
            for kernel, value in zip(kernels, expected[layer.path], strict=True):
                np.testing.assert_allclose(kernel.numpy(), value, atol=1e-6)
        assert [layer.trainable for layer in keras_internals.all_layers(model)] == flags
        model.save(tmp_path / "model.keras")
    assert gap(outputs, before) > 1e-3
    for one, other in zip(adapters, state(model), strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one[2], other[2])
    assert gap(outputs, model(x)) == 0
    loaded = open_model(tmp_path / "model.keras")
    assert sorted(v.path for v in loaded.weights) == sorted(path for path, *_ in plain)
    assert {v.path: v.trainable for v in loaded.weights} == {p: flag for p, flag, _ in plain}
    assert gap(outputs, loaded(x)) < bound(outputs)


def test_an_integer_kernel_has_the_gradient_of_its_float_value():
    kernel = np.random.default_rng(0).normal(size=(130, 5)).astype("float32")
    x = tf.constant(np.random.default_rng(1).normal(size=(2, 3, 130)), tf.float32)
    for base_name, levels, group in (("int8", 127, 130), ("int4", 7, 64)):
        layer = QuantizedKernel(kernel.shape, base_name)
        layer.build()
        layer.set_kernel(kernel)
        rounded = layer.dequantize().numpy()
        for first in range(0, 130, group):  # each value is at most half a level off
            rows = kernel[first : first + group]
            limit = 0.5001 * np.abs(rows).max(0) / levels
            assert (np.abs(rounded[first : first + group] - rows) <= limit).all()
        assert layer.integers.dtype == "int8"
        assert not layer.trainable_weights
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            ours, plain = tf.reduce_sum(layer(x) ** 2), tf.reduce_sum((x @ rounded) ** 2)
        np.testing.assert_allclose(tape.gradient(ours, x), tape.gradient(plain, x), rtol=1e-4)
    assert layer.integers.shape[0] == 96  # 130 rows in three groups, two values in a byte


def test_integer_bases_release_the_float_kernels():
    model = tiny("gpt_nano")
    apply_remat(model, "block_.*")
    lora = Lora(model, {**KEYS, "rank": 2, "base": "int4"})
    kernels = [weakref.ref(layer.kernel) for layer in lora.adapted]
    lora.begin()
    gc.collect()
    assert len(kernels) == 8
    assert not any(kernel() is not None for kernel in kernels)
    with lora.merged():
        kernels = [weakref.ref(layer.kernel) for layer in lora.adapted]
    gc.collect()
    assert not any(kernel() is not None for kernel in kernels)


# --- training -------------------------------------------------------------------------------------


def recipe(lora, replicas=1, micro=4, start="", **trainer):
    """Returns a config with adapters and all state: dropout, AdamW, EMA, accumulation."""
    config = toys.recipe(
        model_arguments={"dropout": 0.3},
        **{
            "steps": 9, "ema": 0.9, "micro_batch_size": micro, "checkpoint_every": 4, "keep": 9,
            "strategy": "mirrored" if replicas > 1 else "one_device",
            "replicas": replicas if replicas > 1 else 0, **trainer,
        },
    )  # fmt: skip
    config.optimizer = optimizer("adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=1.0)
    config.lora.update({"rank": 2, **lora})
    config.init_from = str(start)
    return config


BLOCKS = {"pattern": "block", "dropout": 0.2, "train": "logits"}


@pytest.fixture(scope="module")
def start(trained_once):
    """Path of a work directory of the model without adapters."""
    config = toys.recipe(model_arguments={"dropout": 0.3}, steps=3)
    return trained_once(config, toys.token_data()).workdir.path


def test_only_adapters_change_and_checkpoints_hold_nothing_else(trained_once, start):
    trainer = trained_once(recipe(BLOCKS, start=start), toys.token_data())
    source, net = zoo.load(start), trainer.step.net
    frozen = {v.path: v.numpy() for v in net.weights if not v.trainable}
    assert len(frozen) == 13
    for variable in source.weights:
        if variable.path in frozen:
            np.testing.assert_array_equal(variable.numpy(), frozen[variable.path])
    trained = {v.path: v for v in net.trainable_weights}
    names = [f"block_{i}/{name}/lora_update/{x}" for i in (0, 1) for name in ("up", "down")
             for x in "ab"]  # fmt: skip
    assert trained.keys() == {*names, "logits/kernel", "logits/bias"}
    assert all(np.abs(trained[name]).max() > 0 for name in names)
    slots = trainer.step.optimizers[0].variables
    assert len(slots) == 2 + 3 * len(trained)  # count, rate, two moments and the average
    _, paths, arrays = last_arrays(trainer.workdir)
    assert not {p for p in paths if p.startswith(("embedding", "block")) and "lora" not in p}
    held = sum(x.size for x in arrays)
    assert held < 4 * sum(int(np.prod(v.shape)) for v in trained.values()) + 40
    # model.keras holds the averages, merged once.
    file = {v.path: v.numpy() for v in zoo.load(trainer.workdir.path).weights}
    assert file.keys() == {v.path for v in source.weights}
    with trainer.step.averaged():
        update = net.get_layer("block_1").up.lora_update
        product = 8.0 * update.a.numpy() @ update.b.numpy()
    kernel = frozen["block_1/up/kernel"]
    assert np.abs(product).max() > 1e-3
    np.testing.assert_allclose(file["block_1/up/kernel"], kernel + product, atol=1e-6)
    lines = [x["detail"] for x in read_metrics(trainer.workdir.path) if x.get("event") == "lora"]
    share = sum(int(np.prod(v.shape)) for v in trained.values())
    assert lines == [f"4 adapters of rank 2; {share:,} trainable, {source.count_params():,} in the "
                     f"model: {share / source.count_params():.2%}"]  # fmt: skip


@pytest.mark.parametrize(
    ("base_name", "has_start"),
    [
        ("float", True),
        pytest.param("int4", True, marks=pytest.mark.slow),
        pytest.param("float", False, marks=pytest.mark.slow),  # found again by the random seed
    ],
)
def test_a_resumed_run_is_bit_identical(base_name, has_start, trained_once, run, start, tmp_path):
    config = recipe({**BLOCKS, "base": base_name}, start=start if has_start else "")
    whole = trained_once(config, toys.token_data())
    parts = cut_at(whole.workdir.path, tmp_path / "parts", 4)
    again = run(config, toys.token_data(), workdir=parts)
    assert_same_end(whole.workdir.path, parts)
    assert whole.step.lora.digest == again.step.lora.digest
    for one, other in zip(*(zoo.load(x).weights for x in (whole.workdir.path, parts)), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_another_base_or_none_is_refused(trained_once, run, start, tmp_path):
    whole = trained_once(recipe(BLOCKS, start=start), toys.token_data())
    parts = cut_at(whole.workdir.path, tmp_path / "parts", 4)
    copy = tmp_path / "base.keras"
    config = recipe(BLOCKS, start=copy)
    saved_config = json.loads((parts / "config.json").read_text())
    saved_config["config"]["init_from"] = str(copy)
    (parts / "config.json").write_text(json.dumps(saved_config))
    with pytest.raises(UsageError, match="init_from must be a work directory"):
        check_start(config, parts)
    with pytest.raises(UsageError, match="init_from must be a work directory"):
        run(config, toys.token_data(), workdir=parts)
    model, arrays = zoo.load(start), last_arrays(parts)[2]
    model.get_layer("embedding").embeddings.assign_add(np.full((11, 8), 1e-6))
    model.save(copy)
    with pytest.raises(UsageError, match=r"frozen weights of its checkpoints\. Received: SHA-256"):
        run(config, toys.token_data(), workdir=parts)
    for one, other in zip(arrays, last_arrays(parts)[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_splitting_and_recomputation_change_nothing(run, start):
    def trained(replicas, micro, remat):
        config = recipe(
            {"pattern": "block", "base": "int8"}, replicas, micro, start,
            ema=0.0, steps=3, remat=remat,
        )  # fmt: skip
        config.model.dropout = 0.0
        config.optimizer = optimizer("sgd", learning_rate=0.1, clip_norm=1.0)
        return run(config, toys.token_data()).step.net

    one, two = trained(1, 0, ""), trained(2, 4, "block.*")
    assert toys.difference(one, two) <= 1e-5
    assert min(np.abs(v.numpy()).max() for v in one.trainable_weights if v.name == "b") > 1e-3


@pytest.mark.slow
def test_gradients_under_dropout_are_those_without_remat(run, start):
    nets = [
        run(recipe(BLOCKS, start=start, remat=pattern, steps=4, ema=0.0), toys.token_data())
        for pattern in ("", "block.*")
    ]
    assert toys.difference(nets[0].step.net, nets[1].step.net) <= 1e-5


def test_small_updates_survive_bfloat16():
    """1e-3 beside 1 is lost in the rounding of bfloat16, so it must not be added to the kernel."""
    x = keras.Input((4,))
    dense = layers.Dense(8, use_bias=False, kernel_initializer="ones", dtype="mixed_bfloat16")
    model = keras.Model(x, layers.Dense(3, name="last")(dense(x)))
    Lora(model, {**KEYS, "rank": 1, "alpha": 1.0})
    dense.lora_update.a.assign([[1.0], [0.0], [0.0], [0.0]])
    dense.lora_update.b.assign(np.full((1, 8), 1e-3))
    assert dense.lora_update.a.dtype == "float32"
    outputs = dense(np.array([[1.0, -1.0, 0.0, 0.0]]))
    assert outputs.dtype == "bfloat16"
    np.testing.assert_allclose(np.array(outputs, "float32"), 1e-3, rtol=1e-2)


def test_dropout_of_the_input_of_adapters():
    x = keras.Input((4000,))
    model = keras.Model(x, layers.Dense(3, name="last")(layers.Dense(8, name="first")(x)))
    lora = Lora(model, {**KEYS, "rank": 2, "dropout": 0.5})
    first = lora.adapted[0]
    first.lora_update.a.assign(np.ones((4000, 2)))
    first.lora_update.b.assign(np.ones((2, 8)))
    rows = np.ones((1, 4000), "float32")
    plain, dropped = (first(rows, training=training).numpy() for training in (False, True))
    kernel = first(rows, training=False).numpy() - 8.0 * 2 * 4000
    np.testing.assert_allclose(plain, 8.0 * 2 * 4000 + kernel)
    shares = (dropped - kernel) / (8.0 * 2 * 4000)  # the mean of 4,000 values of 0 or 2
    assert (np.abs(shares - 1) < 0.1).all()
    assert (shares != 1).all()
    assert len(keras_internals.seed_variables(model)) == 1


def test_a_new_head_must_be_trained(start):
    def initialized(train):
        config = recipe({"pattern": "block", "train": train}, start=start)
        model = toys.token_model(vocabulary=13, dropout=0.3)
        Lora(model, config.lora)
        return initialize(model, str(start), None, config)

    with pytest.raises(UsageError, match=r"lora freezes weights .* logits/kernel.*lora\.train"):
        initialized("")
    with pytest.raises(UsageError, match="embedding/embeddings"):
        initialized("logits")
    message = initialized("logits|embedding")
    assert "lora" not in message
    assert message.startswith("init_from: 12 of 15 weights")


def test_frozen_batch_normalization_keeps_its_statistics(run):
    config = toys.recipe("toy_norm", "image_classification", ema=0.5)
    config.lora.update({"rank": 1, "pattern": "convolution"})
    trainer = run(config, toys.image_data())
    norm = trainer.step.net.get_layer("norm")
    assert not norm.moving_mean.numpy().any()
    assert (norm.moving_variance.numpy() == 1).all()
    assert [v.name for v in trainer.step.net.trainable_weights] == ["a", "b"]
    assert zoo.load(trainer.workdir.path).get_layer("norm").trainable


def test_a_student_with_adapters_in_bfloat16(run, trained_once):
    def config():
        made = toys.recipe("toy_norm", "image_classification", steps=3)
        made.trainer.precision = "mixed_bfloat16"
        return made

    teacher = trained_once(config(), toys.image_data())
    student = config()
    student.init_from = str(teacher.workdir.path)
    student.lora.update({"rank": 1, "pattern": "convolution"})
    student.compress.distill.update({"teacher": str(teacher.workdir.path), "alpha": 0.5})
    trainer = run(student, toys.image_data())
    assert [v.name for v in trainer.step.net.trainable_weights] == ["a", "b"]
    assert np.abs(trainer.step.net.trainable_weights[1].numpy()).max() > 0
    assert json.loads((trainer.workdir / "config.json").read_text())["config"]["lora"]["rank"] == 1


def test_zoo_compress_starts_from_the_merged_model(trained_once, start, tmp_path):
    whole = trained_once(recipe(BLOCKS, start=start), toys.token_data())
    stages = plan([METHODS["prune"]], whole.workdir.path, tmp_path, [])
    assert "lora" not in as_dict(stages[0].config)
    assert stages[0].config.init_from == str(whole.workdir.path)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0, "alpha": 8.0}, r"lora.rank must be at least 1 if lora.alpha is set"),
        ({"rank": -1}, r"lora.rank must be at least 0\. Received: -1"),
        ({"alpha": 0.0}, "lora.alpha must be positive"),
        ({"dropout": 1.0}, r"lora.dropout must be in \[0, 1\)"),
        ({"base": "int3"}, "No format of lora.base is named 'int3'"),
        ({"pattern": "("}, "lora.pattern must be a regular expression"),
        ({"train": "["}, "lora.train must be a regular expression"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        check(recipe(settings))


def test_excluded_settings():
    config = recipe({})
    config.compress.prune.sparsity = 0.5
    with pytest.raises(UsageError, match="lora does not support compress.prune"):
        check(config)
    config = recipe({}, strategy="multi_worker")
    with pytest.raises(UsageError, match="lora does not support trainer.strategy=multi_worker"):
        check(config)
    assert base().lora.to_dict() == KEYS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "nothing"}, "lora.pattern matches nothing. Received: 'nothing'"),
        ({"train": "nothing"}, "lora.train matches nothing"),
        ({"pattern": "last"}, "last: it computes an output of the model; lora.train trains it"),
        ({"rank": 9, "pattern": "^dense"}, "lora.rank must be below .* kernel, 9 for dense"),
        ({"pattern": KINDS, "dropout": 0.1}, "recurrent: lora.dropout does not support recurrent"),
        ({"pattern": KINDS, "base": "int8"}, "convolution: lora.base=int8 supports Dense"),
        ({"pattern": "dense", "train": "dense"}, "No layer of model 'kinds' can have an adapter"),
    ],
)  # fmt: skip
def test_refused_layers(settings, message):
    model = every_kind()
    with pytest.raises(UsageError, match=message):
        Lora(model, {**KEYS, "rank": 2, **settings})
    assert all(layer.trainable for layer in model.layers)


def test_each_network_needs_adapters():
    config = toys.recipe("gan_mnist", "gan", model_arguments=registry.entry("gan_mnist").tiny)
    config.lora.update({"rank": 1, "pattern": "pixels"})
    with pytest.raises(UsageError, match="adapters in each network .* none in 'discriminator'"):
        build_step(config, make_strategy("one_device", 0), 10)


def test_default_layers():
    selected = [layer.path for layer in Lora(every_kind(), {**KEYS, "rank": 1}).adapted]
    assert selected == ["recurrent", "gated"]
    model = tiny("gpt_nano")
    names = {layer.path for layer in Lora(model, {**KEYS, "rank": 2}).adapted}
    parts = ("attention/query_key_value", "attention/output", "feed_forward/up",
             "feed_forward/down")  # fmt: skip
    assert names == {f"block_{i}/{part}" for i in (0, 1) for part in parts}
