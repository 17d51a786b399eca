"""Private names of Keras behave as zoo/keras_internals.py expects."""

import configparser
import gc
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from packaging.requirements import Requirement

from tests.stock import flat, on_replicas, sgd, train
from tests.zoo.test_keras3 import booleans, of_booleans
from zoo import keras_internals

ROOT = Path(__file__).parents[2]


# --- zoo/keras_internals.py, name by name ----------------------------------------------------


def test_keras_is_a_version_that_the_private_names_are_known_of():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].splitlines()
    lines = [line for line in required if line and not line.startswith("#")]
    bounds = {r.name: r.specifier for r in map(Requirement, lines)}["keras"]
    assert {bound.operator for bound in bounds} == {">=", "<"}
    assert keras.__version__ in bounds


class Noisy(layers.Layer):
    """Uses random numbers in a nested layer."""

    def __init__(self):
        super().__init__(name="noisy")
        self.noise = layers.GaussianNoise(0.1)
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=None):
        return self.dense(self.noise(x, training=training))


def nested():
    """input > (noisy > (noise, dense), inner > (input, dropout, norm), recurrent)"""
    inner = keras.Sequential(
        [keras.Input((4, 3)), layers.Dropout(0.5, name="dropout"), layers.BatchNormalization()],
        name="inner",
    )
    inputs = keras.Input((4, 3))
    x = inner(Noisy()(inputs))
    return keras.Model(inputs, layers.LSTM(2, dropout=0.5, name="recurrent")(x))


def test_seed_variables(collected):
    model = nested()
    model.compile("adam", "mse", metrics=["mae"])
    generators = [
        model.get_layer("noisy").noise.seed_generator,
        model.get_layer("inner").get_layer("dropout").seed_generator,
        model.get_layer("recurrent").cell.seed_generator,
    ]
    states = keras_internals.seed_variables(model)
    assert {id(v) for v in states} == {id(g.state) for g in generators}
    assert len(states) == len(generators)
    model.fit(np.ones((2, 4, 3)), np.ones((2, 2)), verbose=0)
    assert all(int(v.numpy()[1]) > 0 for v in states)
    # A call with replaced states leaves the states unchanged.
    before, x = [v.numpy() for v in states], tf.ones((2, 4, 3))

    def draw(seed):
        with keras.StatelessScope(
            state_mapping=[(v, tf.constant([seed, 0], v.dtype)) for v in states]
        ):
            return model(x, training=True).numpy()

    np.testing.assert_array_equal(draw(1), draw(1))
    assert np.abs(draw(1) - draw(2)).max() > 0
    np.testing.assert_array_equal(before, [v.numpy() for v in states])


@pytest.mark.parametrize("off", [False, True])
def test_disable_all_reduce(off, two):
    with two.scope():
        weight = keras.Variable(0.0)
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])
    if off:
        keras_internals.disable_all_reduce(optimizer)

    def update(_):
        optimizer.apply([tf.constant(1.0)], [weight])
        return tf.identity(weight.value)

    assert on_replicas(two, update) == ([-1.0, -1.0] if off else [-2.0, -2.0])


def test_averaged_weights(devices):
    weights = [keras.Variable([1.0, 2.0]), keras.Variable(3.0)]
    optimizer = keras.optimizers.SGD(1.0, momentum=0.9, use_ema=True, ema_momentum=0.75)
    optimizer.build(weights)
    optimizer.apply([tf.zeros(2), tf.zeros(())], weights)  # the first average equals the weight
    weights[0].assign([5.0, 6.0])
    weights[1].assign(7.0)
    optimizer.apply([tf.zeros(2), tf.zeros(())], weights)
    first, second = keras_internals.averaged_weights(optimizer)
    np.testing.assert_allclose(first.numpy(), [2.0, 3.0])
    np.testing.assert_allclose(second.numpy(), 4.0)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """Halves the rate per update, and counts its calls."""

    asked = 0

    def __call__(self, step):
        self.asked += 1
        return 0.02 * 0.5 ** tf.cast(step, "float32")


