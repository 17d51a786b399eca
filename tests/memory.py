"""Peak memory of a call, measured in a process of its own.

The threads that earlier tests left in the test process allocate too, and tracemalloc cannot tell
threads apart.
"""

import multiprocessing
import tracemalloc
from concurrent.futures import ProcessPoolExecutor


def peak_of(function, *args, **kwargs) -> tuple:
    """Returns the result of a module-level function, and the peak of what Python allocated, in
    bytes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, function, args, kwargs).result()


def _measure(function, args, kwargs):
    tracemalloc.start()
    result = function(*args, **kwargs)
    return result, tracemalloc.get_traced_memory()[1]
