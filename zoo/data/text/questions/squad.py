"""Reads questions in the format of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018).

    {"data": [{"title": "…", "paragraphs": [{"context": "…", "qas": [
        {"id": "…", "question": "…", "answers": [{"text": "…", "answer_start": 0}]}]}]}]}

A question of SQuAD 2.0 may have "is_impossible": true and no answers. Other keys are ignored.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from zoo.data.text.corpus_readers import Tally, TextFile
from zoo.errors import RunError, short
from zoo.storage.bounds import JSON_EXPANSION, check_memory

_NAMES = {str: "a string", list: "a list", dict: "an object", int: "an integer", bool: "a boolean"}


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
      id: different for all questions of a file.
      article: title of the article with the context; its number in the file without a title.
      question: text of the question.
      context: text that contains the answers.
      answers: (text, start) of each answer: `context[start : start + len(text)] == text`; () if the
        context does not answer the question.
    """

    id: str
    article: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read_questions(file: TextFile) -> list[Question]:
    """Reads all questions of a file.

    Args:
      file: a JSON file, which may be compressed with gzip.

    Raises:
      RunError: if the file cannot be read or is not in the format; names the question.
    """
    tally = Tally()
    text = file.text(tally)
    if tally.invalid.total():
        raise RunError(f"{file.path} must be UTF-8. Received: invalid UTF-8.")
    check_memory(file.path, JSON_EXPANSION * len(text))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file.path} must be valid JSON. Received: {short(error)}.") from None
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise RunError(
            f'{file.path} must be a SQuAD file, a JSON object with the list "data". Received: '
            f"{_received(value)}."
        )
    questions, ids = [], set()
    for number, article in enumerate(value["data"], 1):
        for question in _article(file.path, number, article):
            if question.id in ids:
                raise RunError(f"{file.path}: question ids must differ. Received: {question.id!r}.")
            ids.add(question.id)
            questions.append(question)
    if not questions:
        raise RunError(f"{file.path} must contain questions. Received: none.")
    return questions


def _received(value) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {short(', '.join(map(repr, value))) or '(none)'}"
    return f"{short(repr(value)[:100])}"


def _article(path: Path, number: int, article):
    """Yields the questions of an article."""
    where = f"{path}, article {number}"
    paragraphs = _value(where, article, "paragraphs", list)
    title = _value(where, article, "title", str) if "title" in article else str(number)
    for index, paragraph in enumerate(paragraphs, 1):
        where = f"{path}, article {number} ({title!r}), paragraph {index}"
        context = _value(where, paragraph, "context", str)
        if not context.strip():
            raise RunError(f"{where}: the context must not be empty.")
        for question in _value(where, paragraph, "qas", list):
            yield _question(path, where, title, context, question)


def _question(path: Path, where: str, title: str, context: str, value) -> Question:
    id_ = str(_value(where, value, "id", str, int))
    where = f"{path}, question {id_!r}"
    question = _value(where, value, "question", str)
    if not question.strip():
        raise RunError(f"{where}: the question must not be empty.")
    impossible = "is_impossible" in value and _value(where, value, "is_impossible", bool)
    answers = _value(where, value, "answers", list)
    if impossible == bool(answers):
        rule = "no answers if is_impossible is true" if impossible else "answers, or is_impossible"
        raise RunError(f"{where} must have {rule}. Received: {len(answers)} answers.")
    spans = tuple(_answer(where, context, answer) for answer in answers)
    return Question(id_, title, question, context, spans)


def _answer(where: str, context: str, value) -> tuple[str, int]:
    text = _value(where, value, "text", str)
    start = _value(where, value, "answer_start", int)
    if not text.strip():
        raise RunError(f"{where}: an answer must not be empty.")
    if start < 0 or context[start : start + len(text)] != text:
        raise RunError(
            f"{where}: the context must contain the answer {text!r} at answer_start={start}. "
            f"Received there: {context[max(start, 0) :][: len(text)]!r}."
        )
    return text, start


def _value(where: str, json_object, key: str, *types: type):
    """Returns a value of a JSON object; raises RunError if it is missing or has another type."""
    value = json_object.get(key) if isinstance(json_object, dict) else None
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(_NAMES[type_] for type_ in types)
        raise RunError(
            f'{where} must have "{key}", {expected}. Received: '
            f"{_received(json_object if value is None else value)}."
        )
    return value
