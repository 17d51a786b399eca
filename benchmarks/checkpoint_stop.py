"""Measures how long training stops for a checkpoint, and the time to the first resumed update.

    python -m benchmarks.checkpoint_stop [--model=gpt2_base] [--resumes=5]

For a model with AdamW: the seconds of `Saver.save` (the first call, and the median of later calls
with an update between them), of the write in the background, and of a synchronous save. Then, in
separate processes, the median of the seconds from the start of building to the end of the first
update after a restore, without imports. Rows go to results/checkpoint_stop.csv.

GPT-2's 12 blocks resume in 16 to 20 s on two cores without AVX512: 3 s of building, 2 to 3 s of
reading, 5 s of tracing, 4 s of TensorFlow's preparations, 2 s of the update. It took 25 to 30 s
before Adam's step was one operation per variable, before the input functions ran without AutoGraph,
and before two threads read the arrays.
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
    """Returns a train step and a function that runs one update and returns its seconds."""
    import numpy as np
    import tensorflow as tf

    from trainers.config.base import base, optimizer
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step, update_function
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
    """Returns the seconds from building to the end of the first update after a restore."""
    import keras  # noqa: F401
    import tensorflow as tf  # noqa: F401

    from trainers.run import checkpoint

    start = time.perf_counter()
    step, update = build(model)
    checkpoint.restore(Path(path), step)
    update()
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints; appends a row to the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="gpt2_base")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--resumes", type=int, default=5)
    parser.add_argument("--resume", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        print(resume(arguments.model, arguments.resume))
        return

    from trainers.run import checkpoint
    from trainers.run.saver import Saver

    step, update = build(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), step, 1, lambda: None)  # before an update, as in training
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
        command.append(f"--model={arguments.model}")
        resumes = []
        for _ in range(arguments.resumes):
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            resumes.append(float(result.stdout.split()[-1]))
    row = {
        "model": arguments.model,
        "gigabytes": round(size / 1e9, 3),
        "first_stop_s": round(stops[0], 3),
        "stop_s": round(statistics.median(stops[1:]), 3),
        "written_s": round(statistics.median(writes), 2),
        "synchronous_s": round(synchronous, 2),
        "resume_to_first_update_s": round(statistics.median(resumes), 2),
    }
    print(row, "resumes:", [round(s, 2) for s in resumes])
    append("checkpoint_stop", [row])


if __name__ == "__main__":
    main()
