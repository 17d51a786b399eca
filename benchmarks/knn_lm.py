"""Measures bits per byte of a decoder with and without the neighbors of an index.

    python -m benchmarks.knn_lm W INDEX [--tokens=5000000] [--max_tokens=100000] [--neighbors=64]
                                [--probes=32] [--write]

Builds INDEX from the first `--tokens` tokens of the training split of W, or opens it. Share and
temperature are tuned on at most `--max_tokens` tokens of the validation split, and used once on as
many of the test split. A second row has an index with permuted values, which must not help. Goal:
3 % fewer bits per byte. --write appends to results/knn_lm.csv.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.results_file import append
from trainers.evaluation.with_index import build_index, open_with_index
from trainers.run.workdir import read_config
from zoo.retrieval.documents import read_texts
from zoo.retrieval.encoder_of import text_of
from zoo.retrieval.index import Index
from zoo.saved.model import load_model


def main() -> None:
    """Measures and prints; --write appends rows to the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("index")
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--max_tokens", type=int, default=100_000)
    parser.add_argument("--neighbors", type=int, default=64)
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    saved_config = read_config(arguments.workdir)
    start = time.perf_counter()
    build_index(
        arguments.index, arguments.workdir, saved_config, "final", "states", "", "train",
        arguments.tokens, False,
    )  # fmt: skip
    print(f"index: {time.perf_counter() - start:.0f} s", flush=True)
    index = Index(arguments.index)
    language_model = open_with_index(
        saved_config, index, lambda: load_model(arguments.workdir), arguments.neighbors,
        arguments.probes,
    )  # fmt: skip
    tokenizer, corpus = text_of(arguments.workdir, saved_config)
    validation, test = (
        read_texts(tokenizer, corpus.splits[split](), arguments.max_tokens)
        for split in ("validation", "test")
    )
    rows = []
    for values in ("stored", "permuted"):
        if values == "permuted":
            index.values = np.random.default_rng(0).permutation(index.values)
        start = time.perf_counter()
        settings = language_model.tune(validation, arguments.max_tokens)
        metrics = language_model.evaluate(test, *settings, arguments.max_tokens)
        before, after = metrics["bits_per_byte_without_index"], metrics["bits_per_byte"]
        rows.append(
            {
                "model": saved_config["config"]["model"]["name"], "corpus": corpus.name,
                "entries": len(index), "values": values, "tokens": metrics["tokens"],
                "neighbors": metrics["neighbors"], "probes": metrics["probes"],
                "share": metrics["share"], "temperature": round(metrics["temperature"], 4),
                "bits_per_byte_without_index": round(before, 4), "bits_per_byte": round(after, 4),
                "change_percent": round(100 * (after / before - 1), 2),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )  # fmt: skip
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.write:
        print(append("knn_lm", rows))


if __name__ == "__main__":
    main()
