"""Answers of a trained model to questions about any text."""

import csv
import io
import json

import pytest

from tests.html_pages import Page
from trainers.config.recipe import shipped_recipe
from trainers.evaluation.answer import Answerer, answer
from trainers.train.trainer import Trainer
from zoo.errors import UsageError
from zoo.storage.disk import read_json, write_json

CONTEXT = "Omid likes chess. Anna lives in New York. Clara works as a baker."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few updates of a model with a few thousand weights."""
    folder = tmp_path_factory.mktemp("qa")
    config = shipped_recipe("squad", "debug")
    config.model.update(num_layers=1, hidden_dim=16, intermediate_dim=16)
    config.data.sequence_length = 48
    config.schedule.warmup_steps = 0
    config.trainer.update(steps=4, evaluate_every=4, checkpoint_every=4, log_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE_DIR", str(folder / "cache"))
        patch.setattr("zoo.data.text.questions.synthetic.ARTICLES", {"train": 12, "test": 2})
        metrics = Trainer(config, folder / "run").train()
    return folder / "run", metrics


def test_run_reports_answers(run):
    workdir, metrics = run
    assert {"window_f1", "f1", "exact_match", "has_answer_f1", "no_answer_accuracy"} <= set(metrics)
    assert "validation split" in metrics["scoring"]
    samples = read_json(workdir / "evaluation" / "test_samples.json")
    assert len(samples) == 32
    for sample in samples:
        for span, text in (("predicted_span", "prediction"), ("reference_span", "reference")):
            start, end = sample[span] or (0, 0)
            assert sample["context"][start:end] == sample[text]


def test_answers_are_spans_of_the_context(run):
    workdir, _ = run
    answers = Answerer(workdir)("Where does Anna live?", CONTEXT, 50)
    assert len(answers) == 21  # with "no answer"
    assert sum(row["score"] for row in answers) == pytest.approx(1)
    scores = [row["score"] for row in answers]
    assert scores == sorted(scores, reverse=True)
    assert [row["start"] for row in answers].count(None) == 1
    for row in answers:
        if row["text"]:
            assert CONTEXT[row["start"] : row["end"]] == row["text"]
        else:
            assert row["start"] is row["end"] is None
    assert answer(workdir, "Where does Anna live?", CONTEXT) == answers[:5]


def test_no_answer_is_ranked_by_the_threshold(run):
    workdir, _ = run
    path = workdir / "evaluation" / "test.json"
    saved = read_json(path)
    try:
        for threshold, is_first in ((-1e3, True), (1e3, False)):
            saved["metrics"]["null_threshold"] = threshold
            write_json(path, saved)
            best = Answerer(workdir)("Where does Anna live?", CONTEXT, 1)
            assert (best[0]["text"] == "") == is_first
    finally:
        saved["metrics"]["null_threshold"] = run[1]["null_threshold"]
        write_json(path, saved)


def test_long_context_has_several_windows(run):
    context = "Omid likes chess. " * 40 + CONTEXT
    answers = Answerer(run[0])("Where does Anna live?", context, 21)
    for row in answers:
        if row["text"]:
            assert context[row["start"] : row["end"]] == row["text"]


def test_wrong_requests(run, tmp_path):
    answerer = Answerer(run[0])
    with pytest.raises(UsageError, match="The question must not be empty"):
        answerer(" ", CONTEXT)
    with pytest.raises(UsageError, match="The context must not be empty"):
        answerer("Where?", "\n")
    with pytest.raises(UsageError, match="count must be positive"):
        answerer("Where?", CONTEXT, 0)
    config = read_json(run[0] / "config.json")
    config["config"]["task"] = {"name": "mlm"}
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UsageError, match="a model of the task 'mlm'"):
        Answerer(tmp_path)


def test_the_command_answers_the_questions_of_a_file(run, tmp_path, zoo_command):
    workdir, _ = run
    rows = [
        {"question": "Where does Anna live?", "context": CONTEXT},
        {"question": " ", "context": CONTEXT},
        {"question": "What does Omid like?", "context": "Omid likes\tchess."},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer_all = Answerer(workdir)
    expected = [(q["question"], answer_all(q["question"], q["context"])) for q in rows[::2]]
    done = zoo_command("predict", workdir, path, "--json")
    assert done.status == 1
    assert f"{path}, line 2: 'question' must not be empty" in done.err
    rows = json.loads(done.out)
    assert [row["question"] for row in rows] == [question for question, _ in expected]
    for row, (_, answers) in zip(rows, expected, strict=True):
        for actual, wanted in zip(row["answers"], answers, strict=True):
            assert actual == {**wanted, "score": pytest.approx(wanted["score"], abs=1e-4)}
    table = list(csv.reader(io.StringIO(zoo_command("predict", workdir, path).out), delimiter="\t"))
    assert table[0] == ["question", "answer", "score", "start", "end"]
    assert [line[:2] for line in table[1:]] == [
        [question, answer["text"]] for question, answers in expected for answer in answers
    ]
    for line in table[1:]:
        assert (line[3] == "") == (line[1] == "")
    done = zoo_command("predict", workdir, "-")
    assert done.status == 2
    assert "requires two texts per row, question and context" in done.one_line()
    assert done.out == ""


def test_report_highlights_answers(run):
    workdir, _ = run
    page = Page(workdir / "report.html")
    (table,) = [t for t in page.tables if t[0][:3] == ["question", "reference", "prediction"]]
    samples = read_json(workdir / "evaluation" / "test_samples.json")
    assert len(table) == 1 + len(samples)
    scores = [float(row[3]) for row in table[1:]]
    assert scores == sorted(scores) == sorted(round(sample["f1"]) for sample in samples)
    assert "mark" in page.tags
