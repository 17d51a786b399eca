"""Measures time and peak memory of each form of attention, forward and backward.

    python -m benchmarks.attention_forms [--lengths 512 1024] [--forms plain window_256]
                                         [--precisions float32] [--xla no yes] [--causal no yes]
                                         [--rounds=7] [--no-memory] [--write]

One layer without projections: batch 1, 8 heads of 32, all positions in one document. Times are
processor time (user and system) of the process; the forms of one setting take turns, so that other
load on the machine affects all of them. Memory is the rise of resident memory during the first
update, each case in a process of its own. The ratio is the median over the rounds of the time
divided by that of the first form in the same round. --write appends to results/attention_forms.csv.
--plot measures nothing and draws the newest rows of attention that is not causal to
results/attention_forms.svg.

A new form is one line in `FORMS`.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from functools import partial

from benchmarks.results_file import RESULTS, append
from benchmarks.update_cost import RETURN_MEMORY, alternating_times, memory_rise

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH, HEADS, SIZE = 1, 8, 32
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)


def plain(query, key, value, segments, causal):
    from zoo.layers.attention_forms.plain import attend, mask_bias

    return attend(query, key, value, mask_bias(segments, causal=causal))


def chunked(query, key, value, segments, causal, chunk=128):
    from zoo.layers.attention_forms.chunked import attend_chunked

    return attend_chunked(query, key, value, segments, causal=causal, chunk=chunk)


def window(query, key, value, segments, causal, positions=256, tokens=0):
    """Computes attention to `positions` positions: half to each side, or all back if causal."""
    from keras import ops

    from zoo.layers.attention_forms.window import attend_window

    mask = ops.cast(ops.arange(query.shape[1])[None] < tokens, "int32") if tokens else None
    side = positions if causal else positions // 2
    return attend_window(
        query, key, value, side, segments, causal, global_mask=mask, max_global=tokens
    )


def lsh(query, key, value, segments, causal, rounds=2):
    """Computes LSH attention of the queries to themselves; the key has no effect."""
    from zoo.layers.attention import Lsh

    return Lsh(rounds).attend(query, query, value, segments, causal) + 0 * key


def axial(query, key, value, segments, causal):
    """Computes attention along the rows and then along the columns of a square grid."""
    from keras import ops

    from zoo.layers.attention_forms.axial import attend_axis

    length = query.shape[1]
    rows = 2 ** (length.bit_length() // 2)
    grid = (BATCH, rows, length // rows, HEADS, SIZE)
    query, key, value = (ops.reshape(x, grid) for x in (query, key, value))
    value = attend_axis(query, key, value, axis=2, causal=causal)
    value = attend_axis(query, key, value, axis=1, causal=causal)
    return ops.reshape(value, (BATCH, length, HEADS, SIZE))


# Name: function and longest length, which bounds time and memory.
FORMS = {
    "plain": (plain, 8192),
    "chunked_128": (chunked, 16384),
    "chunked_256": (partial(chunked, chunk=256), 16384),
    "window_256": (window, 32768),
    "window_512": (partial(window, positions=512), 32768),
    "window_256_global_64": (partial(window, tokens=64), 32768),
    "lsh_1": (partial(lsh, rounds=1), 32768),
    "lsh_2": (lsh, 32768),
    "lsh_4": (partial(lsh, rounds=4), 32768),
    "axial": (axial, 32768),
}


def make(form: str, length: int, precision: str, xla: bool, causal: bool):
    """Returns a `tf.function` without arguments that runs forward and backward."""
    import numpy as np
    import tensorflow as tf

    function, generator = FORMS[form][0], np.random.default_rng(0)
    arrays = [
        tf.cast(generator.normal(size=(BATCH, length, HEADS, SIZE)), precision) for _ in range(4)
    ]
    segments = tf.ones((BATCH, length), tf.int32)

    @tf.function(jit_compile=xla, autograph=False)
    def update(query, key, value, slope, segments):
        with tf.GradientTape() as tape:
            tape.watch((query, key, value))
            out = function(query, key, value, segments, causal)
        return out, *tape.gradient(out, (query, key, value), slope)

    update.get_concrete_function(*arrays, segments)  # traces, so that memory excludes it
    return lambda: update(*arrays, segments)[-1].numpy()


def times(cases: list[dict], rounds: int) -> list[list[float]]:
    """Returns the milliseconds of processor time of each case and round; the cases take turns."""
    measured = alternating_times([make(**case) for case in cases], rounds)
    return [[1000 * seconds for seconds in row] for row in measured]


def plot() -> None:
    """Draws time against length, one panel per precision, with and without XLA."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with open(RESULTS / "attention_forms.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["causal"] == "False"]
    # The last machine alone; a later row replaces an earlier one.
    rows = [row for row in rows if row["machine"] == rows[-1]["machine"]]
    times = {
        (row["precision"], row["xla"], row["form"], int(row["length"])): float(row["milliseconds"])
        for row in rows
    }
    panels = sorted({key[:2] for key in times}, reverse=True)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 5), sharey=True, squeeze=False
    )
    for (precision, xla), panel in zip(panels, axes[0], strict=True):
        for form in FORMS:
            points = sorted(
                (k[3], ms) for k, ms in times.items() if k[:3] == (precision, xla, form)
            )
            if points:
                panel.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=form)
        panel.set_title(f"{precision}, {'XLA' if xla == 'True' else 'no XLA'}")
        panel.set_xlabel("tokens")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("processor time, ms")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Attention forward and backward, {rows[-1]['machine']}")
    figure.tight_layout()
    figure.savefig(RESULTS / "attention_forms.svg", metadata={"Date": None})


def in_process(argument: str, value, *others: str):
    """Runs this script in a new process with `argument`; returns the JSON of its last line."""
    command = [sys.executable, "-m", "benchmarks.attention_forms"]
    command += [f"{argument}={json.dumps(value)}", *others]
    env = {**os.environ, **(RETURN_MEMORY if argument == "--memory-case" else {})}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    """Prints one JSON line per form and setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--xla", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--causal", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--memory-case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--time-cases", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plot:
        plot()
        return
    if arguments.memory_case:
        print(json.dumps(memory_rise(make(**arguments.memory_case))))
        return
    if arguments.time_cases:
        print(json.dumps(times(arguments.time_cases, arguments.rounds)))
        return
    settings = itertools.product(
        arguments.precisions, arguments.xla, arguments.causal, arguments.lengths
    )
    for precision, xla, causal, length in settings:
        setting = {"length": length, "precision": precision}
        setting |= {"xla": xla == "yes", "causal": causal == "yes"}
        cases = [{"form": f, **setting} for f in arguments.forms if length <= FORMS[f][1]]
        if not cases:
            continue
        # A new process per setting returns the memory of the one before.
        measured = in_process("--time-cases", cases, f"--rounds={arguments.rounds}")
        rows = []
        for case, row in zip(cases, measured, strict=True):
            ratios = [a / b for a, b in zip(row, measured[0], strict=True)]
            result = {
                "milliseconds": round(statistics.median(row), 1),
                "first_form": cases[0]["form"],
                "ratio": round(statistics.median(ratios), 3),
                "peak_mib": "" if arguments.no_memory else in_process("--memory-case", case),
            }
            rows.append({**case, **result})
            print(json.dumps(rows[-1]), flush=True)
        if arguments.write:
            append("attention_forms", rows)


if __name__ == "__main__":
    main()
