"""Searches an index.

The keys of a shard are vectors in clusters (inverted lists of faiss, 16 bits a number), mapped into
memory. A search visits the `probes` nearest clusters of each shard; `search_exactly`, its
reference, compares a query with all keys.
"""

from collections.abc import Mapping
from pathlib import Path

import faiss
import numpy as np

from zoo.data.text import tokenizers
from zoo.errors import RunError, UsageError, require, short
from zoo.retrieval.bm25 import open_bm25, search_bm25
from zoo.retrieval.documents import Documents, open_documents
from zoo.retrieval.manifest import (
    TOKENIZER,
    TRAINED,
    check_encoder,
    part_folder,
    read_manifest,
    shard_folder,
)
from zoo.storage.disk import file_digest
from zoo.storage.records import ShardedArray, open_records

PROBES = 32
_EXACT_BLOCK = 1 << 16  # keys in memory at a time in an exact search


class _Shard:
    """Entries of a shard and their keys.

    Attributes:
      documents: (n,) sorted int64: document of each entry, as a number of the whole index.
      keys: a faiss index or a `bm25s.BM25`.
    """

    def __init__(self, folder: Path, row: Mapping, method: str, first_document: int):
        try:
            entries, files = row["entries"], dict(row["files"])
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{folder} has a damaged row in the manifest.") from None
        for name, digest in files.items():
            path = folder / name
            if not path.is_file() or file_digest(path) != digest:
                raise RunError(
                    f"{path} is missing, truncated or altered: delete {folder} and run the same "
                    "`zoo index` to build it again."
                )
        arrays = open_records(folder / "entries").arrays
        self.documents = np.asarray(arrays["document"]).astype(np.int64) + first_document
        self.positions, self.values = arrays["position"], arrays.get("value")
        try:
            if method == "bm25":
                self.keys = open_bm25(folder / "bm25")
            else:
                path = str(folder / "index.faiss")
                self.keys = faiss.read_index(path, faiss.IO_FLAG_MMAP)
        except Exception as error:  # the libraries raise many types
            raise RunError(f"{folder} cannot be read: {short(error)}.") from None
        count = len(self.documents)
        stored = count if method == "bm25" else self.keys.ntotal
        if count != entries or stored != entries:
            raise RunError(f"{folder} is damaged: it has {stored:,} keys, not {entries:,}.")

    def __len__(self) -> int:
        return len(self.documents)

    def allowed(self, excluded: np.ndarray) -> np.ndarray | None:
        """Returns (n,) booleans of the entries outside documents; None if all are outside."""
        low, high = (np.searchsorted(self.documents, excluded, side) for side in ("left", "right"))
        if not (high > low).any():
            return None
        is_allowed = np.ones(len(self), bool)
        for start, stop in zip(low.tolist(), high.tolist(), strict=True):
            is_allowed[start:stop] = False
        return is_allowed


