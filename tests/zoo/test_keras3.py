"""Stock Keras 3 still does what docs/keras3.md says it does.

A test that fails with "Keras has mended ..." is good news: the section it names, and what the
trainer does in place of the Keras feature, can be looked at again. `pytest -s` prints the numbers
that the document quotes.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.stock import (
    SAME,
    difference,
    linear,
    on_replicas,
    regression,
    sgd,
    still,
    still_raises,
    train,
)

ROOT = Path(__file__).parents[2]


# --- docs/keras3.md, section by section -----------------------------------------------------------


def test_loss_is_a_mean_of_replica_means(one, two):
    full = regression(8)
    assert difference(train(one, linear, *full, sgd()), train(two, linear, *full, sgd())) <= SAME
    short = regression(7)  # the last batch has three rows: two and one
    gap = difference(train(one, linear, *short, sgd()), train(two, linear, *short, sgd()))
    still("The loss is a mean of replica means", gap > 1e-2, f"short last batch {gap:.2g}")


def test_padding_counts_in_a_mean_of_replica_means(one, two):
    def masked():
        tokens = keras.Input((6,), dtype="int32")
        x = layers.Embedding(9, 4, mask_zero=True)(tokens)
        return keras.Model(tokens, layers.Dense(1)(x))

    tokens = np.random.default_rng(0).integers(1, 9, (4, 6)).astype("int32")
    targets = np.random.default_rng(1).normal(size=(4, 6, 1)).astype("float32")
    assert difference(*(train(s, masked, tokens, targets, sgd()) for s in (one, two))) <= SAME
    tokens[:2, 3:] = 0  # three tokens in each row of the first replica, six in the second's
    gap = difference(*(train(s, masked, tokens, targets, sgd()) for s in (one, two)))
    still("The loss is a mean of replica means", gap > 1e-2, f"padding masks {gap:.2g}")


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_comes_before_the_sum(clipping, two):
    """Gradients 10 and -9 add up to 1, which clipping to 1 leaves alone."""
    with two.scope():
        weight = keras.Variable(0.0)
        optimizer = keras.optimizers.SGD(1.0, **{clipping: 1.0})
        optimizer.build([weight])

    def update(replica):
        gradient = tf.gather(tf.constant([10.0, -9.0]), replica)
        optimizer.apply([gradient], [weight])
        return tf.identity(weight.value)

    first, second = on_replicas(two, update)
    assert first == second
    still("Clipping comes before the sum", first != -1.0, f"{clipping}: {first:g}, not -1")


def test_loss_scaling_looks_at_the_first_replica(one, two):
    """An infinite gradient must skip the update, on whichever replica it is."""

    def scaled():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)

    def outcome(strategy, bad_row):
        x, y = regression(4)
        x[bad_row] = np.inf
        model = train(strategy, linear, x, y, scaled)
        finite = all(np.isfinite(w).all() for w in model.get_weights())
        return finite, float(model.optimizer.dynamic_scale.numpy())

    assert outcome(one, 3) == (True, 4.0)
    assert outcome(two, 0) == (True, 4.0)
    finite, scale = outcome(two, 3)
    still(
        "Loss scaling looks at the first replica alone",
        not finite,
        f"inf on replica 1: weights finite {finite}, scale 8 -> {scale:g}",
    )


def test_replicas_draw_the_same_dropout_masks(two):
    with two.scope():
        dropout = layers.Dropout(0.5)
    masks = on_replicas(two, lambda _: dropout(tf.ones((1, 1000)), training=True))
    share = float((masks[0] == masks[1]).mean())
    still(
        "Replicas draw the same dropout masks",
        share == 1.0,
        f"{share:.0%} of {masks[0].size} draws alike, where half were right",
    )


def test_batch_normalization_sees_one_replica(one, two):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32") + np.arange(8)[:, None]

    def normalize(strategy, synchronized=False):
        with strategy.scope():
            norm = layers.BatchNormalization(momentum=0.0, synchronized=synchronized)
            norm.build((None, 3))
        replicas = strategy.num_replicas_in_sync
        parts = tf.reshape(tf.constant(x, "float32"), (replicas, -1, 3))
        outputs = on_replicas(strategy, lambda i: norm(tf.gather(parts, i), training=True))
        means = strategy.experimental_local_results(norm.moving_mean.value)
        return np.concatenate(outputs), norm.moving_mean.numpy(), [v.numpy() for v in means]

    whole, mean, _ = normalize(one)
    same, same_mean, _ = normalize(two, synchronized=True)
    assert np.abs(whole - same).max() <= 1e-5
    assert np.abs(mean - same_mean).max() <= 1e-5
    parts, first, means = normalize(two)
    gap, moved = np.abs(whole - parts).max(), np.abs(mean - first).max()
    np.testing.assert_array_equal(first, means[0])
    still(
        "BatchNormalization sees one replica's rows",
        gap > 0.1 and moved > 0.1 and not np.allclose(*means),
        f"outputs differ by {gap:.2g}, the mean that is kept by {moved:.2g}",
    )


@pytest.mark.parametrize(
    ("name", "clipping"),
    [
        *((name, {}) for name in ("Adam", "AdamW", "RMSprop", "Adagrad", "Lamb", "Adafactor")),
        ("SGD", {"clipnorm": 1.0}),
        ("SGD", {"global_clipnorm": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_repeated_rows_of_an_embedding(name, clipping, devices):
    """Rows 0, 0, 1 of a table: its gradient as rows with repeats, and as the sum that it is."""

    def step(dense):
        embedding = layers.Embedding(3, 2, embeddings_initializer="ones")
        embedding.build()
        optimizer = getattr(keras.optimizers, name)(0.1, **clipping)
        with tf.GradientTape() as tape:
            rows = embedding(tf.constant([0, 0, 1]))
            loss = tf.reduce_sum(rows * tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        gradient = tape.gradient(loss, embedding.embeddings.value)
        if dense:
            gradient = tf.convert_to_tensor(gradient)
        optimizer.apply([gradient], [embedding.embeddings])
        return embedding.embeddings.numpy() - 1

    right, got = step(dense=True), step(dense=False)
    gap = np.linalg.norm(right - got) / np.linalg.norm(right)
    still(
        "An embedding's gradient is rows with repeats",
        gap > 1e-2,
        f"{name} {' '.join(clipping)}: update off by {gap:.2g}",
    )


def test_an_embedding_trains_unlike_a_matrix_product(one):
    """Through stock `fit`: the same function of the same weights, looked up or multiplied."""

    def model(lookup):
        tokens = keras.Input((6,), dtype="int32")
        table = keras.initializers.RandomNormal(seed=0)
        if lookup:
            x = layers.Embedding(5, 4, embeddings_initializer=table)(tokens)
        else:
            one_hot = layers.Lambda(lambda ids: keras.ops.one_hot(ids, 5))(tokens)
            x = layers.Dense(4, use_bias=False, kernel_initializer=table)(one_hot)
        output = layers.Dense(1, kernel_initializer=keras.initializers.RandomNormal(seed=1))
        return keras.Model(tokens, output(x))

    tokens = np.random.default_rng(0).integers(0, 5, (8, 6)).astype("int32")
    targets = np.random.default_rng(1).normal(size=(8, 6, 1)).astype("float32")

    def gap(optimizer):
        looked_up = train(one, lambda: model(True), tokens, targets, optimizer)
        return difference(train(one, lambda: model(False), tokens, targets, optimizer), looked_up)

    assert gap(sgd()) <= SAME
    adam = gap(lambda: keras.optimizers.Adam(0.01))
    still("An embedding's gradient is rows with repeats", adam > 1e-2, f"Adam in fit {adam:.2g}")


def test_optimizers_compute_the_rate_for_each_variable(devices):
    weights = [keras.Variable(float(i)) for i in range(5)]
    rate_calls = []

    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            rate_calls.append(step)
            return 0.1

    optimizer = keras.optimizers.AdamW(Rate(), weight_decay=0.1)
    optimizer.build(weights)
    rate_calls.clear()

    def update(*gradients):
        optimizer.apply(list(gradients), weights)

    graph = tf.function(update, autograph=False).get_concrete_function(*[tf.ones(())] * 5).graph
    kinds = [node.type for node in graph.get_operations()]
    powers = kinds.count("Pow")
    still(
        "Optimizers compute the rate for each variable",
        len(rate_calls) == 6 and powers == 10,
        f"5 weights: {len(rate_calls)} learning rates, {powers} powers, {len(kinds)} operations",
    )


def test_gradient_accumulation_raises_under_mirrored(two):
    with still_raises("gradient_accumulation_steps", RuntimeError, "merge_call"):
        train(two, linear, *regression(8), sgd(gradient_accumulation_steps=2))


def test_gradient_accumulation_counts_micro_batches(one):
    """Three updates of four micro-batches, against three updates of whole batches."""
    section = "gradient_accumulation_steps"

    def optimizer(steps):
        rate = keras.optimizers.schedules.PolynomialDecay(0.1, 12, 0.0)
        return lambda: keras.optimizers.SGD(rate, gradient_accumulation_steps=steps)

    data = regression(12)
    model = train(one, linear, *data, optimizer(4), batch_size=1)
    assert int(model.optimizer.iterations.numpy()) == 3
    rate = float(model.optimizer.learning_rate.numpy())
    still(section, rate == 0.0, f"rate after 3 of 12 updates {rate:.3g}, not 0.075")

    ema = {"use_ema": True, "ema_momentum": 0.9}
    averages = []
    for arguments, batch_size in ((ema, 4), ({**ema, "gradient_accumulation_steps": 4}, 1)):
        model = train(one, linear, *data, sgd(**arguments), batch_size=batch_size)
        averages.append(model)  # `fit` ends by putting the averages into the model
    plain = [train(one, linear, *data, sgd(), batch_size=4)]
    plain += [train(one, linear, *data, sgd(gradient_accumulation_steps=4), batch_size=1)]
    assert difference(*plain) <= SAME
    gap = difference(*averages)
    still(section, gap > 1e-3, f"average of the weights off by {gap:.2g}")


def test_ema_overwrite_raises_under_mirrored(two):
    train(two, linear, *regression(8), sgd(use_ema=True))
    with still_raises("ema_overwrite_frequency", RuntimeError, "merge_call"):
        train(two, linear, *regression(8), sgd(use_ema=True, ema_overwrite_frequency=2))


def test_jit_compile_fails_under_mirrored(one, two):
    train(one, linear, *regression(4), sgd(), jit_compile=True)
    error = tf.errors.InvalidArgumentError
    with still_raises("jit_compile=True", error, "located in device .*CPU:1 from device .*CPU:0"):
        train(two, linear, *regression(4), sgd(), jit_compile=True)


@pytest.mark.parametrize("graph", [False, True])
def test_remat_redraws_dropout_masks(graph, devices):
    """The gradient of the sum of dropout(w), at w = 1, is dropout(w) itself."""
    dropout = layers.Dropout(0.5, seed=0)

    def output_and_gradient(wrap):
        def compute():
            weights = tf.ones((1, 1000))
            with tf.GradientTape() as tape:
                tape.watch(weights)
                outputs = wrap(lambda w: dropout(w, training=True))(weights)
            return outputs, tape.gradient(outputs, weights)

        return tf.function(compute, autograph=False)() if graph else compute()

    outputs, gradient = output_and_gradient(lambda function: function)
    np.testing.assert_array_equal(outputs, gradient)
    outputs, gradient = output_and_gradient(keras.remat)
    wrong = float(np.mean(outputs.numpy() != gradient.numpy()))
    still("keras.remat and RematScope", wrong > 0.2, f"{wrong:.0%} of the gradient is wrong")


def test_remat_scope_refuses_keywords(devices):
    with keras.RematScope("full"):
        norm = layers.BatchNormalization()
    norm.build((None, 3))
    function = tf.function(lambda: norm(tf.ones((2, 3)), training=True), autograph=False)
    with still_raises(
        "keras.remat and RematScope", ValueError, "keywords? arguments only when eager"
    ):
        function()


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    def __init__(self, update):
        super().__init__()
        self.update = update

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.update:
            raise Killed


def with_dropout():
    return keras.Sequential([keras.Input((3,)), layers.Dropout(0.5, name="dropout"), linear()])


def seeds_of(model):
    return model.get_layer("dropout").seed_generator.state.numpy().tolist()


def test_backup_and_restore_restarts_the_epoch(one, tmp_path):
    section = "BackupAndRestore"
    x, y = regression(24)

    def go(kill_at):
        keras.utils.set_random_seed(0)
        model = with_dropout()
        model.compile("sgd", "mse")
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=1)
        with contextlib.suppress(Killed):
            callbacks = [backup, KillAt(kill_at)]
            model.fit(x, y, batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    assert seeds_of(go(kill_at=10))[1] == 10
    model = go(kill_at=-1)
    updates = int(model.optimizer.iterations.numpy())
    still(section, updates > 24, f"{updates} updates for 24")
    drawn = seeds_of(model)[1]
    still(section, drawn < updates, f"{drawn} dropout masks for {updates} updates")


def test_keras_files_hold_no_seeds(one, tmp_path):
    model = train(one, with_dropout, *regression(8), sgd())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    model.get_layer("dropout").seed_generator.state.assign([5, 7])
    model.load_weights(tmp_path / "model.weights.h5")
    still(
        "Keras files hold no seeds",
        seeds_of(loaded)[1] == 0 and seeds_of(model) == [5, 7],
        f".keras: masks drawn {seeds_of(loaded)[1]}, not 2; .weights.h5: state left at "
        f"{seeds_of(model)}",
    )


def test_losses_inside_a_stateless_scope(devices):
    dense = layers.Dense(2, kernel_regularizer="l2")
    dense.build((None, 3))
    assert float(dense.losses[0]) > 0
    with keras.StatelessScope(collect_losses=True):
        dense(tf.ones((1, 3)))  # layers themselves read variables that are not mapped
        with still_raises("Penalties inside a StatelessScope", AttributeError, "None"):
            _ = dense.losses


def test_embeddings_in_a_mixed_model(devices, tmp_path):
    def bfloat16_alone(model):
        logits = model(np.arange(8)[None])
        rounded = keras.ops.cast(keras.ops.cast(logits, "bfloat16"), "float32")
        return bool((keras.ops.cast(logits, "float32") == rounded).numpy().all())

    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        tokens = keras.Input((None,), dtype="int32")
        embedding = layers.ReversibleEmbedding(8, 8)
        model = keras.Model(tokens, embedding(embedding(tokens), reverse=True))
    finally:
        keras.config.set_dtype_policy(former)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert bfloat16_alone(loaded)
    still("Embeddings in a mixed model", not bfloat16_alone(model), "a float32 product")


def of_booleans():
    cast = layers.Lambda(lambda x: keras.ops.cast(x, "float32"))
    return keras.Sequential([keras.Input((3,), dtype="bool"), cast, layers.Dense(2)])


def test_a_functional_model_overrides_training():
    image = keras.Input((4,))
    model = keras.Model(image, layers.Dropout(0.5)(image, training=False))
    ones = np.ones((8, 4), "float32")
    dropped = float(np.mean(np.asarray(model(ones, training=True)) == 0))
    still("training=False inside a Functional model", dropped > 0, f"dropped {dropped:.2g}")


def booleans():
    x, y = regression(8)
    return x > 0, y


def test_fit_averages_the_first_batch(one, two):
    train(one, of_booleans, *booleans(), sgd())
    with still_raises("fit averages the first batch", tf.errors.InvalidArgumentError, "of bool"):
        train(two, of_booleans, *booleans(), sgd())


_WORKER = """
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
for built in (False, True):
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse")
    if built:
        model._maybe_symbolic_build = lambda iterator=None, data_batch=None: None
    try:
        model.fit(np.ones((8, 3), "f"), np.ones((8, 2), "f"), batch_size=4, verbose=0)
        print("fit ran")
    except ValueError as error:
        print(error)
