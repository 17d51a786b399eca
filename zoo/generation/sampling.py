"""Chooses the next token from logits.

Each function takes logits (B, V) and one uniform number in [0, 1) per row. So the caller controls
the randomness, and the same number gives the same token in any batch. Logits must be finite. A
token with probability 0 in float32 is never sampled.
"""

from keras import ops

from zoo.layers.gather import pick

_COLUMNS = 128  # of the table in which `choose` looks up a token
_ONE = 0x3F800000  # the bits of 1.0 in float32


def greedy(logits, uniform=None):
    """Returns the tokens (B,) int32 with the largest logits; the first one of equal logits."""
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
    return choose(_unnormalized_probabilities(logits, temperature), uniform)


def top_k(logits, uniform, k, temperature=1.0, p=1.0):
    """Draws from the k most probable tokens (Fan et al. 2018, arXiv:1805.04833), then as `top_p`.

    Args:
      logits: (B, V) float32.
      uniform: (B,) float32 in [0, 1).
      k: a Python integer; of tokens with the k-th largest logit, the first ones are included.
      temperature: positive number or scalar tensor.
      p: see `top_p`; relative to the total probability of the k tokens.

    Returns:
      (B,) int32.
    """
    values, tokens = ops.top_k(logits, min(k, logits.shape[-1]))
    weights = _unnormalized_probabilities(values, temperature)
    # In descending order, a token is included while the sum of the tokens before it is below p.
    before = ops.cumsum(weights, axis=-1) - weights
    weights = ops.where(before < p * ops.sum(weights, axis=-1, keepdims=True), weights, 0.0)
    index = choose(weights, uniform)
    return ops.cast(pick(tokens, index), "int32")


def top_p(logits, uniform, p, temperature=1.0):
    """Draws from the nucleus (Holtzman et al. 2019, arXiv:1904.09751).

    The nucleus is the smallest set of most probable tokens with a total probability of at least p.
    It includes all tokens that are as probable as its least probable one.

    Args:
      logits: (B, V) float32.
      uniform: (B,) float32 in [0, 1).
      p: number or scalar tensor in (0, 1].
      temperature: positive number or scalar tensor; applied before the set is chosen.

    Returns:
      (B,) int32.
    """
    weights = _unnormalized_probabilities(logits, temperature)
    return choose(ops.where(nucleus(weights, p), weights, 0.0), uniform)


def nucleus(weights, p):
    """Returns a mask (B, V) of the tokens in the nucleus.

    The smallest included weight is found by bisection over the bits of float32, which have the
    order of the positive numbers that they represent. These are 31 sums in place of a sort, which
    takes 15 times as long for 8,192 tokens on a CPU under XLA.

    Args:
      weights: (B, V) float32 in [0, 1]: probabilities, up to a factor per row.
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
      weights: (B, V) float32, not negative: probabilities, up to a factor per row.
      uniform: (B,) float32 in [0, 1).

    Returns:
      (B,) int32: tokens of positive weight.
    """
    batch, size = weights.shape
    rows = -(-size // _COLUMNS)
    table = ops.pad(weights, ((0, 0), (0, rows * _COLUMNS - size)))
    table = ops.reshape(table, (batch, rows, _COLUMNS))
    # Two short cumulative sums: over the rows of the table, then inside the chosen row. Each goal
    # is below the end of its sum, so that rounding never selects a token of weight 0 at the end.
    sums = ops.cumsum(ops.sum(table, axis=-1), axis=-1)
    goal = _clip_below(uniform * sums[:, -1], sums[:, -1])
    row = _first_above(sums, goal)
    before = ops.where(row > 0, pick(sums, ops.maximum(row - 1, 0)), 0.0)
    inside = ops.cumsum(pick(table, row), axis=-1)
    return row * _COLUMNS + _first_above(inside, _clip_below(goal - before, inside[:, -1]))


def _unnormalized_probabilities(logits, temperature):
    """Returns probabilities (B, V), scaled per row so that the largest is 1."""
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    return ops.exp(logits / temperature)


def _clip_below(number, limit):
    return ops.minimum(number, limit * (1 - 2.0**-23))


def _first_above(sums, goal):
    """Returns the first index (B,) int32 at which ascending `sums` (B, N) exceed `goal` (B,)."""
    return ops.sum(ops.cast(sums <= goal[:, None], "int32"), axis=-1)
