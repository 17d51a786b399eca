"""Dispatch of tokens to experts, with shapes that do not depend on the router's choice.

Each chosen (token, expert) pair gets a slot. The slots form blocks of equal size, and each block
belongs to one expert, so the experts run as one batched matrix product:

    dropless     The pairs of an expert fill as many blocks as they need; the last one is padded.
                 The number of blocks is the largest that any choice can need (Gale et al. 2022,
                 MegaBlocks, arXiv:2211.15841). Each block gets a copy of its expert's kernel.
    by_capacity  Each expert has one block of `capacity` slots per row of the batch. A pair for
                 which no slot is left is dropped (Lepikhin et al. 2020, GShard, arXiv:2006.16668).

The capacity is per row, and earlier positions have priority. So the result of a row depends neither
on other rows nor on later positions. `each_expert` is the reference: every expert processes every
token.

Axes: N tokens, K experts per token, E experts, C width, S slots, G blocks of M slots.
"""

import dataclasses
import math
from typing import Any

from keras import ops

_LARGEST_BLOCK = 128  # see benchmarks/results/moe_dispatch.csv


@dataclasses.dataclass(frozen=True)
class Plan:
    """The slots of the chosen pairs.

    Attributes:
      pairs: (S,) int32, the pair n * K + k of each slot plus 1; 0 for an empty slot.
      slots: (N, K) int32, the slot of each pair; S for a pair that is not computed.
      size: M.
      experts: (G,) int32, the expert of each block; None for one block per expert, in order.
    """

    pairs: Any
    slots: Any
    size: Any
    experts: Any = None


def dropless(experts, is_real, num_experts: int) -> Plan:
    """Plans slots for all pairs of real tokens.

    Args:
      experts: (N, K) int32, the experts of each token.
      is_real: (N,) int32, 0 for tokens that no expert processes, such as padding.
      num_experts: E.
    """
    tokens, k = ops.shape(experts)
    pairs = tokens * k
    size = _block_size(pairs, num_experts)
    chosen = _one_hot(experts, is_real, num_experts)
    rank = _rank(chosen, axis=0)
    blocks = (ops.sum(chosen, 0) + size - 1) // size
    ends = ops.cumsum(blocks)
    starts = (ends - blocks) * size
    num_blocks = (pairs + num_experts * (size - 1)) // size
    slots = ops.sum(chosen * starts[None], -1) + rank
    slots = ops.where(ops.sum(chosen, -1) > 0, slots, num_blocks * size)
    passed = ops.arange(num_blocks, dtype="int32")[:, None] >= ends[None]
    owners = ops.minimum(ops.sum(ops.cast(passed, "int32"), -1), num_experts - 1)
    return _plan(slots, tokens, k, num_blocks * size, size, owners)


def by_capacity(experts, is_real, num_experts: int, rows, capacity) -> Plan:
    """Plans at most `capacity` slots per expert and row of the batch.

    Args:
      experts: (N, K) int32, the experts of each token; the tokens of a row are adjacent.
      is_real: (N,) int32, 0 for tokens that no expert processes, such as padding.
      num_experts: E.
      rows: number of rows of the batch, a divisor of N.
      capacity: slots per expert and row.
    """
    tokens, k = ops.shape(experts)
    chosen = _one_hot(experts, is_real, num_experts)
    chosen = ops.reshape(chosen, (rows, -1, num_experts))
    rank = _rank(chosen, axis=1)  # (rows, pairs of a row)
    expert = ops.argmax(chosen, -1)
    size = rows * capacity
    row = ops.arange(rows, dtype="int32")[:, None]
    slots = ops.cast(expert, "int32") * size + row * capacity + rank
    fits = (rank < capacity) & (ops.sum(chosen, -1) > 0)
    slots = ops.where(fits, slots, num_experts * size)
    return _plan(ops.reshape(slots, (-1,)), tokens, k, num_experts * size, size)


def capacity_of(factor: float, tokens, experts_per_token: int, num_experts: int):
    """Returns ceil(factor * tokens * K / E), but not more than the tokens of a row."""
    share = factor * experts_per_token / num_experts
    if isinstance(tokens, int):
        return min(tokens, math.ceil(share * tokens))
    wanted = ops.cast(ops.ceil(share * ops.cast(tokens, "float32")), "int32")
    return ops.minimum(tokens, wanted)


