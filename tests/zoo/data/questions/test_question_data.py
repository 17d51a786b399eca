"""Sets of questions and their datasets: splits, targets and original files."""

import functools
import json
import shutil

import numpy as np
import pytest

from tests.zoo.data.questions.test_squad import GOOD
from zoo.data.datasets import dataset_entry
from zoo.data.text.questions import catalog
from zoo.data.text.questions.catalog import hold_out_articles, load_questions
from zoo.data.text.questions.dataset import UNANSWERABLE, question_answering
from zoo.data.text.questions.offsets import encode_with_offsets
from zoo.data.text.questions.squad import Question
from zoo.errors import RunError, UsageError
from zoo.storage.paths import data_dir

COUNTS = {  # questions, articles, questions without an answer
    "squad": {"test": (10_570, 48, 0)},
    "squadshifts": {
        "train": (6_909, 43, 0), "validation": (1_029, 5, 0), "test": (10_570, 48, 0),
    },
    "xquad": {"test": (1_190, 48, 0)},
    "persian_qa": {"test": (930, 93, 279)},
    "synthetic:facts": {"train": (864, 54, 113), "validation": (96, 6, 10), "test": (160, 10, 18)},
}  # fmt: skip

DATA = {
    "source": "synthetic:facts", "manual_dir": "", "validation_size": 0, "languages": (),
    "tokenizer": "wordpiece", "vocabulary_size": 200, "normalization": "NFC",
    "sequence_length": 40,
}  # fmt: skip
TASK = {"stride": 10, "max_question": 12}


def _require(name):
    if ":" not in name and not (data_dir() / name).is_dir():
        pytest.skip(f"ZOO_DATA_DIR has no folder {name}")


@pytest.mark.parametrize("name", COUNTS)
def test_splits(name):
    _require(name)
    if name == "squadshifts":
        _require("squad")
    splits = load_questions(name).splits
    counts = {
        split: (len(part), len({q.article for q in part}), sum(not q.answers for q in part))
        for split, part in splits.items()
    }
    assert counts == COUNTS[name]
    for part in splits.values():
        for question in part:
            for text, start in question.answers:
                assert question.context[start : start + len(text)] == text


def test_xquad_has_three_languages():
    _require("xquad")
    english, german, arabic = (load_questions("xquad", None, x) for x in ((), ("de",), ("ar",)))
    assert len({english.fingerprint, german.fingerprint, arabic.fingerprint}) == 3
    assert german.splits["test"][0].question.startswith("Wie viele Punkte")
    with pytest.raises(UsageError, match="must be one of en, de, ar for 'xquad'. Received: fa"):
        load_questions("xquad", None, ("fa",))


def test_files_are_those_of_their_source(tmp_path):
    _require("squad")
    shutil.copy(data_dir() / "squad" / "dev-v1.1.json.gz", tmp_path)
    assert load_questions("squad", tmp_path).fingerprint == load_questions("squad").fingerprint
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(GOOD))
    with pytest.raises(RunError, match="not the registered file .* as squad:FILE"):
        load_questions("squad", tmp_path)


def test_squadshifts_without_squad(tmp_path, caplog):
    _require("squadshifts")
    shutil.copy(data_dir() / "squadshifts" / "new_wiki_v1.0.json.gz", tmp_path)
    assert list(load_questions("squadshifts", tmp_path).splits) == ["train", "validation"]
    assert "run `zoo fetch squad`" in caplog.text


@pytest.mark.parametrize("name", ["squad", "squadshifts", "xquad", "persian_qa"])
def test_sets_can_be_fetched(name):
    entry = dataset_entry(name)
    assert entry.original_files()
    assert entry.licence
    with pytest.raises(UsageError, match="task.name=qa"):
        entry.loader(None)


def test_names(tmp_path):
    with pytest.raises(UsageError, match="which has no questions.*Known: persian_qa, squad, "):
        load_questions("digits")
    with pytest.raises(UsageError, match="Did you mean 'squad'"):
        load_questions("sqad")
    with pytest.raises(UsageError, match="There is no file or folder"):
        load_questions("squad:nowhere.json")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GOOD))
    mine = load_questions(f"squad:{path}")
    # One article with one context: nothing can be held out.
    assert list(mine.splits) == ["train"]
    path.write_text(json.dumps(GOOD).replace("engine", "Engine"))
    assert load_questions(f"squad:{path}").fingerprint != mine.fingerprint


