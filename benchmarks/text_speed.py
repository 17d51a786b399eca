"""Compares the training speed of a GPT with KerasHub and PyTorch, each at its best setting.

    python -m benchmarks.text_speed [--rounds=7] [--steps=6] [--contenders zoo keras_hub_jax]
                                    [--precisions float32]

GPT with 4 layers, width 256, 8 heads, 256 tokens, vocabulary 8,192, batch 8, dropout 0.1, AdamW.
Each contender trains in float32 and in bfloat16 (Keras: `mixed_bfloat16`, PyTorch: autocast):

- `zoo`: the step that `zoo train` runs.
- `keras_hub`: `GPT2CausalLM.fit` on TensorFlow with `jit_compile="auto"`, which is XLA here;
  `keras_hub_plain` with `jit_compile=False`; `keras_hub_jax` on Keras' JAX backend.
- `pytorch`: transformers' `GPT2LMHeadModel` with SDPA attention and the fused AdamW;
  `pytorch_compile`: the same under `torch.compile`.

Each contender runs in its own process. The processes take turns, so that other load on the machine
affects all of them. The script prints the median throughput, the processor time per step, the ratio
to the zoo at the same precision, and the share of the throughput of a large matrix product. Rows go
to results/text_speed.csv.
"""

import argparse
import os
import time
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.contenders import compare, serve, train_with_zoo
from benchmarks.results_file import append

LAYERS, WIDTH, HEADS, LENGTH, VOCABULARY, BATCH, DROPOUT = 4, 256, 8, 256, 8192, 8, 0.1
CONTENDERS = (
    "zoo", "keras_hub", "keras_hub_plain", "keras_hub_jax", "pytorch", "pytorch_compile",
)  # fmt: skip
PRECISIONS = ("float32", "bfloat16")
# Of a training step: 6 per weight of a matrix product, and the two products of attention.
FLOPS_PER_TOKEN = 6 * (LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH) + 12 * LAYERS * LENGTH * WIDTH


def data(steps: int) -> np.ndarray:
    """Returns (steps * BATCH, LENGTH + 1) tokens with a pattern, so that losses are comparable."""
    generator = np.random.default_rng(0)
    start = generator.integers(6, VOCABULARY, (steps * BATCH, 1))
    return 6 + (start + 7 * np.arange(LENGTH + 1)) % 1000


def zoo(precision: str):
    """Returns `train` for the zoo's own step."""
    model = {
        "name": "gpt_nano", "vocabulary_size": VOCABULARY, "sequence_length": LENGTH,
        "num_layers": LAYERS, "hidden_dim": WIDTH, "num_heads": HEADS, "dropout": DROPOUT,
    }  # fmt: skip
    tokens = data(64)
    arrays = {"tokens": tokens.astype("uint16"), "segments": np.ones_like(tokens, "uint16")}
    return train_with_zoo(model, {"name": "clm", "chunk": 512}, arrays, BATCH, precision)


def keras_hub(precision: str, jit_compile: str | bool = "auto"):
    """Returns `train` for `GPT2CausalLM.fit`; its time excludes the first batch of each `fit`."""
    import keras
    import keras_hub

    if precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    backbone = keras_hub.models.GPT2Backbone(
        VOCABULARY, LAYERS, HEADS, WIDTH, 4 * WIDTH, dropout=DROPOUT,
        max_sequence_length=LENGTH,
    )  # fmt: skip
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
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


def pytorch(precision: str, compiled: bool = False):
    """Returns `train` for transformers' `GPT2LMHeadModel` in a plain loop."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(os.cpu_count())
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=DROPOUT, embd_pdrop=DROPOUT, attn_pdrop=DROPOUT, use_cache=False,
            attn_implementation="sdpa",
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def loss_of(rows):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), rows[:, 1:].flatten()
        )

    if compiled:
        loss_of = torch.compile(loss_of)
    tokens, place = torch.tensor(data(64)), 0

    def train(steps: int) -> tuple[float, float]:
        nonlocal place
        start, total = time.perf_counter(), 0.0
        for _ in range(steps):
            rows = tokens[(place + torch.arange(BATCH)) % len(tokens)]
            place += BATCH
            optimizer.zero_grad()
            loss = loss_of(rows)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - start, total / steps

    return train


def make_train(name: str, precision: str):
    """Returns `train` of a contender."""
    makers = {
        "zoo": zoo,
        "keras_hub": keras_hub,
        "keras_hub_plain": partial(keras_hub, jit_compile=False),
        "keras_hub_jax": keras_hub,
        "pytorch": pytorch,
        "pytorch_compile": partial(pytorch, compiled=True),
    }
    return makers[name](precision)


def main() -> None:
    """Trains all contenders in turns and appends one row each to the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    # A CPU without AVX512_BF16 emulates bfloat16: a step of PyTorch takes minutes.
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--serve", nargs=2)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(make_train, *arguments.serve)
        return
    names = ["zoo", *(name for name in arguments.contenders if name != "zoo")]
    cases = [(name, precision) for precision in arguments.precisions for name in names]
    rows = compare(
        "text_speed", cases, arguments.rounds, arguments.steps, BATCH * LENGTH, FLOPS_PER_TOKEN
    )
    append("text_speed", rows)


if __name__ == "__main__":
    main()
