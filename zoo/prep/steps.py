"""The steps that run on shards, each a function of a task: see `zoo.prep.engine`.

Every task has "work" (the folder of what lies between the steps) and "prep" (the recipe's
section). A step leaves its files first and its mark last; where the mark is, it is done.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from zoo.data.disk import make_folder, read_object, write_json
from zoo.prep import dedup
from zoo.prep.clean import clean
from zoo.prep.document import Document, Tally, key_of, keys_from, shard_of
from zoo.prep.extract import extract
from zoo.prep.filters import RULES
from zoo.prep.read import documents
from zoo.prep.store import lines_into, load, read_documents, save, slice_of

HASH, KEY = np.uint64, np.uint64
# What the marks of steps hold that is used.
_ANSWERS = {
    "filtered": {"lines": int, "tally": dict},
    "signed": {"documents": int, "tally": dict},
    "text": {"counts": dict, "tally": dict},
    "tokens": {"train": int, "validation": int},
}


def path_of(work: Path | str, step: str, name: int | str, ending: str) -> Path:
    """Returns the place of a file that `step` leaves for a shard or part."""
    name = f"{name:05d}" if isinstance(name, int) else name
    return Path(work) / step / f"{name}{ending}"


def step(function: Callable[[dict], Mapping]) -> Callable[[dict], None]:
    """Makes a function a step: it is skipped where it is done, and its answer is the mark."""

    @functools.wraps(function)
    def run(task: dict) -> None:
        mark = path_of(task["work"], function.__name__, task["name"], ".json")
        if mark.exists():
            return
        make_folder(mark.parent)
        write_json(mark, function(task))

    return run


def answer(work: Path, name: str, shard: int | str) -> dict:
    """Returns what a step said of a shard."""
    return read_object(path_of(work, name, shard, ".json"), **_ANSWERS.get(name, {}))


def _text_size(document: Document) -> int:
    content = document.html if document.html is not None else document.text
    return len(content) if isinstance(content, bytes) else len(content.encode())


# --- one document at a time -----------------------------------------------------------------------


@step
def filtered(task: dict) -> dict:
    """Reads, extracts, cleans and filters a shard; leaves documents and the hashes of lines."""
    prep, shard, tally = task["prep"], task["name"], Tally()
    stripes, first_shard = task["shard"]["stripes"], shard - task["shard"]["stripe"]
    lines_of: list[np.ndarray] = []
    path = path_of(task["work"], "filtered", shard, ".jsonl.zst")
    with lines_into(path) as write:
        for document in documents(task["shard"], prep, tally):
            document.key = key_of(first_shard, document.key, stripes)
            if not through(document, prep, tally):
                continue
            write(document.to_json())
            if prep["dedup"]["line_documents"]:
                found = np.unique(_line_hashes(document.text, prep["dedup"]["min_line"])[0])
                keys = np.full(len(found), document.key, KEY)
                lines_of.append(np.stack([found, keys], 1))
    if prep["dedup"]["line_documents"]:
        both = np.concatenate([np.empty((0, 2), HASH), *lines_of])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        save(path_of(task["work"], "filtered", shard, "-lines.npy"), both[:, 0].copy())
        save(path_of(task["work"], "filtered", shard, "-keys.npy"), both[:, 1].copy())
    return {"lines": sum(map(len, lines_of)), "tally": tally.to_json()}


def through(document: Document, prep: Mapping, tally: Tally) -> bool:
    """Takes a document through extraction, cleaning and the rules; whether it passed them all."""
    tally.reach("extract", _text_size(document))
    if reason := extract(document, prep["extract"]):
        tally.drop("extract", reason, document)
        return False
    tally.reach("clean", _text_size(document))
    if reason := clean(document, prep["clean"]):
        tally.drop("clean", reason, document)
        return False
    for name in prep["rules"]:
        tally.reach(name, _text_size(document))
        if reason := RULES[name](document, prep[name]):
            tally.drop(name, reason, document)
            return False
    return True


def _line_hashes(text: str, shortest: int) -> tuple[np.ndarray, list[int]]:
    """Returns the hashes of the long lines and their places."""
    lines = text.split("\n")
    places = [i for i, line in enumerate(lines) if len(line) >= shortest]
    hashes = np.fromiter((dedup.hash64(dedup.normal(lines[i])) for i in places), HASH, len(places))
    return hashes, places


# --- lines that many documents have ---------------------------------------------------------------


@step
def frequent_lines(task: dict) -> dict:
    """Finds the lines of a part of all hashes that occur in more documents than they may."""
    hashes, keys = [np.empty(0, HASH)], [np.empty(0, KEY)]
    for shard in range(task["shards"]):
        found = load(path_of(task["work"], "filtered", shard, "-lines.npy"))
        place = slice_of(found, task["name"], task["parts"])
        # Copies: a view would hold the file open, and there are as many as shards.
        hashes.append(np.array(found[place]))
        found = load(path_of(task["work"], "filtered", shard, "-keys.npy"))
        keys.append(np.array(found[place]))
    found, first = dedup.frequent(
        np.concatenate(hashes), np.concatenate(keys), task["prep"]["dedup"]["line_documents"]
    )
    save(path_of(task["work"], "frequent_lines", task["name"], "-lines.npy"), found)
    save(path_of(task["work"], "frequent_lines", task["name"], "-keys.npy"), first)
    return {"lines": len(found)}


@step
def signed(task: dict) -> dict:
    """Takes out frequent lines; leaves documents, their hashes, MinHash bands and shingles."""
    work, shard, prep, tally = task["work"], task["name"], task["prep"]["dedup"], Tally()
    parts = range(task["parts"])
    lines, firsts = (
        np.concatenate([load(path_of(work, "frequent_lines", p, e)) for p in parts] or [[]])
        for e in ("-lines.npy", "-keys.npy")
    )
    keys, exact, bands, sets, taken_out = [], [], [], [], 0
    with lines_into(path_of(work, "signed", shard, ".jsonl.zst")) as write:
        for document in read_documents(path_of(work, "filtered", shard, ".jsonl.zst")):
            tally.reach("repeated lines", _text_size(document))
            gone = _without(document, lines, firsts, prep["min_line"]) if len(lines) else 0
            taken_out += gone
            if gone and len(document.text) < prep["min_characters"]:
                tally.drop("repeated lines", "little is left", document)
                continue
            write(document.to_json())
            text = dedup.normal(document.text)
            keys.append(document.key)
            exact.append(dedup.hash64(text))
            if prep["near"]:
                found = dedup.shingles(text, prep["ngram"])
                bands.append(dedup.band_hashes(found, prep["bands"], prep["rows"]))
                sets.append(found)
    save(path_of(work, "signed", shard, "-keys.npy"), np.array(keys, KEY))
    save(path_of(work, "signed", shard, "-exact.npy"), np.array(exact, HASH))
    if prep["near"]:
        table = np.array(bands, HASH).reshape(-1, prep["bands"]).T
        order = np.argsort(table, axis=1, kind="stable")
        save(path_of(work, "signed", shard, "-bands.npy"), np.take_along_axis(table, order, 1))
        save(path_of(work, "signed", shard, "-order.npy"), order.astype(np.uint32))
        ends = np.cumsum([0, *map(len, sets)])
        save(path_of(work, "signed", shard, "-ends.npy"), ends)
        flat = np.concatenate([np.empty(0, np.uint32), *sets])
        save(path_of(work, "signed", shard, "-shingles.npy"), flat)
    return {"documents": len(keys), "lines": taken_out, "tally": tally.to_json()}


def _without(document: Document, frequent: np.ndarray, firsts: np.ndarray, shortest: int) -> int:
    """Takes the frequent lines out of a document that is not their first; returns how many."""
    hashes, places = _line_hashes(document.text, shortest)
    at = np.minimum(np.searchsorted(frequent, hashes), len(frequent) - 1)
    gone = (frequent[at] == hashes) & (firsts[at] != np.uint64(document.key))
    if not gone.any():
        return 0
    gone = {place for place, is_gone in zip(places, gone.tolist(), strict=True) if is_gone}
    lines = document.text.split("\n")
    document.text = "\n".join(line for i, line in enumerate(lines) if i not in gone).strip()
    while "\n\n\n" in document.text:
        document.text = document.text.replace("\n\n\n", "\n\n")
    return len(gone)


# --- duplicates -----------------------------------------------------------------------------------


@step
def exact_duplicates(task: dict) -> dict:
    """Finds documents of the same hash, of a part of all hashes."""
    hashes, keys = [np.empty(0, HASH)], [np.empty(0, KEY)]
    for shard in range(task["shards"]):
        found = load(path_of(task["work"], "signed", shard, "-exact.npy"))
        low, high = (
            (task["name"] << 64) // task["parts"],
            ((task["name"] + 1) << 64) // task["parts"],
        )
        mine = (found >= np.uint64(low)) & (found <= np.uint64(high - 1))
        hashes.append(found[mine])
        keys.append(load(path_of(task["work"], "signed", shard, "-keys.npy"))[mine])
    repeats = dedup.repeats(np.concatenate(hashes), np.concatenate(keys))
    save(path_of(task["work"], "exact_duplicates", task["name"], ".npy"), repeats)
    return {"documents": len(repeats)}


def exact_of(work: Path | str, parts: int) -> np.ndarray:
    """Returns (m, 2) keys, sorted: of exact duplicates and of their firsts."""
    found = [load(path_of(work, "exact_duplicates", part, ".npy")) for part in range(parts)]
    both = np.concatenate([np.empty((0, 2), KEY), *found])
    return both[np.argsort(both[:, 0])]


@step
def candidate_pairs(task: dict) -> dict:
    """Finds the documents that share a band, of one band and a part of all hashes."""
    work, hashes, keys = task["work"], [np.empty(0, HASH)], [np.empty(0, KEY)]
    gone = exact_of(work, task["exact_parts"])[:, 0]
    for shard in range(task["shards"]):
        found = load(path_of(work, "signed", shard, "-bands.npy"))[task["band"]]
        place = slice_of(found, task["part"], task["parts"])
        order = load(path_of(work, "signed", shard, "-order.npy"))[task["band"]][place]
        mine = np.asarray(load(path_of(work, "signed", shard, "-keys.npy")))[order]
        stays = ~np.isin(mine, gone)
        hashes.append(found[place][stays])
        keys.append(mine[stays])
    pairs = dedup.candidates(np.concatenate(hashes), np.concatenate(keys))
    save(path_of(work, "candidate_pairs", task["name"], ".npy"), pairs)
    return {"pairs": len(pairs)}


@step
def verified_pairs(task: dict) -> dict:
    """Compares the candidates whose first lies in a shard; leaves those that are duplicates."""
    work, shard = task["work"], task["name"]
    pairs = [np.empty((0, 2), KEY)]
    for name in task["candidates"]:
        pairs.append(_of_shard(load(path_of(work, "candidate_pairs", name, ".npy")), shard))
    pairs = np.unique(np.concatenate(pairs), axis=0)
    similar = Similar(work, task["prep"]["dedup"]["similarity"])
    same = np.array([similar(a, b) for a, b in pairs.tolist()], bool)
    save(path_of(work, "verified_pairs", shard, ".npy"), pairs[same].reshape(-1, 2))
    return {"pairs": len(pairs), "same": int(same.sum())}


def _of_shard(pairs: np.ndarray, shard: int) -> np.ndarray:
    """Returns the pairs, of sorted ones, whose first key belongs to a shard."""
    low, high = np.searchsorted(pairs[:, 0], np.array(keys_from(shard), KEY))
    near = np.asarray(pairs[low:high])
    return near[shard_of(near[:, 0]) == shard]


class Similar:
    """Whether two documents, given by their keys, are near duplicates.

    The shingles of any shard are read through the page cache.
    """

    def __init__(self, work: Path | str, similarity: float):
        self._similarity = similarity
        self._open = functools.lru_cache(64)(
            lambda shard: [
                load(path_of(work, "signed", shard, ending))
                for ending in ("-keys.npy", "-ends.npy", "-shingles.npy")
            ]
        )

    def __call__(self, a: int, b: int) -> bool:
        return dedup.jaccard(self._shingles(a), self._shingles(b)) >= self._similarity

    def _shingles(self, key: int) -> np.ndarray:
        keys, ends, flat = self._open(shard_of(key))
        place = int(np.searchsorted(keys, np.uint64(key)))
        return flat[ends[place] : ends[place + 1]]


# --- what stays ---------------------------------------------------------------------------------


@step
def text(task: dict) -> dict:
    """Leaves the documents that stay, as the splits' text, and counts them."""
    work, shard, tally = task["work"], task["name"], Tally()
    exact = set(_of_shard(exact_of(work, task["exact_parts"]), shard)[:, 0].tolist())
    near_path = Path(work) / "near.npy"
    near = set(_of_shard(load(near_path), shard)[:, 0].tolist()) if near_path.exists() else set()
    hashes = load(path_of(work, "signed", shard, "-exact.npy"))
    limit = np.uint64(task["validation_below"])
    out = Path(task["out"]) / "text"
    make_folder(out)
    counts = {"train": 0, "validation": 0}
    with (
        lines_into(out / f"train-{shard:05d}.jsonl.gz") as train,
        lines_into(out / f"validation-{shard:05d}.jsonl.gz") as validation,
    ):
        documents = read_documents(path_of(work, "signed", shard, ".jsonl.zst"))
        for document, value in zip(documents, hashes, strict=True):
            for name, gone in (("exact duplicates", exact), ("near duplicates", near)):
                tally.reach(name, _text_size(document))
                if document.key in gone:
                    tally.drop(name, "of an earlier document", document)
                    break
            else:
                tally.reach("kept", _text_size(document))
                tally.keep(document)
                # Of two near duplicates one is gone: they are not in two splits.
                held = value < limit
                (validation if held else train)(document.to_json())
                counts["validation" if held else "train"] += 1
    return {"counts": counts, "tally": tally.to_json()}


@step
def tokens(task: dict) -> dict:
    """Turns the text of a shard into tokens; leaves them and where each document ends."""
    from zoo.data.text import token_type
    from zoo.data.tokenizers import load as load_tokenizer

    tokenizer = load_tokenizer(Path(task["out"]) / "tokenizer.json")
    counts = {}
    for split in ("train", "validation"):
        path = Path(task["out"]) / "text" / f"{split}-{task['name']:05d}.jsonl.gz"
        texts = (document.text for document in read_documents(path))
        found = list(tokenizer.encode_documents(texts, workers=1))
        ends = np.cumsum([0, *map(len, found)])
        flat = np.concatenate([np.empty(0, np.int32), *found]).astype(token_type(tokenizer))
        save(path_of(task["work"], "tokens", task["name"], f"-{split}.npy"), flat)
        save(path_of(task["work"], "tokens", task["name"], f"-{split}-ends.npy"), ends)
        counts[split] = len(flat)
    return counts
