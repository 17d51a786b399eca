"""Questions by depth: accuracy of whole chains, the curriculum, halting, and the report's table."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers.config.recipe import resolve
from trainers.config.trainer import check
from zoo import registry
from zoo.data import pipeline
from zoo.data.text.synthetic.reasoning import questions
from zoo.errors import UsageError
from zoo.models.looped import looped_layer, set_loops


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return registry.build(
        "looped_nano", vocabulary_size=262, sequence_length=200, num_layers=1, hidden_dim=16,
        num_heads=2, loops=2, loop_range=(1, 6), prelude_layers=0, coda_layers=0,
    )  # fmt: skip


def dataset_of(source, depth=2):
    data = {**resolve("looped_chase").data.to_dict(), "source": f"synthetic:{source}"}
    return questions(data, {"depth": depth})


def bound(model, source="chase", depth=2):
    dataset = dataset_of(source, depth)
    task = registry.build_task("by_depth", depth=depth).bind(model, dataset, {})
    return task, dataset


def batch_of(task, dataset, split="train", rows=3, **more):
    arrays = dataset.splits[split]
    batch = {key: tf.constant(x[np.arange(rows)]) for key, x in arrays.items()}
    return task.prepare({**batch, "weight": tf.ones(rows), **more}, None, bool(more))


class Answers:
    """Model that predicts given tokens."""

    def __init__(self, model, tokens):
        self.inputs, self.layers, self.outputs = model.inputs, model.layers, model.outputs
        self.logits = tf.one_hot(tokens, 262) * 10

    def __call__(self, inputs, training=None):
        return self.logits


@pytest.mark.parametrize("source", ["chase", "chase_steps"])
def test_a_question_is_answered_if_its_whole_chain_is_right(model, source):
    task, dataset = bound(model, source)
    task.looped = None
    batch = batch_of(task, dataset, "test", 20)
    right = batch["targets"]

    def accuracies(tokens):
        statistics = task.forward(Answers(model, tokens), batch, False).statistics
        return {k: (float(a), float(b)) for k, (a, b) in statistics.items()}

    whole = accuracies(right)
    assert whole["accuracy"][0] == whole["accuracy"][1]
    questions_by_depth = [whole[f"accuracy_{d}"][1] for d in range(1, 5)]
    assert sum(questions_by_depth) == whole["accuracy"][1] == 20 * (1 if "steps" in source else 16)
    # An error in the first token of the chain of row 0 costs its question, at its depth alone.
    place = int(tf.where(batch["questions"][0] == 1)[0, 0])
    depth = int(batch["depths"][0, place])
    wrong = tf.tensor_scatter_nd_update(right, [[0, place]], [right[0, place] + 1])
    for name, (sum_of_answers, count) in accuracies(wrong).items():
        missing = 1 if name in ("accuracy", f"accuracy_{depth}") else 0
        assert sum_of_answers == whole[name][0] - missing
        assert count == whole[name][1]


def test_the_curriculum_counts_depths_and_loops_up_to_its_level(model):
    task, dataset = bound(model)
    for progress, level in ((0.1, 1), (0.5, 1), (0.6, 2), (1.0, 2)):
        batch = batch_of(task, dataset, progress=tf.fill((3,), progress))
        counted = tf.boolean_mask(batch["depths"], batch["counts"] > 0)
        assert int(tf.reduce_max(counted)) == level
        assert (batch["levels"].numpy() == level).all()
        task.forward(model, batch, training=True)
        assert [int(x) for x in looped_layer(model).limits] == [level, 2 * level]
    task.forward(model, batch_of(task, dataset), training=True)
    assert looped_layer(model).limits is None


def test_progress_is_a_function_of_the_step(model):
    task, dataset = bound(model)
    arrays = {k: x[np.arange(8)] for k, x in dataset.splits["train"].items()}

    def levels(first, last):
        batches = pipeline.training_batches(
            arrays, task.prepare, batch_size=4, replicas=1, seed=0, first_step=first,
            last_step=last, curriculum=4,
        )  # fmt: skip
        return [int(batch["levels"][0]) for batch in batches]

    assert levels(0, 6) == [1, 1, 2, 2, 2, 2]
    assert levels(2, 4) == [2, 2]


def test_halting_reports_the_share_of_saved_loops(model):
    task, dataset = bound(model)
    assert "saved_loops" not in task.statistics
    layer = looped_layer(model)
    batch = batch_of(task, dataset)
    try:
        set_loops(model, 4, halt=0.999)
        total, weight = task.forward(model, batch, False).statistics["saved_loops"]
        used = layer.used_loops
        expected = tf.reduce_sum((1 - used / 4) * batch["counts"])
        assert float(total) == pytest.approx(float(expected))
        assert float(total) > 0
        assert float(weight) == float(tf.reduce_sum(batch["counts"]))
    finally:
        layer.halt, layer.loops = 0.0, 2


def test_the_report_gets_a_table_of_depths_and_loops(model):
    task, dataset = bound(model)
    metrics, table = task.evaluate_split(model, dataset, "test")
    assert metrics == {}
    assert [row["loops"] for row in table] == ["1", "2", "4", "8"]
    assert [*table[0]] == ["loops", "depth 1", "depth 2", "depth 3", "depth 4"]
    assert looped_layer(model).loops == 2


def test_wrong_requests_are_refused():
    with pytest.raises(UsageError, match=r"task.depth must be positive. Received: 0"):
        registry.build_task("by_depth", depth=0)
    config = resolve("gpt_needle:debug")
    config.trainer.curriculum = 5
    with pytest.raises(UsageError, match="trainer.curriculum requires .*by_depth. Received: .*clm"):
        check(config.trainer, config.task)
