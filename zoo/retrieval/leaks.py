"""Finds the documents of an index that a query must not see: its own, and near duplicates of it.

A text that the model must predict would otherwise be looked up. Candidates share a band of their
MinHashes; a candidate is a near duplicate if the exact Jaccard similarity of the word 5-grams
reaches `SIMILARITY`. A document that only contains the query's is not found.
"""

import numpy as np

from zoo.prep.cleaning import dedup
from zoo.retrieval.documents import Documents, shingles_of

SIMILARITY = 0.5


def own_documents(queries: Documents, index: Documents, tokenizer) -> list[np.ndarray]:
    """Returns for each query document the sorted documents of the index to leave out.

    Args:
      queries: documents of the queries.
      index: documents of the index.
      tokenizer: tokenizer of both.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for band in range(index.bands.shape[1]):
        order = np.argsort(index.bands[:, band], kind="stable")
        hashes, values = index.bands[order, band], queries.bands[:, band]
        low, high = (np.searchsorted(hashes, values, side) for side in ("left", "right"))
        for query in np.flatnonzero(high > low):
            found = order[low[query] : high[query]]
            pairs.append(np.stack([np.full_like(found, query), found], 1))
    own, shingles, last = [[] for _ in range(len(queries))], None, -1
    for query, document in np.unique(np.concatenate(pairs), axis=0).tolist():
        if query != last:
            shingles, last = shingles_of(tokenizer, queries.piece(query)), query
        other = shingles_of(tokenizer, index.piece(document))
        if dedup.jaccard(shingles, other) >= SIMILARITY:
            own[query].append(document)
    return [np.array(documents, np.int64) for documents in own]
