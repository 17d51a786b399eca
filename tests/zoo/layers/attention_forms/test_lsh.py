"""LSH attention equals plain attention of all rounds with a mask that is made from the buckets."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.zoo.layers.attention_forms.arrays import assert_equal, random, with_gradients
from zoo.layers.attention_forms.lsh import attend_lsh, hash_buckets
from zoo.layers.attention_forms.plain import MASKED, attention_scores, reference_attend

T = 11
ITSELF = -5e4  # score of a query with its own key, above MASKED
PACKED = np.array([[1] * 4 + [2] * 5 + [0] * 2, [3] * 10 + [4], [0] * 11], "int32")


def inputs(batch=3, length=T, heads=4, groups=4, size=5):
    return random(batch, length, heads, size), random(batch, length, groups, size, seed=1)


def random_buckets(batch=3, length=T, heads=4, rounds=2, count=4):
    generator = np.random.default_rng(2)
    return generator.integers(0, count, (batch, heads, rounds, length)).astype("int32")


def ring_mask(buckets, chunk, segments, causal):
    """Returns the bias (B, H, n L, n L): all rounds one behind another, positions in order."""
    batch, heads, rounds, length = buckets.shape
    total = -(-length // chunk) * chunk
    segments = np.pad(segments, ((0, 0), (0, total - length)))
    bias = np.full((batch, heads, rounds, total, rounds, total), MASKED, "float32")
    for b, h in np.ndindex(batch, heads):
        ring = []
        for r in range(rounds):
            padding = [t for t in range(total) if segments[b, t] == 0]
            real = [t for t in range(total) if segments[b, t] != 0]
            ring += [(r, t) for t in sorted(real, key=lambda t: buckets[b, h, r, t]) + padding]
        chunks = [ring[i : i + chunk] for i in range(0, len(ring), chunk)]
        for i, own in enumerate(chunks):
            for r, t in own:
                for s, u in {*own, *chunks[i - 1]}:
                    if segments[b, t] == segments[b, u] and (u <= t or not causal):
                        bias[b, h, r, t, s, u] = ITSELF if t == u else 0.0
    return bias.reshape(batch, heads, rounds * total, rounds * total)


def twin(query_key, value, buckets, chunk, segments=None, causal=False):
    batch, heads, rounds, length = buckets.shape
    segments = np.ones((batch, length), "int32") if segments is None else segments
    bias = ring_mask(buckets, chunk, segments, causal)
    total = bias.shape[-1] // rounds
    rest = [(0, 0), (0, total - length), (0, 0), (0, 0)]
    key = query_key / tf.sqrt(tf.reduce_mean(query_key**2, -1, keepdims=True) + 1e-6)
    query, key, value = (
        tf.concat([tf.pad(x, rest)] * rounds, 1) for x in (query_key, key, value)
    )  # fmt: skip
    out = reference_attend(query, key, value, bias)
    out = tf.reshape(out, (batch, rounds, total, heads, -1))
    logs = tf.reduce_logsumexp(attention_scores(query, key, bias), -1)  # (B, H, n L)
    logs = tf.transpose(tf.reshape(logs, (batch, heads, rounds, total)), (0, 2, 3, 1))
    out = tf.reduce_sum(out * tf.nn.softmax(logs, 1)[..., None], 1)[:, :length]
    return out * tf.cast(segments != 0, out.dtype)[:, :, None, None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 3, 4, 6])
def test_equals_masked_attention(causal, rounds, chunk):
    arrays, buckets = inputs(), random_buckets(rounds=rounds)
    ours = with_gradients(lambda *x: attend_lsh(*x, buckets, chunk, PACKED, causal), arrays)
    theirs = with_gradients(lambda *x: twin(*x, buckets, chunk, PACKED, causal), arrays)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [8, 11])
def test_works_without_segments(causal, length):
    arrays, buckets = inputs(1, length), random_buckets(1, length)
    ours = with_gradients(lambda *x: attend_lsh(*x, buckets, 4, causal=causal), arrays)
    assert_equal(ours, with_gradients(lambda *x: twin(*x, buckets, 4, causal=causal), arrays))


@pytest.mark.parametrize("groups", [2, 1])
def test_grouped_values(groups):
    arrays, buckets = inputs(groups=groups), random_buckets()

    def repeated(query_key, value):
        return twin(query_key, tf.repeat(value, 4 // groups, 2), buckets, 3, PACKED)

    ours = with_gradients(lambda *x: attend_lsh(*x, buckets, 3, PACKED), arrays)
    assert_equal(ours, with_gradients(repeated, arrays))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [11, 50])
def test_one_chunk_is_plain_attention(causal, chunk):
    arrays, buckets = inputs(), random_buckets()
    same = (PACKED[:, :, None] == PACKED[:, None]) & (np.tri(T, dtype=bool) | (not causal))
    bias = np.where(same, np.where(np.eye(T, dtype=bool), ITSELF, 0.0), MASKED)
    bias = bias.astype("float32")[:, None]

    def plain(query_key, value):
        key = query_key / tf.sqrt(tf.reduce_mean(query_key**2, -1, keepdims=True) + 1e-6)
        out = reference_attend(query_key, key, value, bias)
        return out * tf.cast(PACKED != 0, "float32")[:, :, None, None]

    ours = with_gradients(lambda *x: attend_lsh(*x, buckets, chunk, PACKED, causal), arrays)
    assert_equal(ours, with_gradients(plain, arrays))


@pytest.mark.parametrize("chunk", [4, 50])
@pytest.mark.parametrize("packed", [False, True])
def test_unknown_batch_and_length(chunk, packed):
    arrays, buckets = inputs(), random_buckets()
    specs = [tf.TensorSpec((None, None, *x.shape[2:]), x.dtype) for x in arrays]
    integers = tf.TensorSpec((None, 4, 2, None), tf.int32), tf.TensorSpec((None, None), tf.int32)

    @tf.function(autograph=False, input_signature=[*specs, *integers])
    def run(query_key, value, buckets, segments):
        segments = segments if packed else None
        return with_gradients(
            lambda *x: attend_lsh(*x, buckets, chunk, segments, True), (query_key, value)
        )

    segments = PACKED if packed else None
    theirs = with_gradients(lambda *x: twin(*x, buckets, min(chunk, T), segments, True), arrays)
    assert_equal(run(*arrays, buckets, PACKED), theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiles_and_keeps_the_dtype(dtype, xla):
    arrays, buckets = tuple(tf.cast(x, dtype) for x in inputs()), random_buckets()

    @tf.function(autograph=False, jit_compile=True)
    def run(*arrays):
        return with_gradients(lambda *x: attend_lsh(*x, buckets, 4, PACKED, True), arrays)

    ours = run(*arrays)
    assert {x.dtype.name for x in ours} == {dtype}
    exact = tuple(tf.cast(x, "float32") for x in arrays)
    theirs = with_gradients(lambda *x: twin(*x, buckets, 4, PACKED, True), exact)
    if dtype == "float32":
        assert_equal(ours, theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(tf.cast(a, "float32") - b).max() < 0.05 * np.abs(b).max()


def test_no_tensor_of_all_pairs():
    arrays, buckets = inputs(1, 128, 1, 1), random_buckets(1, 128, 1)

    @tf.function(autograph=False)
    def run(*arrays):
        return with_gradients(lambda *x: attend_lsh(*x, buckets, 8, causal=True), arrays)

    graph = run.get_concrete_function(*arrays).graph
    sizes = [x.shape.num_elements() for op in graph.get_operations() for x in op.outputs]
    assert max(size for size in sizes if size) <= 2 * 128 * 16  # rounds, positions, keys of each


def test_recomputation_repeats_hashes_and_dropout():
    arrays, seed = inputs(), keras.random.SeedGenerator(1).next()

    def attend(query_key, value):
        buckets = hash_buckets(query_key, 4, 2, seed)
        return attend_lsh(query_key, value, buckets, 3, PACKED, rate=0.5, seed=seed)

    assert_equal(
        with_gradients(tf.recompute_grad(attend), arrays), with_gradients(attend, arrays), 1e-6
    )


def test_dropout_keeps_the_mean():
    arrays, buckets = inputs(1), random_buckets(1)
    plain, seeds = attend_lsh(*arrays, buckets, 3), keras.random.SeedGenerator(2)
    run = tf.function(
        lambda seed: attend_lsh(*arrays, buckets, 3, rate=0.25, seed=seed), autograph=False
    )
    outs = [run(seeds.next()) for _ in range(300)]
    assert np.std(outs, 0).mean() > 0.1
    assert np.abs(np.mean(outs, 0) - plain).max() < 6 * np.std(outs, 0).max() / 300**0.5
    np.testing.assert_array_equal(run(keras.random.SeedGenerator(2).next()), outs[0])


def test_hashes_depend_on_the_direction_and_the_seed():
    x, seed = random(2, 500, 3, 6), np.array([1, 2], "int32")
    buckets = hash_buckets(x, 8, 4, seed).numpy()
    assert buckets.shape == (2, 3, 4, 500)
    np.testing.assert_array_equal(np.unique(buckets), np.arange(8))
    np.testing.assert_array_equal(hash_buckets(3 * x, 8, 4, seed), buckets)
    opposite = hash_buckets(-x, 8, 4, seed).numpy()
    np.testing.assert_array_equal(opposite, (buckets + 4) % 8)
    for other in (hash_buckets(x, 8, 4, seed + 1).numpy(), np.roll(buckets, 1, 2)):
        assert (other == buckets).mean() < 0.5  # other seeds and other rounds hash otherwise
    near = hash_buckets(x + 0.01 * random(2, 500, 3, 6, seed=3), 8, 4, seed).numpy()
    assert 0.95 < (near == buckets).mean() < 1


def test_factors_hash_into_their_product():
    x, seed = random(1, 2000, 1, 6), np.array([1, 2], "int32")
    buckets = hash_buckets(x, (4, 6), 1, seed).numpy()
    np.testing.assert_array_equal(np.unique(buckets), np.arange(24))
    first, second = buckets % 4, buckets // 4
    opposite = hash_buckets(-x, (4, 6), 1, seed).numpy()
    np.testing.assert_array_equal(opposite % 4, (first + 2) % 4)
    np.testing.assert_array_equal(opposite // 4, (second + 3) % 6)


def test_hashes_compile_with_unknown_length(xla):
    x, seed = random(2, 30, 3, 6), tf.constant([1, 2])
    eager = hash_buckets(x, 8, 2, seed).numpy()
    run = tf.function(
        lambda x: hash_buckets(x, 8, 2, seed),
        autograph=False, input_signature=[tf.TensorSpec((None, None, 3, 6))],
    )  # fmt: skip
    np.testing.assert_array_equal(run(x), eager)
    compiled = tf.function(hash_buckets, autograph=False, jit_compile=True)
    buckets = compiled(x, 8, 2, seed).numpy()
    np.testing.assert_array_equal(np.unique(buckets), np.arange(8))
    np.testing.assert_array_equal(compiled(-x, 8, 2, seed), (buckets + 4) % 8)


def test_a_constant_seed_needs_no_random_numbers(xla):
    """Such graphs can be exported, and XLA computes the same buckets."""
    x = random(2, 30, 3, 6)
    run = tf.function(lambda x: hash_buckets(x, (4, 6), 2, (1, 2)), autograph=False)
    kinds = {op.type for op in run.get_concrete_function(x).graph.get_operations()}
    assert not [kind for kind in kinds if "Random" in kind or "Bit" in kind]
    buckets = run(x).numpy()
    assert len(np.unique(buckets)) > 12
    compiled = tf.function(lambda x: hash_buckets(x, (4, 6), 2, (1, 2)), jit_compile=True)
    np.testing.assert_array_equal(compiled(x), buckets)
    assert (hash_buckets(x, (4, 6), 2, (1, 3)).numpy() != buckets).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"chunk": 0}, "chunk must be positive"),
        ({"rate": 1.0}, "rate must be in"),
        ({"rate": 0.1}, "seed must be given"),
        ({"buckets": random_buckets(heads=3)}, r"Received: \(3, 3, 2, 11\) with 4 heads"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        attend_lsh(*inputs(), **{"buckets": random_buckets(), **arguments})


def test_wrong_heads_are_named():
    with pytest.raises(ValueError, match="Received: 4 and 3"):
        attend_lsh(*inputs(groups=3), random_buckets())


@pytest.mark.parametrize("count", [0, 3, (), (4, 3)])
def test_wrong_number_of_buckets_is_named(count):
    with pytest.raises(ValueError, match="num_buckets must be"):
        hash_buckets(inputs()[0], count, 2, np.zeros(2, "int32"))
