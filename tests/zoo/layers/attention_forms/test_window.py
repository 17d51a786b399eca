"""Window attention equals plain attention with the mask of the window."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.zoo.layers.attention_forms.arrays import assert_equal, with_gradients
from tests.zoo.layers.attention_forms.test_chunked import inputs
from zoo.layers.attention_forms.plain import MASKED, reference_attend
from zoo.layers.attention_forms.window import attend_window

T = 13
PACKED = np.array([[1] * 5 + [2] * 6 + [0] * 2, [3] * 13, [0] * 13], "int32")
GLOBAL = np.zeros((3, T), "int32")
GLOBAL[0, [0, 1, 7]] = GLOBAL[1, 4] = 1  # two neighbors; the last sequence has none


def arrays_of(groups=2, batch=3):
    return inputs(batch=batch, length=T, sources=T, groups=groups)


def twin(arrays, window, segments=None, causal=False, dilation=1, tokens=None, projections=None):
    """Applies the definition, position by position, as a mask over `reference_attend`."""
    batch = arrays[0].shape[0]
    segments = np.ones((batch, T), "int32") if segments is None else np.array(segments)
    same = segments[:, :, None] == segments[:, None, :]
    difference = np.arange(T)[:, None] - np.arange(T)
    inside = (difference >= 0) & (difference < window * dilation) if causal else (
        abs(difference) <= window * dilation
    )  # fmt: skip
    inside = inside & (difference % dilation == 0)
    visible = np.broadcast_to(inside, same.shape)
    if tokens is not None:
        visible = visible | (np.array(tokens) != 0)[:, None, :]
    past = difference >= 0 if causal else np.ones_like(inside)

    def bias(allowed):
        return tf.constant(np.where(allowed, 0.0, MASKED).astype("float32")[:, None])

    out = reference_attend(*arrays, bias(visible & same & past))
    if tokens is not None:
        whole = reference_attend(*(projections or arrays), bias(same & past))
        out = tf.where(tokens[:, :, None, None] != 0, whole, out)
    return out * tf.cast(segments != 0, out.dtype)[:, :, None, None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("window", "dilation"), [(1, 1), (3, 1), (4, 2), (2, 3), (13, 1), (99, 2)])
def test_equals_masked_attention(causal, groups, window, dilation):
    arrays, segments = arrays_of(groups), tf.constant(PACKED)
    arguments = {"causal": causal, "dilation": dilation}
    ours = with_gradients(lambda *x: attend_window(*x, window, segments, **arguments), arrays)
    theirs = with_gradients(lambda *x: twin(x, window, segments, **arguments), arrays)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("causal", [False, True])
def test_works_without_segments(causal):
    arrays = arrays_of(batch=1)
    ours = with_gradients(lambda *x: attend_window(*x, 3, causal=causal), arrays)
    assert_equal(ours, with_gradients(lambda *x: twin(x, 3, causal=causal), arrays))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(
    ("window", "dilation", "packed"), [(3, 1, True), (2, 2, True), (2, 1, False), (50, 1, True)]
)
@pytest.mark.parametrize("projected", [False, True])
def test_global_tokens(causal, groups, window, dilation, packed, projected):
    arrays = arrays_of(groups)
    if projected:
        arrays = (*arrays, *(x[::-1] + 0.5 for x in arrays))
    segments = tf.constant(PACKED) if packed else None
    shared = {"causal": causal, "dilation": dilation}

    def ours(*x):
        names = ("global_query", "global_key", "global_value")
        own = dict(zip(names, x[3:], strict=False))
        return attend_window(
            *x[:3], window, segments, global_mask=GLOBAL, max_global=5, **shared, **own
        )

    def theirs(*x):
        return twin(x[:3], window, segments, tokens=GLOBAL, projections=x[3:], **shared)

    assert_equal(with_gradients(ours, arrays), with_gradients(theirs, arrays))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_unknown_batch_and_length(causal, tokens):
    arrays = arrays_of()
    specs = [tf.TensorSpec((None, None, *x.shape[2:]), x.dtype) for x in arrays]
    whole = tf.TensorSpec((None, None), tf.int32)
    # More slots than positions are allowed.
    options = {"max_global": 20} if tokens else {}

    @tf.function(autograph=False, input_signature=[*specs, whole, whole])
    def run(query, key, value, segments, mask):
        own = {"global_mask": mask, **options} if tokens else {}
        return with_gradients(
            lambda *x: attend_window(*x, 2, segments, causal, 2, **own), (query, key, value)
        )

    theirs = with_gradients(
        lambda *x: twin(x, 2, PACKED, causal, 2, GLOBAL if tokens else None), arrays
    )
    assert_equal(run(*arrays, PACKED, GLOBAL), theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiles_and_keeps_the_dtype(dtype, xla):
    arrays = tuple(tf.cast(x, dtype) for x in arrays_of())

    @tf.function(autograph=False, jit_compile=True)
    def run(*arrays):
        options = {"global_mask": tf.constant(GLOBAL), "max_global": 3}
        return with_gradients(lambda *x: attend_window(*x, 3, PACKED, **options), arrays)

    ours = run(*arrays)
    assert {x.dtype.name for x in ours} == {dtype}
    exact = tuple(tf.cast(x, "float32") for x in arrays)
    theirs = with_gradients(lambda *x: twin(x, 3, PACKED, tokens=GLOBAL), exact)
    if dtype == "float32":
        assert_equal(ours, theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(tf.cast(a, "float32") - b).max() < 0.05 * np.abs(b).max()


def test_dropout_keeps_the_mean():
    arrays, segments = arrays_of(), tf.constant(PACKED)
    options = {"global_mask": GLOBAL, "max_global": 3}
    plain = attend_window(*arrays, 3, segments, **options)
    run = tf.function(
        lambda seed: attend_window(*arrays, 3, segments, **options, rate=0.25, seed=seed),
        autograph=False,
    )
    seeds = keras.random.SeedGenerator(2)
    outs = [run(seeds.next()) for _ in range(400)]
    for rows in (GLOBAL == 0) & (PACKED > 0), (GLOBAL == 1) & (PACKED > 0):
        assert np.std(outs, 0)[rows].mean() > 0.1
        error = np.abs(np.mean(outs, 0) - plain)[rows]
        assert error.max() < 6 * np.std(outs, 0)[rows].max() / 20
    np.testing.assert_array_equal(run(keras.random.SeedGenerator(2).next()), outs[0])


def test_dropout_of_the_window_and_of_the_global_tokens():
    """A row that sees itself and one global token has four possible outputs."""
    arrays, seeds = arrays_of(), keras.random.SeedGenerator(3)
    first = np.eye(T, dtype="int32")[[0] * 3]
    options = {"causal": True, "global_mask": first, "max_global": 1, "rate": 0.5}
    run = tf.function(lambda seed: attend_window(*arrays, 1, seed=seed, **options), autograph=False)
    outs = np.stack([run(seeds.next()) for _ in range(40)]).round(5)
    assert len(np.unique(outs[:, 0, 5, 0, 0])) == 4
    assert len(np.unique(outs[:, 0, 0, 0, 0])) == 2  # the global token sees itself


def test_large_scores():
    arrays = tuple(40 * x for x in arrays_of())
    ours = attend_window(*arrays, 3, global_mask=GLOBAL, max_global=3)
    np.testing.assert_allclose(ours, twin(arrays, 3, tokens=GLOBAL), rtol=1e-2, atol=1e-2)


def test_too_many_global_tokens():
    arrays = arrays_of()
    with pytest.raises(ValueError, match="Received: 3 tokens, max_global=2"):
        attend_window(*arrays, 3, PACKED, global_mask=GLOBAL, max_global=2)
    run = tf.function(
        lambda mask: attend_window(*arrays, 3, PACKED, global_mask=mask, max_global=2),
        autograph=False,
    )
    first = GLOBAL.copy()
    first[0, 7] = 0  # in a graph, only the first two remain
    assert_equal([run(tf.constant(GLOBAL))], [twin(arrays, 3, PACKED, tokens=first)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": 0}, "window and dilation must be positive"),
        ({"window": 2, "dilation": 0}, "Received: window=2, dilation=0"),
        ({"window": 2, "global_mask": GLOBAL}, "max_global must be positive"),
        ({"window": 2, "rate": -0.1}, "rate must be in"),
        ({"window": 2, "rate": 0.1}, "seed must be given"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        attend_window(*arrays_of(), **arguments)


def test_wrong_heads_are_named():
    with pytest.raises(ValueError, match="Received: 4 and 3"):
        attend_window(*arrays_of(groups=3), 2)
