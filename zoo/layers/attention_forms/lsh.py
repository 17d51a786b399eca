"""Attention by locality-sensitive hashing, in time and memory O(n T M) instead of O(T T).

Kitaev, Kaiser & Levskaya 2020, Reformer: The Efficient Transformer, arXiv:2001.04451, section 2.
Queries and keys are the same vectors, except that keys have length 1. Similar vectors are likely in
the same bucket. In each round the positions are sorted by their bucket and cut into chunks; a query
sees the keys of its chunk and of the chunk before. Axes: B batch, T positions, H query heads, G
value heads, D head size, n rounds, M positions of a chunk, L = T rounded up to a multiple of M,
N = n L / M chunks of a head.
"""

import keras
import numpy as np
from keras import ops

from zoo.layers.attention_forms.keep_mask import FixedSeed, check_dropout, keep_mask
from zoo.layers.attention_forms.plain import MASKED

# Added to the score of a query with its own key: above `MASKED`, so that a query sees its own key
# only if it sees no other.
ITSELF = -5e4


def hash_buckets(query_key, num_buckets, rounds, seed):
    """Returns the bucket of each vector, the same for vectors of the same direction.

    The bucket is the argmax of [xR; -xR] with a random R per head and round (section 2, "Locality
    sensitive hashing"). With several factors, each factor has an R of its own, and the cost grows
    with the sum of the factors instead of the product. No gradient passes. XLA draws another R from
    the same seed, unless the seed is a tuple of Python integers: then R is a constant, and exported
    files need no random numbers.

    Args:
      query_key: (B, T, H, D).
      num_buckets: number of buckets, even; or a tuple of even factors of this number.
      rounds: n.
      seed: (2,) integers that determine R, as from `keras.random.SeedGenerator.next()`, or a tuple.

    Returns:
      (B, H, n, T) int32, in [0, product of the factors).

    Raises:
      ValueError: if num_buckets or rounds is wrong.
    """
    factors = (num_buckets,) if isinstance(num_buckets, int) else tuple(num_buckets)
    if not factors or any(factor < 2 or factor % 2 for factor in factors):
        raise ValueError(
            "num_buckets must be a positive even number or a tuple of such numbers. "
            f"Received: num_buckets={num_buckets}"
        )
    if rounds < 1:
        raise ValueError(f"rounds must be positive. Received: rounds={rounds}")
    batch, length, heads, size = ops.shape(query_key)
    half = sum(factors) // 2
    shape = (heads, size, rounds * half)
    if isinstance(seed, tuple):
        rotations = np.random.default_rng(seed).standard_normal(shape, "float32")
    else:
        seed = FixedSeed(ops.cast(seed, "int32"))
        rotations = keras.random.normal(shape, dtype="float32", seed=seed)
    x = ops.transpose(ops.cast(ops.stop_gradient(query_key), "float32"), (0, 2, 1, 3))
    x = ops.reshape(ops.matmul(x, rotations), (batch, heads, length, rounds, half))
    buckets, stride, first = 0, 1, 0
    for factor in factors:
        part = x[..., first : first + factor // 2]
        part = _first_largest(ops.concatenate([part, -part], -1))
        buckets, stride, first = buckets + stride * part, stride * factor, first + factor // 2
    return ops.transpose(buckets, (0, 1, 3, 2))


def _first_largest(x):
    """Returns `argmax` over the last axis, int32, by operations that ONNX has.

    Keras' function reads the sign bit of zeros, which no runtime of exported files supports.
    """
    last = x.shape[-1] - 1
    is_largest = x >= ops.max(x, axis=-1, keepdims=True)
    return ops.min(ops.where(is_largest, ops.arange(last + 1, dtype="int32"), last), axis=-1)


def as_keys(query_key):
    """Returns keys of length sqrt(D) in the directions of (…, D); the scores are divided by it."""
    exact = ops.cast(query_key, "float32")
    norm = ops.rsqrt(ops.mean(ops.square(exact), -1, keepdims=True) + 1e-6)
    return ops.cast(exact * norm, query_key.dtype)


def attend_lsh(
    query_key, value, buckets, chunk=64, segments=None, causal=False, rate=0.0, seed=None
):
    """Computes attention within the chunks of positions that are sorted by bucket.

    The rounds of a head form one ring of chunks: the first chunk of a round sees the last chunk of
    the round before, and the first round follows the last. Padding is last in each round. A query
    sees its own key only if it sees no other key of its document. The outputs of the rounds are
    averaged with weights in proportion to their softmax denominators. This equals
    `LSHSelfAttention` of transformers. With one chunk, all pairs are seen.

    Args:
      query_key: (B, T, H, D), queries; divided by their length, they are the keys.
      value: (B, T, G, D), H a multiple of G.
      buckets: (B, H, n, T) integers, not negative, as from `hash_buckets`. The number of buckets
        times L must be below 2**31.
      chunk: M.
      segments: (B, T) integers, the document of each position, 0 for padding; positions attend to
        the same number. None if all positions are in one document.
      causal: whether later positions are masked too.
      rate: dropout rate of the probabilities.
      seed: (2,) integers for dropout, as from `keras.random.SeedGenerator.next()`.

    Returns:
      (B, T, H, D) in the dtype of the query; products are computed in that dtype, the softmax in
      float32. Rows of padding are 0.

    Raises:
      ValueError: if the number of heads, the shape of buckets, chunk, rate or seed is wrong.
    """
    heads, size = query_key.shape[2:]
    groups, dtype = value.shape[2], query_key.dtype
    if heads % groups:
        raise ValueError(
            "The number of query heads must be a multiple of the number of value heads. "
            f"Received: {heads} and {groups}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be positive. Received: chunk={chunk}")
    if len(buckets.shape) != 4 or buckets.shape[1] != heads:
        raise ValueError(
            "buckets must have shape (batch, heads, rounds, length). "
            f"Received: {tuple(buckets.shape)} with {heads} heads"
        )
    check_dropout(rate, seed)
    rounds = buckets.shape[2]
    batch, length = ops.shape(query_key)[:2]
    static = isinstance(length, int)
    if static and length <= chunk:  # all rounds would see the same keys
        chunk, rounds, buckets = length, 1, buckets[:, :, :1]
    padding = -length % chunk if static else (chunk - length % chunk) % chunk
    total = length + padding
    if segments is None and not (static and padding == 0):
        segments = ops.ones((batch, length), "int32")
    look_back = not (static and rounds * total == chunk)

    def padded(x, axis=1):
        if static and padding == 0:
            return x
        return ops.pad(x, [(0, padding if i == axis else 0) for i in range(len(x.shape))])

    query_key, value, buckets = padded(query_key), padded(value), padded(buckets, 3)
    if groups < heads:
        value = ops.repeat(value, heads // groups, axis=2)

    # The sort key has no ties, so that the sort need not be stable.
    places = ops.arange(total, dtype="int32")
    keys = ops.cast(buckets, "int32") * total + places
    if segments is not None:
        segments = padded(ops.cast(segments, "int32"))
        behind = 2**31 - 1 - total + places
        keys = ops.where(ops.equal(segments, 0)[:, None, None], behind, keys)
    order = ops.cast(ops.argsort(keys, axis=-1), "int32")  # (B, H, n, L): position of each place
    place = ops.cast(ops.argsort(order, axis=-1), "int32")  # (B, H, n, L): place of each position

    def numbers(count, axis):
        return ops.reshape(
            ops.arange(count, dtype="int32"), [-1 if i == axis else 1 for i in range(4)]
        )

    b, h, r = numbers(batch, 0), numbers(heads, 1), numbers(rounds, 2)
    # Rows of tensors (B, L, H, ...), (B, L, H, n, ...) and (B, H, n, L, ...) as matrices.
    of_position = (b * total + order) * heads + h
    of_position_and_round = of_position * rounds + r
    of_place = ops.transpose(((b * heads + h) * rounds + r) * total + place, (0, 3, 1, 2))

    def rows(x, index):
        """Returns (*index.shape, D): the rows `index` of x (..., D) as a matrix."""
        x = ops.reshape(x, (-1, x.shape[-1]))
        taken = ops.take(x, ops.reshape(index, (-1,)), axis=0)
        return ops.reshape(taken, (*ops.shape(index), x.shape[-1]))

    # The gradient of a permutation is the inverse permutation: reads instead of scattered writes.
    @ops.custom_gradient
    def sort(x):
        """Returns (B, H, n, L, D) of (B, L, H, D)."""

        def gradient(*args, upstream=None):
            slope = args[0] if upstream is None else upstream
            return ops.sum(rows(slope, of_place), 3)

        return rows(x, of_position), gradient

    @ops.custom_gradient
    def unsort(x):
        """Returns (B, L, H, n, D) of (B, H, n, L, D)."""

        def gradient(*args, upstream=None):
            return rows(args[0] if upstream is None else upstream, of_position_and_round)

        return rows(x, of_place), gradient

    def in_chunks(x):
        """Reshapes (B, H, n, L, ...) to (B, H, N, M, ...)."""
        return ops.reshape(x, (batch, heads, -1, chunk, *x.shape[4:]))

    def as_rows(x):
        """Reverses `in_chunks` for (B, H, N, M, D), and `sort`: (B, L, H, n, D)."""
        return unsort(ops.reshape(x, (batch, heads, rounds, total, x.shape[-1])))

    def with_look_back(x):
        """Returns (B, H, N, 2 M, ...): each chunk behind the one before."""
        return ops.concatenate([ops.roll(x, 1, axis=2), x], 3) if look_back else x

    query = in_chunks(sort(query_key))
    key = with_look_back(as_keys(query) * ops.cast(size**-0.5, dtype))
    scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 1, 2, 4, 3))), "float32")

    positions = in_chunks(order)
    here, there = positions[..., :, None], with_look_back(positions)[..., None, :]
    bias = ops.where(ops.equal(here, there), ITSELF, 0.0)
    visible = there <= here if causal else None
    if segments is not None:
        flat = ops.reshape(segments, (-1,))
        documents = in_chunks(ops.take(flat, b * total + order, axis=0))
        same = ops.equal(documents[..., :, None], with_look_back(documents)[..., None, :])
        visible = same if visible is None else ops.logical_and(visible, same)
    if visible is not None:
        bias = ops.where(visible, bias, MASKED)
    scores = scores + bias

    largest = ops.stop_gradient(ops.max(scores, -1, keepdims=True))
    weights = ops.exp(scores - largest)
    denominator = ops.sum(weights, -1, keepdims=True)
    weights = ops.cast(weights, dtype)
    if rate:
        weights = weights * keep_mask(ops.shape(weights), rate, seed, dtype)
    out = ops.matmul(weights, with_look_back(in_chunks(sort(value))))
    out = as_rows(ops.cast(ops.cast(out, "float32") / denominator, dtype))
    if rounds > 1:
        shares = ops.softmax(as_rows(largest + ops.log(denominator)), axis=3)
        out = out * ops.cast(shares, dtype)
    out = ops.sum(out, 3)[:, :length]
    if segments is None:
        return out
    return out * ops.cast(ops.not_equal(segments[:, :length], 0), dtype)[:, :, None, None]
