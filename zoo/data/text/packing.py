"""Packs documents of any length into rows of equal length, without loss.

With `tokens[:, :-1]` as inputs and `tokens[:, 1:]` as targets in the same segment, every token of a
document but the first is a target exactly once, and no context crosses a document boundary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from zoo.errors import UsageError

CHUNK_ROWS = 1024  # minimum number of full rows per yielded chunk


def best_fit(
    documents: Iterable[np.ndarray],
    length: int,
    *,
    start_id: int | None,
    end_id: int | None,
    buffer: int = 8192,
    counts: Counter | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Packs documents by best-fit-decreasing (Ding et al. 2024, arXiv:2404.10830, section 3.2).

    A document longer than a row is cut into pieces that overlap by one token, so that no target is
    lost at a cut, unlike in the paper. The last pieces and short documents are packed, `buffer` at
    a time, the longest first, each into the fullest row with enough room. The order of rows is
    deterministic and not random: shuffle when reading.

    Args:
      documents: `(n,)` arrays of integers. Empty documents are skipped.
      length: length of a row, at least 2.
      start_id: id inserted before each document, or None.
      end_id: id appended to each document, or None.
      buffer: number of pieces packed together. More pieces leave less padding, and take at most
        `12 * buffer * length` bytes.
      counts: updated with "documents", "empty_documents", "tokens" (with start and end, each once),
        "rows" and "padding" (in tokens).

    Yields:
      `(tokens, segments)`, both `(n, length)` int32, n varies. Segments number the documents of a
      row from 1; padding has segment 0 and token 0.

    Raises:
      UsageError: if the length or the buffer is too small, or a document is not a 1-D integer
        array.
    """
    if length < 2:
        raise UsageError(f"length must be at least 2. Received: {length}.")
    if buffer < 1:
        raise UsageError(f"buffer must be at least 1. Received: {buffer}.")
    counts = Counter() if counts is None else counts
    # A separate generator, so that the call itself raises the errors above.
    return _best_fit(stream(documents, start_id=start_id, end_id=end_id, counts=counts),
                     length, buffer, counts)  # fmt: skip


def _best_fit(documents, length: int, buffer: int, counts: Counter):
    pieces, full, full_rows = [], [], 0
    for document in documents:
        if len(document) > length:
            windows = np.lib.stride_tricks.sliding_window_view(document, length)
            full.append(windows[:: length - 1])
            full_rows += len(full[-1])
            document = document[len(full[-1]) * (length - 1) :]
            # The remainder starts with the last token of the last full row.
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
    used_positions = np.bincount(row, lengths).astype(np.int64)
    first = np.searchsorted(row, row)  # index of the first piece in the row of each piece
    is_filled = np.arange(length) < used_positions[:, None]
    tokens, segments = np.zeros((2, len(used_positions), length), np.int32)
    tokens[is_filled] = np.concatenate([pieces[index] for index in order.tolist()])
    segments[is_filled] = np.repeat(np.arange(len(row)) - first + 1, lengths)
    counts["rows"] += len(tokens)
    counts["padding"] += int(tokens.size - used_positions.sum())
    return tokens, segments


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Assigns items to bins by best-fit-decreasing.

    All items of equal length are placed at once: after the first of them, its bin is the fullest
    one with room for the next. So the time grows with the number of different lengths.

    Args:
      lengths: `(n,)` integers in [1, capacity].
      capacity: capacity of each bin.

    Returns:
      `(n,)` int64, the bin of each item.
    """
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), np.int64)
    bins_of_room = [[] for _ in range(capacity + 1)]  # remaining room -> bins
    room_bits = 0  # bit r is set if bins_of_room[r] is not empty
    num_bins = start = 0
    sizes, amounts = np.unique(-lengths, return_counts=True)
    for size, amount in zip((-sizes).tolist(), amounts.tolist(), strict=True):
        while amount:
            fitting = room_bits >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                candidates = bins_of_room[room]
            else:
                room = capacity
                num_needed = -(-amount // (capacity // size))
                candidates = bins_of_room[capacity] = list(range(num_bins, num_bins + num_needed))
                num_bins += num_needed
            per_bin = room // size
            num_filled = min(len(candidates), amount // per_bin)
            if num_filled:
                target_bins, bins_of_room[room] = candidates[:num_filled], candidates[num_filled:]
                bins[order[start : start + num_filled * per_bin]] = np.repeat(target_bins, per_bin)
                num_placed = num_filled * per_bin
            else:  # the last bin is not filled
                target_bins, bins_of_room[room], per_bin = candidates[:1], candidates[1:], amount
                bins[order[start : start + amount]] = target_bins[0]
                num_placed = amount
            start += num_placed
            amount -= num_placed
            remaining = room - per_bin * size
            bins_of_room[remaining] += target_bins
            room_bits |= 1 << remaining
            if not bins_of_room[room]:
                room_bits &= ~(1 << room)
            elif room == capacity:
                room_bits |= 1 << room
    return bins


def stream(
    documents: Iterable[np.ndarray],
    *,
    start_id: int | None,
    end_id: int | None,
    counts: Counter | None = None,
) -> Iterator[np.ndarray]:
    """Yields each document as `[start] document [end]`, `(n,)` int32; skips empty documents.

    `counts` is updated with "documents", "empty_documents" and "tokens".
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
                "A document must be a 1-D array of integer token ids. "
                f"Received: {document.shape} {document.dtype}."
            )
        marked_document = np.empty(len(document) + extra, np.int32)
        marked_document[:before] = start
        marked_document[before : before + len(document)] = document
        marked_document[before + len(document) :] = end
        counts["documents"] += 1
        counts["tokens"] += len(marked_document)
        yield marked_document
