"""Measures trained parameters, memory and time of an update with adapters and without.

    python -m benchmarks.lora_cost [--model=gpt2_base] [--rank=8] [--tokens=128] [--write]

The model has random weights and AdamW; logits are computed in chunks of 64 positions. Memory is the
peak resident memory of the second update, in a process per case, minus that before the model is
built: weights, slots, gradients and activations. Longer batches add activations to all cases alike.
Times are medians of processor time; one process runs the updates of two cases in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from benchmarks.update_cost import RETURN_MEMORY, alternating_times, resident

CASES = {
    "full": {},
    "lora": {"base": "float"},
    "lora_int8": {"base": "int8"},
    "lora_int4": {"base": "int4"},
}


def make_update(case: str, model: str, rank: int, rows: int, tokens: int):
    """Returns a function without arguments that runs one update, and the share that it trains."""
    import numpy as np
    import tensorflow as tf

    from trainers.config.base import base
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step
    from zoo import registry

    config = base()
    config.model = {"name": model, "dropout": 0.0}
    config.task = {"name": registry.entry(model).task, "chunk": 64}
    if case != "full":
        config.lora.update({"rank": rank, **CASES[case]})
    step, _ = build_step(config, make_strategy("one_device", 0), 100)
    parameters = step.net.count_params() if case == "full" else None
    if step.lora:
        parameters = step.lora.parameters
        step.lora.begin()
    ids = np.random.default_rng(0).integers(0, 1000, (rows, tokens + 1))
    counts = tf.ones((rows, tokens))
    data = {
        "tokens": tf.constant(ids[:, :-1], tf.int32),
        "segments": tf.ones((rows, tokens), tf.int32),
        "targets": tf.constant(ids[:, 1:], tf.int32),
        "counts": counts,
        "bytes": counts,
        "weight": tf.ones(rows),
    }
    update = tf.function(step.update, autograph=False)
    trained = sum(int(np.prod(v.shape)) for v in step.net.trainable_weights)

    def run():
        update(data)
        step.means.take()  # waits for the device

    return run, trained / parameters


def measure(case: str, sizes: tuple) -> dict:
    """Returns the share of trained parameters and the peak memory in MiB of the second update."""
    import keras  # noqa: F401 - counts in the memory before the model is built

    import trainers.train.build  # noqa: F401

    before = resident("VmRSS")
    update, share = make_update(case, *sizes)
    update()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    update()
    return {"trainable": round(share, 5), "peak_mib": round(resident("VmHWM") - before, 1)}


def seconds(case: str, sizes: tuple, updates: int) -> list[float]:
    """Returns the median processor seconds of an update of full fine-tuning and of a case."""
    pair = [make_update(name, *sizes)[0] for name in ("full", case)]
    return [round(statistics.median(x), 3) for x in alternating_times(pair, updates)]


def main() -> None:
    """Measures all cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gpt2_base")
    for key, default in (("rank", 8), ("rows", 1), ("tokens", 128), ("updates", 3)):
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--part", choices=("memory", "times"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.model, options.rank, options.rows, options.tokens
    if options.part == "memory":
        print(json.dumps(measure(options.cases[0], sizes)))
        return
    if options.part == "times":
        print(json.dumps(seconds(options.cases[0], sizes, options.updates)))
        return

    def run(part, case, **variables):
        command = [sys.executable, "-m", "benchmarks.lora_cost", f"--part={part}", "--cases", case]
        command += [
            f"--{key}={getattr(options, key)}"
            for key in ("model", "rank", "rows", "tokens", "updates")
        ]
        env = {**os.environ, **variables}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        return json.loads(done.stdout.splitlines()[-1])

    for case in options.cases:
        row = {
            "case": case, "model": options.model, "rank": options.rank, "rows": options.rows,
            "tokens": options.tokens, **run("memory", case, **RETURN_MEMORY),
        }  # fmt: skip
        full, own = run("times", case)
        row |= {"processor_seconds": own, "speed": round(full / own, 3)}
        print(row, flush=True)
        if options.write:
            from benchmarks.results_file import append

            append("lora_cost", [row])


if __name__ == "__main__":
    main()
