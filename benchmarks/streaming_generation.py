"""Measures generation with attention sinks far beyond the trained length.

    zoo train gpt_shakespeare --workdir=D --config.model.name=llama_nano \
        --config.model.sequence_length=128 --config.data.sequence_length=128 \
        --config.trainer.steps=400 --config.trainer.evaluate_every=400
    python -m benchmarks.streaming_generation D [--tokens 10000 50000 100000] \
        [--text_tokens=30000] [--write]

Generation: one text per length, each in a process of its own, by the trained model with 4
attention sinks. The peak is the largest resident memory of the process, with TensorFlow, the model
and compilation; processor time and rate are those of the text after a first one of 1,000 tokens.
All runs on one thread: the model is too small for more.

Bits per byte of a held-out text, by position: "sinks" keeps 4 sinks and the latest positions,
"window" the latest positions alone, both as many in sum as the trained length. "rows" cuts the text
into rows of the trained length, as in training: a position sees half as much text on average.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

SINKS = 4
BLOCK = 1000  # positions per call of the compiled loop
# Positions at which the bits per byte are separated, in trained lengths.
PARTS = (0, 1, 2, 8, 64, math.inf)


def load(workdir: str):
    """Returns model, tokenizer, section `data` and trained length of a work directory."""
    import tensorflow as tf

    from zoo.saved.model import load_model
    from zoo.saved.workdir import data_section, read_config, read_tokenizer

    config = read_config(workdir)
    data = data_section(workdir, config)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model, tokenizer = load_model(workdir), read_tokenizer(workdir, config)
    return model, tokenizer, data, data["sequence_length"]


def generate(workdir: str, count: int) -> dict:
    """Generates a text of `count` tokens; returns a row."""
    from zoo.generation.generate import Generator

    model, tokenizer, _, length = load(workdir)
    generator = Generator(model, tokenizer, trained_length=length, attention_sinks=SINKS)

    def write(tokens):
        generator.tokens([generator.encode("The ")], tokens, end_id=None, temperature=0.8)

    write(1000)
    start, cpu_start = time.perf_counter(), time.process_time()
    write(count)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "measure": "generation",
        "attention": "sinks",
        "first": 0,
        "stop": count,
        "peak_mib": round(peak, 1),
        "tokens_per_second": round(count / seconds),
        "cpu_ms_per_token": round(1000 * cpu_seconds / count, 3),
        "bits_per_byte": "",
    }


def losses(model, ids, sinks, length: int, row_length: int = 0) -> np.ndarray:
    """Returns the loss in nats of each token but the first, (N - 1,) float32.

    Args:
      model: a decoder with rotary positions.
      ids: (N,) tokens of the text.
      sinks: number of attention sinks, or None for a cache of all positions.
      length: number of positions in the cache.
      row_length: number of positions after which the text starts again; 0 for never.
    """
    import tensorflow as tf

    from zoo.generation.decoding import decoding

    steps = decoding(model, sinks)

    def block(tokens, cache, first, weights):
        count = tokens.shape[0] - 1

        # XLA compiles again for each value of an argument that determines the start of a slice: so
        # both indices are variables of the loop, and `gather` is no slice.
        def body(i, position, cache, out):
            logits, cache = steps.step(tokens[None, i, None], cache, position, weights)
            loss = -tf.gather(tf.nn.log_softmax(logits[0, 0]), tokens[i + 1])
            return i + 1, position + 1, cache, tf.where(tf.range(count) == i, loss, out)

        start = (0, first, cache, tf.zeros(count))
        _, _, cache, out = tf.while_loop(lambda i, *_: i < count, body, start)
        return out, cache

    block = tf.function(block, jit_compile=True, autograph=False)
    size, weights = row_length or BLOCK, steps.weights()
    cache, parts = steps.start(1, length), []
    for start in range(0, (len(ids) - 1) // size * size, size):
        first = 0 if row_length else start
        tokens = tf.constant(ids[start : start + size + 1])
        out, cache = block(tokens, cache, tf.constant(np.int32(first)), weights)
        parts.append(out.numpy())
    return np.concatenate(parts)


def bits_per_byte(workdir: str, count: int) -> list[dict]:
    """Returns rows with the bits per byte of held-out text, by position."""
    from zoo.data.hold_out import evaluation_split
    from zoo.data.text.dataset import corpus_of

    model, tokenizer, data, length = load(workdir)
    corpus = corpus_of(data)
    documents = corpus.splits[evaluation_split(corpus.splits)]()
    text = "".join(islice(documents, 100))
    ids = np.asarray(tokenizer.encode(text), "int32")[: count + 1]
    sizes = np.array([len(tokenizer.decode_bytes(ids[i : i + 1])) for i in range(1, len(ids))])
    ways = {
        "sinks": losses(model, ids, SINKS, length),
        "window": losses(model, ids, 0, length),
        "rows": losses(model, ids, None, length, row_length=length),
    }
    rows = []
    for first, stop in zip(PARTS, PARTS[1:], strict=False):
        for name, nats in ways.items():
            first_id, stop_id = int(first * length), int(min(stop * length, len(ids) - 1))
            part = nats[first_id:stop_id]
            if not len(part):
                continue
            bits = part.sum() / math.log(2) / sizes[first_id : first_id + len(part)].sum()
            rows.append({
                "measure": "held-out text", "attention": name, "first": first_id,
                "stop": first_id + len(part), "peak_mib": "", "tokens_per_second": "",
                "cpu_ms_per_token": "", "bits_per_byte": round(float(bits), 4),
            })  # fmt: skip
    return rows


def main():
    """Prints the rows as JSON; --write appends to results/streaming_generation.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--tokens", type=int, nargs="*", default=[10_000, 50_000, 100_000])
    parser.add_argument("--text_tokens", type=int, default=30_000, help="0 for none")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = []
    jobs = [(generate, count) for count in arguments.tokens]
    jobs += [(bits_per_byte, arguments.text_tokens)] * (arguments.text_tokens > 0)
    for job, count in jobs:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            result = pool.submit(job, arguments.workdir, count).result()
        for row in result if isinstance(result, list) else [result]:
            rows.append(row)
            print(json.dumps(row), flush=True)
    if arguments.write:
        from benchmarks.results_file import append

        append("streaming_generation", rows)


if __name__ == "__main__":
    main()
