"""Exact attention in chunks of queries, with little memory.

Scores exist only for one chunk at a time. The gradient is written by hand and recomputes the scores
from the stored logarithms of the softmax' denominators (Rabe & Staats 2021, Self-attention Does Not
Need O(n^2) Memory, arXiv:2112.05682; gradient as in Dao et al. 2022, FlashAttention,
arXiv:2205.14135, appendix B.2). Axes: B batch, T query positions, S key positions, H query heads,
G key-value heads, R = H/G, D head size, M positions of a chunk.
"""

from keras import ops

from zoo.layers.attention_forms.keep_mask import check_dropout, keep_mask
from zoo.layers.attention_forms.plain import MASKED


def attend_chunked(
    query,
    key,
    value,
    segments=None,
    segments_key=None,
    causal=False,
    chunk=128,
    rate=0.0,
    seed=None,
):
    """Computes `zoo.layers.attention.attend` with `mask_bias`, in memory O(M S) instead of O(T S).

    With a static length, causal chunks skip the keys behind their end. With an unknown length, a
    loop runs over the chunks and computes all keys.

    Args:
      query: (B, T, H, D).
      key: (B, S, G, D).
      value: (B, S, G, D).
      segments: (B, T) integers, the document of each position, 0 for padding; positions attend to
        the same number. None if all positions are in one document.
      segments_key: (B, S) integers for cross-attention; `segments` by default.
      causal: whether later positions are masked too; for self-attention only.
      chunk: M, number of queries per chunk; any positive number.
      rate: dropout rate of the probabilities.
      seed: (2,) integers for dropout, as from `keras.random.SeedGenerator.next()`.

    Returns:
      (B, T, H, D) in the dtype of the query; products are computed in that dtype, the softmax in
      float32.

    Raises:
      ValueError: if the number of heads, chunk, rate, seed or the combination of causal and
        segments_key is wrong.
    """
    heads, size = query.shape[2:]
    groups = key.shape[2]
    if heads % groups:
        raise ValueError(
            "The number of query heads must be a multiple of the number of key-value heads. "
            f"Received: {heads} and {groups}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be positive. Received: chunk={chunk}")
    if causal and segments_key is not None:
        raise ValueError("causal must be False in cross-attention. Received: segments_key")
    if segments_key is not None and segments is None:
        raise ValueError("segments must be given with segments_key. Received: segments=None")
    check_dropout(rate, seed)
    segments_key = segments if segments_key is None else segments_key
    repeats, dtype = heads // groups, query.dtype
    batch, length = ops.shape(query)[:2]
    sources = ops.shape(key)[1]
    static = isinstance(length, int)
    if static:
        chunk = min(chunk, length)
    scale = ops.cast(size**-0.5, dtype)

    def bias_of(first, count, end, rows):
        """Returns the bias (B or 1, 1, R * count, end) of a chunk, or None; `rows` (B, count)."""
        allowed = None
        if segments_key is not None:
            allowed = ops.equal(rows[:, :, None], segments_key[:, None, :end])
        if causal:
            past = ops.arange(end)[None, :] <= first + ops.arange(count)[:, None]
            allowed = past[None] if allowed is None else ops.logical_and(allowed, past)
        if allowed is None:
            return None
        bias = ops.where(allowed, 0.0, MASKED)[:, None]
        return ops.concatenate([bias] * repeats, 2) if repeats > 1 else bias

    def scores_of(query_M, key, bias):
        scores = ops.cast(ops.matmul(query_M, ops.transpose(key, (0, 1, 3, 2))), "float32")
        return scores if bias is None else scores + bias

    def mask_of(scores, part):
        return keep_mask(ops.shape(scores), rate, seed, dtype, part) if rate else None

    def forward(query_M, key, value, bias, part):
        """Returns the output of a chunk (B, G, R * M, D) and the log denominators, float32."""
        scores = scores_of(query_M, key, bias)
        largest = ops.max(scores, -1, keepdims=True)
        exponentials = ops.exp(scores - largest)
        total = ops.sum(exponentials, -1, keepdims=True)
        weights = ops.cast(exponentials, dtype)
        if rate:
            weights = weights * mask_of(scores, part)
        out = ops.matmul(weights, value)
        out = ops.cast(ops.cast(out, "float32") / total, dtype)
        return out, largest + ops.log(total)

    def backward(query_M, key, value, bias, part, out, log_total, slope):
        """Returns the gradients of a chunk's query, and its part of those of key and value."""
        # The product of slope and out is the sum over keys of probability times its gradient.
        delta = ops.sum(ops.cast(slope, "float32") * ops.cast(out, "float32"), -1, keepdims=True)
        probabilities = ops.exp(scores_of(query_M, key, bias) - log_total)
        slopes = ops.cast(ops.matmul(slope, ops.transpose(value, (0, 1, 3, 2))), "float32")
        weights = ops.cast(probabilities, dtype)
        if rate:
            mask = mask_of(slopes, part)
            slopes, weights = slopes * ops.cast(mask, "float32"), weights * mask
        score_slopes = ops.cast(probabilities * (slopes - delta), dtype)
        return (
            ops.matmul(score_slopes, key) * scale,
            ops.cast(ops.matmul(ops.transpose(score_slopes, (0, 1, 3, 2)), query_M), "float32"),
            ops.cast(ops.matmul(ops.transpose(weights, (0, 1, 3, 2)), slope), "float32"),
        )

    def rows_of(x, first, count):
        """Returns rows of (B, T, H, D) as (B, G, R * count, D)."""
        x = ops.reshape(x[:, first : first + count], (batch, count, groups, repeats, size))
        return ops.reshape(
            ops.transpose(x, (0, 2, 3, 1, 4)), (batch, groups, repeats * count, size)
        )

    def as_positions(x, count):
        """Reverses `rows_of`: (B, count, H, D)."""
        x = ops.reshape(x, (batch, groups, repeats, count, size))
        return ops.reshape(ops.transpose(x, (0, 3, 1, 2, 4)), (batch, count, heads, size))

    def by_heads(x):
        return ops.transpose(x, (0, 2, 1, 3))

    def waiting(x, *earlier):
        """Makes x wait for the earlier chunk, or TensorFlow would run several chunks at once."""
        for other in earlier:
            x = x + ops.cast(0.0 * ops.cast(other[0, 0, 0, 0], "float32"), x.dtype)
        return x

    def pieces():
        """Yields first row, number of rows and number of visible keys of each chunk."""
        for first in range(0, length, chunk):
            count = min(chunk, length - first)
            yield first, count, first + count if causal else sources

    def segments_of(first, count, *earlier):
        return None if segments is None else waiting(segments[:, first : first + count], *earlier)

    def run(query, key, value):
        """Returns output (B, T, H, D) and log denominators per chunk, with a static length."""
        key, value = by_heads(key), by_heads(value)
        outs, log_totals = [], []
        for part, (first, count, end) in enumerate(pieces()):
            query_M = waiting(rows_of(query, first, count) * scale, *outs[-1:])
            bias = bias_of(first, count, end, segments_of(first, count, *outs[-1:]))
            out, log_total = forward(query_M, key[:, :, :end], value[:, :, :end], bias, part)
            outs.append(out)
            log_totals.append(log_total)
        parts = zip(outs, pieces(), strict=True)
        out = ops.concatenate([as_positions(out, count) for out, (_, count, _) in parts], 1)
        return out, log_totals

    def run_gradient(query, key, value, out, log_totals, slope):
        key, value = by_heads(key), by_heads(value)
        slopes_query, slopes_key, slopes_value, earlier = [], None, None, ()
        # Causal: from the last chunk, whose gradient has all keys, to the first.
        for part, (first, count, end) in reversed(list(enumerate(pieces()))):
            query_M = waiting(rows_of(query, first, count) * scale, *earlier)
            slope_query, slope_key, slope_value = backward(
                query_M,
                key[:, :, :end],
                value[:, :, :end],
                bias_of(first, count, end, segments_of(first, count, *earlier)),
                part,
                rows_of(out, first, count),
                log_totals[part],
                # Else TensorFlow computes its products with all values at once, T S elements.
                waiting(rows_of(slope, first, count), *earlier),
            )
            if slopes_key is None:
                slopes_key, slopes_value = slope_key, slope_value
            else:
                padding = ((0, 0), (0, 0), (0, sources - end), (0, 0))
                if causal:
                    slope_key = ops.pad(slope_key, padding)
                    slope_value = ops.pad(slope_value, padding)
                slopes_key, slopes_value = slopes_key + slope_key, slopes_value + slope_value
            earlier = slope_query, slopes_key, slopes_value
            slopes_query.append(as_positions(slope_query, count))
        return (
            ops.concatenate(slopes_query[::-1], 1),
            ops.cast(by_heads(slopes_key), key.dtype),
            ops.cast(by_heads(slopes_value), value.dtype),
        )

    def padded(x):
        """Returns (B, n * M, ...): x with zeros up to a multiple of the chunk."""
        zeros = ops.zeros((batch, chunk, *x.shape[2:]), x.dtype)
        return ops.concatenate([x, zeros], 1)[:, : (length + chunk - 1) // chunk * chunk]

    def loop(body, init):
        """Calls `body(part, *state)` for each chunk, one after another."""
        count = (length + chunk - 1) // chunk
        return ops.while_loop(
            lambda part, *state: part < count,
            lambda part, *state: (part + 1, *body(part, *state)),
            (ops.cast(0, "int32"), *init),
        )[1:]

    def put(chunks, part, new):
        return ops.scatter_update(chunks, ops.reshape(part, (1, 1)), new[None])

    def stacked(width, dtype):
        count = (length + chunk - 1) // chunk
        return ops.zeros((count, batch, groups, repeats * chunk, width), dtype)

    def joined(chunks):
        """Returns (B, T, H, D) of chunks (n, B, G, R * M, D)."""
        chunks = ops.reshape(chunks, (-1, batch, groups, repeats, chunk, size))
        chunks = ops.transpose(chunks, (1, 0, 4, 2, 3, 5))
        return ops.reshape(chunks, (batch, -1, heads, size))[:, :length]

    def run_loop(query, key, value):
        """Returns output and log denominators (n, B, G, R * M, 1), with an unknown length."""
        key, value, query = by_heads(key), by_heads(value), padded(query)
        rows = None if segments is None else padded(segments)

        def body(part, outs, log_totals):
            first = part * chunk
            query_M = waiting(rows_of(query, first, chunk) * scale, outs[0])
            rows_M = None if rows is None else waiting(rows[:, first : first + chunk], outs[0])
            bias = bias_of(first, chunk, sources, rows_M)
            out, log_total = forward(query_M, key, value, bias, part)
            return put(outs, part, out), put(log_totals, part, log_total)

        outs, log_totals = loop(body, (stacked(size, dtype), stacked(1, "float32")))
        return joined(outs), log_totals

    def run_loop_gradient(query, key, value, out, log_totals, slope):
        key, value = by_heads(key), by_heads(value)
        query, out, slope = padded(query), padded(out), padded(slope)
        rows = None if segments is None else padded(segments)

        def body(part, slopes_query, slopes_key, slopes_value):
            first = part * chunk
            earlier = slopes_query[0], slopes_key, slopes_value
            query_M = waiting(rows_of(query, first, chunk) * scale, *earlier)
            slope_M = waiting(rows_of(slope, first, chunk), *earlier)
            rows_M = None
            if rows is not None:
                rows_M = waiting(rows[:, first : first + chunk], *earlier)
            slope_query, slope_key, slope_value = backward(
                *(query_M, key, value, bias_of(first, chunk, sources, rows_M), part),
                *(rows_of(out, first, chunk), log_totals[part], slope_M),
            )
            slopes_query = put(slopes_query, part, slope_query)
            return slopes_query, slopes_key + slope_key, slopes_value + slope_value

        zeros = ops.zeros((batch, groups, sources, size), "float32")
        slopes_query, slopes_key, slopes_value = loop(body, (stacked(size, dtype), zeros, zeros))
        return (
            joined(slopes_query),
            ops.cast(by_heads(slopes_key), key.dtype),
            ops.cast(by_heads(slopes_value), value.dtype),
        )

    @ops.custom_gradient
    def differentiable(query, key, value):
        out, log_totals = (run if static else run_loop)(query, key, value)

        def gradient(*args, upstream=None):
            slope = args[0] if upstream is None else upstream
            function = run_gradient if static else run_loop_gradient
            return function(query, key, value, out, log_totals, slope)

        return out, gradient

    return differentiable(query, key, value)
