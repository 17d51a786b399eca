"""Measures recall, precision, speed and memory of near-duplicate detection on many documents.

python -m benchmarks.prep_dedup [DOCUMENTS]     (default 20,000)

Every fourth document has random words; three copies of it follow with 0.5 to 5 % of the words
changed. The expected pairs are those with a Jaccard similarity of at least 0.8 (word 5-grams,
computed from the texts). Memory is the peak of all processes together, from reading to records.
"""

import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.results_file import append
from zoo.prep import pipeline, store
from zoo.prep.document import record_of
from zoo.prep.engine import LocalEngine
from zoo.prep.settings import defaults

DATA = {"tokenizer": "bpe", "vocabulary_size": 4000, "normalization": "NFC",
        "sequence_length": 256, "packing": "best_fit"}  # fmt: skip


def texts(count: int):
    """Yields (group, text)."""
    draw = random.Random(0)
    lexicon = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 9)))
               for _ in range(20_000)]  # fmt: skip
    for group in range(count // 4):
        words = draw.choices(lexicon, k=draw.randint(100, 1400))
        yield group, " ".join(words)
        for rate in (0.005, 0.02, 0.05):
            yield (
                group,
                " ".join(draw.choice(lexicon) if draw.random() < rate else w for w in words),
            )


def tree_memory(pid: int) -> int:
    """Returns the memory of a process and its descendants in bytes, shared pages once (PSS)."""
    total = 0
    for child in [pid, *_descendants(pid)]:
        try:
            for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
        except OSError:
            continue
    return total


def _descendants(pid: int):
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))
    except OSError:
        return


def main(count: int):
    """Prepares `count` documents and appends a row to the results."""
    folder = Path(tempfile.mkdtemp(prefix="zoo_prep_dedup_"))
    groups, size = [], 0
    with open(folder / "rows.jsonl", "w") as file:
        for group, text in texts(count):
            groups.append(group)
            size += len(text)
            file.write(json.dumps({"text": text}) + "\n")
    prep = json.loads(json.dumps(defaults()))
    prep |= {"input": str(folder / "rows.jsonl"), "rules": []}
    peak, finished = [0], threading.Event()

    def watch():
        while not finished.wait(0.5):
            peak[0] = max(peak[0], tree_memory(os.getpid()))

    threading.Thread(target=watch, daemon=True).start()
    pairs = set()
    original_describe = pipeline.card.describe

    def describe(*arguments):  # runs before the intermediate files are removed
        pairs.update(_pairs(folder / "out" / "work"))
        return original_describe(*arguments)

    pipeline.card.describe = describe
    start = time.monotonic()
    with LocalEngine() as engine:
        pipeline.prepare(prep, DATA, folder / "out", engine)
    seconds = time.monotonic() - start
    finished.set()
    expected, sets = set(), {}
    rows = (json.loads(line)["text"].split() for line in open(folder / "rows.jsonl"))  # noqa: SIM115
    numbered = zip(range(count), groups, rows, strict=True)
    for _, members in itertools.groupby(numbered, lambda m: m[1]):
        # Exact duplicates are dropped before.
        different = {" ".join(m[2]): m for m in reversed(list(members))}.values()
        sets = {m[0]: {tuple(m[2][i : i + 5]) for i in range(len(m[2]) - 4)} for m in different}
        for a, b in itertools.combinations(sets, 2):
            if len(sets[a] & sets[b]) >= 0.8 * len(sets[a] | sets[b]):
                expected.add((min(a, b), max(a, b)))
    row = {
        "documents": count,
        "megabytes": round(size / 1e6, 1),
        "wanted_pairs": len(expected),
        "recall": round(len(pairs & expected) / len(expected), 4),
        "precision": round(len(pairs & expected) / max(1, len(pairs)), 4),
        "seconds": round(seconds, 1),
        "documents_per_second": round(count / seconds),
        "peak_megabytes": round(peak[0] / 1e6),
    }
    print(row)
    print(append("prep_dedup", [row]))
    shutil.rmtree(folder)


def _pairs(work: Path) -> list[tuple[int, int]]:
    """Returns the verified pairs as row numbers of the input file."""
    paths = sorted((work / "verified_pairs").glob("*.npy"))
    return [
        (record_of(first), record_of(second))
        for path in paths
        for first, second in store.load_array(path).tolist()
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