def update_of(optimizer, weights, strategy):
    """Returns a function of one gradient per weight, equal on all replicas."""

    def apply(*gradients):
        optimizer.apply(list(gradients), weights)

    return tf.function(lambda *gradients: strategy.run(apply, gradients), autograph=False)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    ("kind", "arguments", "bound"),
    [
        # ResourceApplyAdam has 1 - beta in float32, Keras in Python: 1.3e-5 relative for 0.001.
        ("Adam", {}, 2e-5),
        ("AdamW", {"weight_decay": 0.1, "beta_1": 0.0, "beta_2": 0.99, "use_ema": True}, 2e-5),
        ("AdamW", {"weight_decay": 0.1, "global_clipnorm": 1.0, "epsilon": 0.1}, 2e-5),
        ("Adam", {"amsgrad": True}, 0.0),
        ("SGD", {"weight_decay": 0.1, "momentum": 0.9}, 0.0),
        ("Muon", {"weight_decay": 0.1}, 0.0),
    ],
)
def test_cache_update_values(kind, arguments, bound, replicas, one, two):
    """Results equal Keras', with one computation of the rate per update."""
    generator = np.random.default_rng(0)
    shapes = (30, 7), (7,), (2, 3, 4)
    start = [generator.normal(size=shape) for shape in shapes]
    gradients = [[generator.normal(size=shape) for shape in shapes] for _ in range(6)]
    results, call_counts = [], []
    strategy = two if replicas == 2 else one
    for once in (False, True):
        with strategy.scope():
            weights = [keras.Variable(value, dtype="float32") for value in start]
            rate = Halving()
            optimizer = getattr(keras.optimizers, kind)(rate, **arguments)
            keras_internals.disable_all_reduce(optimizer)
            if once:
                keras_internals.cache_update_values(optimizer)
            optimizer.build(weights)

        update = update_of(optimizer, weights, strategy)
        for values in gradients:
            update(*[tf.constant(value, "float32") for value in values])
        call_counts.append(rate.asked)
        results.append([v.numpy() for v in [*weights, *optimizer.variables[1:]]])
        assert float(optimizer.learning_rate.numpy()) == pytest.approx(0.02 * 0.5**6)
    # At most once per replica; with weight decay, Keras computes it for each variable.
    assert call_counts[1] <= replicas * call_counts[0] / (4 if "weight_decay" in arguments else 1)
    for right, value in zip(*results, strict=True):
        np.testing.assert_allclose(value, right, rtol=0, atol=bound * np.abs(right).max())


def test_cache_update_values_leaves_other_types_to_keras(devices):
    moved = []
    for once in (False, True):
        weights = [keras.Variable([1.0, 2.0], dtype="float16"), keras.Variable([[1.0], [2.0]])]
        optimizer = keras.optimizers.Adam(0.1)
        if once:
            keras_internals.cache_update_values(optimizer)
        optimizer.build(weights)
        rows = tf.IndexedSlices(tf.ones((1, 1)), tf.constant([1]), tf.constant([2, 1]))
        for _ in range(3):
            optimizer.apply([tf.ones(2, "float16"), rows], weights)
        moved.append([np.float32(v.numpy()) for v in weights])
    np.testing.assert_array_equal(moved[0][0], moved[1][0])
    np.testing.assert_array_equal(moved[0][1], moved[1][1])
    assert moved[0][0][0] < 1
    assert moved[0][1][1] < 2


def test_skip_symbolic_build(two):
    model = train(two, of_booleans, *booleans(), sgd(), prepare=keras_internals.skip_symbolic_build)
    assert int(model.optimizer.iterations.numpy()) == 2
    assert np.abs(flat(model) - model.before).max() > 0


def test_all_layers(devices):
    model = nested()
    listed = keras_internals.all_layers(model)
    assert listed[0] is model
    noisy, inner = model.get_layer("noisy"), model.get_layer("inner")
    wanted = [model, noisy, noisy.noise, noisy.dense, inner, *inner.layers]
    wanted += [model.get_layer("recurrent"), model.get_layer("recurrent").cell]
    assert {id(layer) for layer in wanted} <= {id(layer) for layer in listed}
    assert len(listed) == len({id(layer) for layer in listed})


