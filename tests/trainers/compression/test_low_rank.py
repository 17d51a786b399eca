"""Low-rank products of kernels: approximation error, files, training and chains."""

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
from trainers.compression import low_rank
from trainers.compression.decomposition import Kernel, kernel_of
from trainers.compression.prune import sparsities
from trainers.config.compress import parse_ranks
from zoo import registry
from zoo.errors import UsageError
from zoo.layers.low_rank import LowRank, split_equation


def every_kind():
    """Returns a model with every kind of layer that supports low-rank products."""
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    x = layers.Embedding(40, 12, name="words")(tokens)
    x = layers.Conv1D(16, 3, padding="same", activation="relu", name="convolution")(x)
    x = layers.EinsumDense("abc,cde->abde", (None, 4, 6), bias_axes="de", name="heads")(x)
    x = layers.EinsumDense("abde,dec->abc", (None, 16), activation="tanh", name="out")(x)
    x = layers.EinsumDense("...c,cd->...d", 10, name="any_rank")(x)
    x = layers.Dense(9, activation="relu", name="dense")(x)
    return keras.Model(tokens, layers.LSTM(4, name="recurrent")(x), name="kinds")


def set_from(model, other):
    """Initializes a model as init_from does, without a work directory."""
    values = low_rank.initial_values(model, other)
    source_values = {v.path: v.value for v in other.weights} | values
    for variable in model.weights:
        variable.assign(source_values[variable.path])


def tokens(model, rows=3):
    return np.random.default_rng(1).integers(0, 40, (rows, *model.input_shape[1:]))


def test_full_ranks_compute_the_same():
    model = every_kind()
    full = ("words=12", "convolution=11x16", "heads=16", "out=16", "any_rank=10", "dense=9")
    product = low_rank.factorize(model, full)
    assert {x.path for x in low_rank.products(product)} == {t.partition("=")[0] for t in full}
    # A kernel whose rank is at most the chosen rank is reproduced exactly.
    kernel = np.array(model.get_layer("convolution").kernel)
    kernel[:, 11] = kernel[:, 0]
    model.get_layer("convolution").kernel.assign(kernel)
    for weight in model.weights:
        if weight.path.endswith("bias"):
            weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    set_from(product, model)
    words = tokens(model)
    np.testing.assert_allclose(product(words), model(words), atol=2e-6)
    for layer in low_rank.products(product):
        whole = model.get_layer(layer.name)
        name = "embeddings" if layer.name == "words" else "kernel"
        np.testing.assert_allclose(getattr(layer, name), getattr(whole, name), atol=2e-6)


@pytest.mark.parametrize("shape", [(3, 3, 10, 12), (5, 7, 9), (1, 1, 20, 24), (3, 1, 16)])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_a_kernel_keeps_the_energy_and_no_lower_rank_does(shape, energy):
    value = np.random.default_rng(2).normal(size=shape).astype("float32")
    value *= np.linspace(0.1, 3, shape[-1]) * np.linspace(0.2, 2, shape[-2])[:, None]
    kernel = Kernel(value, 0)
    ranks = kernel.ranks(energy)
    lost = np.sum((kernel.product(ranks) - value) ** 2) / np.sum(value**2)
    assert lost <= 1 - energy + 1e-6
    assert sum(x.size for x in kernel.factors(ranks)) == kernel.size_at(ranks)
    if kernel.positions == 1 and ranks[1]:  # a matrix: Eckart-Young theorem
        fewer = kernel.product((0, ranks[1] - 1))
        assert np.sum((fewer - value) ** 2) / np.sum(value**2) > 1 - energy


@pytest.mark.parametrize("shape", [(5, 5, 1, 24), (3, 24, 1), (3, 3, 2, 24), (3, 3, 12, 16)])
def test_the_energy_is_spent_where_channels_can_go(shape):
    """No cheaper pair of ranks keeps 80 % of the energy; an axis of one channel loses none."""
    value = np.random.default_rng(4).normal(size=shape).astype("float32")
    value *= np.linspace(0.2, 2, shape[-1]) * np.linspace(0.5, 2, shape[-2])[:, None]
    kernel = Kernel(value, 0)

    def energy_share(ranks):
        return 1 - np.sum((kernel.product(ranks) - value) ** 2) / np.sum(value**2)

    ranks = kernel.ranks(0.8)
    assert energy_share(ranks) >= 0.8 - 1e-6
    for axis, rank in enumerate(ranks):
        if rank > 1:
            fewer = tuple(n - (i == axis) for i, n in enumerate(ranks))
            assert energy_share(fewer) < 0.8 + (
                0.01 if min(shape[-2:]) > 2 else 1e-6
            )  # HOSVD's ranks
    if shape[-2] == 1:
        assert ranks[0] == 0
        values = np.linalg.svd(value.reshape(-1, shape[-1]), compute_uv=False) ** 2
        assert ranks[1] == np.searchsorted(np.cumsum(values) / values.sum(), 0.8) + 1
        assert energy_share(ranks) < 0.8 + values[ranks[1] - 1] / values.sum()


