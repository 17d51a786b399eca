"""Runs `zoo prepare`: from a recipe's section `prep` to a folder D of records.

    D/text/          text by split: one kept document per line, with URL, title, license …
    D/tokenizer.json
    D/records/       tokens by split, as zoo.storage.records
    D/data_card.html, D/data_card.json
    D/prepared.json  written last: if it exists, D is complete
    D/work/          intermediate files; removed at the end

A kill loses only the shards that were being processed, because every file is renamed into place
once it is complete. D depends only on the input, the recipe and the zoo, not on workers or kills;
the one exception is a page whose extraction reaches its time limit.
"""

import glob
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.data.text import packing
from zoo.data.text.corpora import load_corpus
from zoo.data.text.dataset import PREPARED_FORMAT, token_type, tokenizer_of
from zoo.data.text.tokenizers import KINDS
from zoo.data.text.tokenizers import load as load_tokenizer
from zoo.data.text.tokenizers import train as train_tokenizer
from zoo.errors import RunError, UsageError
from zoo.prep import card, steps
from zoo.prep.cleaning import dedup
from zoo.prep.crawl import crawl, skip_counts
from zoo.prep.document import Tally
from zoo.prep.files import corpus_files, find_files, make_shards, split_input
from zoo.prep.progress import StepProgress
from zoo.prep.settings import check
from zoo.prep.store import load_array, read_documents, save_array
from zoo.storage.disk import (
    check_object,
    file_digest,
    json_digest,
    make_folder,
    read_json,
    read_object,
    remove_temporary,
    write_json,
)
from zoo.storage.locks import lock_folder
from zoo.storage.records import RecordWriter, open_records

_FOLDERS = ("work", "text", "records", "crawl")  # in D; must not be symbolic links
SPLITS = ("train", "validation")
# Hashes per part of a step: 16 bytes of memory each, and several times that during sorting.
PART = 4_000_000
_LIBRARIES = (
    "trafilatura", "ftfy", "datasketch", "py3langid", "webencodings", "lxml", "tokenizers",
)  # fmt: skip
# Settings of rules that name a file.
_LISTS = (("address", "blocked_domains"), ("blocked_words", "file"), ("toxicity", "file"))
_DATA = ("tokenizer", "vocabulary_size", "normalization", "sequence_length", "packing")


def prepare(prep: Mapping, data: Mapping, out: str | Path, engine, allow_private=False) -> dict:
    """Prepares training records. Continues after a kill if it is called again.

    Args:
      prep: section `prep` of the recipe, as plain dictionaries.
      data: section `data` of the recipe.
      out: the output folder D.
      engine: an entered `zoo.prep.engine.LocalEngine` or `BeamEngine`.
      allow_private: whether a crawl may connect to IP addresses that are not public.

    Returns:
      The content of prepared.json.

    Raises:
      UsageError: a wrong setting, input without files, or a folder that was started with another
        recipe, input or version.
      RunError: fewer than two documents are left, or the disk or a worker fails.
    """
    check(prep, data)
    out = Path(out).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        for name in _FOLDERS:
            if os.path.lexists(out / name):
                make_folder(out / name)
        plan, skip_reasons = _plan(prep, data, out, allow_private)
        plan_path, result_path = out / "work" / "plan.json", out / "prepared.json"
        plan_hash = json_digest(plan)
        if result_path.exists():
            result = _read_prepared(result_path)
            if result["plan"] != plan_hash:
                raise _plan_mismatch(out)
            _remove_temporary(out)
            shutil.rmtree(out / "work", ignore_errors=True)
            return result
        if plan_path.exists():
            if json_digest(read_json(plan_path)) != plan_hash:
                raise _plan_mismatch(out)
            _remove_temporary(out)
        elif any(path.name not in (".lock", "crawl", "work") for path in out.iterdir()):
            raise UsageError(f"The folder {out} contains other files. Choose another --out.")
        else:
            make_folder(plan_path.parent)
            write_json(plan_path, plan)
        result = _run(plan, skip_reasons, out, engine)
        write_json(result_path, {"format": PREPARED_FORMAT, "plan": plan_hash, **result})
        shutil.rmtree(out / "work", ignore_errors=True)
        return _read_prepared(result_path)


def _read_prepared(path: Path) -> dict:
    result = read_object(path, plan=str, documents=dict, tokens=dict)
    for counts in (result["documents"], result["tokens"]):
        check_object(path, counts, **dict.fromkeys(SPLITS, int))
    return result


