"""The linear baseline: its features are those of a loop in Python, without overflow."""

import numpy as np
import pytest

from zoo import registry
from zoo.data.text.special_tokens import END, FIRST_WORD, PADDING, SEPARATOR, START, UNKNOWN
from zoo.models import linear

PRIME, FACTOR = 524_287, 4093
LARGEST = 2**20 - 1  # token id


def row(*texts, length=12):
    """Returns tokens and types (length,) of the words of one or two texts."""
    tokens, types = [START], [0]
    for number, words in enumerate(texts):
        tokens += [*words, SEPARATOR]
        types += [number] * (len(words) + 1)
    padding = [0] * (length - len(tokens))
    return tokens + padding, types + padding


def batch(*rows):
    tokens, types = zip(*rows, strict=True)
    return {"tokens": np.array(tokens, "int32"), "types": np.array(types, "int32")}


def random_model(classes=3, buckets=500, ngrams=2, seed=0):
    model = linear.build(classes, buckets, ngrams)
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(generator.normal(size=weight.shape))
    return model


def hashed(first, words, buckets):
    value = first
    for word in words:
        value = (value * FACTOR + word + 1) % PRIME
    return value % buckets


def logits_by_hand(model, texts, buckets=500, ngrams=2):
    """Computes the logits of an example from its texts, lists of words or None."""
    table, kernel, bias = (np.array(x, np.float64) for x in model.get_weights())
    others = [set(texts[1]) if len(texts) > 1 else set(), set(texts[0])]
    total, count, shares = 0.0, 0, [0.0, 0.0]
    for number, words in enumerate(texts):
        is_word = [word >= FIRST_WORD for word in words]
        for start in range(len(words)):
            for end in range(start + 1, min(start + ngrams, len(words)) + 1):
                if not all(is_word[start:end]):
                    continue
                count += 1
                ngram = words[start:end]
                if not set(ngram) <= others[number]:
                    total = total + table[hashed(number + 1, ngram, buckets)]
            if is_word[start] and words[start] in others[number]:
                total = (
                    total
                    + linear.SHARED_WEIGHT * table[hashed(3, words[start : start + 1], buckets)]
                )
        known = [word for word in words if word >= FIRST_WORD]
        shares[number] = sum(word in others[number] for word in known) / max(len(known), 1)
    return total / max(count, 1) ** 0.5 + np.array(shares) @ kernel + bias


EXAMPLES = [
    ([6, 7, 8, 6],),
    ([6, 7, 8], [8, 7, 9]),
    ([6, 7], [6, 7]),
    ([6], [7, 7, 7]),
    ([LARGEST, LARGEST - 1], [LARGEST, 6]),
    # Unknown words are no words: they are neither features nor equal to each other.
    ([6, UNKNOWN, 7], [UNKNOWN, 6]),
    ([UNKNOWN],),
]


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_features_are_those_of_a_loop(ngrams):
    model = random_model(ngrams=ngrams)
    logits = np.asarray(model(batch(*(row(*texts) for texts in EXAMPLES))))
    expected = [logits_by_hand(model, texts, ngrams=ngrams) for texts in EXAMPLES]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_padding_and_special_tokens_take_no_part():
    model = random_model()
    short, long = (batch(*(row(*texts, length=n) for texts in EXAMPLES)) for n in (12, 40))
    np.testing.assert_allclose(model(short), model(long), rtol=1e-5, atol=1e-6)
    tokens, types = row([6, 7])
    other = [
        END if token == SEPARATOR else PADDING if token == START else token for token in tokens
    ]
    np.testing.assert_array_equal(model(batch((tokens, types))), model(batch((other, types))))


def test_ngrams_do_not_cross_texts():
    """Adjacent words of two texts without a separator are no n-gram."""
    model = random_model()
    joined = batch(([6, 7, 0], [0, 1, 0]))
    separated = batch(([6, 4, 7], [0, 0, 1]))
    np.testing.assert_array_equal(model(joined), model(separated))


def test_texts_are_told_apart():
    model = random_model()
    a, b, swapped = (model(batch(x)) for x in (row([6]), row([7]), row([7], [6])))
    c = model(batch(row([6], [7])))
    assert np.abs(np.asarray(c) - np.asarray(swapped)).max() > 0.1
    assert np.abs(np.asarray(a) - np.asarray(b)).max() > 0.1


def test_weights_start_at_zero():
    model = registry.build("linear_text", num_classes=4, buckets=50)
    assert not np.asarray(model(batch(row([6, 7])))).any()
    assert model.output_shape == (None, 4)
    assert model.count_params() == 50 * 4 + 2 * 4 + 4


@pytest.mark.parametrize(
    "arguments", [{"num_classes": 0}, {"buckets": 0}, {"buckets": 2**19}, {"ngrams": 0}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}.*Received"):
        linear.build(**arguments)