def test_matrices_are_the_nearest_of_their_rank():
    value = np.random.default_rng(3).normal(size=(12, 3, 5)).astype("float32")
    kernel = Kernel(value, 1)
    left, values, right = np.linalg.svd(value.reshape(12, 15), full_matrices=False)
    nearest = (left[:, :4] * values[:4]) @ right[:4]
    np.testing.assert_allclose(kernel.product((4,)).reshape(12, 15), nearest, atol=1e-5)
    assert [x.shape for x in kernel.factors((4,))] == [(12, 4), (4, 3, 5)]
    energy_shares = np.cumsum(values**2) / np.sum(values**2)
    assert kernel.ranks(energy_shares[3]) == (4,)
    assert kernel.ranks(energy_shares[3] + 1e-6) == (5,)


def test_equations():
    assert split_equation("abc,cde->abde") == ("abc,cz->abz", "abz,zde->abde")
    assert split_equation("...de,dec->...c") == ("...de,dez->...z", "...z,zc->...c")
    for equation in ("abc,dc->abd", "abc,bcd->abd", "abc,c->ab"):
        with pytest.raises(ValueError, match="first axes of the kernel"):
            split_equation(equation)


@pytest.mark.parametrize(
    "name",
    ["cnn_classifier", "gpt_nano", "bert_tiny", "lstm_generator"]
    + [pytest.param("transformer_tiny", marks=pytest.mark.slow)],
)
def test_models_of_the_zoo_are_built_anew(name, tmp_path):
    """Values, file and number of parameters; a tied embedding is a product in both directions."""
    row = registry.entry(name)
    keras.utils.set_random_seed(0)
    model = registry.build(name, **row.tiny)
    # Most parameters of a tiny LSTM are in its cells, which are not factored.
    budget = 0.9 if name == "lstm_generator" else 0.8
    settings = {"energy": 0.0, "budget": budget, "sensitivity": 0.0, "pattern": ""}
    ranks = low_rank.decide(model, settings)
    product = low_rank.factorize(model, low_rank.format_ranks(ranks))
    assert type(product) is type(model)
    share = product.count_params() / model.count_params()
    assert budget - 0.1 < share <= budget  # and not much below the budget
    set_from(product, model)
    for layer in low_rank.products(product):
        whole = low_rank.factorable(model)[0][layer.path]
        expected = Kernel.of(whole).product(ranks[layer.path])
        np.testing.assert_allclose(
            Kernel.of(layer).value, expected, atol=1e-4 * abs(expected).max()
        )
    product.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for one, other in zip(product.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    task = registry.build_task(row.task, **row.task_arguments)
    batch = {k: tf.constant(v[:2]) for k, v in task.synthetic(model, 4, 0).items()}
    task.bind(model, arguments=row.tiny)
    batch["weight"] = tf.ones(2)
    batch = task.prepare(batch, lambda n: tf.random.stateless_uniform((2, n), (0, 0)), False)
    for net in (product, again):  # against a model whose full kernels are the products
        keras.tree.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
            task.forward(_with_full_kernels(model, product), batch, False).outputs,
            task.forward(net, batch, False).outputs,
        )


def _with_full_kernels(model, product):
    factored_layers = {layer.path: layer for layer in low_rank.products(product)}
    for path, layer in low_rank.factorable(model)[0].items():
        if path in factored_layers:
            kernel_of(layer).assign(Kernel.of(factored_layers[path]).value)
    return model


