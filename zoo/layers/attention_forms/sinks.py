"""Attention to the first and the latest positions of a text of any length (attention sinks).

Xiao et al. 2023, StreamingLLM (arXiv:2309.17453), section 3.2: a cache of L rows holds the first S
positions of the text, the sinks, and its latest L - S positions. Positions count inside the cache:
the row of a new position is always below L, so that rotary positions never exceed those of
training. Row p holds position p while the text fits; later positions go round the rows from S on.
Keys are stored without rotation and rotated at every step, since their place in the cache changes.

A layer whose window of W positions fits into the cache is already limited to nearby positions: it
keeps its latest W positions and no sinks. Caches are those of `cache.start_cache`, with the same
axes: B batch, T new positions, H query heads, G key-value heads, D head size.
"""

from keras import ops

from zoo.layers.attention_forms.cache import as_rows, attend_rows
from zoo.layers.attention_forms.plain import MASKED
from zoo.layers.xla import write_rows


def attend_with_sinks(form, query, key, value, cache, first, sinks, rotate):
    """Computes causal attention of new positions to the positions in the cache and to each other.

    Args:
      form: form of attention, of `zoo.layers.attention`.
      query: (B, T, H, D) of the new positions, without rotation.
      key: (B, T, G, D), without rotation.
      value: (B, T, G, D).
      cache: dict with "key", without rotation, and "value", (B * G, L, D), from `start_cache`.
      first: integer scalar, index of the first new position in the text. If T is not 1, the
        positions start the text: first is 0, and T is at most the length given to `start_cache`.
      sinks: S, less than that length.
      rotate: `rotate(x (B, T, H, D), positions) -> (B, T, H, D)`, the rotary position embedding.

    Returns:
      `(out, cache)`: (B, T, H, D), and a copy of the dict with the new positions.
    """
    rows, count, groups = cache["key"].shape[1], ops.shape(query)[1], key.shape[2]
    new = {"key": as_rows(key), "value": as_rows(value)}
    if not (isinstance(count, int) and count == 1):
        positions = ops.arange(count)
        query, key = (rotate(x, positions) for x in (query, key))
        # Row r holds the latest position p with p mod L = r.
        order = ops.mod(ops.arange(rows) - count, rows)
        cache = {name: ops.take(ops.concatenate([cache[name], x], 1)[:, -rows:], order, 1)
                 for name, x in new.items()}  # fmt: skip
        return form.attend(query, key, value, causal=True), cache
    if form.reach == rows:
        sinks = 0
    row = ops.where(first < sinks, first, sinks + (first - sinks) % (rows - sinks))
    cache = {name: write_rows(cache[name], x, row) for name, x in new.items()}
    place = ops.minimum(first, rows - 1)
    index = ops.arange(rows)
    distance = ops.where(index < sinks, place - index, ops.mod(row - index, rows - sinks))
    query = rotate(query, ops.reshape(place, (1,)))
    # One head per row of the cache, because `rotate` expects (B, T, H, D).
    keys = rotate(cache["key"][:, :, None], place - distance)[:, :, 0]
    visible = ops.logical_and(index <= first, form.sees(place, place - distance, causal=True))
    bias = ops.where(visible, 0.0, MASKED)[None, None, None]
    return attend_rows(query, keys, cache["value"], groups, bias), cache
