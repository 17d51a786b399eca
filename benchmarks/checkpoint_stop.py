"""How long training stops for a checkpoint, and how long a resumed run takes to its first update.

    python -m benchmarks.checkpoint_stop [--model=gpt2_base]

Of a model with AdamW: the seconds of `Saver.save` (the first one, and the median of those after it,
an update between each two), of the write that goes on meanwhile, of a synchronous save; then,
in a process of its own, from the start of building to the end of the first update after a
checkpoint was read, without imports. Whether both ways write the same is a test's business. Rows go
to results/checkpoint_stop.csv.

GPT-2's 12 blocks resume in 25.5 s on two cores without AVX512: 5 s of building, 2 s of reading, the
rest the first call of the step. Under Python's profiler, which slows it, that was 15 s of tracing
(7 of them the optimizer's) and 14 s of TensorFlow, of which a later update takes 3. Reading arrays
without a copy brought nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import append

SEQUENCE = 128


def build(model: str):
    """Returns a step and a function that does one update."""
    import numpy as np
    import tensorflow as tf

    from configs.base import base, optimizer
    from trainers.build import build_step, update_function
    from trainers.strategy import make_strategy
    from zoo.data import pipeline

    config = base()
    config.model = {"name": model, "sequence_length": SEQUENCE}
    config.task = {"name": "clm", "chunk": 512}
    config.optimizer = optimizer("adamw", learning_rate=1e-4)
    config.trainer.global_batch_size = 1
    strategy = make_strategy("one_device")
    step, task = build_step(config, strategy, 10**6)
    tokens = np.random.default_rng(0).integers(0, 50_000, (8, SEQUENCE + 1)).astype("uint16")
    batches = pipeline.training_batches(
        {"tokens": tokens, "segments": np.ones_like(tokens)}, task.prepare, batch_size=1,
        replicas=1, seed=0, first_step=0, last_step=10**6,
    )  # fmt: skip
    run, iterator = update_function(step, strategy), iter(batches)

    def update() -> float:
        start = time.perf_counter()
        run(iterator, tf.constant(1))
        step.means.take()  # waits for the device
        return time.perf_counter() - start

    return step, update


def resume(model: str, path: str) -> float:
    """Seconds to the end of the first update."""
    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401

    from trainers import checkpoint

    start = time.perf_counter()
    step, update = build(model)
    checkpoint.restore(Path(path), step)
    update()
    return time.perf_counter() - start


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gpt2_base")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--resume", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        print(resume(arguments.model, arguments.resume))
        return

    from trainers import checkpoint
    from trainers.saver import Saver

    step, update = build(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), step, 1, lambda: None)  # as in training: before an update
        update()
        stops, writes = [], []
        for _ in range(arguments.saves):
            start = time.perf_counter()
            saver.save({})
            stops.append(time.perf_counter() - start)
            update()
            saver.wait()
            writes.append(time.perf_counter() - start)
        saver.close()
        start = time.perf_counter()
        path = checkpoint.save(Path(folder), step, {}, 1)
        synchronous = time.perf_counter() - start
        size = path.stat().st_size
        del step, update, saver
        command = [sys.executable, "-m", "benchmarks.checkpoint_stop", f"--resume={path}"]
        answer = subprocess.run(
            [*command, f"--model={arguments.model}"], capture_output=True, text=True, check=True
        )
    row = {
        "model": arguments.model,
        "gigabytes": round(size / 1e9, 3),
        "first_stop_s": round(stops[0], 3),
        "stop_s": round(statistics.median(stops[1:]), 3),
        "written_s": round(statistics.median(writes), 2),
        "synchronous_s": round(synchronous, 2),
        "resume_to_first_update_s": round(float(answer.stdout.split()[-1]), 2),
    }
    print(row)
    append("checkpoint_stop", [row])


if __name__ == "__main__":
    main()
