"""Pairs of sentences as tokenised records, several in a row."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text.corpora import load_corpus
from zoo.data.text.dataset import check, facts, prepared, token_type, tokenizer_of
from zoo.data.text.packing import best_fit_decreasing
from zoo.errors import RunError, UsageError

PACKINGS = ("best_fit", "none")


@dataclasses.dataclass(frozen=True)
class ParallelDataset(Dataset):
    """A `Dataset` that keeps the text.

    Attributes:
      pairs: split -> function that returns a fresh iterator of (source, target) strings: all of
        the split, as they stand in the corpus.
      languages: ISO 639 codes of source and target; () where the corpus does not say.
    """

    pairs: Mapping[str, Callable[[], Iterator]] = dataclasses.field(default_factory=dict)
    languages: tuple[str, ...] = ()


def pairs(data: Mapping, task: Mapping) -> ParallelDataset:
    """Returns pairs of sentences, for `zoo.tasks.seq2seq`.

    Stored examples: "source" and "target", both (sequence_length,), 0 for padding. Sentences end
    with <end>. Where `packing` is "best_fit" a row holds as many pairs as fit: a batch of short
    sentences is mostly padding otherwise. Source and target share one tokenizer, trained on both.

    A pair of which a side is longer than a row is left out of the training split, and cut in the
    others; a line on stderr says how many.

    Args:
      data: the recipe's section: source, manual_dir, languages, tokenizer, vocabulary_size,
        normalization, sequence_length, packing.
      task: unused.
    """
    check(data, PACKINGS)
    corpus = load_corpus(
        data["source"], data["manual_dir"] or None, languages=tuple(data["languages"])
    )
    if not isinstance(next(next(iter(corpus.splits.values()))(), None), tuple):
        raise UsageError(
            f"The task needs pairs of sentences. Received: data.source={corpus.name!r}, which has "
            "text in one language."
        )
    if "train" not in corpus.splits:
        raise UsageError(
            f"{corpus.name!r} has no split 'train' to learn from. It has: "
            f"{', '.join(corpus.splits)}."
        )
    tokenizer = tokenizer_of(corpus, data, lambda: chain.from_iterable(corpus.splits["train"]()))
    length, packed = data["sequence_length"], data["packing"] == "best_fit"
    layout = {key: ((length,), token_type(tokenizer)) for key in ("source", "target")}

    def rows(split):
        yield packed_rows(corpus.splits[split](), split, tokenizer, length, packed)

    what = {"pairs": data["packing"], "length": length}
    splits, digest = prepared(corpus, tokenizer, what, layout, rows)
    known = facts(corpus, tokenizer, splits, lambda s: chain.from_iterable(corpus.splits[s]()))
    return ParallelDataset(
        corpus.name, splits, (), digest, tokenizer, known, corpus.splits, tuple(corpus.languages)
    )


def packed_rows(found: Iterator, split: str, tokenizer, length: int, packed: bool) -> dict:
    """Returns a split's rows: {"source", "target"}, both (N, length).

    Args:
      found: pairs of sentences.
      split: its name: of "train" pairs that are too long are left out, of others cut.
      tokenizer: of both sides.
      length: of a row.
      packed: whether a row holds as many pairs as fit.
    """
    texts = zip(*found, strict=True)
    sides = [_closed(tokenizer.encode_documents(side), tokenizer.end_id) for side in texts]
    longest = np.maximum(*(np.array([len(ids) for ids in side]) for side in sides))
    short = longest <= length
    if not short.all():
        done = "left out" if split == "train" else "cut"
        print(
            f"zoo: {split}: {np.count_nonzero(~short):,} of {len(short):,} pairs are longer than "
            f"data.sequence_length={length} tokens and were {done}.",
            file=sys.stderr,
        )
    if split == "train":
        sides = [[ids for ids, fits in zip(side, short, strict=True) if fits] for side in sides]
        longest = longest[short]
        if not len(longest):
            raise RunError(
                f"No pair of the training split fits data.sequence_length={length}: raise it."
            )
    longest = np.minimum(longest, length)
    row = best_fit_decreasing(longest, length) if packed else np.arange(len(longest))
    out = {}
    for key, side in zip(("source", "target"), sides, strict=True):
        out[key] = np.zeros((row.max() + 1, length), np.int32)
        used = np.zeros(len(out[key]), np.int64)
        for place, ids in zip(row.tolist(), side, strict=True):
            if len(ids) > length:
                ids = np.append(ids[: length - 1], tokenizer.end_id)
            out[key][place, used[place] : used[place] + len(ids)] = ids
            used[place] += len(ids)
    return out


def _closed(sentences: Iterator[np.ndarray], end: int) -> list[np.ndarray]:
    return [np.append(ids, end) for ids in sentences]