def test_the_trainer_starts_from_the_products_and_resumes_exactly(run, tmp_path, capsys):
    data = toys.image_data(side=20)
    run(recipe(), data, tmp_path / "whole")
    settings = {"init_from": str(tmp_path / "whole"), "energy": 0.7}
    end = run(recipe("low_rank", settings), data, tmp_path / "low")
    message = capsys.readouterr().err
    assert "missing in the source" not in message
    assert "with another shape" not in message
    saved = json.loads((tmp_path / "low" / "config.json").read_text())
    ranks = saved["config"]["compress"]["low_rank"]["ranks"]
    expected = low_rank.decide(
        zoo.load(tmp_path / "whole"), {"energy": 0.7, "budget": 0, "pattern": ""}
    )
    assert parse_ranks(ranks) == expected
    assert expected
    loaded = zoo.load(tmp_path / "low")
    assert toys.difference(loaded, end.step.net) == 0
    assert {x.path: x.ranks for x in low_rank.products(loaded)} == expected
    cut_at(tmp_path / "low", tmp_path / "parts", 5)
    # The ranks are stored in the run, so a changed source model does not matter.
    (tmp_path / "whole" / "model.keras").unlink()
    run(recipe("low_rank", settings), data, tmp_path / "parts")
    assert_same_end(tmp_path / "low", tmp_path / "parts")


@pytest.mark.slow
def test_sensitivity_keeps_each_kernel_within_the_bound(run, tmp_path):
    data = toys.image_data(side=20)
    config = recipe(steps=40)
    config.optimizer.learning_rate = 0.02
    model = run(config, data, tmp_path / "whole").step.net
    config = recipe("low_rank", {"init_from": str(tmp_path / "whole"), "sensitivity": 0.05})
    before = model.get_weights()
    measure = low_rank._loss_function(model, config, data)
    ranks = low_rank.decide(model, config.compress.low_rank, measure)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)  # restored
    base, factorable_layers = measure(), low_rank.factorable(model)[0]
    assert ranks
    for path, numbers in ranks.items():
        kernel = Kernel.of(factorable_layers[path])
        with low_rank._lower_ranks(factorable_layers[path], kernel, numbers):
            assert measure() <= 1.05 * base
            assert measure() != base
        lower = [kernel.ranks(energy) for energy in low_rank._ENERGIES]
        lower = [other for other in lower if kernel.size_at(other) < kernel.size_at(numbers)]
        if lower:  # the next lower energy exceeds the bound
            with low_rank._lower_ranks(factorable_layers[path], kernel, lower[0]):
                assert measure() > 1.05 * base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"energy": 1.0}, r"compress.low_rank.energy must be in \[0, 1\)"),
        ({"budget": -0.1}, "compress.low_rank.budget must be in"),
        ({"sensitivity": -1.0}, "compress.low_rank.sensitivity"),
        ({"energy": 0.9, "budget": 0.5}, "Only one of compress.low_rank.energy, budget and"),
        ({"energy": 0.9, "pattern": "kernal"}, "pattern matches nothing"),
        ({"energy": 0.9, "pattern": "("}, "must be a regular expression"),
        ({"budget": 0.01}, r"budget must be at least 0\.\d+, the share"),
        ({"energy": 0.9999999}, "No kernel becomes smaller"),
        ({"ranks": ("hidden",)}, "must contain PATH=RANK"),
        ({"ranks": ("hiden=3",)}, "must contain layers of the model. Received: 'hiden'"),
        ({"ranks": ("hidden=100000",)}, "hidden requires one rank of at most"),
        ({"ranks": ("hidden=0",)}, "hidden requires one rank of at most"),
        ({"ranks": ("hidden=2x2",)}, "hidden requires one rank of at most"),
        ({"ranks": ("convolution_1=4",)}, "convolution_1 requires INxOUT"),
        ({"ranks": ("convolution_1=0x0",)}, "convolution_1 requires INxOUT"),
    ],
)
def test_wrong_ranks_are_refused(settings, message, digits, run, tmp_path):
    config = recipe("low_rank", {"init_from": digits, **settings})
    with pytest.raises(UsageError, match=message):
        run(config, toys.image_data(side=20), tmp_path / "low")
    assert not (tmp_path / "low").exists()


