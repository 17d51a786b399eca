"""Converts the `data` section of a recipe to tokenized windows of questions and their contexts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text.dataset import cached_records, check, facts, token_type, tokenizer_of
from zoo.data.text.questions.catalog import QuestionSet, load_questions
from zoo.data.text.questions.offsets import encode_with_offsets
from zoo.data.text.questions.squad import Question
from zoo.data.text.questions.windows import (
    MAX_QUESTION,
    STRIDE,
    answer_positions,
    answer_tokens,
    check_sizes,
    make_windows,
)
from zoo.errors import UsageError

VERSION = 1  # of the rows
# Name of the fact with the number of training questions that have no answer.
UNANSWERABLE = "training questions without an answer"


@dataclasses.dataclass(frozen=True)
class QuestionDataset(Dataset):
    """A `Dataset` with the text of its questions.

    Attributes:
      questions: split -> questions; the array "example" of a split is an index into them.
    """

    questions: Mapping[str, tuple[Question, ...]] = dataclasses.field(default_factory=dict)


def question_answering(data: Mapping, task: Mapping) -> QuestionDataset:
    """Loads questions for `zoo.tasks.qa`.

    A stored example is a window: "tokens", "types" and "context", all (sequence_length,), and
    "first" (), see `make_windows`; "start" and "end" () int32, the positions of the first answer,
    0 and 0 if the window does not contain it; "example" () int32, the index of the question.

    Args:
      data: section `data` of the recipe: source, manual_dir, languages, tokenizer,
        vocabulary_size, normalization, sequence_length.
      task: section `task` of the recipe: stride, max_question.

    Raises:
      UsageError: if a key is invalid.
      RunError: if data are missing or damaged.
    """
    check(data)
    if data["validation_size"]:
        raise UsageError(
            "data.validation_size must be 0 for questions, because whole articles are held out. "
            f"Received: {data['validation_size']}."
        )
    length = data["sequence_length"]
    stride, max_question = task.get("stride", STRIDE), task.get("max_question", MAX_QUESTION)
    check_sizes(length, stride, max_question)
    manual_dir = Path(data["manual_dir"]).expanduser() if data["manual_dir"] else None
    source = load_questions(data["source"], manual_dir, tuple(data["languages"]))
    tokenizer = tokenizer_of(source, data, lambda: _texts(source, "train"))
    layout = {
        "tokens": ((length,), token_type(tokenizer)), "types": ((length,), np.uint8),
        "context": ((length,), np.uint8), "first": ((), np.int32), "start": ((), np.int32),
        "end": ((), np.int32), "example": ((), np.int32),
    }  # fmt: skip
    settings = {
        "questions": VERSION, "length": length, "stride": stride, "max_question": max_question,
    }  # fmt: skip

    def rows(split):
        return question_rows(source.splits[split], tokenizer, length, stride, max_question)

    splits, digest = cached_records(source, tokenizer, settings, layout, rows)
    report = facts(source, tokenizer, splits, lambda split: _texts(source, split))
    report["Questions"] = _question_facts(source, splits)
    return QuestionDataset(source.name, splits, (), digest, tokenizer, report, source.splits)


def _texts(source: QuestionSet, split: str) -> Iterator[str]:
    """Yields the contexts and the questions of a split."""
    for context, questions in groupby(source.splits[split], key=lambda q: q.context):
        yield context
        for question in questions:
            yield question.question


def question_rows(
    questions: Sequence[Question], tokenizer, length: int, stride: int, max_question: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the windows of one question at a time, as `question_answering` describes them.

    Args:
      questions: questions, those of one context in a row.
      tokenizer: a `zoo.data.text.tokenizers.Tokenizer`.
      length: length T of a row.
      stride: see `make_windows`.
      max_question: see `make_windows`.
    """
    context = None
    for example, question in enumerate(questions):
        if question.context != context:
            context = question.context
            ids, starts, ends = encode_with_offsets(tokenizer, context)
        arrays = make_windows(
            tokenizer.encode(question.question), ids, length, stride, max_question
        )
        count = len(arrays["tokens"])
        start = end = np.zeros(count, np.int32)
        if question.answers:
            text, at = question.answers[0]
            first, last = answer_tokens(starts, ends, at, at + len(text))
            start, end = answer_positions(arrays, first, last)
        yield {**arrays, "start": start, "end": end, "example": np.full(count, example, np.int32)}


def _question_facts(source: QuestionSet, splits: Mapping) -> dict:
    """Returns counts of each split for the report."""
    counts = {}
    for split, questions in source.splits.items():
        impossible = sum(not question.answers for question in questions)
        without = np.count_nonzero(np.asarray(splits[split]["end"]) == 0)
        counts[split] = (
            f"{len(questions):,} on {len({q.article for q in questions}):,} articles, "
            f"{impossible:,} without an answer; {without:,} of {len(splits[split]['end']):,} "
            "windows without an answer"
        )
    train = source.splits.get("train", ())
    return {**counts, UNANSWERABLE: sum(not question.answers for question in train)}
