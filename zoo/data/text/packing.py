"""Documents of any length to sequences of one length, without loss.

`best_fit` gives rows for training on next tokens: with `tokens[:, :-1]` as inputs and
`tokens[:, 1:]` as targets (where both have the same segment), every token of a document but its
first is a target exactly once, and no row reads from one document into another.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from zoo.errors import UsageError

# Full rows that are held back, so that a chunk is worth the call.
CHUNK_ROWS = 1024


def best_fit(
    documents: Iterable[np.ndarray],
    length: int,
    *,
    start_id: int | None,
    end_id: int | None,
    buffer: int = 8192,
    counts: Counter | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Packs documents in rows: best-fit-decreasing (Ding et al. 2024, arXiv:2404.10830, 3.2).

    A document that is longer than a row is cut in pieces that overlap by one token: the last
    token of a piece is a target there and the first input of the next piece. Unlike the paper's,
    which do not overlap, none loses the target at its cut. Pieces that fill a row are rows; the
    last ones and the short documents are packed, `buffer` of them at a time, the longest first,
    each in the fullest row that still takes it.

    The order of the rows is a function of the arguments alone, and is not random: shuffle when
    reading.

    Args:
      documents: `(n,)` arrays of integers. Empty ones are skipped.
      length: of a row, at least 2.
      start_id: put before each document, or None.
      end_id: put after each document, or None.
      buffer: pieces that are packed together. More leave less padding and take more memory, at
        most `12 * buffer * length` bytes.
      counts: to it are added "documents", "empty_documents", "tokens" (with start and end, and
        each once), "rows" and "padding" (in tokens).

    Yields:
      `(tokens, segments)`, both `(n, length)` int32, n varies. Segments number the documents in a
      row 1, 2, 3 …; 0 is padding, whose tokens are 0.

    Raises:
      UsageError: a length or buffer that is too small, a document that is no row of integers.
    """
    if length < 2:
        raise UsageError(f"A row needs an input and a target: length >= 2. Received: {length}.")
    if buffer < 1:
        raise UsageError(f"The buffer must hold a document. Received: buffer={buffer}.")
    counts = Counter() if counts is None else counts
    # Here and not in the generator: a wrong argument is told by the call, not by the first row.
    return _best_fit(stream(documents, start_id=start_id, end_id=end_id, counts=counts),
                     length, buffer, counts)  # fmt: skip


def _best_fit(framed, length: int, buffer: int, counts: Counter):
    pieces, full, full_rows = [], [], 0
    for document in framed:
        if len(document) > length:
            windows = np.lib.stride_tricks.sliding_window_view(document, length)
            full.append(windows[:: length - 1])
            full_rows += len(full[-1])
            document = document[len(full[-1]) * (length - 1) :]
            # What is left begins with the last full row's last token: alone it is no target.
            if len(document) == 1:
                document = document[:0]
        if len(document):
            pieces.append(document)
        if full_rows >= CHUNK_ROWS:
            yield _full(full, counts)
            full, full_rows = [], 0
        if len(pieces) >= buffer:
            yield _pack(pieces, length, counts)
            pieces = []
    if full:
        yield _full(full, counts)
    if pieces:
        yield _pack(pieces, length, counts)


def _full(windows: list[np.ndarray], counts: Counter) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.concatenate(windows)
    counts["rows"] += len(tokens)
    return tokens, np.ones_like(tokens)


def _pack(pieces: list[np.ndarray], length: int, counts: Counter):
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    row = best_fit_decreasing(lengths, length)
    order = np.lexsort((-lengths, row))
    row, lengths = row[order], lengths[order]
    used = np.bincount(row, lengths).astype(np.int64)
    first = np.searchsorted(row, row)  # the place of the first piece of a piece's row
    filled = np.arange(length) < used[:, None]
    tokens, segments = np.zeros((2, len(used), length), np.int32)
    tokens[filled] = np.concatenate([pieces[place] for place in order.tolist()])
    segments[filled] = np.repeat(np.arange(len(row)) - first + 1, lengths)
    counts["rows"] += len(tokens)
    counts["padding"] += int(tokens.size - used.sum())
    return tokens, segments


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Returns `(n,)` int64, the bin of each item: the longest item first, in the fullest bin.

    Exactly best-fit-decreasing, all items of a length at once: after the first of them, the bin
    that took it is the fullest one that may take the next. So a bin takes as many as fit before
    another one does, and the work grows with the different lengths, not with the items.

    Args:
      lengths: `(n,)` integers in [1, capacity].
      capacity: of every bin.
    """
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), np.int64)
    rooms = [[] for _ in range(capacity + 1)]  # the bins that have this much room left
    open_rooms = 0  # bit r is set where rooms[r] is not empty
    opened = place = 0
    sizes, amounts = np.unique(-lengths, return_counts=True)
    for size, amount in zip((-sizes).tolist(), amounts.tolist(), strict=True):
        while amount:
            fitting = open_rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                candidates = rooms[room]
            else:
                room = capacity
                needed = -(-amount // (capacity // size))
                candidates = rooms[capacity] = list(range(opened, opened + needed))
                opened += needed
            each = room // size
            whole = min(len(candidates), amount // each)
            if whole:
                taken, rooms[room] = candidates[:whole], candidates[whole:]
                bins[order[place : place + whole * each]] = np.repeat(taken, each)
                some = whole * each
            else:  # the last bin is not filled up
                taken, rooms[room], each = candidates[:1], candidates[1:], amount
                bins[order[place : place + amount]] = taken[0]
                some = amount
            place += some
            amount -= some
            left = room - each * size
            rooms[left] += taken
            open_rooms |= 1 << left
            if not rooms[room]:
                open_rooms &= ~(1 << room)
            elif room == capacity:
                open_rooms |= 1 << room
    return bins


def stream(
    documents: Iterable[np.ndarray],
    *,
    start_id: int | None,
    end_id: int | None,
    counts: Counter | None = None,
) -> Iterator[np.ndarray]:
    """Yields each document as `(n,)` int32, `[start] document [end]`; their chain is the stream.

    Empty documents are skipped. `counts` gets "documents", "empty_documents" and "tokens".
    """
    counts = Counter() if counts is None else counts
    start = [] if start_id is None else [start_id]
    end = [] if end_id is None else [end_id]
    before, extra = len(start), len(start) + len(end)
    for document in documents:
        document = np.asarray(document)
        if not document.size:
            counts["empty_documents"] += 1
            continue
        if document.ndim != 1 or document.dtype.kind not in "iu":
            raise UsageError(
                "A document must be a one-dimensional array of token numbers. "
                f"Received: {document.shape} {document.dtype}."
            )
        framed = np.empty(len(document) + extra, np.int32)
        framed[:before] = start
        framed[before : before + len(document)] = document
        framed[before + len(document) :] = end
        counts["documents"] += 1
        counts["tokens"] += len(framed)
        yield framed


def padding_share(segments: np.ndarray) -> float:
    """Returns the share of padding in segments of any shape, 0 to 1."""
    return np.count_nonzero(segments == 0) / max(segments.size, 1)
