"""GPTQ and AWQ use a layer's inputs, and have smaller output errors than plain rounding."""

import keras
import numpy as np
import pytest

from tests.trainers.compress_jobs.test_ptq import loaded_run
from trainers.compress_jobs import calibrated, int4, ptq
from trainers.compress_jobs.methods import FORMATS
from zoo.errors import RunError
from zoo.keras_internals import all_layers

METHODS = {"gptq": int4.gptq, "awq": int4.awq}


def layer_inputs(size, outlier, rows=300):
    """Returns independent inputs; one channel is 20 times as large as the others."""
    x = np.random.default_rng(size).normal(size=(rows, size)).astype("float32")
    x[:, outlier] *= 20
    return x


def inputs_of(x):
    inputs = int4.Inputs(x.shape[1])
    inputs.add(x)
    return inputs


def keras_int4(kernel):
    """Returns a Keras layer with Keras' rounding to 4 bits."""
    layer = keras.layers.Dense(kernel.shape[1], use_bias=False)
    layer.build((None, kernel.shape[0]))
    layer.kernel.assign(kernel)
    settings = keras.quantizers.Int4QuantizationConfig(activation_quantizer=None)
    layer.quantize("int4", config=settings)
    return layer


@pytest.mark.parametrize("mode", METHODS)
@pytest.mark.parametrize(("size", "outlier"), [(16, 0), (64, 63), (100, 30)])
def test_an_outlier_channel_is_kept_better_than_by_plain_rounding(mode, size, outlier):
    x = layer_inputs(size, outlier)
    kernel = np.random.default_rng(1).normal(size=(size, 24)).astype("float32")
    expected = x @ kernel
    plain = np.mean((keras_int4(kernel)(x).numpy() - expected) ** 2)
    error = np.mean((x @ METHODS[mode](kernel.T, inputs_of(x)).weights.T - expected) ** 2)
    assert error < 0.5 * plain
    nearest = np.mean((x @ int4.nearest(kernel.T).weights.T - expected) ** 2)
    assert error < 0.5 * nearest


def test_the_error_is_that_of_the_outputs():
    x = layer_inputs(20, 4)
    weights, change = np.random.default_rng(2).normal(size=(2, 6, 20))
    expected = np.mean((x @ (weights + change).T - x @ weights.T) ** 2, 0)
    np.testing.assert_allclose(inputs_of(x).error(change), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [12, int4.GROUP + 6])
