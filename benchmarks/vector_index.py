"""Measures the build and the search of an index of the states of a trained decoder.

    python -m benchmarks.vector_index W INDEX [--entries=1000000] [--queries=4000]
                                      [--probes 8 16 32 64] [--threads=2] [--write]

Builds INDEX from the training split of the decoder in W, with at least `--entries` tokens, or opens
it if it is finished. Queries are the states of the validation split. A row per number of probes:
recall@10 against the exact search of the same stored keys, and queries per second of one batch.
Goal: 2,000 queries per second at a recall of 0.95 or more. --write appends to
results/vector_index.csv.
"""

import argparse
import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import faiss
import numpy as np

from benchmarks.results_file import append
from trainers.evaluation.with_index import build_index
from trainers.run.workdir import read_config
from zoo.retrieval.documents import read_texts
from zoo.retrieval.encoder_of import decoder_of, text_of
from zoo.retrieval.index import Index
from zoo.retrieval.rows import Rows
from zoo.saved.model import load_model

NEIGHBORS = 10
EXACT_QUERIES = 1000


def queries_of(workdir: str, index: Index, count: int) -> np.ndarray:
    """Returns states (count, C) of the validation split, evenly from a larger sample."""
    saved_config = read_config(workdir)
    tokenizer, corpus = text_of(workdir, saved_config)
    decoder = decoder_of(load_model(workdir), saved_config, tokenizer)
    settings = index.manifest["settings"]
    documents = read_texts(tokenizer, corpus.splits["validation"](), 2 * count)
    rows = Rows(documents, settings["length"], settings["packing"])
    states = decoder.targets(rows.take(0, -(-2 * count // settings["length"]))[0])["states"]
    return states[np.linspace(0, len(states) - 1, min(count, len(states))).astype(int)]


def main() -> None:
    """Measures and prints; --write appends rows to the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("index")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(arguments.threads)
    start = time.perf_counter()
    build_index(
        arguments.index, arguments.workdir, read_config(arguments.workdir), "final", "states", "",
        "train", arguments.entries, False,
    )  # fmt: skip
    build_seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    index = Index(arguments.index)
    size = sum(x.stat().st_size for x in index.folder.rglob("*") if x.is_file()) / 2**20
    queries = queries_of(arguments.workdir, index, arguments.queries)
    sample = queries[np.linspace(0, len(queries) - 1, EXACT_QUERIES).astype(int)]
    _, exact = index.search_exactly(sample, NEIGHBORS)
    rows = []
    for probes in arguments.probes:
        _, found = index.search(sample, NEIGHBORS, probes=probes)
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
        times = []
        for _ in range(3):
            start = time.perf_counter()
            index.search(queries, NEIGHBORS, probes=probes)
            times.append(time.perf_counter() - start)
        rows.append(
            {
                "entries": len(index), "dim": index.dim, "build_s": round(build_seconds, 1),
                "build_peak_mb": round(memory), "disk_mb": round(size), "probes": probes,
                "recall_at_10": round(float(recall), 4),
                "queries_per_s": round(len(queries) / min(times)), "threads": arguments.threads,
            }
        )  # fmt: skip
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.write:
        print(append("vector_index", rows))


if __name__ == "__main__":
    main()
