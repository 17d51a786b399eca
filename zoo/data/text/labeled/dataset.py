"""Converts labeled texts to rows of tokens."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text.dataset import cached_records, check, facts, token_type, tokenizer_of
from zoo.data.text.labeled.catalog import source_of
from zoo.data.text.labeled.examples import LabeledTexts, read_examples
from zoo.data.text.labeled.labels import ARRAYS
from zoo.errors import UsageError
from zoo.storage.disk import json_digest

VERSION = 1  # of the rows
TEXT_COLUMNS = "text columns"  # key of the facts "Data"
_CHUNK_ROWS = 1024
_SHOWN = 50  # number of classes in the report


def text_classification(data: Mapping, task: Mapping) -> Dataset:
    """Loads labeled texts for `zoo.tasks.text_classification`.

    Examples have "tokens" and "types", see `encode_texts`, and their label by task.output: for
    "class" "label" () int32, for "labels" "labels" (K,) uint8 with a 1 per label, for "number"
    "target" () float32.

    Args:
      data: section `data` of the recipe: source, columns, manual_dir, tokenizer, vocabulary_size,
        normalization, sequence_length (the maximum).
      task: section `task` of the recipe: output.

    Raises:
      UsageError: if a key is invalid.
      RunError: if data are missing or damaged; names the file and the row.
    """
    check(data)
    manual_dir = Path(data["manual_dir"]).expanduser() if data["manual_dir"] else None
    source = source_of(data["source"], manual_dir)
    examples = read_examples(source, tuple(data["columns"]), task["output"])
    length = data["sequence_length"]
    _check_length(length, examples.is_pair)
    tokenizer = tokenizer_of(examples, data, lambda: examples.texts("train"))
    layout = {
        "tokens": ((length,), token_type(tokenizer)), "types": ((length,), np.uint8),
        "size": ((), np.uint32),
    }  # fmt: skip
    settings = {"labeled": VERSION, "length": length}
    records, digest = cached_records(
        examples, tokenizer, settings, layout,
        lambda split: _rows(tokenizer, examples.splits[split](), length),
    )  # fmt: skip
    sizes = {split: np.asarray(arrays["size"]) for split, arrays in records.items()}
    longest = min(length, max(int(size.max()) for size in sizes.values()))
    label = ARRAYS[task["output"]]
    splits = {
        split: {
            # Columns of padding alone are left out.
            "tokens": np.asarray(arrays["tokens"])[:, :longest],
            "types": np.asarray(arrays["types"])[:, :longest],
            label: examples.labels[split],
        }
        for split, arrays in records.items()
    }
    digest = json_digest([digest, examples.fingerprint, examples.class_names])
    report = _facts(examples, tokenizer, splits, sizes, length)
    return Dataset(examples.name, splits, examples.class_names, digest, tokenizer, report)


def encode_texts(tokenizer, rows: Iterable[Sequence[str]], length: int) -> dict[str, np.ndarray]:
    """Converts examples to rows of tokens: <start> A <sep>, or <start> A <sep> B <sep>.

    If an example is longer than a row, the end of its text is cut off. Of a pair, the longer text
    is cut first, until both have the same length.

    Args:
      tokenizer: a `zoo.data.text.tokenizers.Tokenizer`.
      rows: N examples of one text, or N of two.
      length: length T of the rows.

    Returns:
      "tokens" (N, T) of unsigned integers, 0 for padding, and "types" (N, T) uint8: 1 for B and its
      <sep>, else 0.

    Raises:
      UsageError: if an example has no or more than two texts, or the rows are too short.
    """
    chunks = list(_rows(tokenizer, rows, length))
    if not chunks:
        empty = np.zeros((0, length))
        return {"tokens": empty.astype(token_type(tokenizer)), "types": empty.astype(np.uint8)}
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in ("tokens", "types")}


def _check_length(length: int, is_pair: bool) -> None:
    minimum = 5 if is_pair else 3
    if length < minimum:
        raise UsageError(
            f"data.sequence_length must be at least {minimum} for "
            f"{'pairs of texts' if is_pair else 'texts'}. Received: {length}."
        )


def _rows(tokenizer, examples: Iterable[Sequence[str]], length: int) -> Iterator[dict]:
    """Yields chunks of "tokens", "types" (N, T), and "size" (N,): tokens before truncation."""
    examples, copy = itertools.tee(examples)
    ids = tokenizer.encode_documents(itertools.chain.from_iterable(copy))
    while chunk := list(itertools.islice(examples, _CHUNK_ROWS)):
        tokens = np.zeros((len(chunk), length), token_type(tokenizer))
        types = np.zeros((len(chunk), length), np.uint8)
        sizes = np.zeros(len(chunk), np.uint32)
        for index, example in enumerate(chunk):
            if isinstance(example, str) or len(example) not in (1, 2):
                raise UsageError(
                    "An example must have one or two texts, such as ('a text',). "
                    f"Received: {example!r}."
                )
            _check_length(length, len(example) == 2)
            texts = [next(ids) for _ in example]
            sizes[index] = 1 + sum(len(text) + 1 for text in texts)
            parts = [[tokenizer.start_id]]
            for text, size in zip(texts, _kept_sizes(texts, length), strict=True):
                parts += [text[:size], [tokenizer.separator_id]]
            row = np.concatenate(parts)
            tokens[index, : len(row)] = row
            if len(example) == 2:
                types[index, sum(map(len, parts[:3])) : len(row)] = 1
        yield {"tokens": tokens, "types": types, "size": sizes}


def _kept_sizes(texts: Sequence[np.ndarray], length: int) -> tuple[int, ...]:
    """Returns the number of tokens of each text in a row."""
    if len(texts) == 1:
        return (min(len(texts[0]), length - 2),)
    a, b = map(len, texts)
    free = length - 3
    return min(a, max(free - b, free - free // 2)), min(b, max(free - a, free // 2))


def _facts(examples: LabeledTexts, tokenizer, splits: Mapping, sizes: Mapping, length: int) -> dict:
    """Returns the facts for the report: the tokenizer, sizes, truncation and class counts."""
    report = facts(examples, tokenizer, splits, examples.texts)
    truncated = {
        f"truncated in {split}": f"{np.mean(size > length):.2%}" for split, size in sizes.items()
    }
    report["Data"] = {**report["Data"], TEXT_COLUMNS: list(examples.columns), **truncated}
    for split, labels in examples.labels.items():
        if examples.class_names:
            one_hot = labels.ndim == 2
            counts = (
                labels.sum(0)
                if one_hot
                else np.bincount(labels, minlength=len(examples.class_names))
            )
            named = list(zip(examples.class_names, counts.tolist(), strict=True))
            report[f"Classes of {split}"] = dict(named[:_SHOWN])
        else:
            report[f"Numbers of {split}"] = {
                "mean": float(labels.mean()), "standard deviation": float(labels.std()),
                "smallest": float(labels.min()), "largest": float(labels.max()),
            }  # fmt: skip
    return report
