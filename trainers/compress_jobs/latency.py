"""Latency of LiteRT files, measured with interleaved calls."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainers.export.litert_file import LiteRTFile

THREADS = (1, 2)
_SECONDS = 2.0  # duration of the measurement per number of threads
_MIN_CALLS, _MAX_CALLS = 5, 500  # number of calls per file


def measure_latencies(files: Mapping[str, Path], examples: Mapping) -> dict[str, dict[str, float]]:
    """Interleaves the calls of all files, so that other load affects all files alike.

    Args:
      files: name -> path of a LiteRT file.
      examples: input name -> (N, …), for the inputs of all files; each call gets the next example.

    Returns:
      Name -> number of threads, as text -> median milliseconds per call from Python.
    """
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in files}
    count = len(next(iter(examples.values())))
    rows = [{k: v[i : i + 1] for k, v in examples.items()} for i in range(count)]
    for threads in THREADS:
        open_files = {name: LiteRTFile(path, threads) for name, path in files.items()}
        seconds: dict[str, list[float]] = {name: [] for name in files}
        inputs = {name: [*file.inputs] for name, file in open_files.items()}
        for name, file in open_files.items():
            file.run_example({key: rows[0][key] for key in inputs[name]})
        start = time.perf_counter()
        for call in range(_MAX_CALLS):
            if call >= _MIN_CALLS and time.perf_counter() - start > _SECONDS:
                break
            for name, file in open_files.items():
                row = {key: rows[call % count][key] for key in inputs[name]}
                begin = time.perf_counter()
                file.run_example(row)
                seconds[name].append(time.perf_counter() - begin)
        for name, values in seconds.items():
            milliseconds[name][str(threads)] = float(np.median(values)) * 1e3
    return milliseconds
