"""Extractive question answering: loss, metrics of windows, thresholds, and a short training."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import zoo
from tests.zoo.data.questions.test_question_data import DATA, TASK
from zoo import registry
from zoo.data import pipeline
from zoo.data.text.questions.dataset import QuestionDataset, question_answering
from zoo.data.text.questions.squad import Question
from zoo.errors import UsageError
from zoo.generation.answers import Answers, Span
from zoo.tasks.qa import best_pair

B, T = 6, 9


@pytest.mark.parametrize("may_have_no_answer", [True, False])
@pytest.mark.parametrize("max_answer", [1, 3, 20])
def test_best_pair(max_answer, may_have_no_answer):
    starts, ends = np.random.default_rng(0).normal(size=(2, 50, T)).astype("float32")
    starts[:20, 0] = 5.0
    arrays = (ops.convert_to_tensor(array) for array in (starts, ends))
    first, last = best_pair(*arrays, max_answer, may_have_no_answer)
    for row in range(50):
        scores = {
            (i, j): starts[row, i] + ends[row, j]
            for i in range(T)
            for j in range(T)
            if (i == j == 0 and may_have_no_answer) or (0 < i <= j < i + max_answer)
        }
        assert (int(first[row]), int(last[row])) == max(scores, key=scores.get)


def _logits_model(logits):
    """A model with fixed logits (B, T, 2) for its rows."""

    class Fixed(keras.layers.Layer):
        def call(self, tokens):
            return ops.convert_to_tensor(logits) + 0.0 * ops.cast(tokens[:, :, None], "float32")

    tokens = keras.Input((None,), dtype="int32", name="tokens")
    return keras.Model({"tokens": tokens}, Fixed()(tokens))


def _batch(arrays, answers=(), **arguments):
    """Returns a task for training questions with these answers, and the arrays as a batch."""
    task = registry.build_task("qa", **arguments)
    questions = {"train": tuple(Question("q", "a", "?", "x", spans) for spans in answers)}
    task.bind(None, QuestionDataset("toy", {"train": arrays}, (), "toy", questions=questions))
    (batch,) = pipeline.evaluation_batches(arrays, task.prepare, batch_size=len(arrays["tokens"]),
                                           replicas=1)  # fmt: skip
    return task, batch


@pytest.fixture(scope="module")
def arrays():
    generator = np.random.default_rng(0)
    context = np.zeros((B, T), np.uint8)
    context[:, 3:8] = 1
    start = np.array([3, 4, 0, 6, 7, 0], np.int32)
    return {
        "tokens": generator.integers(6, 20, (B, T)).astype("uint16"),
        "types": context.copy(), "context": context, "first": np.zeros(B, np.int32),
        "start": start, "end": np.array([3, 6, 0, 7, 7, 0], np.int32),
        "example": np.arange(B, dtype=np.int32),
    }  # fmt: skip


def test_loss_and_metrics_are_those_of_the_positions(arrays):
    logits = np.random.default_rng(1).normal(size=(B, T, 2)).astype("float32")
    logits[:, [1, 2, 8]] = 50.0  # positions of the question, which are no answers
    logits[0, 3] = logits[1, 5] = 9.0  # exact; one of three tokens
    task, batch = _batch(arrays, max_answer=3)
    result = task.forward(_logits_model(logits), batch, False)
    allowed = [0, 3, 4, 5, 6, 7]
    expected = 0.0
    for row in range(B):
        for part, key in enumerate(("start", "end")):
            values = logits[row, allowed, part]
            target = logits[row, arrays[key][row], part]
            expected += 0.5 * (np.log(np.exp(values).sum()) - target)
    assert float(result.sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(task.term_counts(batch)["loss"]) == B
    # F1 of the tokens, from the sets of positions.
    exact = total = 0.0
    for row in range(B):
        pairs = [(0, 0), *((i, j) for i in allowed[1:] for j in allowed[1:] if i <= j < i + 3)]
        first, last = max(pairs, key=lambda p: logits[row, p[0], 0] + logits[row, p[1], 1])
        predicted = set(range(first, last + 1))
        reference = set(range(arrays["start"][row], arrays["end"][row] + 1))
        total += 2 * len(predicted & reference) / (len(predicted) + len(reference))
        exact += predicted == reference
    assert 1 < total < B
    assert float(result.statistics["window_f1"][0]) == pytest.approx(total, rel=1e-5)
    assert float(result.statistics["window_exact"][0]) == exact
    assert exact >= 1


def test_metrics_are_those_of_windows_with_the_answer_if_every_question_has_one(arrays):
    logits = np.random.default_rng(1).normal(size=(B, T, 2)).astype("float32")
    logits[:, 0] = 9.0  # "no answer"
    answered = (("x", 0),)
    results = {}
    for answers in ((answered, answered), (answered, ())):
        task, batch = _batch(arrays, answers)
        results[answers[1]] = task.forward(_logits_model(logits), batch, False)
    assert float(results[()].statistics["window_f1"][1]) == B
    # The two windows without the answer are right.
    assert float(results[()].statistics["window_f1"][0]) == 2
    f1, weight = map(float, results[answered].statistics["window_f1"])
    logits[:, 0] = -9.0
    best = task.forward(_logits_model(logits), batch, False)
    assert weight == B - 2
    assert 0 < f1 == pytest.approx(float(best.statistics["window_f1"][0]), rel=1e-5)
    losses = [float(result.sums["loss"]) for result in results.values()]
    assert losses[0] == losses[1]


def test_rows_of_weight_0_do_not_count(arrays):
    logits = np.random.default_rng(1).normal(size=(B, T, 2)).astype("float32")
    task, batch = _batch(arrays)
    whole = task.forward(_logits_model(logits), batch, False)
    rows = [
        task.forward(
            _logits_model(logits[[i]]), {key: value[i : i + 1] for key, value in batch.items()},
            False,
        )
        for i in range(B)
    ]  # fmt: skip
    losses = [float(row.sums["loss"]) for row in rows]
    f1 = [float(row.statistics["window_f1"][0]) for row in rows]
    counts = np.ones(B, "float32")
    counts[[0, np.argmax(f1)]] = 0
    part = task.forward(_logits_model(logits), {**batch, "counts": ops.array(counts)}, False)
    for result, weights in ((whole, np.ones(B)), (part, counts)):
        assert float(result.sums["loss"]) == pytest.approx(np.dot(losses, weights), rel=1e-5)
        assert float(result.statistics["window_f1"][0]) == pytest.approx(np.dot(f1, weights))
        assert float(result.statistics["window_f1"][1]) == weights.sum()


def test_wrong_arguments_and_models(arrays, cache):
    with pytest.raises(UsageError, match="task.max_answer must be positive"):
        registry.build_task("qa", max_answer=0)
    with pytest.raises(UsageError, match="task.dropout must be in"):
        registry.build_task("qa", dropout=1.0)
    task = registry.build_task("qa")
    dataset = question_answering(DATA, TASK)
    model = zoo.build(
        "encoder_nano", vocabulary_size=dataset.tokenizer.vocabulary_size, num_layers=1,
        hidden_dim=8, num_heads=2, sequence_length=64,
    )  # fmt: skip
    with pytest.raises(UsageError, match="two logits per position"):
        task.bind(model, dataset).check(model, dataset)
    headed = task.with_head(model, dataset)
    assert headed.output_shape == (None, None, 2)
    task.bind(headed, dataset).check(headed, dataset)
    with pytest.raises(UsageError, match="must not exceed the model's 30 positions"):
        task.bind(headed, dataset, {"sequence_length": 30}).check(headed, dataset)
    other = dataclasses.replace(dataset, splits={"train": {"tokens": arrays["tokens"]}})
    with pytest.raises(UsageError, match="requires the array 'types'"):
        task.check(headed, other)


class FixedAnswers:
    """Stands for a model: one span and one null score per question and split."""

    def __init__(self, table):
        self.table = table

    def dataset(self):
        questions = {
            split: tuple(
                Question(str(i), "a", "?", "cat dog", ((reference, "cat dog".index(reference)),)
                         if reference else ())
                for i, (_, _, reference) in enumerate(rows)
            )
            for split, rows in self.table.items()
        }  # fmt: skip
        arrays = {split: {"tokens": np.zeros((1, 1))} for split in questions}
        return QuestionDataset("toy", arrays, (), "toy", None, {}, questions)

    def answers(self, task, monkeypatch):
        def answers(model, dataset, split):
            return [
                Answers([Span(text, 0, 3, 0.0)], null_score)
                for text, null_score, _ in self.table[split]
            ]

        monkeypatch.setattr(task, "_answers", answers)


def test_threshold_is_chosen_on_the_validation_split(monkeypatch):
    fixed = FixedAnswers(
        {
            # (best span, score of "no answer", reference)
            "validation": [("cat", 1.0, "cat"), ("cat", 3.0, ""), ("dog", 2.0, "dog")],
            "test": [("cat", 1.9, "cat"), ("cat", 2.1, ""), ("dog", 5.0, "dog"), ("dog", 0, "cat")],
        }
    )
    task = registry.build_task("qa")
    fixed.answers(task, monkeypatch)
    metrics, samples = task.evaluate_split(None, fixed.dataset(), "test")
    assert metrics == {
        "exact_match": 50.0, "f1": 50.0, "has_answer_exact_match": 100 / 3,
        "has_answer_f1": 100 / 3, "no_answer_accuracy": 100.0, "null_threshold": 2.0,
        "scoring": "SQuAD 2.0, null threshold of the best F1 on the validation split",
    }  # fmt: skip
    assert samples[0] == {
        "source": "?", "prediction": "cat", "reference": "cat", "context": "cat dog",
        "predicted_span": [0, 3], "reference_span": [0, 3], "f1": 100.0,
    }  # fmt: skip
    assert samples[1]["prediction"] == samples[1]["reference"] == ""
    assert samples[1]["predicted_span"] is samples[1]["reference_span"] is None


def test_threshold_without_impossible_validation_questions(monkeypatch):
    fixed = FixedAnswers(
        {"validation": [("cat", 9.0, "cat")], "test": [("cat", 0.1, "cat"), ("cat", 0.1, "")]}
    )
    task = registry.build_task("qa")
    fixed.answers(task, monkeypatch)
    metrics, _ = task.evaluate_split(None, fixed.dataset(), "test")
    assert (metrics["null_threshold"], metrics["no_answer_accuracy"]) == (0.0, 100.0)
    # Without impossible questions, each question is answered.
    metrics, _ = task.evaluate_split(None, fixed.dataset(), "validation")
    assert metrics == {"exact_match": 100.0, "f1": 100.0, "scoring": "SQuAD 1.1"}


def test_no_question_is_answered_if_that_is_best(monkeypatch):
    fixed = FixedAnswers({"validation": [("cat", 1.0, ""), ("cat", 2.0, "")]})
    task = registry.build_task("qa")
    fixed.answers(task, monkeypatch)
    metrics, _ = task.evaluate_split(None, fixed.dataset(), "validation")
    assert metrics["exact_match"] == 100.0
    assert np.isfinite(metrics["null_threshold"])


def test_other_datasets_have_no_text(arrays):
    dataset = zoo.data.Dataset("toy", {"test": arrays}, (), "toy")
    assert registry.build_task("qa").evaluate_split(None, dataset, "test") == ({}, [])


def test_synthetic_windows_name_their_answer():
    task = registry.build_task("qa")
    model = task.with_head(
        zoo.build("encoder_nano", vocabulary_size=40, num_layers=1, hidden_dim=8, num_heads=2,
                  sequence_length=16)
    )  # fmt: skip
    arrays = task.synthetic(model, 5, 0)
    for row in range(5):
        tokens, at = arrays["tokens"][row], arrays["start"][row]
        assert tokens[at - 1] == tokens[1]
        assert arrays["context"][row][at]
    dataset = zoo.data.Dataset("toy", {"train": arrays}, (), "toy")
    task.bind(model, dataset).check(model, dataset)
