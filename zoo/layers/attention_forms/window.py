"""Local window attention with dilation and global tokens, in time and memory O(T W).

Beltagy et al. 2020, Longformer: The Long-Document Transformer, arXiv:2004.05150, section 3.1. The
queries of a block see the keys of the same block and of its neighbors. Axes: B batch, T positions,
H query heads, G key-value heads, R = H/G, D head size, W window, E dilation, N blocks of M
positions, K = M to 3 M keys per block, P global tokens.
"""

from keras import ops

from zoo.layers.attention_forms.keep_mask import check_dropout, keep_mask
from zoo.layers.attention_forms.plain import MASKED

# Segments that equal no document; positions behind the end are `OUTSIDE` as queries and keys.
HIDDEN, OUTSIDE = -2, -1


def attend_window(
    query,
    key,
    value,
    window,
    segments=None,
    causal=False,
    dilation=1,
    global_mask=None,
    max_global=0,
    global_query=None,
    global_key=None,
    global_value=None,
    rate=0.0,
    seed=None,
):
    """Computes attention to the positions of a window, and to and from global tokens.

    Position t attends to the positions t + i E of its document with -W <= i <= W, or -W < i <= 0 if
    causal. Every position also attends to the global tokens of its document, by `key` and `value`;
    a global token attends to all positions of its document, by `global_query`, `global_key` and
    `global_value`. If causal, both are restricted to earlier positions. Rows of padding are 0. This
    equals `LongformerSelfAttention` of transformers, whose `attention_window` is 2 W.

    Args:
      query: (B, T, H, D).
      key: (B, T, G, D).
      value: (B, T, G, D).
      window: W, number of positions to each side; if causal, number of positions with the own one.
      segments: (B, T) integers, the document of each position, 0 for padding; None if all positions
        are in one document.
      causal: whether later positions are masked.
      dilation: E, distance of the positions in the window.
      global_mask: (B, T) booleans or integers, whether a position is a global token; or None.
      max_global: P, the largest number of global tokens per sequence; the cost grows with P. In a
        graph, only the first P tokens of the mask are global tokens.
      global_query: (B, T, H, D); `query` by default.
      global_key: (B, T, G, D); `key` by default.
      global_value: (B, T, G, D); `value` by default.
      rate: dropout rate of the probabilities.
      seed: (2,) integers for dropout, as from `keras.random.SeedGenerator.next()`.

    Returns:
      (B, T, H, D) in the dtype of the query; products are computed in that dtype, the softmax in
      float32.

    Raises:
      ValueError: if the number of heads, window, dilation, max_global, rate or seed is wrong, or,
        in eager mode, if a sequence has more than max_global global tokens.
    """
    heads, size = query.shape[2:]
    groups = key.shape[2]
    if heads % groups:
        raise ValueError(
            "The number of query heads must be a multiple of the number of key-value heads. "
            f"Received: {heads} and {groups}"
        )
    if window < 1 or dilation < 1:
        raise ValueError(
            f"window and dilation must be positive. Received: window={window}, dilation={dilation}"
        )
    if global_mask is not None and max_global < 1:
        raise ValueError(
            f"max_global must be positive with global_mask. Received: max_global={max_global}"
        )
    check_dropout(rate, seed)
    repeats, dtype = heads // groups, query.dtype
    batch, length = ops.shape(query)[:2]
    steps = (length + dilation - 1) // dilation  # positions per offset of the dilation
    block = window
    if isinstance(length, int):
        block = min(window, steps)
    blocks = (steps + block - 1) // block
    total = blocks * block * dilation
    # With one block there are no neighbors.
    before, after = (0, 0) if isinstance(blocks, int) and blocks == 1 else (1, 0 if causal else 1)
    query = query * ops.cast(size**-0.5, dtype)

    def padded(x, fill=0):
        """Appends `fill` to (B, T, ...) up to `total` positions."""
        if isinstance(total, int) and total == length:
            return x
        if isinstance(total, int):
            rest = ((0, 0), (0, total - length), *(((0, 0),) * (len(x.shape) - 2)))
            return ops.pad(x, rest, constant_values=fill)
        new = ops.full((ops.shape(x)[0], block * dilation, *x.shape[2:]), fill, x.dtype)
        return ops.concatenate([x, new], 1)[:, :total]

    def in_blocks(x):
        """Reshapes (B, T, G * r, D) to (B, G, E, N, r * M, D)."""
        each = x.shape[2] // groups
        x = ops.reshape(padded(x), (batch, blocks, block, dilation, groups, each, size))
        x = ops.transpose(x, (0, 4, 3, 1, 5, 2, 6))
        return ops.reshape(x, (batch, groups, dilation, blocks, each * block, size))

    def with_neighbors(x, axis, fill=0):
        """Joins blocks with their neighbors along `axis`; blocks are counted by the axis before."""
        if not before:
            return x
        outer = (slice(None),) * (axis - 1)
        outside = ops.full_like(x[(*outer, slice(0, 1))], fill)
        parts = [ops.concatenate([outside, x[(*outer, slice(None, -1))]], axis - 1), x]
        if after:
            parts.append(ops.concatenate([x[(*outer, slice(1, None))], outside], axis - 1))
        return ops.concatenate(parts, axis)

    def window_bias(is_global):
        """Returns the bias (B or 1, 1, E, N, R * M, K) of the window."""
        rows = ops.ones((1, length), "int32") if segments is None else ops.cast(segments, "int32")
        columns = rows if is_global is None else ops.where(is_global, HIDDEN, rows)

        def split(x):
            x = ops.reshape(padded(x, OUTSIDE), (-1, blocks, block, dilation))
            return ops.transpose(x, (0, 3, 1, 2))

        columns = with_neighbors(split(columns), 3, HIDDEN)
        allowed = ops.equal(split(rows)[..., :, None], columns[..., None, :])
        distance = ops.arange(block)[:, None] + before * block
        distance = distance - ops.arange((1 + before + after) * block)[None, :]
        if causal:
            inside = ops.logical_and(distance >= 0, distance < window)
        else:
            inside = ops.abs(distance) <= window
        bias = ops.where(ops.logical_and(allowed, inside), 0.0, MASKED)[:, None]
        return ops.concatenate([bias] * repeats, 4) if repeats > 1 else bias

    def dropped(probabilities, part):
        probabilities = ops.cast(probabilities, dtype)
        if not rate:
            return probabilities
        return probabilities * keep_mask(ops.shape(probabilities), rate, seed, dtype, part)

    def scores_of(query, key):
        axes = (*range(len(key.shape) - 2), len(key.shape) - 1, len(key.shape) - 2)
        return ops.cast(_matmul(query, ops.transpose(key, axes)), "float32")

    def as_positions(x):
        """Reverses `in_blocks` for r = R: (B, T, H, D)."""
        x = ops.reshape(x, (batch, groups, dilation, blocks, repeats, block, size))
        x = ops.transpose(x, (0, 3, 5, 2, 1, 4, 6))
        return ops.reshape(x, (batch, total, heads, size))[:, :length]

    queries = in_blocks(query)
    values = with_neighbors(in_blocks(value), 4)
    scores = scores_of(queries, with_neighbors(in_blocks(key), 4))
    if global_mask is None:
        probabilities = dropped(_softmax(scores + window_bias(None)), 0)
        return _without_padding(as_positions(_matmul(probabilities, values)), segments)

    is_global, positions, present = find_global(global_mask, max_global)
    scores = scores + window_bias(is_global)
    flat = ops.arange(batch, dtype="int32")[:, None] * length + positions  # (B, P)

    def picked(x):
        """Returns the rows (B, P, ...) of global tokens in (B, T, ...)."""
        rest = x.shape[2:]
        return ops.take(ops.reshape(x, (batch * length, *rest)), flat, axis=0)

    def by_heads(x):
        """Reshapes (B, S, G * r, D) to (B, G, r * S, D)."""
        count, each = ops.shape(x)[1], x.shape[2] // groups
        x = ops.transpose(ops.reshape(x, (batch, count, groups, each, size)), (0, 2, 3, 1, 4))
        return ops.reshape(x, (batch, groups, each * count, size))

    def global_bias(rows_first):
        """Returns the bias between global tokens and all positions, (B, P, T) or (B, T, P)."""
        tokens, others = positions[:, :, None], ops.arange(length)[None, None, :]
        allowed = present[:, :, None]
        if segments is not None:
            same = ops.equal(picked(segments)[:, :, None], segments[:, None, :])
            allowed = ops.logical_and(allowed, same)
        if causal:
            past = others <= tokens if rows_first else tokens <= others
            allowed = ops.logical_and(allowed, past)
        allowed = ops.broadcast_to(allowed, (batch, max_global, length))
        bias = ops.where(allowed, 0.0, MASKED)
        return bias if rows_first else ops.transpose(bias, (0, 2, 1))

    # Scores of all rows with the global keys, in the order of the blocks.
    bias = ops.reshape(
        padded(global_bias(False), MASKED), (batch, blocks, block, dilation, max_global)
    )
    bias = ops.transpose(bias, (0, 3, 1, 2, 4))[:, None]  # (B, 1, E, N, M, P)
    bias = ops.concatenate([bias] * repeats, 4) if repeats > 1 else bias
    rows = dilation * blocks * repeats * block
    extra = scores_of(ops.reshape(queries, (batch, groups, rows, size)), by_heads(picked(key)))
    extra = ops.reshape(extra, (batch, groups, dilation, blocks, repeats * block, max_global))
    extra = extra + bias
    # One softmax in two parts with a common maximum; joining the scores would copy them.
    largest = ops.maximum(ops.max(scores, -1, keepdims=True), ops.max(extra, -1, keepdims=True))
    largest = ops.stop_gradient(largest)
    scores, extra = ops.exp(scores - largest), ops.exp(extra - largest)
    denominator = ops.sum(scores, -1, keepdims=True) + ops.sum(extra, -1, keepdims=True)
    extra = ops.reshape(dropped(extra, 1), (batch, groups, rows, max_global))
    out = ops.matmul(extra, by_heads(picked(value)))
    out = ops.reshape(out, (batch, groups, dilation, blocks, repeats * block, size))
    out = _matmul(dropped(scores, 0), values) + out
    out = as_positions(ops.cast(ops.cast(out, "float32") / denominator, dtype))

    # Rows of global tokens.
    global_query = query if global_query is None else global_query * ops.cast(size**-0.5, dtype)
    global_key = key if global_key is None else global_key
    global_value = value if global_value is None else global_value
    scores = scores_of(by_heads(picked(global_query)), by_heads(global_key))
    bias = global_bias(True)[:, None]
    bias = ops.concatenate([bias] * repeats, 2) if repeats > 1 else bias
    probabilities = dropped(ops.softmax(scores + bias), 2)
    new = ops.matmul(probabilities, by_heads(global_value))
    new = ops.reshape(new, (batch, groups, repeats, max_global, size))
    new = ops.reshape(ops.transpose(new, (0, 3, 1, 2, 4)), (batch * max_global, heads * size))
    new = new * ops.cast(ops.reshape(present, (-1, 1)), dtype)
    new = ops.scatter(ops.reshape(flat, (-1, 1)), new, (batch * length, heads * size))
    out = out * ops.cast(ops.logical_not(is_global), dtype)[:, :, None, None]
    out = out + ops.reshape(new, (batch, length, heads, size))
    return _without_padding(out, segments)


