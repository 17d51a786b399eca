"""Measures the throughput of reading shuffled packed records, without a model.

    python -m benchmarks.record_reading [--tokens=50000000] [--write]

Writes rows of 257 uint16 tokens to a temporary folder and reads them once in random order, 32 rows
per batch: directly from the `ShardedArray`, and through tf.data as training does (batch numbers ->
`tf.numpy_function` that gathers -> prefetch). The data comes from the page cache, as for records
that fit in memory. "open" reads the files and checks their sha256.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from zoo.storage.records import RecordWriter, open_records

ROW, BATCH, SHARD_BYTES = 257, 32, 16 << 20


def write(folder: Path, rows: int):
    """Writes `rows` random rows, 8,192 at a time."""
    generator = np.random.default_rng(0)
    with RecordWriter(folder, {"tokens": ((ROW,), "uint16")}, shard_bytes=SHARD_BYTES) as writer:
        while writer.rows < rows:
            count = min(8192, rows - writer.rows)
            writer.append(tokens=generator.integers(0, 50_000, (count, ROW), np.uint16))


def read_directly(array, order: np.ndarray) -> int:
    """Returns the number of rows read."""
    num_rows = 0
    for start in range(0, len(order), BATCH):
        num_rows += len(array[order[start : start + BATCH]])
    return num_rows


def read_through_tf_data(array, order: np.ndarray) -> int:
    """Returns the number of rows read."""
    import tensorflow as tf

    def gather(number):
        return array[order[number * BATCH : (number + 1) * BATCH]]

    def element(number):
        tokens = tf.numpy_function(gather, [number], tf.uint16, stateful=False)
        return tf.ensure_shape(tokens, (BATCH, ROW))

    batches = tf.data.Dataset.range(len(order) // BATCH)
    batches = batches.map(element, num_parallel_calls=2, deterministic=True).prefetch(2)
    return sum(len(batch) for batch in batches)


def measure(tokens: int) -> list[dict]:
    """Returns one row of results each for opening, direct reading and tf.data."""
    rows = tokens // ROW // BATCH * BATCH
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "records", rows)
        records, order = None, np.random.default_rng(1).permutation(rows)

        def open_all() -> int:
            nonlocal records
            records = open_records(Path(folder) / "records")
            return rows

        ways = {
            "open": open_all,
            "direct": lambda: read_directly(records.arrays["tokens"], order),
            "tf.data": lambda: read_through_tf_data(records.arrays["tokens"], order),
        }
        for way, read in ways.items():
            if way == "tf.data":
                import tensorflow  # noqa: F401  # not part of the reading time
            start = time.perf_counter()
            assert read() == rows
            seconds = time.perf_counter() - start
            results.append(
                {
                    "way": way,
                    "million_tokens": round(rows * ROW / 1e6, 1),
                    "row": ROW,
                    "batch": BATCH,
                    "million_tokens_a_second": round(rows * ROW / seconds / 1e6, 1),
                    "gigabytes_a_second": round(rows * ROW * 2 / seconds / 1e9, 2),
                    # Other load on the machine lowers the rates.
                    "load_average": round(os.getloadavg()[0], 1),
                }
            )
    return results


def main():
    """Prints the results; --write appends them to results/record_reading.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.tokens)
    for row in results:
        print(row)
    if arguments.write:
        from benchmarks.results_file import append

        append("record_reading", results)


if __name__ == "__main__":
    main()
