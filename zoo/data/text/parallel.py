"""Tokenized records of pairs of a sentence and its translation, with several pairs per row."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text.corpora import load_corpus
from zoo.data.text.dataset import cached_records, check, facts, token_type, tokenizer_of
from zoo.data.text.packing import best_fit_decreasing
from zoo.errors import RunError, UsageError

_LOG = logging.getLogger(__name__)

PACKINGS = ("best_fit", "none")


@dataclasses.dataclass(frozen=True)
class ParallelDataset(Dataset):
    """A `Dataset` with the text of its pairs.

    Attributes:
      pairs: split -> function that returns a new iterator of all (source, target) strings.
      languages: ISO 639 codes of source and target; () if unknown.
    """

    pairs: Mapping[str, Callable[[], Iterator]] = dataclasses.field(default_factory=dict)
    languages: tuple[str, ...] = ()


def pairs(data: Mapping, task: Mapping) -> ParallelDataset:
    """Loads pairs of sentences for `zoo.tasks.seq2seq`.

    Examples have "source" and "target", both (sequence_length,), 0 for padding. Sentences end with
    <end>. With packing "best_fit", a row holds several pairs, because short sentences would leave
    mostly padding. Source and target share a tokenizer, trained on both.

    Pairs with a sentence longer than a row are left out of the training split and truncated in
    other splits; a line on stderr reports their number.

    Args:
      data: section `data` of the recipe: source, manual_dir, languages, tokenizer,
        vocabulary_size, normalization, sequence_length, packing.
      task: unused.
    """
    check(data, PACKINGS)
    corpus = load_corpus(
        data["source"], data["manual_dir"] or None, languages=tuple(data["languages"])
    )
    if not isinstance(next(next(iter(corpus.splits.values()))(), None), tuple):
        raise UsageError(
            f"The task requires pairs of sentences. Received: data.source={corpus.name!r} with "
            "text in one language."
        )
    if "train" not in corpus.splits:
        raise UsageError(
            f"{corpus.name!r} has no split 'train'. It has: {', '.join(corpus.splits)}."
        )
    tokenizer = tokenizer_of(corpus, data, lambda: chain.from_iterable(corpus.splits["train"]()))
    length, is_packed = data["sequence_length"], data["packing"] == "best_fit"
    layout = {key: ((length,), token_type(tokenizer)) for key in ("source", "target")}

    def rows(split):
        yield packed_rows(corpus.splits[split](), split, tokenizer, length, is_packed)

    settings = {"pairs": data["packing"], "length": length}
    splits, digest = cached_records(corpus, tokenizer, settings, layout, rows)
    report = facts(corpus, tokenizer, splits, lambda s: chain.from_iterable(corpus.splits[s]()))
    return ParallelDataset(
        corpus.name, splits, (), digest, tokenizer, report, corpus.splits, tuple(corpus.languages)
    )


def packed_rows(pairs: Iterator, split: str, tokenizer, length: int, packed: bool) -> dict:
    """Returns the rows of a split: {"source", "target"}, both (N, length).

    Args:
      pairs: pairs of sentences.
      split: name of the split; long pairs are left out of "train" and truncated in others.
      tokenizer: tokenizer of both sides.
      length: length of a row.
      packed: whether a row holds several pairs.
    """
    texts = zip(*pairs, strict=True)
    sides = [_with_end(tokenizer.encode_documents(side), tokenizer.end_id) for side in texts]
    longest = np.maximum(*(np.array([len(ids) for ids in side]) for side in sides))
    short = longest <= length
    if not short.all():
        action = "left out" if split == "train" else "truncated"
        _LOG.warning(
            f"{split}: {np.count_nonzero(~short):,} of {len(short):,} pairs are longer than "
            f"data.sequence_length={length} tokens and were {action}."
        )
    if split == "train":
        sides = [[ids for ids, fits in zip(side, short, strict=True) if fits] for side in sides]
        longest = longest[short]
        if not len(longest):
            raise RunError(f"No training pair fits data.sequence_length={length}. Increase it.")
    longest = np.minimum(longest, length)
    row = best_fit_decreasing(longest, length) if packed else np.arange(len(longest))
    out = {}
    for key, side in zip(("source", "target"), sides, strict=True):
        out[key] = np.zeros((row.max() + 1, length), np.int32)
        used_positions = np.zeros(len(out[key]), np.int64)
        for row_index, ids in zip(row.tolist(), side, strict=True):
            if len(ids) > length:
                ids = np.append(ids[: length - 1], tokenizer.end_id)
            out[key][
                row_index, used_positions[row_index] : used_positions[row_index] + len(ids)
            ] = ids
            used_positions[row_index] += len(ids)
    return out


def _with_end(sentences: Iterator[np.ndarray], end: int) -> list[np.ndarray]:
    return [np.append(ids, end) for ids in sentences]
