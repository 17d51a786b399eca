"""Compares near-duplicate removal on planted copies and chains: `zoo prepare` and datatrove.

python -m benchmarks.prep_chains PEER_PYTHON        (ZOO_DATA_DIR with novels_en)

PEER_PYTHON needs datatrove[io] 0.10, spacy and tokenizers. The documents are passages of 500 words
of 12 English novels in random order. 150 of them have three copies with 0.5, 2 and 4 % of the words
changed. Six other novels give 30 chains of 20 documents: windows of 24 sentences that advance by
two, so that neighbors are similar and the ends have nothing in common. All methods use 25 bands of
8 rows and word 5-grams; datatrove does not verify pairs and splits words differently. "Whole
chains" joins the pairs of `zoo prepare` to groups and keeps one document of each.

A document is lost if it is dropped although no document with a Jaccard similarity of 0.8 stays. A
duplicate is left if it stays beside an earlier document with that similarity. "Distinct 5-grams" is
the share of the input's 5-grams that remain.
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
from zoo.prep.engine import LocalEngine
from zoo.prep.settings import defaults
from zoo.storage.paths import data_dir

SIMILARITY = 0.8


def documents() -> list[tuple[str, str]]:
    """Returns (kind, text) in input order."""
    draw, rows = random.Random(0), []
    paths = sorted((data_dir() / "novels_en").glob("*.gz"))
    novels = [gzip.decompress(path.read_bytes()).decode("utf-8-sig") for path in paths]
    for novel in novels[:12]:
        words = novel.split()
        rows += [("passage", " ".join(words[i : i + 500])) for i in range(0, len(words) - 500, 500)]
    vocabulary = sorted({word for _, text in rows[::50] for word in text.split()})
    for _, text in draw.sample(rows, 150):
        for rate in (0.005, 0.02, 0.04):
            words = (draw.choice(vocabulary) if draw.random() < rate else w for w in text.split())
            rows.append(("copy", " ".join(words)))
    for novel in novels[12:18]:
        sentences = re.split(r"(?<=[.!?])\s+", novel)
        for start in range(200, 200 + 5 * 100, 100):
            for i in range(start, start + 40, 2):
                rows.append(("chain", " ".join(" ".join(sentences[i : i + 24]).split())))
    draw.shuffle(rows)
    return rows


def zoo_dedup(texts: list[str], folder: Path) -> tuple[set[int], set[int], np.ndarray]:
    """Returns indices of kept documents, indices of exact duplicates, and the verified pairs."""
    prep = json.loads(json.dumps(defaults()))
    common = {"work": str(folder), "out": str(folder), "prep": prep, "shards": 1}
    with store.open_line_writer(folder / "filter_documents" / "00000.jsonl.zst") as write:
        for number, text in enumerate(texts):
            write(Document(text=text, key=key_of(0, number, 1)).to_json())

    def on(step, title, tasks):
        with LocalEngine(1) as engine:
            list(engine.run(step, tasks))

    def on_shards(step, title, **more):
        on(step, title, [{**common, "name": 0, **more}])

    on_shards(steps.hash_documents, "", parts=0)
    on(steps.exact_duplicates, "", [{**common, "name": 0, "parts": 1}])
    pipeline._near_duplicates(on, on_shards, common, folder, 1, 1)
    near = {record_of(int(key)) for key in store.load_array(folder / "near.npy")[:, 0]}
    exact = {record_of(int(key)) for key in steps.load_exact_duplicates(folder, 1)[:, 0]}
    pairs = record_of(np.array(steps.load_output(folder, "verified_pairs", 0)))
    return set(range(len(texts))) - near - exact, exact, pairs


def whole_chains(count: int, pairs: np.ndarray) -> set[int]:
    """Returns the index of the first document of each group that the pairs join."""
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    return set(np.unique(label, return_index=True)[1].tolist())


def datatrove(texts: list[str], folder: Path, python: str) -> set[int]:
    """Returns the indices of the documents that datatrove keeps."""
    (folder / "in").mkdir(parents=True)
    with open(folder / "in" / "rows.jsonl", "w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"text": text, "id": str(number)}) + "\n")
    script = Path(__file__).parent / "prep_chains_peer.py"
    subprocess.run([python, str(script), str(folder)], check=True, stderr=subprocess.DEVNULL)
    lines = b"".join(gzip.decompress(path.read_bytes()) for path in (folder / "kept").glob("*.gz"))
    return {int(json.loads(line)["id"]) for line in lines.splitlines()}


class Truth:
    """Computes the exact Jaccard similarity of all pairs of documents."""

    def __init__(self, texts: list[str]):
        sets = [dedup.shingles(dedup.normalize_words(text), 5) for text in texts]
        _, columns = np.unique(np.concatenate(sets), return_inverse=True)
        ends = np.cumsum([0, *map(len, sets)])
        self._sets = csr_array((np.ones(len(columns), np.int32), columns, ends))
        common = (self._sets @ self._sets.T).tocoo()
        sizes = np.diff(ends)
        union = sizes[common.row] + sizes[common.col] - common.data
        is_duplicate = (common.data >= SIMILARITY * union) & (common.row != common.col)
        self.first, self.second = common.row[is_duplicate], common.col[is_duplicate]

    def scores(self, indices: set[int]) -> dict:
        """Returns the scores of a method from the indices of the documents that it keeps."""
        count = self._sets.shape[0]
        stays = np.zeros(count, bool)
        stays[list(indices)] = True
        covered = np.zeros(count, bool)
        covered[self.first[stays[self.second]]] = True
        both = stays[self.first] & stays[self.second] & (self.first < self.second)
        remaining_share = (np.asarray(self._sets[np.flatnonzero(stays)].sum(0)) > 0).mean()
        return {
            "lost": int((~stays & ~covered).sum()),
            "duplicates_left": len(np.unique(self.second[both])),
            "distinct_5grams": round(float(remaining_share), 4),
        }


def main(python: str):
    """Runs the methods and appends one row each to the results."""
    kinds, texts = zip(*documents(), strict=True)
    truth, rows = Truth(texts), []
    with tempfile.TemporaryDirectory(prefix="zoo_prep_chains_") as folder:
        (Path(folder) / "filter_documents").mkdir()
        indices, exact, pairs = zoo_dedup(texts, Path(folder))
        for method, stays in (
            ("zoo", indices),
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
