"""Rows of tokens with the neighbors of each chunk, for the task `retro`.

The neighbors are found once, by BM25, and stored as records in the cache.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text.dataset import cached_records, check, corpus_of, facts, token_type, tokenizer_of
from zoo.data.text.special_tokens import FIRST_WORD, PADDING
from zoo.errors import UsageError
from zoo.retrieval.build import build
from zoo.retrieval.documents import read_texts
from zoo.retrieval.encoders import Passages
from zoo.retrieval.index import Index
from zoo.retrieval.leaks import own_documents
from zoo.retrieval.rows import Rows
from zoo.storage.disk import json_digest
from zoo.storage.locks import one_at_a_time
from zoo.storage.paths import cache_dir

_BLOCK_ROWS = 64


def rows_with_neighbors(data: Mapping, task: Mapping) -> Dataset:
    """Loads rows for `zoo.tasks.retro`.

    Examples have "tokens" (sequence_length + 1,), -1 after the end of the text, and "neighbors"
    (chunks, neighbors, 2 * chunk_size): passages of the index and the tokens after them. A neighbor
    is never of a document of the same row, or of a near duplicate of it.

    Args:
      data: section `data` of the recipe, with the packing "stream".
      task: section `task` of the recipe: index, neighbors, chunk_size.

    Raises:
      UsageError: if the index is of another method or tokenizer, or a length does not fit.
    """
    check(data, ("stream",))
    length, size, count = data["sequence_length"], task["chunk_size"], task["neighbors"]
    if size < 2 or length % size:
        raise UsageError(
            "data.sequence_length must be a multiple of task.chunk_size, which is at least 2. "
            f"Received: {length} and {size}."
        )
    corpus = corpus_of(data)
    tokenizer = tokenizer_of(corpus, data)
    index = _open_index(task, corpus, tokenizer)
    index.check_neighbors(count)
    settings = {
        "index": json_digest(index.manifest), "neighbors": count, "chunk_size": size,
        "length": length,
    }  # fmt: skip
    layout = {
        "tokens": ((length + 1,), np.int32),
        "neighbors": ((length // size, count, 2 * size), token_type(tokenizer)),
    }

    def rows(split):
        documents = read_texts(tokenizer, corpus.splits[split]())
        own = own_documents(documents, index.documents, tokenizer)
        stream = Rows(documents, length, "stream")
        for start in range(0, len(stream), _BLOCK_ROWS):
            tokens, numbers, _ = stream.take(start, start + _BLOCK_ROWS)
            yield {"tokens": tokens, "neighbors": find_neighbors(index, tokens, numbers, own, task)}

    splits, digest = cached_records(corpus, tokenizer, settings, layout, rows)
    return Dataset(corpus.name, splits, (), digest, tokenizer, facts(corpus, tokenizer, splits))


def _open_index(task: Mapping, corpus, tokenizer) -> Index:
    """Opens the index of the task, or builds one of the training split in the cache."""
    folder = Path(task["index"]).expanduser()
    if not task["index"]:
        size = task["chunk_size"]
        key = json_digest([corpus.fingerprint, tokenizer.fingerprint, size])
        folder = cache_dir() / "indexes" / key[:32]
        with one_at_a_time(folder):
            build(
                folder, method="bm25", settings={"length": size}, tokenizer=tokenizer, weights="",
                model="", texts=corpus.splits["train"], add=False,
                source={
                    "source": corpus.name, "split": "train", "fingerprint": corpus.fingerprint,
                    "max_tokens": 0,
                },
                make_entries=lambda documents: Passages(documents, size),
            )  # fmt: skip
    index = Index(folder).check_encoder(tokenizer=tokenizer.fingerprint)
    if index.method != "bm25":
        raise UsageError(
            f"task.index must be an index of the method 'bm25'. Received: {folder}, of the method "
            f"{index.method!r}."
        )
    return index


def find_neighbors(
    index: Index, tokens: np.ndarray, documents: np.ndarray, own: list, task: Mapping
) -> np.ndarray:
    """Returns the neighbors of each chunk of rows.

    Args:
      index: index of the method "bm25".
      tokens: (n, T + 1) integers, -1 after the end of the text.
      documents: (n, T + 1) integers, the document of each token, -1 after the end of the text.
      own: for each document, the documents of the index to leave out.
      task: section `task` of the recipe.

    Returns:
      (n, chunks, neighbors, 2 * chunk_size) int64, PADDING after the end of a document.
    """
    size, count = task["chunk_size"], task["neighbors"]
    chunks = (tokens.shape[1] - 1) // size
    found = np.full((len(tokens), chunks, count, 2 * size), PADDING, np.int64)
    groups: dict[tuple, list] = {}
    for row, numbers in enumerate(documents):
        # Attention may carry what a position has read to all later positions of the row.
        left_out = [own[document] for document in np.unique(numbers[numbers >= 0]).tolist()]
        groups.setdefault(tuple(np.unique(np.concatenate(left_out)).tolist()), []).append(row)
    for excluded, rows in groups.items():
        queries = tokens[rows, :-1].reshape(-1, size)
        queries = np.where(queries < FIRST_WORD, PADDING, queries)
        _, entries = index.search(queries, count, excluded=excluded)
        for place, line in enumerate(entries):
            row, chunk = rows[place // chunks], place % chunks
            starts = zip(*index.places(line[line >= 0]), strict=True)
            for rank, (document, first) in enumerate(starts):
                piece = index.documents.piece(document, first, first + 2 * size)
                found[row, chunk, rank, : len(piece)] = piece
    return found
