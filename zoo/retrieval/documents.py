"""Documents of an index or of a split: their tokens, and MinHashes that find duplicates.

MinHashes are those of `zoo.prep.cleaning.dedup`, with more bands of fewer rows: documents of
similarity 0.5 share a band with probability 0.96.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from zoo.data.text.dataset import token_type
from zoo.errors import RunError
from zoo.prep.cleaning import dedup
from zoo.progress import progress
from zoo.storage.records import RecordWriter, open_records

NGRAM, BANDS, ROWS = 5, 50, 4
_BLOCK = 1 << 20  # tokens per write


class Documents:
    """Tokenized documents.

    Args:
      tokens: (N,) integers: the tokens of all documents, one after the other.
      lengths: (D,) integers: number of tokens of each document.
      bands: (D, BANDS) uint64: MinHash of each document.

    Attributes:
      starts: (D + 1,) int64: place in `tokens` where each document starts, and N.
    """

    def __init__(self, tokens, lengths, bands):
        self.tokens, self.bands = tokens, np.asarray(bands)
        self.lengths = np.asarray(lengths).astype(np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def piece(self, document: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Returns the tokens of a document from `first` to `last` (exclusive)."""
        length = int(self.lengths[document])
        last = length if last is None else min(max(last, 0), length)
        start = int(self.starts[document])
        return np.asarray(self.tokens[start + min(max(first, 0), last) : start + last])


def shingles_of(tokenizer, tokens) -> np.ndarray:
    """Returns the word n-grams of the text of tokens, as sorted hashes."""
    return dedup.shingles(dedup.normalize_words(tokenizer.decode(tokens)), NGRAM)


def tokenized(tokenizer, texts: Iterable[str], max_tokens: int) -> Iterator[tuple]:
    """Yields tokens and MinHash of each text that has tokens.

    Args:
      tokenizer: a `zoo.data.text.tokenizers.Tokenizer`.
      texts: documents.
      max_tokens: number of tokens after which no further document is read; 0 for no limit.
    """
    total = 0
    for tokens in tokenizer.encode_documents(texts):
        if not len(tokens):
            continue
        yield tokens, dedup.band_hashes(shingles_of(tokenizer, tokens), BANDS, ROWS)
        total += len(tokens)
        if max_tokens and total >= max_tokens:
            return


def read_texts(tokenizer, texts: Iterable[str], max_tokens: int = 0) -> Documents:
    """Returns the documents of texts, in memory; see `tokenized`."""
    pairs = list(tokenized(tokenizer, texts, max_tokens))
    if not pairs:
        raise RunError("The split has no documents with tokens. Choose another split.")
    tokens, bands = zip(*pairs, strict=True)
    return Documents(np.concatenate(tokens), [len(x) for x in tokens], bands)


def write_documents(folder: Path, tokenizer, texts: Iterable[str], max_tokens: int) -> None:
    """Writes the folders `tokens` and `documents` of a part, unless they are complete.

    Raises:
      RunError: if no text has tokens.
    """
    if (folder / "documents").exists():  # written last
        return
    lengths, bands, block, waiting = [], [], [], 0
    layout = {"token": ((), token_type(tokenizer))}
    with RecordWriter(folder / "tokens", layout) as writer:
        texts = progress(texts, title="tokenizing", unit="documents")
        for tokens, hashes in tokenized(tokenizer, texts, max_tokens):
            lengths.append(len(tokens))
            bands.append(hashes)
            block.append(tokens)
            waiting += len(tokens)
            if waiting >= _BLOCK:
                writer.append(token=np.concatenate(block))
                block, waiting = [], 0
        if block:
            writer.append(token=np.concatenate(block))
        if not lengths:
            raise RunError("The split has no documents with tokens. Choose another split.")
    layout = {"length": ((), np.uint32), "bands": ((BANDS,), np.uint64)}
    with RecordWriter(folder / "documents", layout) as writer:
        writer.append(length=np.array(lengths, np.uint32), bands=np.array(bands, np.uint64))


def open_documents(folder: Path, verify: bool = True) -> Documents:
    """Opens the documents of a part.

    Raises:
      UsageError: if the folder is missing.
      RunError: if a file is missing, truncated or altered.
    """
    documents = open_records(folder / "documents", verify).arrays
    tokens = open_records(folder / "tokens", verify).arrays["token"]
    lengths = np.asarray(documents["length"])
    if int(lengths.sum(dtype=np.int64)) != len(tokens):
        raise RunError(f"{folder} is damaged: documents and tokens do not match.")
    return Documents(tokens, lengths, documents["bands"])
