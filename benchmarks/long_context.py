"""Measures what a context of 16,384 bytes gains on novels, compared with 1,024 bytes.

    python -m benchmarks.long_context [--steps=300] [--seeds 0] [--rows=64] [--write]

Trains `gpt_wiki_long` on the bytes of novels_en twice, with the same parameters, updates and bytes
per update: `long` on sequences of 16,384 bytes with windows and attention by hashing, `short` on
sequences of 1,024 bytes with exact attention in chunks. Both predict the last 1,024 bytes of the
same rows of 16,384 bytes of the test novels. `long` sees the whole row; `short` and `long, cut` see
only its last 1,024 inputs, so that a prediction has 512 of them on average. Rows go to
results/long_context.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LENGTH, LAST = 16_384, 1024
CASES = {"short": (LAST, "chunked"), "long": (LENGTH, "window:128,lsh:2:64")}


def train(case: str, seed: int, arguments: list[str], folder: Path) -> Path:
    """Trains a case in a separate process; returns its work directory."""
    length, attention = CASES[case]
    workdir = folder / f"{case}-{seed}"
    command = [
        *(sys.executable, "-m", "trainers.cli.main", "train", "gpt_wiki_long:16k"),
        f"--workdir={workdir}",
        "--config.data.source=novels_en",
        "--config.data.packing=stream",
        f"--config.data.sequence_length={length}",
        f"--config.model.attention={attention}",
        f"--config.trainer.global_batch_size={LENGTH // length}",
        f"--config.trainer.seed={seed}",
        *arguments,
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return workdir


def bits_per_byte(workdir: Path, count: int, context: int) -> float:
    """Returns the bits per byte of the last 1,024 bytes of rows of the test novels.

    Args:
      workdir: work directory of a model.
      count: number of rows, at equal distances in the text.
      context: number of inputs that the model sees, from 1,024 to 16,384.
    """
    import numpy as np
    import tensorflow as tf

    import zoo
    from trainers.run.workdir import read_config
    from zoo.data.windows import Windows
    from zoo.registry import load_data

    model, config = zoo.load(str(workdir)), read_config(workdir)["config"]
    stream = load_data(config["data"], config["task"]).splits["test"]["tokens"].stream
    rows = Windows(stream, LENGTH)
    rows = rows[np.linspace(0, len(rows) - 2, count).astype(int)]  # the last one is padded

    @tf.function(autograph=False)
    def bits(tokens):
        inputs, targets = tokens[:, :-1], tokens[:, -LAST:]
        logits = model({"tokens": inputs, "segments": tf.ones_like(inputs)}, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits[:, -LAST:])
        return tf.reduce_mean(losses) / tf.math.log(2.0)

    return float(np.mean([bits(row[None, -context - 1 :]) for row in rows]))


def measure(seed: int, count: int, arguments: list[str], folder: Path) -> list[dict]:
    """Trains both cases with a seed; returns one row per measurement."""
    rows = []
    workdirs = {case: train(case, seed, arguments, folder) for case in CASES}
    for name, case, context in (
        ("short", "short", LAST), ("long, cut", "long", LAST), ("long", "long", LENGTH),
    ):  # fmt: skip
        metrics = [json.loads(x) for x in (workdirs[case] / "metrics.jsonl").open()]
        rows.append(
            {
                "case": name,
                "seed": seed,
                "trained_on": CASES[case][0],
                "attention": CASES[case][1],
                "context": context,
                "rows": count,
                "bits_per_byte": round(bits_per_byte(workdirs[case], count, context), 4),
                "steps": max(line.get("step", 0) for line in metrics),
                "training_seconds": max(line.get("seconds", 0) for line in metrics),
            }
        )
    return rows


def main():
    """Measures each seed, prints the rows, and appends them to the results with --write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--argument", action="append", default=[], help="flag of zoo train")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    flags = [f"--config.trainer.steps={arguments.steps}", *arguments.argument]
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(seed, arguments.rows, flags, Path(folder))
        print(json.dumps(rows), flush=True)
        if arguments.write:
            from benchmarks.results_file import append

            append("long_context", rows)


if __name__ == "__main__":
    main()