def test_gptq_rounds_as_its_definition_says(size):
    """Each column's error is made up for by the best change of all columns that follow, those of
    later groups too."""
    x = layer_inputs(size, 5) @ np.random.default_rng(3).normal(size=(size, size))
    weights = np.random.default_rng(4).normal(size=(7, size))
    inputs = inputs_of(np.float32(x))
    hessian = 2 * inputs.gram / len(x)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(size)
    result = int4.gptq(weights, inputs)
    remaining = weights.copy()
    for i in range(size):
        group = slice(i // int4.GROUP, i // int4.GROUP + 1)
        zero, scale = np.float64(result.zero[:, group]), result.scale[:, group]
        level = np.clip(np.round(remaining[:, i : i + 1] / scale + zero), 0, 15)
        np.testing.assert_array_equal(result.integers[:, i], level[:, 0])
        error = remaining[:, i : i + 1] - (level - zero) * scale
        inverse = np.linalg.inv(hessian[i:, i:])
        remaining[:, i:] -= error * inverse[0] / inverse[0, 0]


def test_awq_takes_the_best_of_its_grid():
    x, weights = layer_inputs(16, 3), np.random.default_rng(5).normal(size=(9, 16))
    inputs = inputs_of(x)

    def error(rounded):
        return inputs.error(rounded.weights - weights).sum()

    result = int4.awq(weights, inputs, clip=False)
    weight_means = (np.abs(weights) / np.abs(weights).max(1, keepdims=True)).mean(0)
    grid = [
        error(
            int4.nearest(weights, np.abs(x).mean(0) ** alpha / (weight_means ** (1 - alpha) + 1e-4))
        )
        for alpha in np.arange(20) / 20
    ]
    assert error(result) == pytest.approx(min(grid), rel=1e-4)
    assert min(grid) < error(int4.nearest(weights))
    weights[:, 7] *= (
        8  # of a channel with small inputs: clipping its weights helps the other channels
    )
    x[:, 7] *= 0.01
    inputs = inputs_of(x)
    assert error(int4.awq(weights, inputs)) < error(int4.awq(weights, inputs, clip=False))


def test_zero_stays_zero_and_a_group_of_one_sign_keeps_its_levels():
    weights = np.float32([[3.0, 3.5, 4.0], [-1.0, -1.5, -2.0], [0, 0, 0]])
    actual = int4.nearest(weights).weights
    np.testing.assert_allclose(actual, weights, atol=4 / 15 / 2)
    x = layer_inputs(3, 0)
    x[:, 1] = 0  # an input that never occurs
    for method in METHODS.values():
        for samples in (x, np.zeros_like(x)):
            actual = method(weights, inputs_of(samples)).weights
            assert np.isfinite(actual).all()
            np.testing.assert_array_equal(actual[2], 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A GPT, one channel of whose hidden states is large, as saved by each method and reopened.

    Returns (the model of floats, mode -> (what calibration counted, the model from its file)).
    """

    def fresh():
        keras.utils.set_random_seed(3)
        run = loaded_run("gpt_nano")
        for i in range(2):
            norm = run.model.get_layer(f"block_{i}").attention_norm
            norm.gamma.assign(np.where(np.arange(16) == 5, 20, 1))
        return run

    folder, quantized = tmp_path_factory.mktemp("int4"), {}
    for mode in METHODS:
        run = fresh()
        counts = calibrated.quantize(run.model, mode, run.representative(12, 0))
        path = folder / f"{mode}.keras"
        quantized[mode] = (
            counts,
            ptq._save_and_reopen(run.model, path, run, FORMATS[f"keras_{mode}"]),
        )
    return fresh().model, quantized


def dense_layers(model):
    blocks = [layer for layer in model.layers if layer.name.startswith("block_")]
    inner_layers = [x for block in blocks for x in all_layers(block)]
    return {x.path: x for x in inner_layers if isinstance(x, keras.layers.Dense)}


def test_every_layer_is_calibrated_on_every_position(files):
    """There are 12 examples of 12 tokens; `counts` are the numbers of calibration inputs."""
    floats, quantized = files
    for counts, _ in quantized.values():
        assert counts == dict.fromkeys(dense_layers(floats), 12 * 12)


def test_the_files_of_both_methods_keep_what_plain_rounding_loses(files):
    floats, quantized = files
    x = layer_inputs(16, 5)
    for path, layer in dense_layers(floats).items():
        both = [dense_layers(model)[path] for _, model in quantized.values()]
        assert np.any(both[0].quantized_kernel.numpy() != both[1].quantized_kernel.numpy()), path
        if not path.endswith("query_key_value"):
            continue
        expected = layer(x).numpy()
        plain = keras_int4(layer.kernel.numpy())(x).numpy()
        for one in both:
            error = np.mean((one(x).numpy() - expected) ** 2)
            assert error < 0.6 * np.mean((plain - expected) ** 2), path


@pytest.fixture
def calibrations(monkeypatch):
    """Returns a list of `(path, sum of x x^T)` per layer, recorded before the layer is rounded."""
    records, plain = [], calibrated._quantize_layer

    def watched(layer, mode, inputs, *clip):
        records.append((layer.path, inputs.gram.copy()))
        plain(layer, mode, inputs, *clip)

    monkeypatch.setattr(calibrated, "_quantize_layer", watched)
    return records


def test_a_block_is_calibrated_on_what_the_rounded_blocks_before_it_give(calibrations):
    run = loaded_run("gpt_nano")
    for layer in dense_layers(run.model).values():
        layer.kernel.assign(np.random.default_rng(6).normal(size=layer.kernel.shape))
    examples = run.representative(4, 0)

    def gram():
        block = run.model.get_layer("block_1")
        before = keras.Model(run.model.inputs, block.input[0])
        hidden = before([examples[x.name] for x in run.model.inputs])
        x = np.asarray(block.attention_norm(hidden)).reshape(-1, 16)
        return x.T @ x

    floats = gram()
    calibrated.quantize(run.model, "gptq", examples)
    (calibration,) = [
        each
        for path, each in calibrations
        if path.startswith("block_1/") and path.endswith("query_key_value")
    ]
    scale = np.abs(floats).max()
    np.testing.assert_allclose(calibration / scale, gram() / scale, atol=1e-3)
    assert np.abs(calibration - floats).max() > 0.02 * scale


def test_awq_clips_no_layer_that_makes_the_scores_of_attention(calibrations, monkeypatch):
    clips, plain = [], int4.awq

    def awq(weights, inputs, clip=True):
        clips.append(clip)
        return plain(weights, inputs, clip)

    monkeypatch.setattr(int4, "awq", awq)
    run = loaded_run("gpt_nano")
    calibrated.quantize(run.model, "awq", run.representative(2, 0))
    of_scores = ["query" in path for path, _ in calibrations]
    assert any(of_scores)
    assert clips == [not each for each in of_scores]


def test_awq_clips_only_outputs_that_are_better_for_it():
    """Groups are clipped independently; their best clips together may enlarge the error."""
    draw = np.random.default_rng(7)
    size = 2 * int4.GROUP
    x = np.float32(draw.normal(size=(300, 3)) @ draw.normal(size=(3, size)))
    inputs, weights = inputs_of(x), draw.standard_t(3, size=(40, size))
    plain, clipped = (
        inputs.error(int4.awq(weights, inputs, clip).weights - weights) for clip in (False, True)
    )
    assert np.all(clipped <= plain * (1 + 1e-6))
    assert np.any(clipped < plain)
    assert np.any(clipped == plain)


def test_a_layer_without_inputs_is_refused(monkeypatch):
    run = loaded_run("gpt_nano")
    monkeypatch.setattr(int4.Inputs, "add", lambda self, x: None)
    with pytest.raises(
        RunError, match="keras_gptq cannot calibrate block_0/.*: the layer got no inputs"
    ):
        calibrated.quantize(run.model, "gptq", run.representative(2, 0))
