"""Peak memory and processor time of updates, for benchmarks that compare several cases."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

# Environment of a measurement of memory: freed tensors return to the system at once, so that only
# live ones count. With oneDNN, which TensorFlow uses on CPUs with AVX512_VNNI, tensors come from a
# pool that never shrinks; the second variable removes the pool, the first one concerns glibc.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}


def resident(key: str) -> float:
    """Returns the current (VmRSS) or peak (VmHWM) resident memory of this process in MiB.

    `ru_maxrss` would include the process that started this one.
    """
    with open("/proc/self/status") as file:
        return int(re.search(key + r":\s+(\d+)", file.read())[1]) / 1024


def memory_rise(update: Callable) -> float:
    """Returns the MiB by which resident memory rises during a call."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = resident("VmRSS")
    update()
    return round(resident("VmHWM") - before, 1)


def alternating_times(updates: Sequence[Callable], rounds: int) -> list[list[float]]:
    """Returns the processor seconds of each function in each round; the functions take turns."""
    for update in updates:
        update()
    times = [[] for _ in updates]
    for _ in range(rounds):
        for update, seconds in zip(updates, times, strict=True):
            start = time.process_time()
            update()
            seconds.append(time.process_time() - start)
    return times


def compare(
    name: str,
    make_update: Callable,
    cases: Sequence[str],
    depth: str,
    depths: Sequence[int] = (4, 8),
    **sizes,
) -> None:
    """Measures all cases at several depths; prints JSON, and --write appends to the results.

    Memory is measured in a process per case, during the second update: the first one also optimizes
    the graph. Times are medians in one process per depth, in which the cases take turns.

    Args:
      name: name of the script in benchmarks/ and of its results.
      make_update: `make_update(case, depth, *sizes)` returns a function that runs one update.
      cases: names of the cases.
      depth: name of the argument for the numbers of layers.
      depths: default of that argument.
      **sizes: further arguments of the command line, with their defaults.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{depth}", type=int, nargs="+", default=depths)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    for size, default in sizes.items():
        parser.add_argument(f"--{size}", type=type(default), default=default)
    parser.add_argument("--updates", type=int, default=7, help="number of updates per median")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--case", choices=(*cases, "times"), help=argparse.SUPPRESS)
    arguments = vars(parser.parse_args())
    given = {size: arguments[size] for size in sizes}
    if arguments["case"] == "times":
        updates = [
            make_update(case, arguments[depth][0], *given.values()) for case in arguments["cases"]
        ]
        times = alternating_times(updates, arguments["updates"])
        print(json.dumps([round(statistics.median(seconds), 3) for seconds in times]))
        return
    if arguments["case"]:
        update = make_update(arguments["case"], arguments[depth][0], *given.values())
        update()
        print(json.dumps(memory_rise(update)))
        return

    def run(case, count, **variables):
        command = [sys.executable, "-m", f"benchmarks.{name}", f"--case={case}"]
        values = {depth: count, **given, "updates": arguments["updates"]}
        command += [f"--{key}={value}" for key, value in values.items()]
        command += ["--cases", *arguments["cases"]]
        env = {**os.environ, **variables}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        return json.loads(done.stdout.splitlines()[-1])

    rows = []
    for count in arguments[depth]:
        for case, seconds in zip(arguments["cases"], run("times", count), strict=True):
            mib = run(case, count, **RETURN_MEMORY)
            row = {"case": case, depth: count, **given}
            rows.append({**row, "peak_mib": mib, "processor_seconds": seconds})
    print(json.dumps(rows))
    if arguments["write"]:
        from benchmarks.results_file import append

        append(name, rows)
