"""Scaled dot-product attention (Vaswani et al. 2017, Attention Is All You Need, equation 1).

Tests compare `attend` with `reference_attend`. Axes: B batch, T query positions, S key positions, H
query heads, G key-value heads (H is a multiple of G: grouped-query attention, Ainslie et al. 2023),
D head size.
"""

from keras import ops

# Added to masked scores: far below any score, but finite in float16, so that a fully masked row
# (padding) gives no NaN.
MASKED = -6e4


def attend(query, key, value, bias=None, dropout=None):
    """Computes attention; scores are scaled by 1/sqrt(D), the softmax is in float32.

    Args:
      query: (B, T, H, D).
      key: (B, S, G, D).
      value: (B, S, G, D).
      bias: float32, broadcast to (B, 1, T, S), added to the scores; or None.
      dropout: function applied to the probabilities (B, G, H/G * T, S), or None.

    Returns:
      (B, T, H, D) in the dtype of the query.
    """
    batch, length, heads, size = ops.shape(query)
    sources, groups = ops.shape(key)[1:3]
    repeats = heads // groups
    query = query * ops.cast(size**-0.5, query.dtype)  # cheaper than scaling the scores
    # Heads that share keys become additional rows, so that keys are not repeated in memory.
    if repeats == 1:
        query = ops.transpose(query, (0, 2, 1, 3))
    else:
        query = ops.reshape(query, (batch, length, groups, repeats, size))
        query = ops.reshape(
            ops.transpose(query, (0, 2, 3, 1, 4)), (batch, groups, repeats * length, size)
        )
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    scores = ops.cast(scores, "float32")
    if bias is not None:
        if repeats > 1:
            scores = ops.reshape(scores, (batch, groups, repeats, length, sources))
            scores = scores + ops.cast(ops.expand_dims(bias, 1), "float32")
            scores = ops.reshape(scores, (batch, groups, repeats * length, sources))
        else:
            scores = scores + ops.cast(bias, "float32")
    probabilities = ops.cast(ops.softmax(scores), value.dtype)
    if dropout is not None:
        probabilities = dropout(probabilities)
    out = ops.matmul(probabilities, ops.transpose(value, (0, 2, 1, 3)))
    if repeats == 1:
        return ops.transpose(out, (0, 2, 1, 3))
    out = ops.reshape(out, (batch, groups, repeats, length, size))
    return ops.reshape(ops.transpose(out, (0, 3, 1, 2, 4)), (batch, length, heads, size))


def attention_scores(query, key, bias=None):
    """Returns the scores before the softmax of `attend`, (B, H, T, S) float32."""
    key = ops.repeat(key, query.shape[2] // key.shape[2], axis=2)
    scores = ops.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    scores = ops.cast(scores, "float32")
    return scores if bias is None else scores + ops.cast(bias, "float32")


def reference_attend(query, key, value, bias=None, dropout=None):
    """Computes `attend` literally by its equation, without dropout, for tests."""
    value = ops.repeat(value, query.shape[2] // key.shape[2], axis=2)
    probabilities = ops.cast(ops.softmax(attention_scores(query, key, bias)), value.dtype)
    return ops.einsum("bhts,bshd->bthd", probabilities, value)


def mask_bias(segments_query, segments_key=None, causal=False):
    """Returns the bias that restricts attention to the same document.

    Args:
      segments_query: (B, T) integers, the document of each position, 0 for padding.
      segments_key: (B, S); `segments_query` by default.
      causal: whether later positions are masked too.

    Returns:
      (B, 1, T, S) float32, 0 or `MASKED`.
    """
    segments_key = segments_query if segments_key is None else segments_key
    is_allowed = ops.equal(segments_query[:, :, None], segments_key[:, None, :])
    if causal:
        length = ops.shape(segments_query)[1]
        row = ops.arange(length)[:, None]
        is_allowed = ops.logical_and(is_allowed, ops.arange(length)[None, :] <= row)
    return ops.where(is_allowed, 0.0, MASKED)[:, None]