def find_global(global_mask, max_global):
    """Finds the first `max_global` global tokens of each sequence.

    Args:
      global_mask: (B, T) booleans or integers.
      max_global: P.

    Returns:
      `(is_global, positions, present)`: (B, T) booleans; (B, P) int32, ascending, 0 where a
      sequence has fewer tokens; (B, P) booleans, whether there is a token.

    Raises:
      ValueError: in eager mode, if a sequence has more tokens.
    """
    global_mask = ops.cast(ops.convert_to_tensor(global_mask), "int32")
    is_global = ops.not_equal(global_mask, 0)
    counts = ops.sum(ops.cast(is_global, "int32"), 1)
    if hasattr(counts, "numpy") and ops.convert_to_numpy(counts).max(initial=0) > max_global:
        raise ValueError(
            "The number of global tokens per sequence must not exceed max_global. "
            f"Received: {ops.convert_to_numpy(counts).max()} tokens, max_global={max_global}"
        )
    batch, length = ops.shape(global_mask)
    order = ops.where(is_global, length - ops.arange(length, dtype="int32"), 0)
    # The appended zeros allow fewer positions than max_global.
    order = ops.concatenate([order, ops.zeros((batch, max_global), "int32")], 1)
    values, _ = ops.top_k(order, max_global)
    present = values > 0
    is_global = ops.logical_and(
        is_global, ops.cumsum(ops.cast(is_global, "int32"), 1) <= max_global
    )
    return is_global, ops.where(present, length - values, 0), present


def _matmul(x, y):
    """Multiplies matrices of equal batch axes; LiteRT supports at most three such axes."""
    batch, (rows, inner), columns = ops.shape(x)[:-2], ops.shape(x)[-2:], ops.shape(y)[-1]
    product = ops.matmul(ops.reshape(x, (-1, rows, inner)), ops.reshape(y, (-1, inner, columns)))
    return ops.reshape(product, (*batch, rows, columns))


def _softmax(scores):
    """Computes the softmax over the last axis; oneDNN's supports at most five axes."""
    shape = ops.shape(scores)
    return ops.reshape(ops.softmax(ops.reshape(scores, (-1, shape[-1]))), shape)


def _without_padding(out, segments):
    """Sets rows of padding to 0."""
    if segments is None:
        return out
    return out * ops.cast(ops.not_equal(segments, 0), out.dtype)[:, :, None, None]