def test_child_layers(devices):
    model = nested()
    children = keras_internals.child_layers(model)
    assert [layer.name for layer in children if "input" not in layer.name] == [
        "noisy", "inner", "recurrent",
    ]  # fmt: skip
    noisy = model.get_layer("noisy")
    assert keras_internals.child_layers(noisy) == [noisy.noise, noisy.dense]
    assert keras_internals.child_layers(noisy.dense) == []


def test_is_graph(devices):
    assert keras_internals.is_graph(nested())
    assert keras_internals.is_graph(keras.Sequential([layers.Dense(1)]))
    assert not keras_internals.is_graph(keras.Model())


def test_variable_index(devices):
    """The index is found for a Keras variable and for its value."""
    variables = [keras.Variable(np.ones(n), name=f"v{n}") for n in (1, 2, 3)]
    optimizer = keras.optimizers.SGD()
    optimizer.build(variables)
    for place, variable in enumerate(variables):
        assert keras_internals.variable_index(optimizer, variable) == place
        assert keras_internals.variable_index(optimizer, variable.value) == place


def test_patch_tf2onnx(devices):
    keras_internals.patch_tf2onnx()
    import tf2onnx  # noqa: F401 - it imports with NumPy 2 then; test_export.py uses it


def test_save_zero_points(devices):
    """The file of a layer quantized by GPTQ holds everything that loading needs."""
    layers = []
    for _ in range(2):
        layer = keras.layers.Dense(4)
        layer.build((None, 8))
        settings = keras.quantizers.GPTQConfig(dataset=[0], tokenizer=object(), group_size=8)
        layer.quantize("gptq", config=settings)
        layer.is_gptq_calibrated = True
        del layer._kernel  # as GPTQ does
        layers.append(layer)
    one, other = layers
    one.kernel_zero.assign(np.full(one.kernel_zero.shape, 7))
    keras_internals.save_zero_points(one)
    saved = {}
    one.save_own_variables(saved)
    other.load_own_variables(saved)
    np.testing.assert_array_equal(other.kernel_zero, one.kernel_zero)


def test_neighbors_in_a_graph():
    image = keras.Input((4,), name="image")
    first, second = keras.layers.Dense(3, name="first"), keras.layers.Dense(2, name="second")
    model = keras.Model(image, second(first(image)))
    (start,) = keras_internals.input_layers(model)
    assert keras_internals.output_layers(model) == [second]
    assert keras_internals.layers_before(first) == [start]
    assert keras_internals.layers_after(first) == [second]
    assert keras_internals.layers_before(second) == [first]
    assert keras_internals.layers_after(second) == []


def test_connections():
    """Only of one graph, not of nested graphs or of graphs that share layers."""
    start = keras.Input((4,))
    first, second = layers.Dense(4), layers.Dense(4)
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    one = first(start)
    model = keras.Model(start, inner(layers.Add()([one, second(one)])))
    keras.Model(start, second(second(start)))
    connections = [
        (type(layer).__name__, len(tensors), [before.name for before in sources])
        for layer, tensors, sources in keras_internals.connections(model)
    ]
    add = model.layers[3].name
    assert sorted(connections) == [
        ("Add", 2, [first.name, second.name]),
        ("Dense", 1, [first.name]),
        ("Dense", 1, [start._keras_history.operation.name]),
        ("InputLayer", 0, []),
        ("Sequential", 1, [add]),
    ]
    layer, inputs = keras_internals.origin(model.output)
    assert layer is inner
    assert keras_internals.origin(inputs[0])[0].name == add
    assert {type(layer) for layer, *_ in keras_internals.connections(inner)} == {
        layers.Dense, layers.InputLayer,
    }  # fmt: skip


def test_a_layer_inside_a_built_one():
    outer, inner = keras.layers.Dense(3), keras.layers.Layer(name="inner")
    outer.build((None, 2))
    inner.add_weight(shape=(5,), name="five")
    inner.build(())
    keras_internals.add_layer(outer, "inside", inner)
    assert [v.shape for v in outer.weights] == [(2, 3), (3,), (5,)]
    assert inner in keras_internals.child_layers(outer)
    assert keras_internals.remove_layer(outer, "inside") is inner
    assert [v.shape for v in outer.weights] == [(2, 3), (3,)]
    assert not keras_internals.child_layers(outer)
    assert not hasattr(outer, "inside")


