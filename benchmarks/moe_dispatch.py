"""Measures the processor time of forward and backward pass of one mixture of experts.

    python -m benchmarks.moe_dispatch [--tokens=4096] [--width=128] [--repeats=5] [--write]

Compares the loop over the experts, dropless dispatch in blocks of several sizes, dispatch by
capacity, and a dense feed-forward part of equal active parameters: 8 experts of the width of the
model, 2 per token, without a shared expert. The times are medians of processor time.
"""

import argparse
import statistics
import time

import tensorflow as tf

from benchmarks.results_file import append
from zoo.layers.experts import dispatch
from zoo.layers.experts.mixture import MixtureOfExperts
from zoo.layers.transformer import FeedForward

_EXPERTS, _PER_TOKEN, _ROW = 8, 2, 256


def passes(function, layer, x):
    """Returns a compiled function that runs forward and backward pass."""

    def run():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(function(x) ** 2)
        values = [x, *(v.value for v in layer.trainable_variables)]
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, values)]

    return tf.function(run, autograph=False)


def milliseconds(run, repeats: int) -> float:
    """Returns the median processor time of a function after one call that traces it."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return round(1e3 * statistics.median(times), 1)


def main() -> None:
    """Prints one row per form, and appends all of them with `--write`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    width = arguments.width
    x = tf.random.normal((arguments.tokens // _ROW, _ROW, width), seed=0)
    dense = FeedForward(width, _PER_TOKEN * width, "swiglu", use_bias=False)
    dense.build(x.shape)
    moe = MixtureOfExperts(width, width, _EXPERTS, _PER_TOKEN)
    moe.build(x.shape)

    def loop(x):
        tokens = tf.reshape(x, (-1, width))
        experts, gates, _ = moe.router(tokens)
        is_real = tf.ones(tokens.shape[0], tf.int32)
        return dispatch.each_expert(tokens, experts, gates, is_real, _EXPERTS, moe.run_experts)

    rows = []

    def add(form, run):
        row = {"form": form, "tokens": arguments.tokens, "width": width}
        rows.append({**row, "milliseconds": milliseconds(run, arguments.repeats)})
        print(rows[-1], flush=True)

    add("dense", passes(dense, dense, x))
    add("each_expert", passes(loop, moe, x))
    default = dispatch._LARGEST_BLOCK
    for size in (16, 32, 64, 128, 256):
        dispatch._LARGEST_BLOCK = size
        add(f"dropless, blocks of {size}", passes(lambda x: moe(x)[0], moe, x))
    dispatch._LARGEST_BLOCK = default
    for factor in (1.0, 1.25, 2.0):
        moe.capacity_factor = factor
        add(f"capacity factor {factor}", passes(lambda x: moe(x, training=True)[0], moe, x))
    if arguments.write:
        append("moe_dispatch", rows)


if __name__ == "__main__":
    main()
