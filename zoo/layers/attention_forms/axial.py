"""Attention along one axis of a grid at a time, in time O(R C (R + C)) instead of O(R R C C).

Ho, Kalchbrenner, Weissenborn & Salimans 2019, Axial Attention in Multidimensional Transformers,
arXiv:1912.12180; `zoo.models.axial` is the autoregressive model of its section 3.2. Axes: B batch,
T positions, R rows, C columns, H query heads, G key-value heads, D head size, N groups of features.
"""

from keras import ops

from zoo.layers.attention_forms.keep_mask import check_dropout, keep_mask
from zoo.layers.attention_forms.plain import attend, mask_bias


def attend_axis(query, key, value, axis, segments=None, causal=False, rate=0.0, seed=None):
    """Computes attention of each position to the positions of its row, or of its column.

    Args:
      query: (B, R, C, H, D).
      key: (B, R, C, G, D), H a multiple of G.
      value: (B, R, C, G, D).
      axis: 1 for the positions of the same column, 2 for those of the same row.
      segments: (B, R, C) integers, the document of each position, 0 for padding; positions attend
        to the same number. None if all positions are in one document.
      causal: whether later positions along the axis are masked too.
      rate: dropout rate of the probabilities.
      seed: (2,) integers for dropout, as from `keras.random.SeedGenerator.next()`.

    Returns:
      (B, R, C, H, D) in the dtype of the query.

    Raises:
      ValueError: if the number of heads, axis, rate or seed is wrong.
    """
    if axis not in (1, 2):
        raise ValueError(f"axis must be 1 (columns) or 2 (rows). Received: axis={axis}")
    heads, groups = query.shape[3], key.shape[3]
    if heads % groups:
        raise ValueError(
            "The number of query heads must be a multiple of the number of key-value heads. "
            f"Received: {heads} and {groups}"
        )
    check_dropout(rate, seed)

    def swapped(x):
        """Exchanges rows and columns if the attention is along the columns."""
        return ops.transpose(x, (0, 2, 1, *range(3, len(x.shape)))) if axis == 1 else x

    def lines(x):
        """Reshapes (B, R, C, ...) to one line of positions per row: (B R, C, ...)."""
        x = swapped(x)
        batch, rows, columns = ops.shape(x)[:3]
        return ops.reshape(x, (batch * rows, columns, *x.shape[3:]))

    def dropout(probabilities):
        mask = keep_mask(ops.shape(probabilities), rate, seed, probabilities.dtype)
        return probabilities * mask

    if segments is not None:
        bias = mask_bias(lines(segments), causal=causal)
    elif causal:
        bias = mask_bias(ops.ones((1, ops.shape(query)[axis]), "int32"), causal=True)
    else:
        bias = None
    out = attend(lines(query), lines(key), lines(value), bias, dropout if rate else None)
    return swapped(ops.reshape(out, ops.shape(swapped(query))))


def attend_grid(query, key, value, columns, axis, segments=None, causal=False, rate=0.0, seed=None):
    """Computes `attend_axis` of a sequence that is folded into rows; the last one may be short.

    Args:
      query: (B, T, H, D); position t is in row t // C and column t % C.
      key: (B, T, G, D).
      value: (B, T, G, D).
      columns: C.
      axis: see `attend_axis`.
      segments: (B, T) integers, see `attend_axis`.
      causal: see `attend_axis`.
      rate: dropout rate of the probabilities.
      seed: see `attend_axis`.

    Returns:
      (B, T, H, D) in the dtype of the query.
    """
    batch, length = ops.shape(query)[:2]
    rows = (length + columns - 1) // columns
    # Keras warns of a softmax over one position.
    if axis == 1 and isinstance(rows, int):
        rows = max(rows, 2)
    total = rows * columns
    is_full = isinstance(length, int) and length == total
    if not is_full and segments is None:
        segments = ops.ones((batch, length), "int32")

    def folded(x):
        """Reshapes (B, T, ...) to (B, R, C, ...), with zeros after the end."""
        if not is_full:
            end = ops.zeros((batch, 2 * columns, *x.shape[2:]), x.dtype)
            x = ops.concatenate([x, end], 1)[:, :total]
        return ops.reshape(x, (batch, rows, columns, *x.shape[2:]))

    segments = None if segments is None else folded(segments)
    parts = (folded(x) for x in (query, key, value))
    out = attend_axis(*parts, axis, segments, causal, rate, seed)
    out = ops.reshape(out, (batch, total, *query.shape[2:]))
    return out if is_full else out[:, :length]


def attend_feature_groups(query, key, value, groups, heads=1, rate=0.0, seed=None):
    """Computes attention between the groups of features of each position.

    Positions are never mixed: follow attention along the positions (`attend` or another form) by
    this function for a form that is factorized over sequence and features.

    Args:
      query: (B, T, F), F = N * H * D; neighboring features form a group.
      key: (B, T, F).
      value: (B, T, F).
      groups: N.
      heads: H, number of heads inside a group.
      rate: dropout rate of the probabilities.
      seed: (2,) integers for dropout, as from `keras.random.SeedGenerator.next()`.

    Returns:
      (B, T, F) in the dtype of the query.

    Raises:
      ValueError: if groups, heads, rate or seed is wrong.
    """
    batch, length, size = ops.shape(query)
    if groups < 1 or heads < 1 or size % (groups * heads):
        raise ValueError(
            "The number of features must be a multiple of groups * heads. "
            f"Received: {size} features, groups={groups}, heads={heads}"
        )
    query, key, value = (
        ops.reshape(x, (batch, length, groups, heads, size // (groups * heads)))
        for x in (query, key, value)
    )
    out = attend_axis(query, key, value, axis=2, rate=rate, seed=seed)
    return ops.reshape(out, (batch, length, size))
