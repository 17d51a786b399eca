"""How fast a GPT trains here, against stock KerasHub and PyTorch with transformers.

    python -m benchmarks.text_speed [--rounds=7] [--steps=6]

GPT of 4 layers, width 256, 8 heads, 256 tokens, vocabulary 8,192, batch 8, dropout 0.1, AdamW.
Every contender runs in a process of its own and they take turns, one round after the other, so
that what else the machine does hits all of them. Prints tokens a second (medians), the ratios,
and the share of what a large matrix product reaches. Rows go to results/text_speed.csv.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

LAYERS, WIDTH, HEADS, LENGTH, VOCABULARY, BATCH, DROPOUT = 4, 256, 8, 256, 8192, 8, 0.1
CONTENDERS = ("keras_hub", "pytorch", "zoo_float32", "zoo_bfloat16")
# Of a training step: six a weight that takes part in a product, and attention's two products.
FLOPS_PER_TOKEN = 6 * (LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH) + 12 * LAYERS * LENGTH * WIDTH


def data(steps: int) -> np.ndarray:
    """Tokens with a pattern, so that losses can be compared: (steps * BATCH, LENGTH + 1)."""
    generator = np.random.default_rng(0)
    start = generator.integers(6, VOCABULARY, (steps * BATCH, 1))
    return 6 + (start + 7 * np.arange(LENGTH + 1)) % 1000


def zoo(precision: str):
    """The zoo's own step, as `zoo train` runs it."""
    import tensorflow as tf

    from configs.base import base, optimizer
    from trainers.build import build_step, update_function
    from trainers.strategy import make_strategy
    from zoo.data import pipeline

    config = base()
    config.model = {
        "name": "gpt_nano", "vocabulary_size": VOCABULARY, "sequence_length": LENGTH,
        "num_layers": LAYERS, "hidden_dim": WIDTH, "num_heads": HEADS, "dropout": DROPOUT,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 512}
    config.optimizer = optimizer("adamw", learning_rate=1e-3)
    config.trainer.update({"global_batch_size": BATCH, "precision": precision})
    strategy = make_strategy("one_device")
    step, task = build_step(config, strategy, 10**6)
    tokens = data(64)
    arrays = {"tokens": tokens.astype("uint16"), "segments": np.ones_like(tokens, "uint16")}
    batches = pipeline.training_batches(
        arrays, task.prepare, batch_size=BATCH, replicas=1, seed=0, first_step=0, last_step=10**6
    )
    run, iterator = update_function(step, strategy), iter(batches)

    def train(steps: int) -> tuple[float, float]:
        start = time.perf_counter()
        run(iterator, tf.constant(steps))
        total, count = step.means.take()["loss"]  # waits for the device
        return time.perf_counter() - start, total / count

    return train


def keras_hub():
    """`GPT2CausalLM.fit` as it comes.

    What a call of `fit` costs before its first batch is over is not counted.
    """
    import keras
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        VOCABULARY, LAYERS, HEADS, WIDTH, 4 * WIDTH, dropout=DROPOUT,
        max_sequence_length=LENGTH,
    )  # fmt: skip
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    tokens, place = data(64), 0

    times = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append((time.perf_counter(), logs["loss"]))
    )

    def train(steps: int) -> tuple[float, float]:
        nonlocal place
        count = (steps + 1) * BATCH
        rows = np.take(tokens, np.arange(place, place + count), axis=0, mode="wrap")
        place += count
        inputs = {"token_ids": rows[:, :-1], "padding_mask": np.ones_like(rows[:, :-1])}
        times.clear()
        model.fit(
            inputs, rows[:, 1:], batch_size=BATCH, shuffle=False, verbose=0, callbacks=[clock]
        )
        return times[-1][0] - times[0][0], float(times[-1][1])

    return train


def pytorch():
    """transformers' GPT2LMHeadModel and a plain loop."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(os.cpu_count())
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=DROPOUT, embd_pdrop=DROPOUT, attn_pdrop=DROPOUT,
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens, place = torch.tensor(data(64)), 0

    def train(steps: int) -> tuple[float, float]:
        nonlocal place
        start, total = time.perf_counter(), 0.0
        for _ in range(steps):
            rows = tokens[(place + torch.arange(BATCH)) % len(tokens)]
            place += BATCH
            optimizer.zero_grad()
            logits = model(rows[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - start, total / steps

    return train


def serve(name: str) -> None:
    """Trains on request: a number of steps a line on stdin, an answer a line on stdout.

    No steps ask for the FLOPs a second of a large matrix product in the contender's type.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    if name.startswith("zoo_"):
        train = zoo({"zoo_float32": "float32", "zoo_bfloat16": "mixed_bfloat16"}[name])
    else:
        train = {"keras_hub": keras_hub, "pytorch": pytorch}[name]()
    for line in sys.stdin:
        if int(line):
            seconds, loss = train(int(line))
            answer = {"seconds": seconds, "loss": loss}
        else:
            from trainers.bench import matmul_peak
            from trainers.strategy import make_strategy

            kind = "float32" if name == "zoo_float32" else "bfloat16"
            answer = {"peak": matmul_peak(kind, make_strategy("one_device"))}
        print(json.dumps(answer), file=answers, flush=True)


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, name: str):
        command = [sys.executable, "-m", "benchmarks.text_speed", f"--serve={name}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def train(self, steps: int) -> dict:
        """Trains some steps; returns their seconds and the loss."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Lets the contenders take turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--serve", choices=CONTENDERS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    from benchmarks.results_file import append

    contenders = {name: Contender(name) for name in CONTENDERS}
    try:
        for contender in contenders.values():
            contender.train(2)  # traces
        answers = {name: [] for name in CONTENDERS}
        for _ in range(arguments.rounds):
            for name, contender in contenders.items():
                answers[name].append(contender.train(arguments.steps))
        peaks = {n: contenders[n].train(0)["peak"] for n in CONTENDERS if n.startswith("zoo_")}
    finally:
        for contender in contenders.values():
            contender.close()
    rates = {
        name: statistics.median(arguments.steps * BATCH * LENGTH / a["seconds"] for a in found)
        for name, found in answers.items()
    }
    rows = []
    for name, rate in rates.items():
        peak = peaks.get(name)
        row = {
            "contender": name,
            "tokens_per_second": round(rate),
            "to_keras_hub": round(rate / rates["keras_hub"], 2),
            "to_pytorch": round(rate / rates["pytorch"], 2),
            "loss": round(answers[name][-1]["loss"], 3),
            "matmul_gflops": peak and round(peak / 1e9),
            "share_of_matmul": peak and round(rate * FLOPS_PER_TOKEN / peak, 2),
        }
        rows.append(row)
        print(row, flush=True)
    append("text_speed", rows)


if __name__ == "__main__":
    main()
