"""Near duplicates among many documents: what is found, how fast, and the memory that it takes.

python -m benchmarks.prep_dedup [DOCUMENTS]     (default 20,000)

Every fourth document is original text of random words; three copies of it follow with 0.5 to 5 %
of their words changed. Pairs of true Jaccard >= 0.8 (5-grams, from the texts) are what is wanted.
The memory is that of the whole process tree at its peak, from reading to records.
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
from zoo.prep.engine import Local
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
    """Returns the resident bytes of a process and all below it, shared pages once (PSS)."""
    total = 0
    for child in [pid, *_below(pid)]:
        try:
            for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
        except OSError:
            continue
    return total


def _below(pid: int):
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield int(child)
                yield from _below(int(child))
    except OSError:
        return


def main(count: int):
    folder = Path(tempfile.mkdtemp(prefix="zoo_prep_dedup_"))
    groups, size = [], 0
    with open(folder / "rows.jsonl", "w") as file:
        for group, text in texts(count):
            groups.append(group)
            size += len(text)
            file.write(json.dumps({"text": text}) + "\n")
    prep = json.loads(json.dumps(defaults()))
    prep |= {"input": str(folder / "rows.jsonl"), "rules": []}
    peak, over = [0], threading.Event()

    def watch():
        while not over.wait(0.5):
            peak[0] = max(peak[0], tree_memory(os.getpid()))

    threading.Thread(target=watch, daemon=True).start()
    kept = []
    real = pipeline.card.describe
    pipeline.card.describe = lambda *a: (
        kept.extend(_pairs(folder / "out" / "work")),
        real(*a),
    )[1]
    start = time.monotonic()
    with Local() as engine:
        pipeline.prepare(prep, DATA, folder / "out", engine)
    seconds = time.monotonic() - start
    over.set()
    found, numbers = set(map(tuple, kept)), [*range(count)]
    wanted, sets = set(), {}
    rows = (json.loads(line)["text"].split() for line in open(folder / "rows.jsonl"))  # noqa: SIM115
    for _, members in itertools.groupby(zip(numbers, groups, rows, strict=True), lambda m: m[1]):
        # What is equal to the letter is dropped before, and takes no part.
        different = {" ".join(m[2]): m for m in reversed(list(members))}.values()
        sets = {m[0]: {tuple(m[2][i : i + 5]) for i in range(len(m[2]) - 4)} for m in different}
        for a, b in itertools.combinations(sets, 2):
            if len(sets[a] & sets[b]) >= 0.8 * len(sets[a] | sets[b]):
                wanted.add((min(a, b), max(a, b)))
    row = {
        "documents": count,
        "megabytes": round(size / 1e6, 1),
        "wanted_pairs": len(wanted),
        "recall": round(len(found & wanted) / len(wanted), 4),
        "precision": round(len(found & wanted) / max(1, len(found)), 4),
        "seconds": round(seconds, 1),
        "documents_per_second": round(count / seconds),
        "peak_megabytes": round(peak[0] / 1e6),
    }
    print(row)
    print(append("prep_dedup", [row]))
    shutil.rmtree(folder)


def _pairs(work: Path) -> list[tuple[int, int]]:
    """Returns the verified pairs as places in the one input file."""
    paths = sorted((work / "verified_pairs").glob("*.npy"))
    return [
        (record_of(first), record_of(second))
        for path in paths
        for first, second in store.load(path).tolist()
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