def _plan(prep: Mapping, data: Mapping, out: Path, allow_private: bool):
    patterns, corpora, urls = split_input(prep["input"])
    skip_reasons = Counter()
    files = find_files(patterns, skip_reasons, out) if patterns else []
    files += corpus_files(corpora)
    if urls:
        skip_reasons += skip_counts(crawl(urls, prep["crawl"], out / "crawl", allow_private))
        files += find_files([f"{glob.escape(str(out / 'crawl'))}/*.warc.gz"], skip_reasons)
    if not files:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skip_reasons.items()))
        raise UsageError(
            f"prep.input matches no readable file ({reasons or 'no files'}). Supported: "
            ".warc, .wet, .html, .txt, .jsonl (each also .gz or .zst) and .parquet."
        )
    plan = {
        "format": PREPARED_FORMAT,
        "prep": dict(prep),
        "data": {key: data[key] for key in _DATA},
        "shards": make_shards(files, prep["shard_bytes"]),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "corpora": {
            name: load_corpus(name.removeprefix("corpus:")).fingerprint for name in corpora
        },
        "lists": {
            f"{rule}.{key}": file_digest(prep[rule][key])
            for rule, key in _LISTS
            if rule in prep["rules"] and prep[rule][key]
        },
        "source": _source_digest(),
    }
    # As JSON returns it: tuples become lists.
    return json.loads(json.dumps(plan)), skip_reasons


def _remove_temporary(out: Path) -> None:
    """Removes incomplete files of a killed run."""
    for folder in (out, out / "text", out / "crawl"):
        remove_temporary(folder)


def _source_digest() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _plan_mismatch(out: Path) -> UsageError:
    return UsageError(
        f"{out} was started with another recipe, other input files or word lists, or another "
        "version of the zoo or its libraries. Choose another --out."
    )


# --- the steps ------------------------------------------------------------------------------------


