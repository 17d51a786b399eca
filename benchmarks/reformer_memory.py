"""Measures peak memory and time of one update of a Reformer, by the part that is recomputed.

    python -m benchmarks.reformer_memory [--length=4096] [--layers 4 8] [--write]

Cases: `plain` stores all activations, `remat` recomputes each function of the reversible stack, and
`reversible` stores the outputs of the stack alone. `narrow` is `reversible` with feed-forward
layers of 1/16 of their width: feed-forward layers in chunks of positions cannot need less memory.
Each case runs in a separate process and reports the rise of resident memory during the second
update. The times are medians of processor time; one process runs the updates of all cases in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.reversible_memory import resident

CASES = {
    "plain": "", "remat": "(attention|feed_forward)_[0-9]+", "reversible": "reversible",
    "narrow": "reversible",
}  # fmt: skip


def make_update(case: str, layers: int, length: int, attention: str):
    """Returns a function without arguments that runs one update of a case."""
    import keras
    import tensorflow as tf

    from trainers.train.remat import apply_remat
    from trainers.train.step import TrainStep
    from zoo.models import reformer
    from zoo.tasks.clm import CausalLanguageModeling

    keras.utils.set_random_seed(0)
    model = reformer.build(
        sequence_length=length, num_layers=layers, hidden_dim=128, num_heads=4, dropout=0.1,
        intermediate_dim=32 if case == "narrow" else 512, attention=attention,
    )  # fmt: skip
    if CASES[case]:
        apply_remat(model, CASES[case])
    task = CausalLanguageModeling()
    step = TrainStep(model, task.bind(model), keras.optimizers.SGD(0.01))
    tokens = tf.random.stateless_uniform((1, length), (0, 0), 1, 256, "int32")
    ones = tf.ones((1, length))
    data = {
        "tokens": tokens, "segments": tf.ones((1, length), tf.int32), "targets": tokens,
        "counts": ones, "bytes": ones, "weight": tf.ones(1),
    }  # fmt: skip
    update = tf.function(step.update, autograph=False)
    return lambda: update(data)


def measure_memory(case: str, *sizes) -> float:
    """Returns the rise of resident memory during one update of a case in MiB."""
    update = make_update(case, *sizes)
    update()  # the first update also optimizes the graph
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = resident("VmRSS")
    update()
    return round(resident("VmHWM") - before, 1)


def measure_times(*sizes, updates: int) -> list[float]:
    """Returns the processor seconds of one update of each case; the cases alternate."""
    functions = [make_update(case, *sizes) for case in CASES]
    for update in functions:
        update()
    times = [[] for _ in CASES]
    for _ in range(updates):
        for update, seconds in zip(functions, times, strict=True):
            start = time.process_time()
            update()
            seconds.append(time.process_time() - start)
    return [round(statistics.median(seconds), 3) for seconds in times]


def main():
    """Prints all cases as JSON; --write appends to results/reformer_memory.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--attention", default="window:64,lsh:2:64")
    parser.add_argument("--updates", type=int, default=5, help="number of updates per median")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--case", choices=(*CASES, "times"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.length, arguments.attention)
    if arguments.case:
        layers = arguments.layers[0]
        measured = (
            measure_times(layers, *sizes, updates=arguments.updates)
            if arguments.case == "times"
            else measure_memory(arguments.case, layers, *sizes)
        )
        print(json.dumps(measured))
        return

    def run(case, layers, **variables):
        command = [sys.executable, "-m", "benchmarks.reformer_memory", f"--case={case}"]
        command += [f"--layers={layers}", f"--length={sizes[0]}", f"--attention={sizes[1]}"]
        command += [f"--updates={arguments.updates}"]
        env = {**os.environ, **variables}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        return json.loads(done.stdout.splitlines()[-1])

    rows = []
    for layers in arguments.layers:
        times = run("times", layers)
        for case, seconds in zip(CASES, times, strict=True):
            # glibc returns freed tensors to the system at once, so that only live ones count.
            mib = run(case, layers, MALLOC_MMAP_THRESHOLD_=str(2**20))
            row = {"case": case, "layers": layers, "length": sizes[0], "attention": sizes[1]}
            rows.append({**row, "peak_mib": mib, "processor_seconds": seconds})
    print(json.dumps(rows))
    if arguments.write:
        from benchmarks.results_file import append

        append("reformer_memory", rows)


if __name__ == "__main__":
    main()
