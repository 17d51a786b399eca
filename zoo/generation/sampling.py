"""How the next token is chosen from logits.

Each function is one of logits (B, V) and of a number a row in [0, 1), so that who calls decides
where randomness comes from, and the same number gives the same token in any batch. Logits are
finite; a token whose probability is 0 in float32 is never chosen at random.
"""

from keras import ops

from zoo.layers.gather import pick

# Columns of the table in which `choose` looks up a token: rows are summed first.
_COLUMNS = 128
_ONE = 0x3F800000  # the bits of 1.0 in float32


def greedy(logits, uniform=None):
    """Returns the likeliest tokens (B,) int32; of equals the first."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def sample(logits, uniform, temperature=1.0):
    """Draws tokens from softmax(logits / temperature).

    Args:
      logits: (B, V) float32.
      uniform: (B,) float32 in [0, 1).
      temperature: positive number or scalar tensor.

    Returns:
      (B,) int32.
    """
    return choose(_powers(logits, temperature), uniform)


def top_k(logits, uniform, k, temperature=1.0, p=1.0):
    """Draws from the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833), then as `top_p`.

    Args:
      logits: (B, V) float32.
      uniform: (B,) float32 in [0, 1).
      k: a Python integer; of tokens that are equal at the border, the first are kept.
      temperature: positive number or scalar tensor.
      p: as for `top_p`, of the probability that the k tokens have together.

    Returns:
      (B,) int32.
    """
    values, tokens = ops.top_k(logits, min(k, logits.shape[-1]))
    powers = _powers(values, temperature)
    # Sorted from the likeliest: a token stays while those before it fall short of p.
    before = ops.cumsum(powers, axis=-1) - powers
    powers = ops.where(before < p * ops.sum(powers, axis=-1, keepdims=True), powers, 0.0)
    place = choose(powers, uniform)
    return ops.cast(pick(tokens, place), "int32")


def top_p(logits, uniform, p, temperature=1.0):
    """Draws from the nucleus (Holtzman et al. 2019, arXiv:1904.09751).

    That is the smallest set of likeliest tokens with a probability of p or more together; tokens
    that are equal at its border are all in it.

    Args:
      logits: (B, V) float32.
      uniform: (B,) float32 in [0, 1).
      p: number or scalar tensor in (0, 1].
      temperature: positive number or scalar tensor; the set is chosen at that temperature.

    Returns:
      (B,) int32.
    """
    powers = _powers(logits, temperature)
    return choose(ops.where(nucleus(powers, p), powers, 0.0), uniform)


def nucleus(weights, p):
    """Returns which tokens (B, V) are in the nucleus.

    The border is found by halving the interval it lies in, in the bits of float32, which are
    ordered as the positive numbers they stand for: 31 sums in place of a sort, which takes
    15 times as long for 8,192 tokens on a CPU under XLA.

    Args:
      weights: (B, V) float32 in [0, 1]: probabilities, up to a factor a row.
      p: number or scalar tensor in (0, 1].
    """
    bits = ops.view(weights, "int32")
    goal = p * ops.sum(weights, axis=-1, keepdims=True)

    def halve(_, interval):
        low, high = interval
        middle = low + (high - low + 1) // 2
        enough = ops.sum(ops.where(bits >= middle, weights, 0.0), -1, keepdims=True) >= goal
        return ops.where(enough, middle, low), ops.where(enough, high, middle - 1)

    low = ops.zeros_like(bits[:, :1])
    low, _ = ops.fori_loop(0, 31, halve, (low, low + _ONE))
    return bits >= low


def choose(weights, uniform):
    """Draws tokens by the inverse of the cumulative distribution.

    Args:
      weights: (B, V) float32, not negative: probabilities, up to a factor a row.
      uniform: (B,) float32 in [0, 1).

    Returns:
      (B,) int32: tokens whose weight is positive.
    """
    batch, size = weights.shape
    rows = -(-size // _COLUMNS)
    table = ops.pad(weights, ((0, 0), (0, rows * _COLUMNS - size)))
    table = ops.reshape(table, (batch, rows, _COLUMNS))
    # First the row of the table, then the place in it: two short cumulative sums. Each is searched
    # for a number just below its own end, so that rounding leads to no token beyond it.
    sums = ops.cumsum(ops.sum(table, axis=-1), axis=-1)
    goal = _below(uniform * sums[:, -1], sums[:, -1])
    row = _first_above(sums, goal)
    before = ops.where(row > 0, pick(sums, ops.maximum(row - 1, 0)), 0.0)
    inside = ops.cumsum(pick(table, row), axis=-1)
    return row * _COLUMNS + _first_above(inside, _below(goal - before, inside[:, -1]))


def _powers(logits, temperature):
    """Returns probabilities (B, V), up to a factor a row: the largest is 1."""
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    return ops.exp(logits / temperature)


def _below(number, limit):
    return ops.minimum(number, limit * (1 - 2.0**-23))


def _first_above(sums, goal):
    """Returns the first place (B,) int32 at which ascending `sums` (B, N) exceed `goal` (B,)."""
    return ops.sum(ops.cast(sums <= goal[:, None], "int32"), axis=-1)