def test_a_layer_without_its_kernel(tmp_path):
    x = keras.Input((2,))
    model = keras.Model(x, keras.layers.Dense(3, name="dense")(x))
    dense, kernel = model.get_layer("dense"), weakref.ref(model.get_layer("dense").kernel)
    keras_internals.release_kernel(dense)
    gc.collect()
    assert kernel() is None
    assert [v.path for v in model.weights] == ["dense/bias"]
    keras_internals.set_kernel(dense, np.full((2, 3), 2.0))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(np.ones((1, 2))), np.full((1, 3), 4.0))


def test_layers_know_whether_it_is_training():
    training_flags = []

    class Listens(keras.layers.Layer):
        def call(self, x):
            training_flags.append(keras_internals.in_training())
            self.later = keras_internals.capture_call_context()
            return x

    x = keras.Input((2,))
    layer = Listens()
    model = keras.Model(x, layer(x))
    model(np.ones((1, 2)), training=True)
    model(np.ones((1, 2)), training=False)
    assert training_flags[-2:] == [True, False]
    model(np.ones((1, 2)), training=True)
    assert not keras_internals.in_training()
    with layer.later():
        assert keras_internals.in_training()
    assert not keras_internals.in_training()


@pytest.mark.parametrize("inside", [True, False])
def test_variables_with_other_values(inside):
    """Values apply during the call; assignments to other variables are executed or recorded."""
    one, two = keras.Variable(1.0), keras.Variable(2.0)

    def call():
        two.assign(one * 10)
        return one + two

    def run():
        return float(keras_internals.call_with_values([(one, tf.constant(5.0))], [two], call))

    if inside:
        with keras.StatelessScope() as scope:
            assert run() == 55.0
            assert float(one) == 1.0
        assert float(scope.get_current_value(two)) == 50.0
        assert float(two) == 2.0
    else:
        assert run() == 55.0
        assert float(one) == 1.0
        assert float(two) == 50.0


def test_variables_without_values():
    def initializer(shape, dtype=None):
        raise AssertionError("no values are asked for")

    with keras_internals.variables_without_values():
        one = keras.Variable(initializer, shape=(3, 5), dtype="bfloat16")
        two = keras.Variable(initializer, shape=(3, 5), dtype="float32", trainable=False)
    assert (one.value.shape, one.value.dtype) == ((3, 5), "bfloat16")
    assert (two.value.dtype, two.value.trainable) == ("float32", False)
    assert one.value.handle is not two.value.handle
    assert keras.Variable("ones", shape=(2,)).numpy().tolist() == [1, 1]


def test_last_learning_rate():
    """Keras' attribute is the rate of the next update."""
    variable = keras.Variable(1.0)
    decay = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)
    optimizer = keras.optimizers.SGD(decay)
    optimizer.build([variable])
    assert keras_internals.last_learning_rate(optimizer) == 1.0
    for rate in (1.0, 0.75, 0.5):
        optimizer.apply([keras.ops.convert_to_tensor(1.0)])
        assert keras_internals.last_learning_rate(optimizer) == rate
    constant = keras.optimizers.SGD(0.25)
    assert keras_internals.last_learning_rate(constant) == 0.25
    constant.learning_rate = 0.5
    assert keras_internals.last_learning_rate(constant) == 0.5


def test_numbers_without_a_seed_come_from_the_generator_that_is_set():
    keras.utils.set_random_seed(0)
    first, second = (keras.ops.convert_to_numpy(keras.random.normal((2,))) for _ in range(2))
    keras.utils.set_random_seed(0)
    one = keras.random.SeedGenerator(1)
    with keras_internals.use_global_seed(one):
        inside = keras.ops.convert_to_numpy(keras.random.normal((2,)))
    assert abs(inside - first).max() > 0
    np.testing.assert_array_equal(keras.random.normal((2,)), first)  # the other did not move
    np.testing.assert_array_equal(keras.random.normal((2,)), second)
