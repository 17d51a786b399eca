"""BM25 over passages of tokens, by the library bm25s. A shard has its own document frequencies."""

import logging
from pathlib import Path

import numpy as np

from zoo.data.text.special_tokens import PADDING
from zoo.start import without_jax

with without_jax():  # bm25s would import it to sort scores
    import bm25s

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets its own to DEBUG


def _rows(rows) -> list[list[int]]:
    return [[token for token in row if token != PADDING] for row in np.asarray(rows).tolist()]


def write_bm25(folder: Path, passages: np.ndarray) -> None:
    """Writes an index of passages (N, T) of tokens."""
    # With a vocabulary of its own making, the files would differ from run to run.
    tokens = np.unique(passages[passages != PADDING]).tolist()
    vocabulary = {str(token): number for number, token in enumerate(tokens)}
    corpus = [[vocabulary[str(token)] for token in row] for row in _rows(passages)]
    retriever = bm25s.BM25()
    retriever.index((corpus, vocabulary), show_progress=False)
    retriever.save(folder)


def open_bm25(folder: Path):
    """Opens the index of `write_bm25`, mapped into memory."""
    return bm25s.BM25.load(folder, mmap=True)


def search_bm25(retriever, queries, k: int, is_allowed: np.ndarray | None):
    """Returns the best passages of each query.

    Args:
      retriever: a `bm25s.BM25`.
      queries: (N, T) integers, tokens.
      k: number of passages, at most those of the index.
      is_allowed: (passages,) booleans; None for all.

    Returns:
      `(distances, passages)`, both (N, k): the negative score, inf for a passage that is not
      allowed or shares no token with the query.
    """
    mask = None if is_allowed is None else is_allowed.astype(np.float32)
    known = retriever.vocab_dict
    words = [[str(x) for x in row if str(x) in known] for row in _rows(queries)]
    distances = np.full((len(words), k), np.inf, np.float32)
    passages = np.full((len(words), k), -1, np.int64)
    if places := [place for place, row in enumerate(words) if row]:
        numbers, scores = retriever.retrieve(
            [words[place] for place in places],
            k=k,
            weight_mask=mask,
            show_progress=False,
            n_threads=0,
        )
        distances[places] = np.where(scores > 0, -scores, np.inf)
        passages[places] = np.where(scores > 0, numbers, -1)
    return distances, passages