def _run(plan: Mapping, skip_reasons: Counter, out: Path, engine) -> dict:
    work, prep, data = out / "work", plan["prep"], plan["data"]
    count = len(plan["shards"])
    common = {"work": str(work), "out": str(out), "prep": prep, "shards": count}

    def run_on_shards(step, title: str, **kwargs):
        tasks = [{**common, "name": shard, **kwargs} for shard in range(count)]
        if step is steps.filter_documents:
            tasks = [{**t, "shard": s} for t, s in zip(tasks, plan["shards"], strict=True)]
        return run_step(step, title, tasks)

    def run_step(step, title: str, tasks: list[dict]) -> list[dict]:
        pending = [
            t for t in tasks if not steps.path_of(work, step.__name__, t["name"], ".json").exists()
        ]
        with StepProgress(title, len(tasks), len(tasks) - len(pending)) as progress:
            for task in engine.run(step, pending):
                progress.update(steps.step_result(work, step.__name__, task["name"]).get("tally"))
        return [steps.step_result(work, step.__name__, task["name"]) for task in tasks]

    def parts(amount: int) -> int:
        return max(1, -(-amount // PART))

    tally = Tally()
    tally.unreadable.update(skip_reasons)
    results = run_on_shards(steps.filter_documents, "read, extract, clean, filter")
    _add_tallies(tally, results)
    if not tally.reached["extract"]:
        reasons = ", ".join(
            f"{count:,} {reason}" for reason, count in tally.unreadable.most_common(5)
        )
        raise RunError(
            f"The input contains no readable document ({reasons or 'nothing'}). prep.text_field"
            f" ({prep['text_field']!r}) and prep.html_field must name columns of JSONL and "
            "Parquet. Choose another --out for another recipe."
        )
    line_parts = 0
    if prep["dedup"]["line_documents"]:
        line_parts = parts(sum(result["lines"] for result in results))
        run_step(
            steps.frequent_lines, "repeated lines",
            [{**common, "name": part, "parts": line_parts} for part in range(line_parts)],
        )  # fmt: skip
    results = run_on_shards(steps.hash_documents, "hash", parts=line_parts)
    _add_tallies(tally, results)
    documents = sum(result["documents"] for result in results)
    exact_parts = parts(documents) if prep["dedup"]["exact"] else 0
    run_step(
        steps.exact_duplicates, "exact duplicates",
        [{**common, "name": part, "parts": exact_parts} for part in range(exact_parts)],
    )  # fmt: skip
    if prep["dedup"]["near"]:
        _near_duplicates(run_step, run_on_shards, common, work, parts(documents), exact_parts)
    limit = _validation_limit(work, count, exact_parts, prep["validation"])
    results = run_on_shards(
        steps.write_splits, "text", exact_parts=exact_parts, validation_below=limit
    )
    _add_tallies(tally, results)
    document_counts = {split: sum(r["counts"][split] for r in results) for split in SPLITS}
    with StepProgress("tokenizer"):
        tokenizer = _tokenizer(data, prep, out, count)
    results = run_on_shards(steps.tokenize, "tokens")
    token_counts = {split: sum(result[split] for result in results) for split in SPLITS}
    with StepProgress("records"):
        fingerprints = {split: _pack(split, data, tokenizer, out, count) for split in SPLITS}
    result = {
        "input": prep["input"],
        "documents": document_counts,
        "tokens": token_counts,
        "tokenizer": tokenizer.fingerprint,
        "records": fingerprints,
        "licences": dict(sorted(tally.licences.items())[:100]),
        **{key: data[key] for key in ("sequence_length", "packing")},
    }
    values = card.describe(tally, result, plan, tokenizer, _validation_texts(out, count))
    write_json(out / "data_card.json", values)
    card.write_card(values, out / "data_card.html")
    return result


def _add_tallies(tally: Tally, results: list[dict]) -> None:
    for result in results:
        tally.add(Tally.from_json(result["tally"]))


def _near_duplicates(
    run_step, run_on_shards, common: dict, work: Path, parts: int, exact_parts: int
) -> None:
    tasks = [
        {**common, "name": f"{band:03d}-{part:05d}", "band": band, "part": part, "parts": parts,
         "exact_parts": exact_parts}
        for band in range(common["prep"]["dedup"]["bands"])
        for part in range(parts)
    ]  # fmt: skip
    run_step(steps.candidate_pairs, "candidates", tasks)
    names = [task["name"] for task in tasks]
    run_on_shards(steps.verified_pairs, "near duplicates", candidates=names)
    if not (work / "near.npy").exists():
        duplicates = (
            np.array(steps.load_output(work, "verified_pairs", shard))
            for shard in range(common["shards"])
        )
        similar = steps.SimilarityCheck(work, common["prep"]["dedup"]["similarity"])
        save_array(work / "near.npy", dedup.near_duplicates(duplicates, similar))


def _validation_limit(work: Path, count: int, exact_parts: int, share: float) -> int:
    """Returns the hash below which a document is for validation; at least one is, and not all."""
    dropped_keys = [steps.load_exact_duplicates(work, exact_parts)[:, 0]]
    if (work / "near.npy").exists():
        dropped_keys.append(load_array(work / "near.npy")[:, 0])
    dropped_keys = np.concatenate(dropped_keys)
    remaining = [np.empty(0, np.uint64)]
    for shard in range(count):
        keys = steps.load_output(work, "hash_documents", shard, "-keys.npy")
        hashes = steps.load_output(work, "hash_documents", shard, "-exact.npy")
        remaining.append(hashes[~np.isin(keys, dropped_keys)])
    sorted_hashes = np.unique(np.concatenate(remaining))
    if len(sorted_hashes) < 2:
        raise RunError(
            f"{'One document is' if len(sorted_hashes) else 'No documents are'} left: training and "
            f"validation require one document each. {work} lists the dropped documents and reasons "
            "by shard; prep.rules selects the rules."
        )
    limit = min(int(share * 2**64), 2**64 - 1)
    return min(max(limit, int(sorted_hashes[0]) + 1), int(sorted_hashes[-1]))


def _tokenizer(data: Mapping, prep: Mapping, out: Path, count: int):
    path = out / "tokenizer.json"
    if path.exists():
        return load_tokenizer(path)
    if data["tokenizer"] in KINDS:
        limit = prep["tokenizer_bytes"]

        def texts():
            num_bytes = 0
            for shard in range(count):
                for document in read_documents(out / "text" / f"train-{shard:05d}.jsonl.gz"):
                    num_bytes += len(document.text.encode())
                    if num_bytes > limit and num_bytes > len(document.text.encode()):
                        return
                    yield document.text

        tokenizer = train_tokenizer(
            data["tokenizer"], texts(), data["vocabulary_size"], data["normalization"]
        )
    else:
        tokenizer = tokenizer_of(None, data, published=True)
    tokenizer.save(path)
    return tokenizer


def _validation_texts(out: Path, count: int) -> Iterator[str]:
    for shard in range(count):
        for document in read_documents(out / "text" / f"validation-{shard:05d}.jsonl.gz"):
            yield document.text


def _pack(split: str, data: Mapping, tokenizer, out: Path, count: int) -> str:
    """Writes the records of a split; returns their fingerprint."""
    folder = out / "records" / split
    if folder.exists():
        return open_records(folder, verify=False).fingerprint
    length, is_packed = data["sequence_length"] + 1, data["packing"] == "best_fit"
    kind = token_type(tokenizer)
    layout = {"tokens": ((length,) if is_packed else (), kind)}
    if is_packed:
        layout["segments"] = ((length,), np.uint16)

    def documents():
        for shard in range(count):
            flat, ends = (
                steps.load_output(out / "work", "tokenize", shard, f"-{split}{ending}.npy")
                for ending in ("", "-ends")
            )
            for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                yield flat[start:end]

    ends = {"start_id": tokenizer.start_id, "end_id": tokenizer.end_id}
    with RecordWriter(folder, layout, metadata={"packing": data["packing"]}) as writer:
        if is_packed:
            for tokens, segments in packing.best_fit(documents(), length, **ends):
                writer.append(tokens=tokens, segments=segments)
        else:
            for tokens in packing.stream(documents(), **ends):
                writer.append(tokens=tokens)
    return open_records(folder, verify=False).fingerprint
