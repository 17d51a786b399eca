"""Rows of tokens of documents, as the decoder saw them in training."""

import numpy as np

from zoo.data.text.special_tokens import END, START
from zoo.retrieval.documents import Documents


class Rows:
    """Rows of `length + 1` tokens; every token but the first of a document is a target once.

    With the packing "stream", rows are windows of all documents in order, which are those of
    `zoo.data.windows`. With "best_fit", each row is a piece of one document: the pieces that
    `zoo.data.text.packing` cuts, one per row.

    Args:
      documents: the documents; each becomes <start> tokens <end>.
      length: number of positions.
      packing: "stream" or "best_fit".
    """

    def __init__(self, documents: Documents, length: int, packing: str):
        self.documents, self.length, self.packing = documents, length, packing
        sizes = documents.lengths + 2
        # Of each document, its first place in the stream, or its first row.
        counts = sizes if packing == "stream" else -(-(sizes - 1) // length)
        self._firsts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        total = int(self._firsts[-1])
        return max(1, -(-(total - 1) // self.length)) if self.packing == "stream" else total

    def take(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the rows from `first` to `last` (exclusive), at most to the last one.

        Returns:
          `(tokens, documents, positions)`, all (n, length + 1) int64: the token, its document and
          its place among the document's tokens, -1 for <start>. After the end of the text, token
          and document are -1.
        """
        rows = np.arange(first, min(last, len(self)))[:, None]
        columns = np.arange(self.length + 1)[None]
        firsts, sizes = self._firsts, self.documents.lengths + 2
        if self.packing == "stream":
            places = rows * self.length + columns
            documents = np.searchsorted(firsts, places, "right") - 1
            is_text = documents < len(sizes)
            documents = np.where(is_text, documents, 0)
            positions = places - firsts[documents] - 1
        else:
            documents = np.broadcast_to(
                np.searchsorted(firsts, rows, "right") - 1, (len(rows), self.length + 1)
            )
            positions = (rows - firsts[documents]) * self.length + columns - 1
            is_text = positions < sizes[documents] - 1
        lengths = self.documents.lengths[documents]
        is_word = is_text & (positions >= 0) & (positions < lengths)
        tokens = np.where(positions < 0, START, END).astype(np.int64)
        places = (self.documents.starts[documents] + positions)[is_word]
        tokens[is_word] = self.documents.tokens[places]
        return np.where(is_text, tokens, -1), np.where(is_text, documents, -1), positions
