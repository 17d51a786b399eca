"""Dispatch by slots gives what a loop over the experts gives, with equal gradients."""

import numpy as np
import pytest
import tensorflow as tf

from tests.zoo.layers.attention_forms.arrays import assert_equal, random, with_gradients
from zoo.layers.experts import dispatch

E, C = 5, 6


def choices(tokens, k, seed=0, popular=False):
    """Returns distinct experts (tokens, k); with `popular`, the first choice is always expert 3."""
    generator = np.random.default_rng(seed)
    rows = [generator.permutation(E)[:k] for _ in range(tokens)]
    if popular:
        rows = [np.append(3, row[row != 3])[:k] for row in rows]
    return tf.constant(np.array(rows), tf.int32)


def arrays(tokens, k):
    return [random(tokens, C), random(E, C, C, seed=1), tf.abs(random(tokens, k, seed=2))]


def run(plan):
    def out(x, kernels, gates):
        def experts(blocks, owners):
            return blocks @ (kernels if owners is None else tf.gather(kernels, owners))

        return dispatch.run(plan, x, gates, experts)

    return out


def reference(experts, is_real):
    def out(x, kernels, gates):
        def function(blocks, owners):
            return blocks @ tf.gather(kernels, owners)

        return dispatch.each_expert(x, experts, gates, is_real, E, function)

    return out


@pytest.mark.parametrize("real", ["all", "some", "none"])
@pytest.mark.parametrize(
    ("tokens", "k", "popular"), [(40, 2, False), (40, 2, True), (33, 1, False), (3, 5, False)]
)
def test_dropless_equals_the_loop(tokens, k, popular, real):
    experts = choices(tokens, k, popular=popular)
    is_real = {"all": np.ones(tokens), "none": np.zeros(tokens), "some": np.arange(tokens) % 3 > 0}
    is_real = tf.constant(is_real[real], tf.int32)
    plan = dispatch.dropless(experts, is_real, E)
    given = arrays(tokens, k)
    ours, theirs = (
        [tf.convert_to_tensor(x) for x in with_gradients(function, given)]
        for function in (run(plan), reference(experts, is_real))
    )
    assert_equal(ours, theirs)
    assert not (np.asarray(ours[0])[np.asarray(is_real) == 0]).any()


def test_an_unlimited_capacity_equals_the_loop():
    experts, is_real = choices(40, 2), tf.constant(np.arange(40) % 7 > 0, tf.int32)
    plan = dispatch.by_capacity(experts, is_real, E, rows=4, capacity=10)
    given = arrays(40, 2)
    ours, theirs = (
        with_gradients(function, given) for function in (run(plan), reference(experts, is_real))
    )
    assert_equal(ours, [tf.convert_to_tensor(x) for x in theirs])


def test_a_full_expert_drops_the_last_tokens_of_each_row():
    experts = tf.constant([[3], [3], [3], [1], [3], [3]], tf.int32)  # two rows of three
    is_real = tf.constant([1, 0, 1, 1, 1, 1])
    plan = dispatch.by_capacity(experts, is_real, E, rows=2, capacity=1)
    is_computed = np.asarray(plan.slots)[:, 0] < plan.pairs.shape[0]
    assert is_computed.tolist() == [True, False, False, True, True, False]
    plan = dispatch.by_capacity(experts, is_real, E, rows=2, capacity=2)
    is_computed = np.asarray(plan.slots)[:, 0] < plan.pairs.shape[0]
    assert is_computed.tolist() == [True, False, True, True, True, True]


def test_each_pair_has_a_slot_of_its_expert():
    experts, is_real = choices(50, 2), tf.ones(50, tf.int32)
    plan = dispatch.dropless(experts, is_real, E)
    slots = np.asarray(plan.slots)
    assert len(np.unique(slots)) == slots.size
    np.testing.assert_array_equal(np.asarray(plan.experts)[slots // plan.size], experts)
    np.testing.assert_array_equal(
        np.asarray(plan.pairs)[slots] - 1, np.arange(slots.size).reshape(slots.shape)
    )


@pytest.mark.parametrize(
    ("pairs", "size"), [(1, 1), (20, 2), (160, 16), (10_000, 128), (1_000_000, 128)]
)
def test_blocks_suit_the_number_of_pairs(pairs, size):
    assert dispatch._block_size(pairs, E) == size


def test_the_capacity_is_a_share_of_the_row():
    assert dispatch.capacity_of(1.25, 256, 2, 8) == 80
    assert dispatch.capacity_of(1.0, 7, 2, 8) == 2
    assert dispatch.capacity_of(100.0, 7, 2, 8) == 7
    assert int(dispatch.capacity_of(1.25, tf.constant(256), 2, 8)) == 80