def run(plan: Plan, x, gates, function):
    """Runs the experts on their slots and adds the results of each token.

    Args:
      plan: slots of the tokens.
      x: (N, C).
      gates: (N, K) float32, the weights of the results.
      function: `function(blocks (G, M, C), experts (G,) or None) -> (G, M, C)`.

    Returns:
      (N, C) in the dtype of `x`.
    """
    width = x.shape[-1]
    blocks = ops.reshape(_fill_slots(plan, x), (-1, plan.size, width))
    out = ops.reshape(function(blocks, plan.experts), (-1, width))
    out = ops.cast(_read_slots(plan, out), "float32")
    return ops.cast(ops.sum(out * gates[..., None], 1), x.dtype)


# A gather whose gradient is the gather in the other direction: faster than the scattered sum of the
# gradient of `ops.take`, in a fixed order, and XLA compiles it. For the scattered sum, XLA of
# TensorFlow 2.21 aborts when the indices come from `ops.scatter`.


def _fill_slots(plan: Plan, x):
    """Copies tokens (N, C) to their slots (S, C); empty slots are 0."""
    k = plan.slots.shape[1]

    @ops.custom_gradient
    def fill(x):
        def gradient(upstream):
            return ops.sum(_with_zero(upstream, plan.slots, first=False), 1)

        return _with_zero(x, (plan.pairs + k - 1) // k, first=True), gradient

    return fill(x)


def _read_slots(plan: Plan, out):
    """Copies results (S, C) to their pairs (N, K, C); pairs without a slot are 0."""

    @ops.custom_gradient
    def read(out):
        def gradient(upstream):
            pairs = ops.reshape(upstream, (-1, upstream.shape[-1]))
            return _with_zero(pairs, plan.pairs, first=True)

        return _with_zero(out, plan.slots, first=False), gradient

    return read(out)


def _with_zero(x, indices, first: bool):
    """Returns rows of x (N, C); the first or the last index means a row of zeros."""
    zero = ops.zeros((1, x.shape[-1]), x.dtype)
    return ops.take(ops.concatenate([zero, x] if first else [x, zero]), indices, axis=0)


def each_expert(x, experts, gates, is_real, num_experts: int, function):
    """Returns the result of `run` with a dropless plan: each expert processes all tokens.

    Args:
      x: (N, C).
      experts: (N, K) int32.
      gates: (N, K) float32.
      is_real: (N,) int32.
      num_experts: E.
      function: see `run`.
    """
    total = ops.zeros(ops.shape(x), "float32")
    for expert in range(num_experts):
        weight = ops.sum(ops.where(experts == expert, gates, 0.0), -1)
        weight = weight * ops.cast(is_real, "float32")
        out = function(x[None], ops.full((1,), expert, "int32"))[0]
        total += ops.cast(out, "float32") * weight[:, None]
    return ops.cast(total, x.dtype)


def _block_size(pairs, num_experts: int) -> int:
    """Returns a power of two near half the mean number of pairs per expert, at most 128.

    Larger blocks have more padding, smaller ones more copies of kernels.
    """
    if not isinstance(pairs, int):
        return _LARGEST_BLOCK
    half = max(1, pairs // (2 * num_experts))
    return min(_LARGEST_BLOCK, 1 << (half.bit_length() - 1))


def _one_hot(experts, is_real, num_experts: int):
    """Returns (N * K, E) int32, with zeros for tokens that are not real."""
    chosen = ops.cast(experts[..., None] == ops.arange(num_experts, dtype="int32"), "int32")
    chosen = chosen * is_real[:, None, None]  # `ops.one_hot` of integers: not in ONNX Runtime
    return ops.reshape(chosen, (-1, num_experts))


def _rank(chosen, axis: int):
    """Returns how many earlier pairs along the axis have the same expert."""
    return ops.sum((ops.cumsum(chosen, axis=axis) - chosen) * chosen, -1)


def _plan(slots, tokens, k: int, count, size, owners=None) -> Plan:
    """Inverts the slots (N * K,) of the pairs; pairs without a slot have the index `count`."""
    numbers = ops.arange(tokens * k, dtype="int32") + 1
    inverse = ops.scatter(slots[:, None], numbers, (count + 1,))[:count]
    return Plan(inverse, ops.reshape(slots, (-1, k)), size, owners)
