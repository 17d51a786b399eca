"""Keys and values of earlier positions, for decoding a few positions at a time.

A form of attention with a limited reach keeps a ring buffer: position p is in row p mod L. Keys and
values have shape (B * G, L, D), which XLA updates in place. With more axes it would copy them at
every step of a loop. Axes: B batch, T new positions, H query heads, G key-value heads, D head size,
L rows of the cache.
"""

from keras import ops

from zoo.layers.attention_forms.lsh import ITSELF, as_keys
from zoo.layers.attention_forms.plain import MASKED
from zoo.layers.xla import write_rows


def start_cache(form, batch, groups, length, size, dtype) -> dict:
    """Returns empty keys and values for `length` positions; adjacent rows for one sequence.

    A form that sees no positions has an empty dict.
    """
    if form.reach == 0:
        return {}
    rows = length if form.reach is None else min(length, form.reach)
    return {name: ops.zeros((batch * groups, rows, size), dtype) for name in ("key", "value")}


def attend_cached(form, query, key, value, cache, first):
    """Computes causal attention of new positions to earlier positions and to each other.

    Args:
      form: form of attention, of `zoo.layers.attention`.
      query: (B, T, H, D), of the new positions.
      key: (B, T, G, D).
      value: (B, T, G, D).
      cache: dict with "key" and "value" of the positions before `first`, (B * G, L, D).
      first: integer scalar, index of the first new position.

    Returns:
      `(out, cache)`: (B, T, H, D), and a copy of the dict with the new positions.
    """
    if form.reach == 0:
        return form.attend(query, key, value), cache
    cache, groups = dict(cache), key.shape[2]
    rows, count = cache["key"].shape[1], ops.shape(query)[1]
    is_single = isinstance(count, int) and count == 1  # the length of a prompt may be unknown
    stored_key = as_keys(key) if form.shares_query_key else key
    new = {"key": as_rows(stored_key), "value": as_rows(value)}
    is_prompt = isinstance(first, int) and first == 0 and not is_single
    if form.reach is None or is_single:
        # The modulus is computed for ring buffers alone: XLA writes faster without it.
        place = first if form.reach is None else first % rows
        for name, x in new.items():
            cache[name] = write_rows(cache[name], x, place)
        seen = cache
        distance = (first + ops.arange(count))[:, None] - ops.arange(rows)[None, :]
        if form.reach is not None:
            distance = ops.mod(distance, rows)
    else:
        # Earlier positions in order: row j is position first - L + j.
        order = ops.mod(first + ops.arange(rows), rows)
        seen = {name: ops.concatenate([ops.take(cache[name], order, 1), x], 1)
                for name, x in new.items()}  # fmt: skip
        order = ops.mod(ops.arange(rows) - first - count, rows)
        cache.update({name: ops.take(x[:, -rows:], order, 1) for name, x in seen.items()})
        distance = ops.arange(count)[:, None] + rows - ops.arange(rows + count)[None, :]
    if is_prompt and not form.takes_bias:
        return form.attend(query, key, value, causal=True), cache
    positions = first + ops.arange(count)
    # A key after its query has a negative distance; a row that was never written, a large one.
    visible = ops.logical_and(distance >= 0, distance <= positions[:, None])
    own = positions[:, None]
    visible = ops.logical_and(visible, form.sees(own, own - distance, causal=True))
    bias = ops.where(visible, 0.0, MASKED)
    if form.shares_query_key:
        bias = ops.where(ops.equal(distance, 0), ITSELF, bias)
    bias = bias[None, None]
    return attend_rows(query, seen["key"], seen["value"], groups, bias), cache


def as_rows(x):
    """Reshapes (B, T, G, D) to (B * G, T, D)."""
    batch, length, groups, size = ops.shape(x)
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch * groups, length, size))


def attend_rows(query, key, value, groups, bias):
    """Computes `attend` of a query (B, T, H, D) to cached keys and values (B * G, S, D)."""
    batch, length, heads, size = ops.shape(query)
    repeats, sources = heads // groups, ops.shape(key)[1]
    query = query * ops.cast(size**-0.5, query.dtype)
    query = ops.reshape(query, (batch, length, groups, repeats, size))
    query = ops.reshape(
        ops.transpose(query, (0, 2, 3, 1, 4)), (batch * groups, repeats * length, size)
    )
    scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 2, 1))), "float32")
    if bias is not None:
        scores = ops.reshape(scores, (batch, groups, repeats, length, sources))
        scores = scores + ops.expand_dims(bias, 1)
    probabilities = ops.cast(ops.softmax(scores), value.dtype)
    probabilities = ops.reshape(probabilities, (batch * groups, repeats * length, sources))
    out = ops.matmul(probabilities, value)
    out = ops.reshape(out, (batch, groups, repeats, length, size))
    return ops.reshape(ops.transpose(out, (0, 3, 1, 2, 4)), (batch, length, heads, size))