class Index:
    """An index of `zoo.retrieval.build`, open for searches.

    Args:
      folder: folder of the index.

    Attributes:
      manifest: see `zoo.retrieval.manifest`.
      tokenizer: tokenizer of the documents.
      documents: the documents of all parts.
      values: (N,) integers: the token that each entry stands for; None for passages.

    Raises:
      UsageError: if the folder is not a finished index.
      RunError: if a file is missing, truncated or altered.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.method, self.deleted = self.manifest["method"], self.manifest["deleted"]
        parts = self.manifest["parts"]
        if not all(part["complete"] for part in parts):
            raise UsageError(f"{folder} is not finished. Run the same `zoo index` to continue it.")
        self.tokenizer = tokenizers.load(self.folder / TOKENIZER)
        check_encoder(folder, self.manifest, tokenizer=self.tokenizer.fingerprint)
        if "trained" in self.manifest and (
            not (self.folder / TRAINED).is_file()
            or file_digest(self.folder / TRAINED) != self.manifest["trained"]
        ):
            raise RunError(f"{self.folder / TRAINED} is missing or altered. Build the index again.")
        self._shards, opened, self._part_firsts = [], [], [0]
        for number, part in enumerate(parts):
            opened.append(open_documents(part_folder(self.folder, number)))
            for shard, row in enumerate(part["shards"]):
                place = shard_folder(self.folder, number, shard)
                self._shards.append(_Shard(place, row, self.method, self._part_firsts[-1]))
            self._part_firsts.append(self._part_firsts[-1] + len(opened[-1]))
        self.documents = _joined(opened)
        self.firsts = np.cumsum([0, *map(len, self._shards)])
        self.dim = None if self.method == "bm25" else self._shards[0].keys.d
        self.values = None
        if self.method == "states":
            self.values = np.concatenate([np.asarray(shard.values) for shard in self._shards])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def check_encoder(self, *, weights: str = "", tokenizer: str = "") -> "Index":
        """Raises `UsageError` if the index was built with another encoder; returns the index."""
        check_encoder(self.folder, self.manifest, weights=weights, tokenizer=tokenizer)
        return self

    def check_neighbors(self, neighbors: int, probes: int = 1) -> None:
        """Raises `UsageError` if a search cannot return this number of neighbors."""
        most = len(self) - sum(
            int(np.isin(shard.documents, self.deleted).sum()) for shard in self._shards
        )
        rule = f"from 1 to {most:,}, the number of entries of {self.folder}"
        require(1 <= neighbors <= most, "neighbors", rule, neighbors)
        require(probes >= 1, "probes", "at least 1", probes)

    def search(
        self, queries: np.ndarray, neighbors: int, *, excluded=(), probes: int = PROBES
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest entries of each query.

        Args:
          queries: (M, C) float32 states; (M, T) tokens for "bm25".
          neighbors: k, the number of entries.
          excluded: documents to leave out, in addition to deleted ones.
          probes: number of clusters to visit in each shard.

        Returns:
          `(distances, entries)`: (M, k) float32, squared L2 distances or negative BM25 scores in
          increasing order, and (M, k) int64. Without enough entries, the last distances are inf
          and their entries -1.
        """

        def search(shard, is_allowed):
            if self.method == "bm25":
                k = min(neighbors, len(shard))
                return search_bm25(shard.keys, queries, k, is_allowed)
            options = {"nprobe": min(probes, shard.keys.nlist)}
            if is_allowed is not None:
                bits = np.packbits(is_allowed, bitorder="little")
                options["sel"] = faiss.IDSelectorBitmap(bits)
            parameters = faiss.SearchParametersIVF(**options)
            return shard.keys.search(np.float32(queries), neighbors, params=parameters)

        return self._merged(search, len(queries), neighbors, excluded)

    def search_exactly(self, queries: np.ndarray, neighbors: int, *, excluded=()):
        """Returns the result of `search` by comparison with all stored keys, which are vectors."""
        queries = np.float32(queries)

        def search(shard, is_allowed):
            shard.keys.make_direct_map()
            found = []
            for first in range(0, len(shard), _EXACT_BLOCK):
                count = min(_EXACT_BLOCK, len(shard) - first)
                entries = np.arange(first, first + count)
                if is_allowed is not None:
                    entries = entries[is_allowed[first : first + count]]
                if len(entries):
                    keys = shard.keys.reconstruct_batch(entries)
                    distances, nearest = faiss.knn(queries, keys, min(neighbors, len(entries)))
                    found.append((distances, entries[nearest]))
            if not found:
                return np.full((len(queries), 1), np.inf, np.float32), np.full(
                    (len(queries), 1), -1
                )
            return tuple(np.concatenate(x, 1) for x in zip(*found, strict=True))

        return self._merged(search, len(queries), neighbors, excluded)

    def _merged(self, search, count: int, neighbors: int, excluded):
        """Returns the best entries of the results of all shards."""
        excluded = np.unique(np.concatenate([np.int64(self.deleted), np.int64(excluded)]))
        all_distances = [np.full((count, neighbors), np.inf, np.float32)]
        all_entries = [np.full((count, neighbors), -1, np.int64)]
        for first, shard in zip(self.firsts, self._shards, strict=False):
            distances, entries = search(shard, shard.allowed(excluded))
            all_distances.append(np.where(entries < 0, np.inf, distances))
            all_entries.append(np.where(entries < 0, -1, entries + first))
        distances, entries = np.concatenate(all_distances, 1), np.concatenate(all_entries, 1)
        order = np.argsort(distances, 1, kind="stable")[:, :neighbors]
        return np.take_along_axis(distances, order, 1), np.take_along_axis(entries, order, 1)

    def places(self, entries) -> tuple[np.ndarray, np.ndarray]:
        """Returns the documents and token positions of entries, all of one shape, none of -1."""
        entries = np.asarray(entries)
        flat = entries.reshape(-1)
        numbers = np.searchsorted(self.firsts, flat, "right") - 1
        documents, positions = np.empty((2, len(flat)), np.int64)
        for number in np.unique(numbers).tolist():
            is_here = numbers == number
            local = flat[is_here] - self.firsts[number]
            documents[is_here] = self._shards[number].documents[local]
            positions[is_here] = self._shards[number].positions[local]
        return documents.reshape(entries.shape), positions.reshape(entries.shape)

    def passage(self, document: int, first: int, last: int) -> dict:
        """Returns a piece of a document with its source, for people to read.

        Args:
          document: number of the document.
          first: first token.
          last: token after the last one.

        Returns:
          "document", "source", "bytes" ([first, last) in the normalized text) and "text".
        """
        part = int(np.searchsorted(self._part_firsts, document, "right")) - 1
        before = self.documents.piece(document, 0, first)
        piece = self.documents.piece(document, first, last)
        token_bytes = self.tokenizer.token_bytes
        start = int(token_bytes[before].sum())
        return {
            "document": int(document),
            "source": self.manifest["parts"][part]["source"],
            "bytes": [start, start + int(token_bytes[piece].sum())],
            "text": self.tokenizer.decode(piece),
        }


def _joined(parts: list[Documents]) -> Documents:
    """Returns the documents of all parts as one; their tokens stay on the disk."""
    if len(parts) == 1:
        return parts[0]
    return Documents(
        _Concatenated([part.tokens for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.bands for part in parts]),
    )


class _Concatenated:
    """Slices of several arrays as one; a slice must not cross from one array to the next."""

    def __init__(self, arrays: list[ShardedArray]):
        self.arrays, self.firsts = arrays, np.cumsum([0, *map(len, arrays)])

    def __getitem__(self, index: slice) -> np.ndarray:
        number = min(
            int(np.searchsorted(self.firsts, index.start, "right")) - 1, len(self.arrays) - 1
        )
        first = int(self.firsts[number])
        return self.arrays[number][index.start - first : index.stop - first]
