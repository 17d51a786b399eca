"""The whole road, from a recipe's section `prep` to a folder of records.

    D/text/          what was kept: a document a line, with address, title, licence …, by split
    D/tokenizer.json
    D/records/       tokens by split, as zoo.storage.records
    D/data_card.html, D/data_card.json
    D/prepared.json  last; where it is, all of D is whole
    D/work/          what lies between the steps; removed at the end

Every step leaves files that appear when they are whole, so that a kill costs the shards in work.
All of D is a function of the input, the recipe and the zoo, but for a page at its limit of time;
neither workers nor kills change a byte.
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
from zoo.data.text.dataset import token_type, tokenizer_of
from zoo.data.text.tokenizers import KINDS
from zoo.data.text.tokenizers import load as load_tokenizer
from zoo.data.text.tokenizers import train as train_tokenizer
from zoo.errors import RunError, UsageError
from zoo.prep import card, steps
from zoo.prep.cleaning import dedup
from zoo.prep.crawl import crawl, reasons
from zoo.prep.document import Tally
from zoo.prep.files import corpus_files, find, shards, split_input
from zoo.prep.progress import Progress
from zoo.prep.settings import check
from zoo.prep.store import load, read_documents, save
from zoo.storage.disk import (
    check_object,
    file_digest,
    make_folder,
    read_json,
    read_object,
    remove_temporary,
    write_json,
)
from zoo.storage.locks import lock_folder
from zoo.storage.records import RecordWriter, open_records

FORMAT = 1
_FOLDERS = ("work", "text", "records", "crawl")  # of D; none is a link
SPLITS = ("train", "validation")
# Hashes that a step holds at once, 16 bytes each and several times that while it sorts them.
PART = 4_000_000
_LIBRARIES = (
    "trafilatura", "ftfy", "datasketch", "py3langid", "webencodings", "lxml", "tokenizers",
)  # fmt: skip
# Settings of the rules that name a file.
_LISTS = (("address", "blocked_domains"), ("blocked_words", "file"), ("toxicity", "file"))
_DATA = ("tokenizer", "vocabulary_size", "normalization", "sequence_length", "packing")


def prepare(prep: Mapping, data: Mapping, out: str | Path, engine, allow_private=False) -> dict:
    """Prepares; run again after a kill, it goes on.

    Args:
      prep: the recipe's section `prep`, as plain dictionaries.
      data: its section `data`.
      out: the folder D above.
      engine: of `zoo.prep.engine`, entered.
      allow_private: whether a crawl may connect to addresses that are not public.

    Returns:
      What prepared.json holds.

    Raises:
      UsageError: a wrong value, input that names nothing, or a folder that another recipe, input
        or version has begun.
      RunError: nothing is left to learn from, or the disk or a worker fails.
    """
    check(prep, data)
    out = Path(out).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        for name in _FOLDERS:
            if os.path.lexists(out / name):
                make_folder(out / name)
        plan, skipped = _plan(prep, data, out, allow_private)
        begun, done = out / "work" / "plan.json", out / "prepared.json"
        plan_hash = _digest(plan)
        if done.exists():
            prepared = _read_prepared(done)
            if prepared["plan"] != plan_hash:
                raise _other_plan(out)
            _sweep(out)
            shutil.rmtree(out / "work", ignore_errors=True)
            return prepared
        if begun.exists():
            if _digest(read_json(begun)) != plan_hash:
                raise _other_plan(out)
            _sweep(out)
        elif any(path.name not in (".lock", "crawl", "work") for path in out.iterdir()):
            raise UsageError(f"{out} holds other files. Take a new --out.")
        else:
            make_folder(begun.parent)
            write_json(begun, plan)
        prepared = _run(plan, skipped, out, engine)
        write_json(done, {"format": FORMAT, "plan": plan_hash, **prepared})
        shutil.rmtree(out / "work", ignore_errors=True)
        return _read_prepared(done)


def _read_prepared(path: Path) -> dict:
    found = read_object(path, plan=str, documents=dict, tokens=dict)
    for split in SPLITS:
        for counts in (found["documents"], found["tokens"]):
            check_object(path, counts, **{split: int})
    return found


def _plan(prep: Mapping, data: Mapping, out: Path, allow_private: bool):
    patterns, corpora, addresses = split_input(prep["input"])
    skipped = Counter()
    files = find(patterns, skipped, out) if patterns else []
    files += corpus_files(corpora)
    if addresses:
        skipped += reasons(crawl(addresses, prep["crawl"], out / "crawl", allow_private))
        files += find([f"{glob.escape(str(out / 'crawl'))}/*.warc.gz"], skipped)
    if not files:
        listed = ", ".join(f"{count:,} {what}" for what, count in sorted(skipped.items()))
        raise UsageError(
            f"prep.input holds nothing to read ({listed or 'no files'}). It reads .warc, .wet, "
            ".html, .txt, .jsonl (each also .gz or .zst) and .parquet."
        )
    plan = {
        "format": FORMAT,
        "prep": dict(prep),
        "data": {key: data[key] for key in _DATA},
        "shards": shards(files, prep["shard_bytes"]),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "corpora": {name: _corpus_print(name) for name in corpora},
        "lists": _list_prints(prep),
        "source": _source_print(),
    }
    # As it will be read again: tuples are lists.
    return json.loads(json.dumps(plan)), skipped


def _sweep(out: Path) -> None:
    """Removes the halves of files that a kill left, as `zoo.storage.disk.atomic` names them."""
    for folder in (out, out / "text", out / "crawl"):
        remove_temporary(folder)


def _corpus_print(name: str) -> str:
    return load_corpus(name.removeprefix("corpus:")).fingerprint


def _list_prints(prep: Mapping) -> dict[str, str]:
    """The hashes of the files of words that the rules read."""
    found = {}
    for rule, key in _LISTS:
        if rule in prep["rules"] and (file := prep[rule][key]):
            found[f"{rule}.{key}"] = file_digest(file)
    return found


def _source_print() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _other_plan(out: Path) -> UsageError:
    return UsageError(
        f"{out} was made, or begun, with another recipe, other input files or word lists, or "
        "another version of the zoo or its libraries. Take a new --out."
    )


def _digest(plan: Mapping) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


# --- the steps, one after the other ---------------------------------------------------------------


def _run(plan: Mapping, skipped: Counter, out: Path, engine) -> dict:
    work, prep, data = out / "work", plan["prep"], plan["data"]
    count = len(plan["shards"])
    progress = Progress()
    same = {"work": str(work), "out": str(out), "prep": prep, "shards": count}

    def on_shards(step, title: str, **more):
        tasks = [{**same, "name": shard, **more} for shard in range(count)]
        if step is steps.filtered:
            tasks = [{**t, "shard": s} for t, s in zip(tasks, plan["shards"], strict=True)]
        return on(step, title, tasks)

    def on(step, title: str, tasks: list[dict]) -> list[dict]:
        progress.start(title, len(tasks))
        left = [
            t for t in tasks if not steps.path_of(work, step.__name__, t["name"], ".json").exists()
        ]
        progress.there(len(tasks) - len(left))
        for task in engine.run(step, left):
            progress.tick(steps.answer(work, step.__name__, task["name"]).get("tally"))
        progress.end()
        return [steps.answer(work, step.__name__, task["name"]) for task in tasks]

    def parts(amount: int) -> int:
        return max(1, -(-amount // PART))

    tally = Tally()
    tally.unreadable.update(skipped)
    found = on_shards(steps.filtered, "read, extract, clean, filter")
    _add(tally, found)
    if not tally.reached["extract"]:
        listed = ", ".join(f"{count:,} {what}" for what, count in tally.unreadable.most_common(5))
        raise RunError(
            f"The input holds no document that can be read ({listed or 'nothing'}). prep.text_field"
            f" ({prep['text_field']!r}) and prep.html_field name the columns of JSONL and Parquet. "
            "Take a new --out for another recipe."
        )
    line_parts = 0
    if prep["dedup"]["line_documents"]:
        line_parts = parts(sum(one["lines"] for one in found))
        on(
            steps.frequent_lines, "repeated lines",
            [{**same, "name": part, "parts": line_parts} for part in range(line_parts)],
        )  # fmt: skip
    found = on_shards(steps.signed, "hash", parts=line_parts)
    _add(tally, found)
    documents = sum(one["documents"] for one in found)
    exact_parts = parts(documents) if prep["dedup"]["exact"] else 0
    on(
        steps.exact_duplicates, "exact duplicates",
        [{**same, "name": part, "parts": exact_parts} for part in range(exact_parts)],
    )  # fmt: skip
    if prep["dedup"]["near"]:
        _near_duplicates(on, on_shards, same, work, parts(documents), exact_parts)
    below = _validation_below(work, count, exact_parts, prep["validation"])
    found = on_shards(steps.text, "text", exact_parts=exact_parts, validation_below=below)
    _add(tally, found)
    kept = {split: sum(one["counts"][split] for one in found) for split in SPLITS}
    progress.start("tokenizer", 1)
    tokenizer = _tokenizer(data, prep, out, count)
    progress.end()
    found = on_shards(steps.tokens, "tokens")
    amounts = {split: sum(one[split] for one in found) for split in SPLITS}
    progress.start("records", len(SPLITS))
    prints = {split: _pack(split, data, tokenizer, out, count) for split in SPLITS}
    progress.end()
    about = {
        "input": prep["input"],
        "documents": kept,
        "tokens": amounts,
        "tokenizer": tokenizer.fingerprint,
        "records": prints,
        "licences": dict(sorted(tally.licences.items())[:100]),
        **{key: data[key] for key in ("sequence_length", "packing")},
    }
    described = card.describe(tally, about, plan, tokenizer, _validation_texts(out, count))
    write_json(out / "data_card.json", described)
    card.write_card(described, out / "data_card.html")
    return about


def _add(tally: Tally, found: list[dict]) -> None:
    for one in found:
        tally.add(Tally.from_json(one["tally"]))


def _near_duplicates(on, on_shards, same: dict, work: Path, parts: int, exact_parts: int) -> None:
    tasks = [
        {**same, "name": f"{band:03d}-{part:05d}", "band": band, "part": part, "parts": parts,
         "exact_parts": exact_parts}
        for band in range(same["prep"]["dedup"]["bands"])
        for part in range(parts)
    ]  # fmt: skip
    on(steps.candidate_pairs, "candidates", tasks)
    names = [task["name"] for task in tasks]
    on_shards(steps.verified_pairs, "near duplicates", candidates=names)
    if not (work / "near.npy").exists():
        duplicates = (
            np.array(load(steps.path_of(work, "verified_pairs", shard, ".npy")))
            for shard in range(same["shards"])
        )
        similar = steps.Similar(work, same["prep"]["dedup"]["similarity"])
        save(work / "near.npy", dedup.representatives(duplicates, similar))


def _validation_below(work: Path, count: int, exact_parts: int, share: float) -> int:
    """Returns the hash below which a document is for validation; at least one is, and not all."""
    gone = [steps.exact_of(work, exact_parts)[:, 0]]
    if (work / "near.npy").exists():
        gone.append(load(work / "near.npy")[:, 0])
    gone = np.concatenate(gone)
    stays = [np.empty(0, np.uint64)]
    for shard in range(count):
        keys = load(steps.path_of(work, "signed", shard, "-keys.npy"))
        hashes = load(steps.path_of(work, "signed", shard, "-exact.npy"))
        stays.append(hashes[~np.isin(keys, gone)])
    ranked = np.unique(np.concatenate(stays))
    if len(ranked) < 2:
        raise RunError(
            f"{'One document is' if len(ranked) else 'No documents are'} left: training and "
            f"validation need one each. {work} holds what the rules dropped and why, by shard; "
            "prep.rules chooses them."
        )
    below = min(int(share * 2**64), 2**64 - 1)
    return min(max(below, int(ranked[0]) + 1), int(ranked[-1]))


def _tokenizer(data: Mapping, prep: Mapping, out: Path, count: int):
    path = out / "tokenizer.json"
    if path.exists():
        return load_tokenizer(path)
    if data["tokenizer"] in _kinds():
        limit = prep["tokenizer_bytes"]

        def texts():
            read = 0
            for shard in range(count):
                for document in read_documents(out / "text" / f"train-{shard:05d}.jsonl.gz"):
                    read += len(document.text.encode())
                    if read > limit and read > len(document.text.encode()):
                        return
                    yield document.text

        tokenizer = train_tokenizer(
            data["tokenizer"], texts(), data["vocabulary_size"], data["normalization"]
        )
    else:
        tokenizer = tokenizer_of(None, data)
    tokenizer.save(path)
    return tokenizer


def _kinds():
    return KINDS


def _validation_texts(out: Path, count: int) -> Iterator[str]:
    for shard in range(count):
        for document in read_documents(out / "text" / f"validation-{shard:05d}.jsonl.gz"):
            yield document.text


def _pack(split: str, data: Mapping, tokenizer, out: Path, count: int) -> str:
    """Writes the records of a split; returns their fingerprint."""
    folder = out / "records" / split
    if folder.exists():
        return open_records(folder, verify=False).fingerprint
    length, packed = data["sequence_length"] + 1, data["packing"] == "best_fit"
    kind = token_type(tokenizer)
    layout = {"tokens": ((length,) if packed else (), kind)}
    if packed:
        layout["segments"] = ((length,), np.uint16)

    def documents():
        for shard in range(count):
            flat, ends = (
                load(steps.path_of(out / "work", "tokens", shard, f"-{split}{ending}.npy"))
                for ending in ("", "-ends")
            )
            for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
                yield flat[start:end]

    ends = {"start_id": tokenizer.start_id, "end_id": tokenizer.end_id}
    with RecordWriter(folder, layout, metadata={"packing": data["packing"]}) as writer:
        if packed:
            for tokens, segments in packing.best_fit(documents(), length, **ends):
                writer.append(tokens=tokens, segments=segments)
        else:
            for tokens in packing.stream(documents(), **ends):
                writer.append(tokens=tokens)
    return open_records(folder, verify=False).fingerprint
