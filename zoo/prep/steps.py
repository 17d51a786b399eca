"""Runs the steps of `zoo prepare` on single shards; `zoo.prep.engine` says where they run.

Every task has "work" (folder of the intermediate files), "prep" (section of the recipe) and "name"
(number of the shard or part). A step writes its data files first and its JSON result last: a
result that exists means that the step is done.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from zoo.data.text.dataset import token_type
from zoo.data.text.tokenizers import load as load_tokenizer
from zoo.prep.cleaning import dedup
from zoo.prep.cleaning.clean import clean
from zoo.prep.cleaning.extract import extract
from zoo.prep.cleaning.filters import RULES
from zoo.prep.document import Document, Tally, key_of, key_range, shard_of
from zoo.prep.reading.read import documents
from zoo.prep.store import hash_slice, load_array, open_line_writer, read_documents, save_array
from zoo.storage.disk import make_folder, read_object, write_json

HASH, KEY = np.uint64, np.uint64
# Entries of each step's result that are read later, with their types.
_RESULTS = {
    "filter_documents": {"lines": int, "tally": dict},
    "hash_documents": {"documents": int, "tally": dict},
    "write_splits": {"counts": dict, "tally": dict},
    "tokenize": {"train": int, "validation": int},
}


def path_of(work: Path | str, step: str, name: int | str, ending: str) -> Path:
    """Returns the path of a file that `step` writes for a shard or part."""
    name = f"{name:05d}" if isinstance(name, int) else name
    return Path(work) / step / f"{name}{ending}"


def load_output(work: Path | str, step: str, name: int | str, ending: str = ".npy") -> np.ndarray:
    """Returns an array that `step` wrote for a shard or part."""
    return load_array(path_of(work, step, name, ending))


def step(function: Callable[[dict], Mapping]) -> Callable[[dict], None]:
    """Wraps a function of a task so that its result is stored, and skips a task that is done."""

    @functools.wraps(function)
    def run(task: dict) -> None:
        result = path_of(task["work"], function.__name__, task["name"], ".json")
        if result.exists():
            return
        make_folder(result.parent)
        write_json(result, function(task))

    return run


def step_result(work: Path, name: str, shard: int | str) -> dict:
    """Returns the stored result of a step for a shard or part."""
    return read_object(path_of(work, name, shard, ".json"), **_RESULTS.get(name, {}))


def _text_size(document: Document) -> int:
    content = document.html if document.html is not None else document.text
    return len(content) if isinstance(content, bytes) else len(content.encode())


# --- one document at a time -----------------------------------------------------------------------


@step
def filter_documents(task: dict) -> dict:
    """Reads, extracts, cleans and filters a shard; writes its documents and line hashes."""
    prep, shard, tally = task["prep"], task["name"], Tally()
    stripes, first_shard = task["shard"]["stripes"], shard - task["shard"]["stripe"]
    line_hashes: list[np.ndarray] = []
    output = functools.partial(path_of, task["work"], "filter_documents", shard)
    with open_line_writer(output(".jsonl.zst")) as write:
        for document in documents(task["shard"], prep, tally):
            document.key = key_of(first_shard, document.key, stripes)
            if not apply_rules(document, prep, tally):
                continue
            write(document.to_json())
            if prep["dedup"]["line_documents"]:
                hashes = np.unique(_line_hashes(document.text, prep["dedup"]["min_line"])[0])
                keys = np.full(len(hashes), document.key, KEY)
                line_hashes.append(np.stack([hashes, keys], 1))
    if prep["dedup"]["line_documents"]:
        pairs = np.concatenate([np.empty((0, 2), HASH), *line_hashes])
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        save_array(output("-lines.npy"), pairs[:, 0].copy())
        save_array(output("-keys.npy"), pairs[:, 1].copy())
    return {"lines": sum(map(len, line_hashes)), "tally": tally.to_json()}


def apply_rules(document: Document, prep: Mapping, tally: Tally) -> bool:
    """Extracts, cleans and filters a document in place; returns whether it passed every rule."""
    functions = {"extract": extract, "clean": clean, **RULES}
    for name in ("extract", "clean", *prep["rules"]):
        tally.reach(name, _text_size(document))
        if reason := functions[name](document, prep[name]):
            tally.drop(name, reason, document)
            return False
    return True


def _line_hashes(text: str, min_length: int) -> tuple[np.ndarray, list[int]]:
    """Returns the hashes and line numbers of lines of at least `min_length` characters."""
    lines = text.split("\n")
    numbers = [i for i, line in enumerate(lines) if len(line) >= min_length]
    hashes = (dedup.hash64(dedup.normalize_words(lines[i])) for i in numbers)
    return np.fromiter(hashes, HASH, len(numbers)), numbers


# --- lines that many documents share --------------------------------------------------------------


@step
def frequent_lines(task: dict) -> dict:
    """Finds the lines, in one part of all hashes, that occur in more documents than allowed."""
    work, part = task["work"], task["name"]
    hashes, keys = [np.empty(0, HASH)], [np.empty(0, KEY)]
    for shard in range(task["shards"]):
        lines = load_output(work, "filter_documents", shard, "-lines.npy")
        rows = hash_slice(lines, part, task["parts"])
        # Copies: a view would keep a file open per shard.
        hashes.append(np.array(lines[rows]))
        keys.append(np.array(load_output(work, "filter_documents", shard, "-keys.npy")[rows]))
    frequent, first_keys = dedup.find_frequent(
        np.concatenate(hashes), np.concatenate(keys), task["prep"]["dedup"]["line_documents"]
    )
    save_array(path_of(work, "frequent_lines", part, "-lines.npy"), frequent)
    save_array(path_of(work, "frequent_lines", part, "-keys.npy"), first_keys)
    return {"lines": len(frequent)}


@step
def hash_documents(task: dict) -> dict:
    """Removes frequent lines; writes documents, their hashes, MinHash bands and shingles."""
    work, shard, prep, tally = task["work"], task["name"], task["prep"]["dedup"], Tally()
    frequent, first_keys = (
        np.concatenate(
            [load_output(work, "frequent_lines", p, ending) for p in range(task["parts"])] or [[]]
        )
        for ending in ("-lines.npy", "-keys.npy")
    )
    output = functools.partial(path_of, work, "hash_documents", shard)
    keys, exact, bands, sets, removed_lines = [], [], [], [], 0
    with open_line_writer(output(".jsonl.zst")) as write:
        for document in read_documents(path_of(work, "filter_documents", shard, ".jsonl.zst")):
            tally.reach("repeated lines", _text_size(document))
            num_removed = 0
            if len(frequent):
                num_removed = _remove_lines(document, frequent, first_keys, prep["min_line"])
            removed_lines += num_removed
            if num_removed and len(document.text) < prep["min_characters"]:
                tally.drop("repeated lines", "little is left", document)
                continue
            write(document.to_json())
            text = dedup.normalize_words(document.text)
            keys.append(document.key)
            exact.append(dedup.hash64(text))
            if prep["near"]:
                shingles = dedup.shingles(text, prep["ngram"])
                bands.append(dedup.band_hashes(shingles, prep["bands"], prep["rows"]))
                sets.append(shingles)
    save_array(output("-keys.npy"), np.array(keys, KEY))
    save_array(output("-exact.npy"), np.array(exact, HASH))
    if prep["near"]:
        table = np.array(bands, HASH).reshape(-1, prep["bands"]).T
        order = np.argsort(table, axis=1, kind="stable")
        save_array(output("-bands.npy"), np.take_along_axis(table, order, 1))
        save_array(output("-order.npy"), order.astype(np.uint32))
        save_array(output("-ends.npy"), np.cumsum([0, *map(len, sets)]))
        save_array(output("-shingles.npy"), np.concatenate([np.empty(0, np.uint32), *sets]))
    return {"documents": len(keys), "lines": removed_lines, "tally": tally.to_json()}


def _remove_lines(
    document: Document, frequent: np.ndarray, first_keys: np.ndarray, min_length: int
) -> int:
    """Removes frequent lines in place, unless this document is the first one that has them.

    Args:
      document: changed in place.
      frequent: sorted hashes of frequent lines.
      first_keys: for each frequent line, the key of the first document that has the line.
      min_length: characters; shorter lines stay.

    Returns:
      The number of removed lines.
    """
    hashes, numbers = _line_hashes(document.text, min_length)
    indices = np.minimum(np.searchsorted(frequent, hashes), len(frequent) - 1)
    remove = (frequent[indices] == hashes) & (first_keys[indices] != np.uint64(document.key))
    if not remove.any():
        return 0
    removed_lines = set(np.array(numbers)[remove].tolist())
    lines = document.text.split("\n")
    document.text = "\n".join(
        line for i, line in enumerate(lines) if i not in removed_lines
    ).strip()
    while "\n\n\n" in document.text:
        document.text = document.text.replace("\n\n\n", "\n\n")
    return len(removed_lines)


# --- duplicates -----------------------------------------------------------------------------------


@step
def exact_duplicates(task: dict) -> dict:
    """Finds documents of equal hash within one part of all hashes."""
    work, part, parts = task["work"], task["name"], task["parts"]
    low, high = (part << 64) // parts, ((part + 1) << 64) // parts
    hashes, keys = [np.empty(0, HASH)], [np.empty(0, KEY)]
    for shard in range(task["shards"]):
        shard_hashes = load_output(work, "hash_documents", shard, "-exact.npy")
        in_part = (shard_hashes >= np.uint64(low)) & (shard_hashes <= np.uint64(high - 1))
        hashes.append(shard_hashes[in_part])
        keys.append(load_output(work, "hash_documents", shard, "-keys.npy")[in_part])
    repeats = dedup.find_repeats(np.concatenate(hashes), np.concatenate(keys))
    save_array(path_of(work, "exact_duplicates", part, ".npy"), repeats)
    return {"documents": len(repeats)}


def load_exact_duplicates(work: Path | str, parts: int) -> np.ndarray:
    """Returns sorted (m, 2) keys: an exact duplicate and the first document equal to it."""
    pairs = [load_output(work, "exact_duplicates", part) for part in range(parts)]
    duplicates = np.concatenate([np.empty((0, 2), KEY), *pairs])
    return duplicates[np.argsort(duplicates[:, 0])]


@step
def candidate_pairs(task: dict) -> dict:
    """Finds the documents that share the hash of one band, within one part of all hashes."""
    work, band, hashes, keys = task["work"], task["band"], [np.empty(0, HASH)], [np.empty(0, KEY)]
    dropped_keys = load_exact_duplicates(work, task["exact_parts"])[:, 0]
    for shard in range(task["shards"]):
        band_hashes = load_output(work, "hash_documents", shard, "-bands.npy")[band]
        rows = hash_slice(band_hashes, task["part"], task["parts"])
        order = load_output(work, "hash_documents", shard, "-order.npy")[band][rows]
        part_keys = np.asarray(load_output(work, "hash_documents", shard, "-keys.npy"))[order]
        is_kept = ~np.isin(part_keys, dropped_keys)
        hashes.append(band_hashes[rows][is_kept])
        keys.append(part_keys[is_kept])
    pairs = dedup.find_candidates(np.concatenate(hashes), np.concatenate(keys))
    save_array(path_of(work, "candidate_pairs", task["name"], ".npy"), pairs)
    return {"pairs": len(pairs)}


@step
def verified_pairs(task: dict) -> dict:
    """Writes the candidate pairs of a shard whose Jaccard similarity reaches the threshold.

    A pair belongs to the shard of its first document.
    """
    work, shard = task["work"], task["name"]
    pairs = [np.empty((0, 2), KEY)]
    pairs += [
        _pairs_of_shard(load_output(work, "candidate_pairs", n), shard) for n in task["candidates"]
    ]
    pairs = np.unique(np.concatenate(pairs), axis=0)
    similar = SimilarityCheck(work, task["prep"]["dedup"]["similarity"])
    is_similar = np.array([similar(a, b) for a, b in pairs.tolist()], bool)
    save_array(path_of(work, "verified_pairs", shard, ".npy"), pairs[is_similar].reshape(-1, 2))
    return {"pairs": len(pairs), "same": int(is_similar.sum())}


def _pairs_of_shard(pairs: np.ndarray, shard: int) -> np.ndarray:
    """Returns the rows of sorted (n, 2) keys whose first document is in `shard`."""
    low, high = np.searchsorted(pairs[:, 0], np.array(key_range(shard), KEY))
    candidates = np.asarray(pairs[low:high])
    return candidates[shard_of(candidates[:, 0]) == shard]


class SimilarityCheck:
    """Compares two documents, given by key, by the exact Jaccard similarity of their shingles.

    The shingles of all shards are memory-mapped.

    Args:
      work: folder of the intermediate files.
      similarity: Jaccard similarity from which two documents are near duplicates.
    """

    def __init__(self, work: Path | str, similarity: float):
        self._similarity = similarity
        self._open = functools.lru_cache(64)(
            lambda shard: [
                load_output(work, "hash_documents", shard, ending)
                for ending in ("-keys.npy", "-ends.npy", "-shingles.npy")
            ]
        )

    def __call__(self, a: int, b: int) -> bool:
        return dedup.jaccard(self._shingles(a), self._shingles(b)) >= self._similarity

    def _shingles(self, key: int) -> np.ndarray:
        keys, ends, flat = self._open(shard_of(key))
        index = int(np.searchsorted(keys, np.uint64(key)))
        return flat[ends[index] : ends[index + 1]]


# --- output ---------------------------------------------------------------------------------------


@step
def write_splits(task: dict) -> dict:
    """Writes the documents that are not duplicates as text of their split, and counts them."""
    work, shard, tally = task["work"], task["name"], Tally()
    exact = set(
        _pairs_of_shard(load_exact_duplicates(work, task["exact_parts"]), shard)[:, 0].tolist()
    )
    near, near_path = set(), Path(work) / "near.npy"
    if near_path.exists():
        near = set(_pairs_of_shard(load_array(near_path), shard)[:, 0].tolist())
    hashes = load_output(work, "hash_documents", shard, "-exact.npy")
    limit = np.uint64(task["validation_below"])
    out = Path(task["out"]) / "text"
    make_folder(out)
    counts = {"train": 0, "validation": 0}
    with (
        open_line_writer(out / f"train-{shard:05d}.jsonl.gz") as train,
        open_line_writer(out / f"validation-{shard:05d}.jsonl.gz") as validation,
    ):
        documents = read_documents(path_of(work, "hash_documents", shard, ".jsonl.zst"))
        for document, value in zip(documents, hashes, strict=True):
            for name, duplicates in (("exact duplicates", exact), ("near duplicates", near)):
                tally.reach(name, _text_size(document))
                if document.key in duplicates:
                    tally.drop(name, "of an earlier document", document)
                    break
            else:
                tally.reach("kept", _text_size(document))
                tally.keep(document)
                # Only one of two near duplicates is left, so no pair spans the two splits.
                is_validation = value < limit
                (validation if is_validation else train)(document.to_json())
                counts["validation" if is_validation else "train"] += 1
    return {"counts": counts, "tally": tally.to_json()}


@step
def tokenize(task: dict) -> dict:
    """Tokenizes the text of a shard; writes the tokens and the end of each document."""
    tokenizer = load_tokenizer(Path(task["out"]) / "tokenizer.json")
    output = functools.partial(path_of, task["work"], "tokenize", task["name"])
    counts = {}
    for split in ("train", "validation"):
        path = Path(task["out"]) / "text" / f"{split}-{task['name']:05d}.jsonl.gz"
        texts = (document.text for document in read_documents(path))
        rows = list(tokenizer.encode_documents(texts, workers=1))
        flat = np.concatenate([np.empty(0, np.int32), *rows]).astype(token_type(tokenizer))
        save_array(output(f"-{split}.npy"), flat)
        save_array(output(f"-{split}-ends.npy"), np.cumsum([0, *map(len, rows)]))
        counts[split] = len(flat)
    return counts
