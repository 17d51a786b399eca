"""Causal language modeling: targets, loss and metrics."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo import registry
from zoo.data import Dataset, pipeline
from zoo.data.text import tokenizers
from zoo.data.windows import Windows
from zoo.errors import UsageError

TINY = registry.entry("gpt_nano").tiny
START = 2


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return registry.build("gpt_nano", **TINY)


def prepared(tokens, segments=None, weight=None, is_target=None, **arguments):
    """Returns the batch that the task prepares from stored examples."""
    task = registry.build_task("clm", **arguments).bind(None)
    batch = {"tokens": tf.constant(tokens)}
    if is_target is not None:
        batch["is_target"] = tf.constant(is_target)
    if segments is not None:
        batch["segments"] = tf.constant(segments)
    batch["weight"] = tf.ones(len(tokens)) if weight is None else tf.constant(weight, tf.float32)
    return task, {k: v.numpy() for k, v in task.prepare(batch, None, True).items()}


def test_targets_stay_in_their_document_and_padding_is_none():
    tokens = [[2, 7, 8, 3, 2, 9, 3, 0, 0]]
    segments = [[1, 1, 1, 1, 2, 2, 2, 0, 0]]
    _, batch = prepared(tokens, segments)
    assert batch["tokens"].tolist() == [[2, 7, 8, 3, 2, 9, 3, 0]]
    assert batch["targets"].tolist() == [[7, 8, 3, 2, 9, 3, 0, 0]]
    assert batch["counts"].tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]
    _, batch = prepared(tokens, segments, cross_documents=True)
    assert batch["counts"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 1, 1, 1, 0]]


def test_without_segments_a_document_begins_at_its_start_token():
    _, batch = prepared([[9, 3, START, 7, 3, -1, -1]])
    assert batch["segments"].tolist() == [[1, 1, 2, 2, 2, 0]]
    assert batch["counts"].tolist() == [[1, 0, 1, 1, 0, 0]]
    assert batch["tokens"].min() == 0


def test_rows_that_pad_a_batch_count_nothing():
    _, batch = prepared([[2, 7, 8], [2, 7, 8]], weight=[1, 0])
    assert batch["counts"].sum(1).tolist() == [2, 0]


def test_only_marked_tokens_of_a_document_count():
    _, batch = prepared(
        [[2, 7, 8, 3, 2, 9, 0], [2, 7, 8, 3, 3, 3, 3]],
        [[1, 1, 1, 1, 2, 2, 0], [1] * 7],
        weight=[1, 0],
        is_target=[[1, 0, 1, 1, 1, 0, 1], [1] * 7],
    )
    assert batch["counts"].tolist() == [[0, 1, 1, 0, 0, 0], [0] * 6]
    assert batch["bytes"].tolist() == batch["counts"].tolist()


@pytest.mark.parametrize("chunk", [0, 5])
def test_loss_and_metrics_are_sums_over_tokens(model, chunk):
    """Recomputes loss and metrics from the logits, token by token."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(6, 16, (3, 13))
    segments = np.where(np.arange(13) < [[13], [7], [10]], 1 + (np.arange(13) >= 4), 0)
    task, batch = prepared(tokens, segments, chunk=chunk)
    result = task.forward(model, batch, training=False)
    logits = model({k: batch[k] for k in ("tokens", "segments")}).numpy().astype("float64")
    loss = right = count = 0
    for row in range(3):
        for place in range(12):
            if segments[row, place] != segments[row, place + 1] or not segments[row, place + 1]:
                continue
            scores, target = logits[row, place], tokens[row, place + 1]
            loss += math.log(np.exp(scores - scores[target]).sum())
            right += scores.argmax() == target
            count += 1
    assert float(task.term_counts(batch)["loss"]) == count
    np.testing.assert_allclose(result.sums["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(result.statistics["accuracy"], [right, count])
    np.testing.assert_allclose(result.statistics["bits_per_byte"][0], loss / math.log(2), rtol=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    """A uniform model needs 8 bits per byte with every tokenizer."""
    text = "naïve خانه 🙂 " * 3
    counts = []
    for kind in ("byte", "character"):
        tokenizer = tokenizers.train(kind, [text])
        data = Dataset("text", {"train": {"tokens": np.ones((1, 2))}}, (), "", tokenizer)
        task = registry.build_task("clm").bind(None, data)
        ids = np.concatenate([[START], tokenizer.encode(text)])[None]
        batch = task.prepare({"tokens": tf.constant(ids), "weight": tf.ones(1)}, None, False)
        assert float(tf.reduce_sum(batch["bytes"])) == len(text.encode())
        counts.append(float(tf.reduce_sum(batch["counts"])))
    assert counts[0] == len(text.encode())
    assert counts[1] == len(text)


def test_perplexity_is_the_exponential_of_the_loss():
    assert registry.build_task("clm").derived_metrics({"loss": 2.0})["perplexity"] == math.exp(2.0)


def test_another_document_in_the_row_changes_no_gradient(model):
    generator = np.random.default_rng(0)
    tokens = generator.integers(6, 16, (1, 13))
    segments = np.array([[1] * 6 + [2] * 7])
    changed = tokens.copy()
    changed[0, :6] = generator.integers(6, 16, 6)

    def gradients(tokens):
        task, batch = prepared(tokens, segments)
        batch["counts"] = batch["counts"] * (batch["segments"] == 2)
        with tf.GradientTape() as tape:
            loss = task.forward(model, batch, training=False).sums["loss"]
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    for a, b in zip(gradients(tokens), gradients(changed), strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(a), tf.convert_to_tensor(b), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary": 300}, "has 300 tokens, but the model supports 16"),
        ({"length": 20}, "the model's 12 positions. Received: sequences of 20"),
        ({"key": "words"}, "requires the array 'tokens'"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(model, change, words):
    class Fake:
        vocabulary_size = change.get("vocabulary", 10)

    rows = np.ones((4, change.get("length", 12) + 1), np.uint16)
    data = Dataset("mine", {"train": {change.get("key", "tokens"): rows}}, (), "", Fake())
    with pytest.raises(UsageError, match=words):
        registry.build_task("clm").bind(model, data).check(model, data)


def test_a_model_of_another_task_is_refused():
    rows = np.ones((4, 13), np.uint16)
    data = Dataset("mine", {"train": {"tokens": rows}}, (), "")
    for name in ("bert_tiny", "transformer_tiny", "cnn_classifier"):
        other = registry.build(name, **registry.entry(name).tiny)
        with pytest.raises(UsageError, match="with the inputs segments and tokens.*Received"):
            registry.build_task("clm").check(other, data)
    pairs = Dataset("mine", {"train": {"source": rows, "target": rows}}, (), "")
    for name in ("bert_tiny", "gpt_nano"):
        other = registry.build(name, **registry.entry(name).tiny)
        with pytest.raises(UsageError, match="with the inputs source and target.*Received"):
            registry.build_task("seq2seq").check(other, pairs)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 10, 11, 12, 21, 100])
def test_windows_make_every_token_but_the_first_a_target_once(size):
    windows = Windows(np.arange(6, 6 + size), 10)
    rows = windows[:]
    assert rows.shape == windows.shape
    targets = rows[:, 1:]
    assert targets[targets >= 0].tolist() == list(range(7, 6 + size))
    inputs = rows[:, :-1][targets >= 0]
    assert (targets[targets >= 0] - inputs == 1).all()


def test_windows_of_a_phase_begin_later():
    windows = Windows(np.arange(100), 10)
    assert windows.take([0, 3], 4)[:, 0].tolist() == [4, 34]
    assert windows.take([9], 4)[0].tolist() == [*range(94, 100), *range(4), -1]


@pytest.mark.parametrize("size", [2, 3, 12, 100, 101])
def test_in_every_phase_all_tokens_but_the_first_are_targets_once(size):
    """Includes a short text: no window is empty."""
    windows = Windows(np.arange(size), 64)
    for phase in range(64):
        rows = windows.take(np.arange(len(windows)), phase)
        targets = rows[:, 1:]
        assert (targets >= 0).any(1).all()
        expected = (phase + 1 + np.arange(size - 1)) % size
        assert targets[targets >= 0].tolist() == expected.tolist()


def epochs(first=0, replicas=1, seed=0):
    data = pipeline.training_batches(
        {"tokens": Windows(np.arange(1000), 10)}, lambda batch, *_: batch,
        batch_size=20, replicas=replicas, seed=seed, first_step=first, last_step=15,
    )  # fmt: skip
    return [{k: v.numpy() for k, v in batch.items()} for batch in data]


def test_cuts_move_from_epoch_to_epoch_and_not_within_one(collected):
    rows = [batch["tokens"][:, 0] for batch in epochs()]
    phases = [set((np.concatenate(rows[i : i + 5]) % 10).tolist()) for i in (0, 5, 10)]
    assert all(len(phase) == 1 for phase in phases)
    assert len(set.union(*phases)) > 1
    assert sorted(np.concatenate(rows[:5]) // 10) == list(range(100))


def test_windows_resume_and_are_shared_by_replicas(collected):
    whole = epochs()
    for a, b in zip(whole[7:], epochs(first=7), strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
    shares = epochs(replicas=2)
    for step, batch in enumerate(whole):
        joined = np.concatenate([share["tokens"] for share in shares[2 * step : 2 * step + 2]])
        np.testing.assert_array_equal(batch["tokens"], joined)
