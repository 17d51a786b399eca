"""Training speed of several contenders, each in a process of its own, for benchmarks.

The processes take turns, so that other load on the machine affects all of them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def train_with_zoo(model: dict, task: dict, arrays: dict, batch: int, precision: str, **trainer):
    """Returns `train` for the zoo's own step, as `zoo train` runs it, with AdamW.

    Args:
      model: section `model` of a recipe.
      task: section `task`.
      arrays: examples as the task stores them.
      batch: number of examples per update.
      precision: "float32" or "bfloat16".
      **trainer: further keys of the section `trainer`.
    """
    import tensorflow as tf

    from trainers.config.base import base, optimizer
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step, update_function
    from zoo.data import pipeline

    config = base()
    config.model, config.task = model, task
    config.optimizer = optimizer("adamw", learning_rate=1e-3)
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    config.trainer.update({"global_batch_size": batch, "precision": policy, **trainer})
    strategy = make_strategy("one_device")
    step, bound_task = build_step(config, strategy, 10**6)
    batches = pipeline.training_batches(
        arrays, bound_task.prepare, batch_size=batch, replicas=1, seed=0, first_step=0,
        last_step=10**6,
    )  # fmt: skip
    run, iterator = update_function(step, strategy), iter(batches)

    def train(steps: int) -> tuple[float, float]:
        start = time.perf_counter()
        run(iterator, tf.constant(steps))
        total, count = step.means.take()["loss"]  # waits for the device
        return time.perf_counter() - start, total / count

    return train


def serve(make_train: Callable, name: str, precision: str) -> None:
    """Trains on request: reads a number of steps per line, writes one line of JSON for each.

    Zero steps request the FLOPs per second of a large matrix product in this precision.

    Args:
      make_train: `make_train(name, precision)` returns `train(steps) -> (seconds, loss)`.
      name: name of the contender.
      precision: "float32" or "bfloat16".
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps output of libraries out of the answers
    train = make_train(name, precision)
    for line in sys.stdin:
        if int(line):
            processor = time.process_time()
            seconds, loss = train(int(line))
            processor = time.process_time() - processor
            answer = {"seconds": seconds, "processor_seconds": processor, "loss": loss}
        else:
            from trainers.bench import matmul_peak
            from trainers.distributed.strategy import make_strategy

            answer = {"peak": matmul_peak(precision, make_strategy("one_device"))}
        print(json.dumps(answer), file=answers, flush=True)


class Contender:
    """Runs `serve` in a separate process, by `python -m benchmarks.<script> --serve`."""

    def __init__(self, script: str, name: str, precision: str):
        command = [sys.executable, "-m", f"benchmarks.{script}", "--serve", name, precision]
        backend = "jax" if name.endswith("_jax") else "tensorflow"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env={**os.environ, "KERAS_BACKEND": backend},
        )  # fmt: skip

    def train(self, steps: int) -> dict:
        """Trains `steps` steps; returns seconds, CPU seconds and loss."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(
    script: str,
    cases: Sequence[tuple[str, str]],
    rounds: int,
    steps: int,
    tokens_per_step: int,
    flops_per_token: int,
) -> list[dict]:
    """Trains the contenders in turns; prints and returns one row each.

    Args:
      script: name of the benchmark.
      cases: (contender, precision) of each row; "zoo" is one in each precision.
      rounds: number of measurements per contender.
      steps: number of training steps per measurement.
      tokens_per_step: number of tokens of a training step.
      flops_per_token: floating-point operations of a training step per token.

    Returns:
      Median throughput, the zoo's throughput divided by it at the same precision, processor time
      per step, and the share of the throughput of a large matrix product.
    """
    contenders = {}
    try:
        for case in cases:
            contenders[case] = Contender(script, *case)
            contenders[case].train(2)  # traces and compiles
        answers = {case: [] for case in cases}
        for _ in range(rounds):
            for case, contender in contenders.items():
                answers[case].append(contender.train(steps))
        precisions = {precision for _, precision in cases}
        peaks = {p: contenders["zoo", p].train(0)["peak"] for p in precisions}
    finally:
        for contender in contenders.values():
            contender.close()

    def median(case, key):
        return statistics.median(answer[key] for answer in answers[case]) / steps

    rows = []
    for name, precision in cases:
        seconds, peak = median((name, precision), "seconds"), peaks[precision]
        rate = tokens_per_step / seconds
        row = {
            "contender": name,
            "precision": precision,
            "tokens_per_second": round(rate),
            "zoo_speedup": round(seconds / median(("zoo", precision), "seconds"), 2),
            "processor_seconds_per_step": round(median((name, precision), "processor_seconds"), 2),
            "loss": round(answers[name, precision][-1]["loss"], 3),
            "matmul_gflops": round(peak / 1e9),
            "share_of_matmul": round(rate * flops_per_token / peak, 2),
        }
        rows.append(row)
        print(row, flush=True)
    return rows
