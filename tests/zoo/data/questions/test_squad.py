"""Files in the format of SQuAD: what is read, and one clear message per fault."""

import copy
import gzip
import json

import pytest

from zoo.data.text.corpus_readers import TextFile
from zoo.data.text.questions.squad import Question, read_questions
from zoo.errors import RunError

CONTEXT = "Ada Lovelace wrote notes on an engine. 😀 She lived in London."
GOOD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Ada",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where did she live?",
                            "answers": [
                                {"text": "London", "answer_start": CONTEXT.index("London")},
                                {"text": "in London", "answer_start": CONTEXT.index("in London")},
                            ],
                        },
                        {"id": 2, "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def _read(tmp_path, value, name="set.json"):
    path = tmp_path / name
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return read_questions(TextFile.at(path))


@pytest.mark.parametrize("name", ["set.json", "set.json.gz"])
def test_questions_of_both_versions(tmp_path, name):
    at = CONTEXT.index("London")
    assert _read(tmp_path, GOOD, name) == [
        Question(
            "q1", "Ada", "Where did she live?", CONTEXT, (("London", at), ("in London", at - 3))
        ),
        Question("2", "Ada", "Why?", CONTEXT, ()),
    ]


def _changed(change):
    value = copy.deepcopy(GOOD)
    article = value["data"][0]
    change(value, article, article["paragraphs"][0], article["paragraphs"][0]["qas"])
    return value


FAULTS = {
    "answer elsewhere": (
        lambda v, a, p, q: q[0]["answers"][0].update(answer_start=3),
        "question 'q1': the context must contain the answer 'London' at answer_start=3. "
        "Received there: ' Lovel'.",
    ),
    "answer before the context": (
        lambda v, a, p, q: q[0]["answers"][0].update(answer_start=-7), "answer_start=-7",
    ),
    "start of another type": (
        lambda v, a, p, q: q[0]["answers"][0].update(answer_start=True),
        'must have "answer_start", an integer. Received: True',
    ),
    "empty answer": (
        lambda v, a, p, q: q[0]["answers"][0].update(text=" "),
        "question 'q1': an answer must not be empty",
    ),
    "empty question": (
        lambda v, a, p, q: q[0].update(question=" \n"),
        "question 'q1': the question must not be empty",
    ),
    "empty context": (
        lambda v, a, p, q: p.update(context=""),
        "article 1 ('Ada'), paragraph 1: the context must not be empty",
    ),
    "equal ids": (lambda v, a, p, q: q[1].update(id="q1"), "ids must differ. Received: 'q1'"),
    "no answer": (
        lambda v, a, p, q: q[1].update(is_impossible=False),
        "must have answers, or is_impossible. Received: 0 answers",
    ),
    "impossible with answers": (
        lambda v, a, p, q: q[0].update(is_impossible=True), "if is_impossible is true",
    ),
    "no paragraphs": (
        lambda v, a, p, q: a.pop("paragraphs"),
        "article 1 must have \"paragraphs\", a list. Received: an object with the keys 'title'",
    ),
    "paragraph that is no object": (
        lambda v, a, p, q: a["paragraphs"].append(3), 'paragraph 2 must have "context"',
    ),
    "question that is no object": (
        lambda v, a, p, q: q.append([]), 'must have "id", a string or an integer. Received: []',
    ),
    "no question": (lambda v, a, p, q: q.clear(), "must contain questions"),
    "another file": (
        lambda v, a, p, q: v.pop("data"), "must be a SQuAD file, a JSON object with the list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_in_one_line(tmp_path, fault):
    change, message = FAULTS[fault]
    with pytest.raises(RunError) as error:
        _read(tmp_path, _changed(change))
    assert message in str(error.value)
    assert str(tmp_path / "set.json") in str(error.value)
    assert "\n" not in str(error.value)


CONTENTS = {
    "no JSON": (b"{", "must be valid JSON"),
    "deep": (b"[" * 200_000, "must be valid JSON"),
    "list": (b"[1]", "must be a SQuAD file"),
    "invalid UTF-8": (b'{"data": "\xff"}', "must be UTF-8"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), "must be UTF-8"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_other_content_is_refused(tmp_path, content):
    data, message = CONTENTS[content]
    with pytest.raises(RunError, match=message):
        _read(tmp_path, data)


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.storage.bounds.FREE_BYTES", 1000)
    monkeypatch.setattr("zoo.storage.bounds.available_memory", lambda: 10_000)
    with pytest.raises(RunError, match="requires .* bytes of memory"):
        _read(tmp_path, GOOD)
    with pytest.raises(RunError, match="stored bytes expand to"):
        _read(tmp_path, b" " * 1_000_000, "set.json.gz")
