"""Builds an index, part by part and shard by shard.

A shard appears under its name when all of it is on the disk, so a killed build continues with the
first missing shard. Its entries are a function of the documents and the encoder alone.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import faiss
import numpy as np

from zoo.errors import UsageError
from zoo.progress import progress
from zoo.retrieval.bm25 import write_bm25
from zoo.retrieval.documents import Documents, open_documents, write_documents
from zoo.retrieval.manifest import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    TRAINED,
    check_encoder,
    part_folder,
    read_manifest,
    shard_folder,
    write_manifest,
)
from zoo.storage.disk import (
    atomic_path,
    content_of,
    file_digest,
    make_folder,
    read_object,
    remove_temporary,
    write_json,
)
from zoo.storage.locks import lock_folder
from zoo.storage.records import RecordWriter

SHARD_ENTRIES, SHARD_BYTES = 1 << 20, 512 << 20
_KEY_BYTES = 2
_STEP = 64  # rows or passages encoded at a time
# Number of training keys per cluster, which faiss recommends, and rounds of k-means.
_KEYS_PER_CLUSTER, _ROUNDS = 40, 10


def build(
    folder: str | Path,
    *,
    method: str,
    settings: Mapping,
    tokenizer,
    weights: str,
    model: str,
    source: Mapping,
    texts: Callable[[], Iterable[str]],
    make_entries: Callable[[Documents], object],
    add: bool,
) -> dict:
    """Builds an index, continues an unfinished build, or adds documents to an index.

    Args:
      folder: folder of the index.
      method: one of `zoo.retrieval.manifest.METHODS`.
      settings: JSON values that determine the entries, such as the length of a row.
      tokenizer: tokenizer of the encoder.
      weights: digest of the encoder's weights; "" for "bm25".
      model: name of the encoder.
      source: JSON values that identify the documents: "source", "split", "fingerprint" and
        "max_tokens".
      texts: returns the documents.
      make_entries: returns the entries of documents, such as `TokenStates`.
      add: whether to add the documents to a finished index.

    Returns:
      The manifest.

    Raises:
      UsageError: if the folder holds another index, or anything else.
      RunError: if there are no documents, or a file is damaged.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).exists() and not _is_new(folder):
        raise UsageError(f"{folder} must be a new folder or an index. {content_of(folder)}")
    make_folder(folder)
    with lock_folder(folder):
        remove_temporary(folder)
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            check_encoder(folder, manifest, tokenizer=tokenizer.fingerprint, weights=weights)
            _choose_part(folder, manifest, method, settings, source, add)
        else:
            tokenizer.save(folder / TOKENIZER)
            manifest = {
                "format": FORMAT, "method": method, "weights": weights, "model": model,
                "tokenizer": tokenizer.fingerprint, "settings": dict(settings),
                "parts": [_new_part(source)], "deleted": [],
            }  # fmt: skip
        write_manifest(folder, manifest)
        part = manifest["parts"][-1]
        if not part["complete"]:
            _build_part(folder, manifest, tokenizer, texts, make_entries)
            write_manifest(folder, manifest)
    return manifest