def test_a_folder_has_a_file_per_split(tmp_path):
    for name in ("train-v2.0.json", "dev-v2.0.json", "test.json"):
        (tmp_path / name).write_text(json.dumps(GOOD).replace("q1", name))
    (tmp_path / "README.md").write_text("no questions")
    # A second article, of which none is held out.
    (article,) = json.loads(json.dumps(GOOD).replace("Ada", "Bob").replace("q1", "q3"))["data"]
    article["paragraphs"][0]["qas"][1]["id"] = "q4"
    train = json.loads((tmp_path / "train-v2.0.json").read_text())
    train["data"].append(article)
    (tmp_path / "train-v2.0.json").write_text(json.dumps(train))
    splits = load_questions(f"squad:{tmp_path}").splits
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 4, "validation": 2, "test": 2,
    }  # fmt: skip
    assert [part[0].id for part in splits.values()] == [
        "train-v2.0.json", "dev-v2.0.json", "test.json",
    ]  # fmt: skip
    before = load_questions(f"squad:{tmp_path}").fingerprint
    (tmp_path / "test.json").write_text(json.dumps(GOOD))
    assert load_questions(f"squad:{tmp_path}").fingerprint != before
    (tmp_path / "train.json").write_text(json.dumps(GOOD))
    with pytest.raises(UsageError, match="named by their splits, one of each.*train.json"):
        load_questions(f"squad:{tmp_path}")
    for name in ("train.json", "train-v2.0.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="must contain a file train.json"):
        load_questions(f"squad:{tmp_path}")
    (tmp_path / "mine.json").write_text(json.dumps(GOOD))
    with pytest.raises(UsageError, match=r"Received: mine.json"):
        load_questions(f"squad:{tmp_path}")


def test_whole_articles_are_held_out():
    questions = tuple(
        Question(f"{a}-{q}", f"article {a}", "?", f"context {a} {q // 2}", (("c", 0),))
        for a in range(30)
        for q in range(4)
    )
    splits = hold_out_articles(questions)
    articles = {split: {q.article for q in part} for split, part in splits.items()}
    assert len(articles["validation"]) == 3
    assert not articles["validation"] & articles["train"]
    # The same articles are held out when the order changes.
    assert {q.article for q in hold_out_articles(questions[::-1])["validation"]} == (
        articles["validation"]
    )
    one = hold_out_articles(questions[:4])
    assert [len(part) for part in one.values()] == [2, 2]
    assert not {q.context for q in one["train"]} & {q.context for q in one["validation"]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield question_answering(DATA, TASK)


def test_windows_know_the_answer(dataset):
    encode = functools.cache(lambda text: encode_with_offsets(dataset.tokenizer, text))
    for split, arrays in dataset.splits.items():
        questions = dataset.questions[split]
        arrays = {key: np.asarray(array) for key, array in arrays.items()}
        answered, seen = set(), set()
        for row in range(len(arrays["example"])):
            example = int(arrays["example"][row])
            question = questions[example]
            seen.add(example)
            ids, starts, ends = encode(question.context)
            start, end = int(arrays["start"][row]), int(arrays["end"][row])
            if not start:
                assert not end
                continue
            answered.add(example)
            begin = int(np.argmax(arrays["context"][row]))
            first, last = (p - begin + int(arrays["first"][row]) for p in (start, end))
            assert arrays["tokens"][row][start] == ids[first]
            assert question.context[starts[first] : ends[last]] == question.answers[0][0]
        assert seen == set(range(len(questions)))
        assert answered == {i for i, question in enumerate(questions) if question.answers}


def test_facts_count_questions(dataset):
    assert dataset.facts["Questions"][UNANSWERABLE] == 113
    assert dataset.facts["Questions"]["train"].startswith(
        "864 on 54 articles, 113 without an answer; "
    )


def test_fingerprint_follows_the_rows(dataset):
    assert question_answering(DATA, TASK).fingerprint == dataset.fingerprint
    other = question_answering(DATA, {**TASK, "stride": 9})
    assert other.fingerprint != dataset.fingerprint


def test_wrong_keys():
    with pytest.raises(UsageError, match="data.validation_size must be 0"):
        question_answering({**DATA, "validation_size": 5}, TASK)
    with pytest.raises(UsageError, match="data.sequence_length must be at least 16"):
        question_answering({**DATA, "sequence_length": 15}, TASK)


def test_a_set_for_evaluation_needs_a_tokenizer(monkeypatch):
    questions = load_questions("synthetic:facts").splits["test"]
    only = catalog.QuestionSet("only", {"test": questions}, "0" * 64)
    monkeypatch.setattr("zoo.data.text.questions.dataset.load_questions", lambda *a: only)
    with pytest.raises(UsageError, match="no split 'train' to train a tokenizer on"):
        question_answering(DATA, TASK)
