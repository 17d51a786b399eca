"""Compares generation at batch size 1 with KerasHub and Transformers, on a GPT-2 of equal size.

    python -m benchmarks.generation_speed [--rounds=7] [--write]

4 layers, width 256, 8 heads, 256 positions, 8,192 tokens, float32, random weights: a prompt of 16
tokens and 240 new tokens, greedy and with top-k 40. All run in turns in one process; a time is that
of a whole call without tracing. KerasHub runs with its default (without XLA) and with
`compile(jit_compile=True)`; Transformers runs on PyTorch with its cache. Needs torch and
transformers, which the zoo itself does not.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks.results_file import append
from zoo import registry
from zoo.generation.generate import Generator

LAYERS, WIDTH, HEADS, LENGTH, VOCABULARY = 4, 256, 8, 256, 8192
PROMPT = list(range(100, 116))
NEW = LENGTH - len(PROMPT)
TOP_K = 40


def zoo_generation(top_k: int):
    """Returns a function that generates NEW tokens with the zoo."""
    model = registry.build(
        "gpt_nano", vocabulary_size=VOCABULARY, sequence_length=LENGTH, num_layers=LAYERS,
        hidden_dim=WIDTH, num_heads=HEADS,
    )  # fmt: skip
    generator = Generator(model)
    options = {"temperature": 1.0, "top_k": top_k} if top_k else {"temperature": 0.0}
    return lambda: generator.tokens([PROMPT], NEW, end_id=None, **options)[0]


def zoo_streaming(top_k: int):
    """Returns a function that generates with the zoo's streaming interface."""
    from zoo.data.text.tokenizers import train

    model = registry.build(
        "gpt_nano", vocabulary_size=VOCABULARY, sequence_length=LENGTH, num_layers=LAYERS,
        hidden_dim=WIDTH, num_heads=HEADS,
    )  # fmt: skip
    generator = Generator(model, train("byte", ["text"]))
    options = {"temperature": 1.0, "top_k": top_k} if top_k else {"temperature": 0.0}
    prompt = "x" * len(PROMPT)

    def run():
        for _ in generator.stream(prompt, NEW, end_id=None, **options):
            pass
        return np.zeros(NEW)

    return run


def keras_hub(top_k: int, jit_compile):
    """Returns a function that generates with KerasHub's GPT2CausalLM."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        VOCABULARY, LAYERS, HEADS, WIDTH, 4 * WIDTH, dropout=0.0, max_sequence_length=LENGTH
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    sampler = keras_hub.samplers.TopKSampler(TOP_K) if top_k else "greedy"
    model.compile(sampler=sampler, jit_compile=jit_compile)
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(PROMPT)] = PROMPT
    inputs = {"token_ids": tokens, "padding_mask": np.arange(LENGTH)[None] < len(PROMPT)}

    def run():
        out = model.generate(inputs, stop_token_ids=None)
        return np.asarray(out["token_ids"])[0, len(PROMPT) :]

    return run


def transformers(top_k: int):
    """Returns a function that generates with Transformers' GPT2LMHeadModel on PyTorch."""
    sys.modules["triton"] = None  # its LLVM conflicts with that of TensorFlow in one process
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    tokens = torch.tensor([PROMPT])
    options = {"do_sample": True, "top_k": top_k} if top_k else {"do_sample": False}

    def run():
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, **options
            )
        return out[0, len(PROMPT) :].numpy()

    return run


def main():
    """Measures and prints; --write appends to results/generation_speed.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    runs = {}
    for sampling, top_k in (("greedy", 0), (f"top-k {TOP_K}", TOP_K)):
        runs["keras_hub", sampling] = keras_hub(top_k, "auto")
        runs["keras_hub, XLA", sampling] = keras_hub(top_k, True)
        runs["transformers", sampling] = transformers(top_k)
        runs["zoo", sampling] = zoo_generation(top_k)
        runs["zoo, streamed", sampling] = zoo_streaming(top_k)
    first_call = {}
    for name, run in runs.items():
        start = time.perf_counter()
        tokens = run()
        first_call[name] = time.perf_counter() - start
        assert len(tokens) == NEW, (name, len(tokens))
        run()
    seconds = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: NEW / statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "what": name,
            "choice": sampling,
            "tokens_per_second": round(rates[name, sampling]),
            "best_tokens_per_second": round(NEW / min(seconds[name, sampling])),
            "ratio_to_keras_hub": round(rates[name, sampling] / rates["keras_hub", sampling], 2),
            "first_call_seconds": round(first_call[name, sampling], 1),
            "rounds": arguments.rounds,
        }
        for name, sampling in runs
    ]
    for row in rows:
        print(row)
    if arguments.write:
        print(append("generation_speed", rows))


if __name__ == "__main__":
    main()