"""


def test_gptq_calibrates_nothing(monkeypatch):
    from keras.src.quantizers import gptq

    counts = []
    monkeypatch.setattr(
        gptq.GPTQ, "update_hessian_with_batch", lambda self, x: counts.append(len(x))
    )
    inputs = keras.Input((4, 8))
    block = keras.Sequential([keras.Input((4, 8)), keras.layers.Dense(8)])
    model = keras.Model(inputs, block(inputs))
    settings = keras.quantizers.GPTQConfig(
        dataset=[np.zeros(4, "int32")], tokenizer=object(), num_samples=1, sequence_length=4,
        group_size=8, quantization_layer_structure={
            "pre_block_layers": [lambda tokens: np.ones((1, 4, 8), "float32")],
            "sequential_blocks": [block],
        },
    )  # fmt: skip
    model.quantize("gptq", config=settings, filters=lambda x: isinstance(x, layers.Dense))
    still("GPTQ and AWQ calibrate nothing", not counts, f"{len(counts)} updates")


def test_gptq_saves_less_than_it_loads():
    layer = keras.layers.Dense(4, use_bias=False)
    layer.build((None, 8))
    settings = keras.quantizers.GPTQConfig(dataset=[0], tokenizer=object(), group_size=8)
    layer.quantize("gptq", config=settings)
    layer.is_gptq_calibrated = True
    saved, loaded = {}, layer.variable_serialization_spec["gptq"]
    layer.save_own_variables(saved)
    wrong = len(saved) < len(loaded) - 1  # it has no bias
    still("GPTQ and AWQ forget the zero points", wrong, f"{len(saved)} of {len(loaded) - 1}")


def test_enable_lora_loses_small_updates():
    """1.001 rounds to 1 in bfloat16, so an update that is added to the kernel is lost."""

    def output(policy):
        dense = layers.Dense(1, use_bias=False, kernel_initializer="ones", dtype=policy)
        dense.build((None, 2))
        dense.enable_lora(1)
        dense.lora_kernel_a.assign([[1.0], [0.0]])
        dense.lora_kernel_b.assign([[1e-3]])
        return float(np.array(dense(np.array([[1.0, -1.0]])), "float32")[0, 0])

    assert output("float32") == pytest.approx(1e-3, rel=1e-3)
    lost = output("mixed_bfloat16")
    still("enable_lora adds the update to the kernel", lost == 0, f"{lost:g}, not 1e-3")


def test_enable_lora_computes_the_gradient_of_the_kernel():
    dense = layers.Dense(512, use_bias=False)
    dense.build((None, 512))
    dense.enable_lora(4)

    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(dense(x) ** 2)
        return tape.gradient(loss, [dense.lora_kernel_a.value, dense.lora_kernel_b.value])

    graph = tf.function(gradients).get_concrete_function(tf.TensorSpec((8, 512))).graph
    shapes = [x.outputs[0].shape for x in graph.get_operations() if x.type == "MatMul"]
    large = shapes.count((512, 512))  # the update of the kernel, and the gradient of their sum
    still("enable_lora adds the update to the kernel", large == 2, f"{large} products 512 x 512")


def test_enable_lora_stays_in_files(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(3, name="dense")(x))
    model.get_layer("dense").enable_lora(2)
    model.save(tmp_path / "model.keras")
    count = len(keras.saving.load_model(tmp_path / "model.keras").weights)
    still("enable_lora adds the update to the kernel", count == 4, f"{count} weights in the file")
    assert not hasattr(layers.LSTM, "enable_lora")


@pytest.mark.slow
def test_multi_worker_fit_fails():
    """Two processes; with the first failure out of the way there is a second."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(socket.socket()) for _ in range(2)]
        for port in ports:
            port.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", _WORKER],
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        output = [worker.communicate(timeout=120)[0] for worker in workers][0]
    finally:
        for worker in workers:
            worker.kill()
    for error in ("PerReplica.* to a Tensor", "Invalid reduction dimension 0"):
        match = re.search(error, output)
        assert match or "fit ran" in output, output
        still("MultiWorkerMirroredStrategy", bool(match), match and match[0])


# --- the document itself --------------------------------------------------------------------------


def test_the_document_and_the_tests_agree():
    document = (ROOT / "docs" / "keras3.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", document)):
        assert f"def {name}(" in tests, f"docs/keras3.md names {name}, which does not exist"
    here = Path(__file__).read_text()
    for section in re.findall(r"^## (.+)$", document, re.MULTILINE):
        assert f'"{section}"' in here, f"no test names section {section!r} of docs/keras3.md"
    claims = here.split("# --- the document itself")[0]
    for name in re.findall(r"^def (test_\w+)", claims, re.MULTILINE):
        assert f"`{name}`" in document, f"docs/keras3.md does not name {name}"