def test_layers_out_of_reach_are_named():
    model = toys.token_model()
    settings = {"energy": 0.5, "budget": 0, "sensitivity": 0, "pattern": ""}
    with pytest.raises(UsageError, match="does not support block_0/up: the parent layer has no"):
        low_rank.decide(model, settings)
    assert low_rank.decide(model, {**settings, "pattern": "^(logits|embedding)$"})
    ruled = toys.token_model(l2=0.1)
    ruled.get_layer("logits").kernel_regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(UsageError, match="does not support logits: the kernel has a regul"):
        low_rank.decide(ruled, {**settings, "pattern": "logits"})


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_the_same_command_evaluates(trained, tmp_path, zoo_command):
    words = (
        "train", "cnn_digits:debug", f"--workdir={tmp_path / 'low'}", "--config.trainer.steps=25",
        f"--config.init_from={trained[0]}", "--config.compress.low_rank.energy=0.5",
    )  # fmt: skip
    answer = zoo_command(*words)
    assert answer.status == 0, answer.err
    again = zoo_command(*words, "--mode=eval")
    assert again.status == 0, again.err
    assert again.out.splitlines()[-1] in answer.out
    other = zoo_command(*words, "--config.compress.low_rank.energy=0.6", "--mode=eval")
    assert "compress.low_rank.energy: 0.5 -> 0.6" in other.one_line()


def test_a_budget_is_of_what_a_product_holds():
    """A second run with budget 0.5 halves the parameters of the first again."""
    settings = {"energy": 0.0, "budget": 0.5, "sensitivity": 0.0, "pattern": ""}
    whole = keras.Sequential([keras.Input((64,)), layers.Dense(64, name="dense")])
    before = whole
    for most in (0.5, 0.25):
        after = low_rank.factorize(whole, low_rank.format_ranks(low_rank.decide(before, settings)))
        assert after.count_params() <= most * whole.count_params()
        set_from(after, before)
        before = after


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_a_chain_keeps_the_products(chain, tmp_path, zoo_command):
    result = chain(
        "low_rank+prune", "compress.low_rank.budget=0.4", "compress.prune.sparsity=0.5",
        "compress.prune.frequency=2",
    )  # fmt: skip
    ranks = [{x.path: x.ranks for x in low_rank.products(m)} for m in (result.first, result.last)]
    assert ranks[0] == ranks[1] != {}
    assert result.last.count_params() <= 0.4 * 93_322
    for path, share in sparsities(result.last).items():
        assert share == pytest.approx(0.5, abs=0.02) or path.startswith("convolution_1"), path
    after = result.summary["after"]
    assert after["parameters"] == result.last.count_params()
    assert after["file"] == "litert"  # the model was exported and its latency measured
    assert after["milliseconds"]
    assert zoo_command(*result.words).status == 0  # finished already

    lower = zoo_command(
        "compress", "low_rank", result.stage, f"--out={tmp_path / 'lower'}",
        "--config.trainer.steps=25", "--config.compress.low_rank.energy=0.5",
    )  # fmt: skip
    assert lower.status == 0, lower.err
    assert "missing in the source" not in lower.err
    assert zoo.load(tmp_path / "lower").count_params() < result.last.count_params()


def test_no_parts_inside_parts():
    product = low_rank.factorize(every_kind(), ("dense=3",))
    assert isinstance(product.get_layer("dense"), LowRank)
    assert "dense/first" not in low_rank.factorable(product)[0]


def test_a_frozen_backbone_stays_frozen():
    """The layers of a frozen nested model are not trained."""
    row = registry.entry("vgg16_transfer")
    model = registry.build(row.name, **row.tiny)
    paths = [p for p in low_rank.factorable(model)[0] if p.endswith(("block1_conv2", "hidden"))]
    ranks = {path: Kernel.of(low_rank.factorable(model)[0][path]).ranks(0.5) for path in paths}
    assert len(ranks) == 2
    product = low_rank.factorize(model, low_rank.format_ranks(ranks))
    assert type(product) is type(model)
    trainable_layers = [v.path.partition("/")[0] for v in product.trainable_variables]
    assert trainable_layers == ["hidden"] * 3 + ["probabilities"] * 2
    assert not product.extractor.trainable_variables
    set_from(product, model)
    image = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    outputs = product(image)
    np.testing.assert_allclose(outputs, _with_full_kernels(model, product)(image), atol=1e-4)


def test_the_smallest_budget_is_rank_one_everywhere():
    kernel = Kernel(np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype("float32"), 0)
    least = kernel.size_at((1, 1))
    (ranks,) = low_rank._by_budget(
        {"c": kernel}, 1.001 * least / kernel.stored_size, kernel.stored_size
    ).values()
    assert ranks == (1, 1)
