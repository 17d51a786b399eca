"""What is left of near duplicates and of chains of them: `zoo prepare`, whole chains, datatrove.

python -m benchmarks.prep_chains PEER_PYTHON        (ZOO_DATA_DIR with novels_en)

PEER_PYTHON has datatrove[io] 0.10, spacy and tokenizers. The documents are passages of 500 words of
12 English novels, in a random order; 150 of them come with three copies of which 0.5, 2 and 4 % of
the words are changed. From other novels come 30 chains of 20 documents: a window of 24 sentences
that moves on by two, so that neighbors are alike and the ends have nothing in common. All methods
use 25 bands of 8 and 5-grams of words; datatrove verifies nothing and has words of its own.

A loss is a document that is dropped while none with a Jaccard of 0.8 is left; a duplicate left is
one that stays while an earlier one with a Jaccard of 0.8 stays too. Distinct 5-grams are the share
of those of the input that are still there.
"""

import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from benchmarks.results_file import append
from zoo.prep import pipeline, steps, store
from zoo.prep.cleaning import dedup
from zoo.prep.document import Document, key_of, record_of
from zoo.prep.engine import Local
from zoo.prep.settings import defaults
from zoo.storage.paths import data_dir

SIMILARITY = 0.8


def documents() -> list[tuple[str, str]]:
    """Returns (kind, text) in the order of the input."""
    draw, made = random.Random(0), []
    paths = sorted((data_dir() / "novels_en").glob("*.gz"))
    novels = [gzip.decompress(path.read_bytes()).decode("utf-8-sig") for path in paths]
    for novel in novels[:12]:
        words = novel.split()
        made += [("passage", " ".join(words[i : i + 500])) for i in range(0, len(words) - 500, 500)]
    vocabulary = sorted({word for _, text in made[::50] for word in text.split()})
    for _, text in draw.sample(made, 150):
        for rate in (0.005, 0.02, 0.04):
            words = (draw.choice(vocabulary) if draw.random() < rate else w for w in text.split())
            made.append(("copy", " ".join(words)))
    for novel in novels[12:18]:
        sentences = re.split(r"(?<=[.!?])\s+", novel)
        for start in range(200, 200 + 5 * 100, 100):
            for i in range(start, start + 40, 2):
                made.append(("chain", " ".join(" ".join(sentences[i : i + 24]).split())))
    draw.shuffle(made)
    return made


def ours(texts: list[str], folder: Path) -> tuple[set[int], set[int], np.ndarray]:
    """Returns the places of what stays, of exact duplicates, and the pairs that were verified."""
    prep = json.loads(json.dumps(defaults()))
    same = {"work": str(folder), "out": str(folder), "prep": prep, "shards": 1}
    with store.lines_into(folder / "filtered" / "00000.jsonl.zst") as write:
        for number, text in enumerate(texts):
            write(Document(text=text, key=key_of(0, number, 1)).to_json())

    def on(step, title, tasks):
        with Local(1) as engine:
            list(engine.run(step, tasks))

    def on_shards(step, title, **more):
        on(step, title, [{**same, "name": 0, **more}])

    on_shards(steps.signed, "", parts=0)
    on(steps.exact_duplicates, "", [{**same, "name": 0, "parts": 1}])
    pipeline._near_duplicates(on, on_shards, same, folder, 1, 1)
    gone = {record_of(int(key)) for key in store.load(folder / "near.npy")[:, 0]}
    exact = {record_of(int(key)) for key in steps.exact_of(folder, 1)[:, 0]}
    pairs = record_of(np.array(store.load(folder / "verified_pairs" / "00000.npy")))
    return set(range(len(texts))) - gone - exact, exact, pairs


def whole_chains(count: int, pairs: np.ndarray) -> set[int]:
    """Returns the first document of each group that the pairs join."""
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    return set(np.unique(label, return_index=True)[1].tolist())


def datatrove(texts: list[str], folder: Path, python: str) -> set[int]:
    """Returns the places of what datatrove keeps."""
    (folder / "in").mkdir(parents=True)
    with open(folder / "in" / "rows.jsonl", "w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"text": text, "id": str(number)}) + "\n")
    script = Path(__file__).parent / "prep_chains_peer.py"
    subprocess.run([python, str(script), str(folder)], check=True, stderr=subprocess.DEVNULL)
    kept = b"".join(gzip.decompress(path.read_bytes()) for path in (folder / "kept").glob("*.gz"))
    return {int(json.loads(line)["id"]) for line in kept.splitlines()}


class Truth:
    """The exact Jaccard of all documents."""

    def __init__(self, texts: list[str]):
        sets = [dedup.shingles(dedup.normal(text), 5) for text in texts]
        _, columns = np.unique(np.concatenate(sets), return_inverse=True)
        ends = np.cumsum([0, *map(len, sets)])
        self._sets = csr_array((np.ones(len(columns), np.int32), columns, ends))
        common = (self._sets @ self._sets.T).tocoo()
        sizes = np.diff(ends)
        union = sizes[common.row] + sizes[common.col] - common.data
        alike = (common.data >= SIMILARITY * union) & (common.row != common.col)
        self.first, self.second = common.row[alike], common.col[alike]

    def scores(self, kept: set[int]) -> dict:
        """Returns the numbers of a method."""
        count = self._sets.shape[0]
        stays = np.zeros(count, bool)
        stays[list(kept)] = True
        covered = np.zeros(count, bool)
        covered[self.first[stays[self.second]]] = True
        both = stays[self.first] & stays[self.second] & (self.first < self.second)
        left = (np.asarray(self._sets[np.flatnonzero(stays)].sum(0)) > 0).mean()
        return {
            "lost": int((~stays & ~covered).sum()),
            "duplicates_left": len(np.unique(self.second[both])),
            "distinct_5grams": round(float(left), 4),
        }


def main(python: str):
    made = documents()
    kinds, texts = zip(*made, strict=True)
    truth, rows = Truth(texts), []
    with tempfile.TemporaryDirectory(prefix="zoo_prep_chains_") as folder:
        (Path(folder) / "filtered").mkdir()
        kept, exact, pairs = ours(texts, Path(folder))
        for method, stays in (
            ("zoo", kept),
            ("whole chains", whole_chains(len(texts), pairs) - exact),
            ("datatrove 0.10", datatrove(texts, Path(folder) / "peer", python)),
        ):
            row = {"method": method, "documents": len(texts)}
            for kind in ("passage", "copy", "chain"):
                amount = sum(kinds[place] == kind for place in stays)
                row[f"{kind}_kept"] = f"{amount} of {kinds.count(kind)}"
            rows.append({**row, **truth.scores(stays)})
            print(rows[-1], flush=True)
    print(append("prep_chains", rows))


if __name__ == "__main__":
    main(sys.argv[1])
