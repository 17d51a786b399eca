"""Compares the training speed of a Longformer with transformers' one in PyTorch.

    python -m benchmarks.longformer_speed [--rounds=5] [--steps=2] [--precisions float32]

Longformer with 4 layers, width 256, 8 heads, 4,096 tokens, windows of 128 positions to each side,
one global token per row with projections of its own, vocabulary 512, batch 1, no dropout, AdamW;
15 % of the tokens are predicted. The small vocabulary keeps the output layers cheap: the zoo
computes logits of predicted tokens alone, transformers those of all tokens.

- `zoo`: the step that `zoo train` runs; `zoo_xla`: the same with `trainer.jit_compile`.
- `pytorch`: transformers' `LongformerForMaskedLM` with the fused AdamW, all threads;
  `pytorch_compile`: the same under `torch.compile`.

The processes of the contenders take turns. Rows go to results/longformer_speed.csv.
"""

import argparse
import os
import time
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.contenders import compare, serve, train_with_zoo
from benchmarks.results_file import append

LAYERS, WIDTH, HEADS, LENGTH, VOCABULARY, SIDE, MASK_SHARE = 4, 256, 8, 4096, 512, 128, 0.15
CONTENDERS = ("zoo", "zoo_xla", "pytorch", "pytorch_compile")
# Of a training step: 6 per weight of a matrix product, and the two products of attention.
FLOPS_PER_TOKEN = 6 * LAYERS * 12 * WIDTH**2 + 12 * LAYERS * (2 * SIDE + 1) * WIDTH


def data(rows: int) -> np.ndarray:
    """Returns (rows, LENGTH) tokens that count upwards after <start>."""
    from zoo.data.text.special_tokens import START

    start = np.random.default_rng(0).integers(0, 400, (rows, 1))
    tokens = 20 + (start + np.arange(LENGTH)) % 400
    tokens[:, 0] = START
    return tokens


def zoo(precision: str, jit_compile: bool = False):
    """Returns `train` for the zoo's own step."""
    model = {
        "name": "longformer_nano", "vocabulary_size": VOCABULARY, "sequence_length": LENGTH,
        "num_layers": LAYERS, "hidden_dim": WIDTH, "num_heads": HEADS, "dropout": 0.0,
        "attention": f"window:{SIDE}", "global_tokens": "start", "max_global": 1,
    }  # fmt: skip
    task = {"name": "mlm", "mask_share": MASK_SHARE}
    tokens = data(16)
    arrays = {"tokens": tokens.astype("uint16"), "segments": np.ones_like(tokens, "uint16")}
    return train_with_zoo(model, task, arrays, 1, precision, jit_compile=jit_compile)


def pytorch(precision: str, compiled: bool = False):
    """Returns `train` for transformers' `LongformerForMaskedLM` in a plain loop."""
    import torch
    from transformers import LongformerConfig, LongformerForMaskedLM

    torch.set_num_threads(os.cpu_count())
    model = LongformerForMaskedLM(
        LongformerConfig(
            vocab_size=VOCABULARY, max_position_embeddings=LENGTH + 2, hidden_size=WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            attention_window=[2 * SIDE] * LAYERS, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    is_global = torch.zeros(1, LENGTH, dtype=torch.long)
    is_global[:, 0] = 1
    ones = torch.ones(1, LENGTH, dtype=torch.long)

    def loss_of(tokens, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(
                tokens, attention_mask=ones, global_attention_mask=is_global, labels=labels
            ).loss

    if compiled:
        loss_of = torch.compile(loss_of)
    rows, place = torch.tensor(data(16)), 0

    def train(steps: int) -> tuple[float, float]:
        nonlocal place
        start, total = time.perf_counter(), 0.0
        for _ in range(steps):
            tokens = rows[place % len(rows)][None]
            place += 1
            hidden = torch.rand(tokens.shape) < MASK_SHARE
            optimizer.zero_grad()
            labels = torch.where(hidden, tokens, -100)
            loss = loss_of(torch.where(hidden, 3, tokens), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        return time.perf_counter() - start, total / steps

    return train


def make_train(name: str, precision: str):
    """Returns `train` of a contender."""
    makers = {
        "zoo": zoo,
        "zoo_xla": partial(zoo, jit_compile=True),
        "pytorch": pytorch,
        "pytorch_compile": partial(pytorch, compiled=True),
    }
    return makers[name](precision)


def main() -> None:
    """Trains all contenders in turns and appends one row each to the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument(
        "--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32"]
    )
    parser.add_argument("--serve", nargs=2)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(make_train, *arguments.serve)
        return
    names = ["zoo", *(name for name in arguments.contenders if name != "zoo")]
    cases = [(name, precision) for precision in arguments.precisions for name in names]
    rows = compare(
        "longformer_speed", cases, arguments.rounds, arguments.steps, LENGTH, FLOPS_PER_TOKEN
    )
    append("longformer_speed", rows)


if __name__ == "__main__":
    main()
