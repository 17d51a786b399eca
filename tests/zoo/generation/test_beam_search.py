"""Beam search against exhaustive search and greedy decoding."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests.zoo.generation.test_generate import with_large_weights
from zoo.generation.beam_search import INVALID_SCORE, beam_search
from zoo.generation.decoding import decoding
from zoo.generation.generate import Generator
from zoo.models.llama import build as llama
from zoo.models.lstm import build as lstm

V, END = 5, 1
BUILDERS = {
    "llama": lambda: llama(V, 1, num_layers=2, hidden_dim=16, num_heads=4, num_key_value_heads=2),
    "lstm": lambda: lstm(V, embedding_dim=8, hidden_dim=16),
}


@pytest.fixture(scope="module")
def models():
    return {name: with_large_weights(build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def steps(models):
    """Returns one decoding per model, with its compiled searches."""
    return {name: decoding(model) for name, model in models.items()}


def search(steps, first_tokens, max_tokens, beams, penalty=0.6, end=END, **options):
    options = {"jit_compile": False, **options}
    cache = steps.start(len(first_tokens), 16)
    tokens, scores = beam_search(
        steps, cache, first_tokens, max_tokens, beams, end, penalty, **options
    )
    return tokens.numpy(), scores.numpy()


def log_probabilities(model, tokens):
    tokens = np.asarray(tokens, "int32")
    inputs = {"tokens": tokens, "segments": np.ones_like(tokens)}
    out = model({tensor.name: inputs[tensor.name] for tensor in model.inputs}, training=False)
    out = tf.math.log(out) if model.layers[-1].name == "probabilities" else out
    return np.asarray(tf.nn.log_softmax(out))


def all_texts(model, first, length, penalty):
    """Returns all texts of at most `length` tokens with scores, best first."""
    rows = np.array(list(itertools.product(range(V), repeat=length)))
    logs = log_probabilities(model, np.concatenate([np.full((len(rows), 1), first), rows], 1))
    scores = {}
    for row, log in zip(rows, logs, strict=True):
        size = list(row).index(END) + 1 if END in row else length
        text = tuple(row[:size].tolist()) + (0,) * (length - size)
        total = sum(log[i, row[i]] for i in range(size))
        scores[text] = total / ((5 + size) / 6) ** penalty
    return sorted(scores.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_with_enough_beams_it_finds_the_best_of_all_texts(models, steps, name, penalty):
    length, beams = 3, V**3
    tokens, scores = search(steps[name], [2, 4], length, beams, penalty)
    assert tokens.shape == (2, beams, length)
    for row, first in enumerate((2, 4)):
        # Texts are padded with zeros after the end; texts with equal scores may change places.
        expected = all_texts(models[name], first, length, penalty)
        actual = [(tuple(t.tolist()), s) for t, s in zip(tokens[row], scores[row], strict=True)]
        actual = actual[: len(expected)]
        np.testing.assert_allclose(
            [score for _, score in actual], [score for _, score in expected], atol=1e-4
        )
        assert actual[0][0] == expected[0][0]
        assert {text for text, _ in actual} == {text for text, _ in expected}
        assert (scores[row, len(expected) :] < INVALID_SCORE / 2).all(), "there are no more texts"


@pytest.mark.parametrize("name", BUILDERS)
def test_one_beam_is_greedy(models, steps, name):
    firsts = [0, 1, 2, 3, 4]
    generator = Generator(models[name], jit_compile=False)

    def greedy(end):
        return generator.tokens([[f] for f in firsts], 12, temperature=0.0, end_id=end)

    # The end is the token that ends the texts at the largest number of different positions.
    texts = {end: greedy(end) for end in range(V)}
    end = max(texts, key=lambda end: len({len(text) for text in texts[end]}))
    assert len({len(text) for text in texts[end]}) > 1
    tokens, _ = search(steps[name], firsts, 12, 1, end=end)
    for actual, expected in zip(tokens[:, 0], texts[end], strict=True):
        text = [*expected, *[end] * (len(expected) < 12)]
        assert list(actual) == text + [0] * (12 - len(text))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("beams", [3, 4])
def test_scores_are_those_of_the_texts(models, steps, name, beams):
    tokens, scores = search(steps[name], [0, 2, 3], 10, beams)
    assert (np.diff(scores, axis=1) <= 0).all()
    for row, first in enumerate((0, 2, 3)):
        assert len({tuple(text) for text in tokens[row]}) == beams
        for text, score in zip(tokens[row], scores[row], strict=True):
            size = list(text).index(END) + 1 if END in text else 10
            logs = log_probabilities(models[name], [[first, *text]])[0]
            total = sum(logs[i, text[i]] for i in range(size))
            assert score == pytest.approx(total / ((5 + size) / 6) ** 0.6, abs=1e-4)
            assert not text[size:].any()


def test_many_beams_find_better_texts_than_one(steps):
    one, many = (search(steps["llama"], [0, 2, 3, 4], 8, beams)[1][:, 0] for beams in (1, 64))
    assert (many >= one - 1e-5).all()
    assert (many > one + 1e-3).any()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_batch_changes_nothing(steps, name):
    together, scores = search(steps[name], [0, 2, 3, 4], 9, 3)
    for row, first in enumerate((0, 2, 3, 4)):
        alone, score = search(steps[name], [first], 9, 3)
        np.testing.assert_array_equal(alone[0], together[row])
        np.testing.assert_allclose(score[0], scores[row], atol=1e-4)


def test_a_long_penalty_makes_long_texts(steps):
    def mean(penalty):
        tokens, _ = search(steps["llama"], [0, 2, 3, 4], 10, 4, penalty)
        return (tokens[:, 0] != 0).sum()

    assert mean(3.0) > mean(0.0)


def test_forbidden_tokens_are_not_in_it(steps):
    forbidden = np.array([0, 0, -1e30, -1e30, 0], "float32")
    tokens, _ = search(steps["llama"], [2, 4], 8, 4, forbidden=forbidden)
    assert not set(tokens.ravel().tolist()) & {2, 3}


def test_it_goes_on_from_a_prompt(models, steps):
    prompt = np.array([[2, 4, 3, 0, 2]], "int32")
    _, cache = steps["llama"].step(prompt[:, :-1], steps["llama"].start(1, 16), 0)
    tokens, scores = beam_search(
        steps["llama"], cache, prompt[:, -1], 4, 2, END, first=4, jit_compile=False
    )
    logs = log_probabilities(models["llama"], [[*prompt[0], *tokens[0, 0].numpy()]])[0, 4:]
    text = tokens[0, 0].numpy()
    size = list(text).index(END) + 1 if END in text else 4
    total = sum(logs[i, text[i]] for i in range(size))
    assert float(scores[0, 0]) == pytest.approx(total / ((5 + size) / 6) ** 0.6, abs=1e-4)
    # The same through the generator.
    actual = Generator(models["llama"], jit_compile=False).tokens(
        prompt.tolist(), 4, beams=2, end_id=END
    )
    assert list(actual[0]) == [t for t in text[:size] if t != END]


def test_compiled_by_xla_it_gives_the_same_and_is_traced_once(steps, xla):
    plain, scores = search(steps["lstm"], [2, 4], 9, 3)
    before = set(steps["lstm"]._beam_searches)
    for length in (9, 5, 16):
        compiled, compiled_scores = search(steps["lstm"], [2, 4], length, 3, jit_compile=True)
        if length == 9:
            np.testing.assert_array_equal(compiled, plain)
            np.testing.assert_allclose(compiled_scores, scores, atol=1e-4)
    (new,) = set(steps["lstm"]._beam_searches) - before
    assert steps["lstm"]._beam_searches[new].experimental_get_tracing_count() == 1


def test_a_penalty_that_favors_short_texts_is_refused(steps):
    with pytest.raises(ValueError, match="length_penalty must be at least 0. Received: -0.5"):
        search(steps["lstm"], [2], 4, 2, -0.5)


class Recalling:
    """Logits depend on a sequence's memory and all of its tokens, with two cache rows each."""

    vocabulary_size = V

    def start(self, batch, length):
        rows = ops.arange(batch, dtype="int32")
        return {
            "history": ops.ones((2 * batch, 1)),
            "more": [{"memory_rows": ops.reshape(ops.stack([rows, rows + 100], 1), (-1, 1))}],
        }

    def step(self, tokens, cache, first):
        memory = ops.reshape(cache["more"][0]["memory_rows"], (-1, 2))
        history = ops.reshape(cache["history"], (-1, 2)) * 1.7 + ops.cast(tokens, "float32")
        phase = history[:, :1] + history[:, 1:] + ops.cast(memory[:, :1] + memory[:, 1:], "float32")
        logits = 3 * ops.sin(phase * ops.arange(1, V + 1, dtype="float32"))
        return logits[:, None], {**cache, "history": ops.reshape(history, (-1, 1))}


def test_memory_stays_with_its_sequence():
    tokens, scores = search(Recalling(), [2, 2, 2], 6, 3, 0.0)
    for row in range(3):
        for text, score in zip(tokens[row], scores[row], strict=True):
            history, total, last = 1.0, 0.0, 2
            for token in text:
                history = history * 1.7 + last
                logits = 3 * np.sin((2 * history + 2 * row + 100) * np.arange(1, V + 1))
                total += logits[token] - np.log(np.exp(logits).sum())
                last = token
                if token == END:
                    break
            assert score == pytest.approx(total, abs=2e-2)
    assert len({tuple(text) for text in tokens[:, 0]}) == 3