def _is_new(folder: Path) -> bool:
    """Returns whether a folder is empty, or holds what a killed build left before its manifest."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [""]
    return all(name in (".lock", TOKENIZER) or name.startswith(".zoo-") for name in names)


def _new_part(source: Mapping) -> dict:
    return {**source, "complete": False, "documents": 0, "tokens": 0, "entries": 0, "shards": []}


def _choose_part(folder, manifest, method, settings, source, add) -> None:
    """Adds a part to the manifest, or checks that the last one is the requested one."""
    for key, expected, received in (
        ("method", manifest["method"], method),
        ("settings", manifest["settings"], dict(settings)),
    ):
        if expected != received:
            raise UsageError(
                f"The {key} of {folder} must be {expected}. Received: {received}. Choose another "
                "folder for another index."
            )
    last = manifest["parts"][-1]
    is_same = all(last[key] == value for key, value in source.items())
    if is_same and not (add and last["complete"]):
        return
    if not last["complete"]:
        raise UsageError(
            f"The build of {folder} from {last['source']} ({last['split']}) must be finished "
            f"first. Received: {source['source']} ({source['split']})."
        )
    if any(all(part[k] == v for k, v in source.items()) for part in manifest["parts"]):
        raise UsageError(
            f"{folder} already contains these documents. Received: {source['source']} "
            f"({source['split']})."
        )
    if not add:
        raise UsageError(
            f"{folder} is a finished index of {last['source']} ({last['split']}). Set --add to add "
            f"{source['source']} ({source['split']})."
        )
    manifest["parts"].append(_new_part(source))


def _build_part(folder: Path, manifest: dict, tokenizer, texts, make_entries) -> None:
    """Writes the documents and the missing shards of the last part, and completes its row."""
    part, number = manifest["parts"][-1], len(manifest["parts"]) - 1
    path = part_folder(folder, number)
    make_folder(path)
    remove_temporary(path)
    write_documents(path, tokenizer, texts(), part["max_tokens"])
    documents = open_documents(path)
    entries = make_entries(documents)
    steps = _shard_steps(entries)
    trained = None
    if manifest["method"] != "bm25":
        if not (folder / TRAINED).exists():
            with atomic_path(folder / TRAINED) as temporary:
                faiss.write_index(_train(entries, steps), str(temporary))
        trained = folder / TRAINED
        manifest["trained"] = file_digest(trained)
    shards = range(0, len(entries), steps)
    for shard, first in enumerate(progress(shards, title="encoding", unit="shards")):
        place = shard_folder(folder, number, shard)
        if not place.exists():
            with atomic_path(place) as temporary:
                last = min(first + steps, len(entries))
                _write_shard(temporary, entries, first, last, trained)
    results = [_shard_result(shard_folder(folder, number, shard)) for shard in range(len(shards))]
    total = sum(result["entries"] for result in results)
    part |= {
        "documents": len(documents), "tokens": int(documents.starts[-1]), "entries": total,
        "shards": results, "complete": True,
    }  # fmt: skip


def _shard_result(place: Path) -> dict:
    return read_object(place / "shard.json", entries=int, files=dict)


def _shard_steps(entries) -> int:
    """Returns the number of rows or passages of a shard."""
    count = min(SHARD_ENTRIES, SHARD_BYTES // (_KEY_BYTES * entries.dim))
    return max(1, count // entries.entries_per_step)


def _train(entries, steps: int):
    """Returns an empty index with clusters of a sample of keys, taken evenly from all rows."""
    shard_entries = min(len(entries), steps) * entries.entries_per_step
    clusters = max(1, int(4 * shard_entries**0.5))
    wanted = clusters * _KEYS_PER_CLUSTER
    blocks = -(-len(entries) // _STEP)
    count = min(blocks, max(1, -(-wanted // (_STEP * entries.entries_per_step))))
    sample = []
    for block in np.unique(np.linspace(0, blocks - 1, count).astype(int)).tolist():
        sample.append(entries.encode(block * _STEP, (block + 1) * _STEP)[0])
    sample = np.concatenate(sample)
    clusters = max(1, min(clusters, len(sample) // _KEYS_PER_CLUSTER))
    index = faiss.index_factory(entries.dim, f"IVF{clusters},SQfp16")
    index.cp.niter, index.cp.seed = _ROUNDS, 1
    if len(sample):
        index.train(sample)
    return index


def _write_shard(folder: Path, entries, first: int, last: int, trained: Path | None) -> None:
    """Writes entries, keys and the digests of their files."""
    folder.mkdir()
    names = ["document", "position", *(["value"] if hasattr(entries, "rows") else [])]
    index, keys = None if trained is None else faiss.read_index(str(trained)), []
    with RecordWriter(folder / "entries", dict.fromkeys(names, ((), np.uint32))) as writer:
        for start in range(first, last, _STEP):
            block, rows = entries.encode(start, min(start + _STEP, last))
            if index is None:
                keys.append(block)
            else:
                index.add(block)
            writer.append(**rows)
    if index is None:
        write_bm25(folder / "bm25", np.concatenate(keys))
    else:
        faiss.write_index(index, str(folder / "index.faiss"))
    files = {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "entries"
    }
    write_json(folder / "shard.json", {"entries": writer.rows, "files": files})


def delete(folder: str | Path, documents: Iterable[int]) -> dict:
    """Deletes documents: no search returns them any more; their files stay.

    Args:
      folder: folder of a finished index.
      documents: numbers of documents, as `zoo generate --index` prints them.

    Returns:
      The manifest.

    Raises:
      UsageError: if a number is not that of a document, or is deleted already.
    """
    folder = Path(folder)
    read_manifest(folder)
    with lock_folder(folder):
        manifest = read_manifest(folder)
        count = sum(part["documents"] for part in manifest["parts"])
        for document in documents:
            if not 0 <= document < count or document in manifest["deleted"]:
                raise UsageError(
                    f"--delete must name documents of {folder} from 0 to {count - 1:,} that are "
                    f"not deleted yet. Received: {document}."
                )
            manifest["deleted"].append(document)
        write_manifest(folder, manifest)
    return manifest
