"""Masked language modeling: selected words, their replacements, losses and metrics."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo import registry
from zoo.data import Dataset, pipeline
from zoo.data.text.special_tokens import FIRST_WORD, MASK, SEPARATOR, START
from zoo.errors import UsageError

V, T = 500, 40
ROWS = 64


@dataclasses.dataclass
class Words:
    """A minimal tokenizer for the task; a fifth of the words continue the previous one."""

    vocabulary_size: int = V

    @property
    def starts_word(self):
        word = np.arange(self.vocabulary_size)
        return (word % 5 != 0) | (word < FIRST_WORD)


def stored(rows=ROWS, seed=0):
    """Returns pairs as the task `nsp` stores them, in rows of 10 to 40 tokens."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(FIRST_WORD, V, (rows, T))
    sizes = generator.integers(10, T + 1, (rows, 1))
    sizes[:2] = [[T], [10]]
    places = np.arange(T)
    tokens[:, 0] = START
    tokens = np.where((places == sizes // 2) | (places == sizes - 1), SEPARATOR, tokens)
    tokens = np.where(places < sizes, tokens, 0)
    second = (places > sizes // 2) & (places < sizes)
    label = generator.integers(0, 2, rows).astype("int32")
    return {"tokens": tokens.astype("uint16"), "types": second.astype("uint8"), "label": label}


def make_task(name="nsp", **arguments):
    data = Dataset("toy", {"train": stored()}, (), "toy", Words())
    return registry.build_task(name, **arguments).bind(None, data)


def batches(task, arrays, steps=1, seed=0, batch_size=None):
    """Returns the task's batches of the first steps, with the stored tokens as "raw"."""

    def prepare(batch, uniform, training):
        return {**task.prepare(batch, uniform, training), "raw": batch["tokens"]}

    rows = len(arrays["tokens"])
    tensor_batches = pipeline.training_batches(
        arrays, prepare, batch_size=batch_size or rows, replicas=1, seed=seed, first_step=0,
        last_step=steps,
    )  # fmt: skip
    return [{k: v.numpy() for k, v in batch.items()} for batch in tensor_batches]


def selected_positions(batch):
    """Returns (B, T) bool: positions that are selected for prediction."""
    selected = np.zeros(batch["tokens"].shape, bool)
    rows, slots = np.nonzero(batch["counts"])
    selected[rows, batch["masked"][rows, slots]] = True
    return selected


@pytest.fixture(scope="module")
def many_batches():
    """Returns fifty batches."""
    return batches(make_task(), stored(), steps=50)


# --- selection of words ---------------------------------------------------------------------------


def test_special_tokens_and_padding_are_never_asked_for(many_batches):
    for batch in many_batches:
        raw = batch["raw"].astype(int)
        assert (raw[selected_positions(batch)] >= FIRST_WORD).all()
        # Special tokens are not replaced.
        special = raw < FIRST_WORD
        np.testing.assert_array_equal(batch["tokens"][special], raw[special])


@pytest.mark.parametrize("share", [0.02, 0.15, 0.4, 1.0])
def test_the_share_of_each_row_is_asked_for(share):
    (batch,) = batches(make_task(mask_share=share), stored())
    words = (batch["raw"] >= FIRST_WORD).sum(1)
    counts = batch["counts"].sum(1)
    assert (np.abs(counts - np.maximum(1, share * words)) < 0.501).all()
    assert batch["masked"].shape == (ROWS, int(np.ceil(share * T)))
    assert [len(set(row)) for row in batch["masked"].tolist()] == [batch["masked"].shape[1]] * ROWS


def test_a_row_without_words_asks_for_none():
    arrays = stored()
    arrays["tokens"][:, 1:] = 0
    (batch,) = batches(make_task(), arrays)
    assert not batch["counts"].any()
    np.testing.assert_array_equal(batch["tokens"], batch["raw"])


def test_all_words_are_asked_for_equally_often(many_batches):
    counts = sum(selected_positions(b).sum(0) for b in many_batches)
    possible = sum((b["raw"] >= FIRST_WORD).sum(0) for b in many_batches)
    rate = counts[possible > 500] / possible[possible > 500]
    assert len(rate) > 30
    assert np.abs(rate - 0.15).max() < 0.06  # the standard deviation of a rate is at most 0.016


def test_targets_are_the_words_that_stood_there(many_batches):
    for batch in many_batches:
        np.testing.assert_array_equal(
            batch["targets"], np.take_along_axis(batch["raw"].astype(int), batch["masked"], 1)
        )
        others = ~selected_positions(batch)
        np.testing.assert_array_equal(batch["tokens"][others], batch["raw"][others])


# --- replacement of words -------------------------------------------------------------------------


def within(count, total, share, deviations=4.5):
    """Returns whether a count is within the 1 - 1e-5 interval of a binomial distribution."""
    return abs(count - total * share) <= deviations * np.sqrt(total * share * (1 - share))


def test_eighty_ten_ten(many_batches):
    new = np.concatenate([b["tokens"][selected_positions(b)] for b in many_batches])
    old = np.concatenate([b["raw"][selected_positions(b)] for b in many_batches]).astype(int)
    total = len(new)
    assert total > 10_000
    same = 0.1 + 0.1 / (V - FIRST_WORD)  # a random word may be the same
    assert within((new == MASK).sum(), total, 0.8)
    assert within((new == old).sum(), total, same)
    others = new[(new != MASK) & (new != old)]
    assert within(len(others), total, 0.2 - same)
    # Random words are drawn from all words, and only from words.
    assert others.min() >= FIRST_WORD
    assert others.max() < V
    assert within((others < 253).sum(), len(others), 0.5)
    assert len(set(others.tolist())) > 0.8 * (V - FIRST_WORD)


def test_what_becomes_of_a_word_does_not_depend_on_which_one_it_is():
    # One row per batch, so that reused random numbers would be noticed.
    arrays = {name: array[:1] for name, array in stored().items()}
    all_batches = batches(make_task(), arrays, steps=600)
    first = [b["tokens"][0, 1] for b in all_batches if selected_positions(b)[0, 1]]
    assert within(sum(token == MASK for token in first), len(first), 0.8)
    slots = np.concatenate([b["tokens"][0, b["masked"][0, :6]] == MASK for b in all_batches])
    for share in slots.reshape(-1, 6).mean(0):
        assert within(share * 600, 600, 0.8)


# --- random numbers -------------------------------------------------------------------------------


def by_row(batch):
    return {
        row.tobytes(): tokens for row, tokens in zip(batch["raw"], batch["tokens"], strict=True)
    }


def test_masks_are_a_function_of_the_seed_and_new_in_every_epoch():
    task = make_task()
    one, again, other = (batches(task, stored(), steps=2, seed=s) for s in (1, 1, 2))
    for first, second in zip(one, again, strict=True):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])

    def equal(a, b):
        a, b = by_row(a), by_row(b)
        return sum(np.array_equal(a[row], b[row]) for row in a)

    assert equal(one[0], one[0]) == ROWS
    assert equal(one[0], one[1]) <= 3  # rows of ten tokens have one selected word
    assert equal(one[0], other[0]) <= 3


def test_masks_are_fixed_in_evaluation():
    task = make_task()
    token_batches = [
        [b["tokens"].numpy() for b in pipeline.evaluation_batches(
            stored(), task.prepare, batch_size=16, replicas=replicas)]
        for replicas in (1, 1, 2)
    ]  # fmt: skip
    np.testing.assert_array_equal(*(np.concatenate(f) for f in token_batches[:2]))
    np.testing.assert_array_equal(*(np.concatenate(f) for f in token_batches[1:]))


# --- whole words ----------------------------------------------------------------------------------


def word_numbers(raw, segments):
    """Returns (T,) the index of each token's word, -1 for special tokens."""
    starts = Words().starts_word
    words, word = np.full(len(raw), -1), -1
    for place, token in enumerate(raw):
        if token < FIRST_WORD or segments[place] == 0:
            continue
        joins = place and raw[place - 1] >= FIRST_WORD and segments[place - 1] == segments[place]
        word += bool(starts[token] or not joins)
        words[place] = word
    return words


def test_whole_words_are_asked_for_whole():
    all_batches = batches(make_task(whole_word=True), stored(), steps=20)
    selected_count = possible = parts = 0
    for batch in all_batches:
        selected = selected_positions(batch)
        for row in range(ROWS):
            words = word_numbers(batch["raw"][row], batch["segments"][row])
            selected_words = np.unique(words[selected[row]])
            np.testing.assert_array_equal(selected[row], np.isin(words, selected_words))
            assert -1 not in selected_words
            parts += selected[row].sum() - len(selected_words)
            selected_count += selected[row].sum()
            possible += (words >= 0).sum()
            assert selected[row].sum() <= max(1, round(0.15 * (words >= 0).sum()))
    assert parts > 300
    assert 0.12 < selected_count / possible <= 0.155


def test_single_parts_are_asked_for_without_whole_words():
    (batch,) = batches(make_task(), stored())
    cut = 0
    for row, selected in enumerate(selected_positions(batch)):
        words = word_numbers(batch["raw"][row], batch["segments"][row])
        cut += (np.isin(words, np.unique(words[selected])) & ~selected).sum()
    assert cut > 10


def test_a_word_of_more_parts_than_are_asked_for_is_left_alone():
    arrays = {name: array[:8] for name, array in stored().items()}
    arrays["tokens"][:, 1:] = 0
    arrays["tokens"][:, 1:9] = [
        11,
        10,
        10,
        10,
        10,
        12,
        13,
        14,
    ]  # a word of five tokens, then three words of one token
    task = make_task(whole_word=True, mask_share=0.3)  # two tokens
    for batch in batches(task, arrays, steps=20):
        places = {place for row in selected_positions(batch) for place in np.flatnonzero(row)}
        assert places <= {6, 7, 8}
        assert (batch["counts"].sum(1) == 2).all()


def test_a_word_ends_with_its_document():
    task = make_task("mlm", whole_word=True, mask_share=0.5)
    arrays = {  # token 10 continues the previous word, unless the document changes
        "tokens": np.array([[11, 10, 10, 10]] * 8), "segments": np.array([[1, 1, 2, 2]] * 8),
    }  # fmt: skip
    patterns = {
        tuple(row) for b in batches(task, arrays, 20) for row in selected_positions(b).tolist()
    }
    assert patterns == {(True, True, False, False), (False, False, True, True)}


# --- RoBERTa's rows -------------------------------------------------------------------------------


def test_rows_keep_their_documents_apart_unless_told_otherwise():
    arrays = {
        "tokens": np.array([[START, 9, 9, START, 8, 8, 0, 0]]),
        "segments": np.array([[1, 1, 1, 2, 2, 2, 0, 0]]),
    }
    (batch,) = batches(make_task("mlm"), arrays)
    assert batch["segments"].tolist() == arrays["segments"].tolist()
    names = {"tokens", "segments", "masked", "targets", "counts", "raw", "weight"}
    assert set(batch) == names
    (batch,) = batches(make_task("mlm", cross_documents=True), arrays)
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    (batch,) = batches(make_task("mlm"), {"tokens": np.array([[7, 8, START, 9, -1]])})
    assert batch["segments"].tolist() == [[1, 1, 2, 2, 0]]


# --- losses and metrics ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    tiny = registry.entry("bert_tiny").tiny
    return registry.build("bert_tiny", **{**tiny, "vocabulary_size": V, "sequence_length": T})


def test_losses_are_sums_over_words_and_pairs(model):
    task = make_task()
    arrays = {name: array[:6] for name, array in stored().items()}
    arrays["weight"] = np.array([1, 1, 1, 1, 0, 0], "float32")

    def uniform(count):
        return tf.random.stateless_uniform((6, count), (0, 0))

    batch = task.prepare({k: tf.constant(v) for k, v in arrays.items()}, uniform, False)
    outputs = {k: v.numpy() for k, v in model(
        {k: batch[k] for k in ("tokens", "segments", "types", "masked")}).items()}  # fmt: skip
    result = task.forward(model, batch, training=False)
    weights = {k: float(v) for k, v in task.term_counts(batch).items()}
    assert weights == {"mlm": batch["counts"].numpy().sum(), "nsp": 4}
    assert not batch["counts"].numpy()[4:].any()
    for name, targets, counts in (
        ("mlm", batch["targets"].numpy(), batch["counts"].numpy()),
        ("nsp", arrays["label"], arrays["weight"]),
    ):
        logits = outputs[name].astype("float64")
        losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
            logits, targets[..., None].astype(int), -1
        )[..., 0]  # fmt: skip
        np.testing.assert_allclose(result.sums[name], (losses * counts).sum(), rtol=1e-5)
        right, counted = result.statistics[f"{name}_accuracy"]
        assert float(right) == ((logits.argmax(-1) == targets) * counts).sum()
        assert float(counted) == counts.sum()
    assert set(result.sums) == set(task.terms) == set(weights)
    assert set(result.statistics) == set(task.statistics)


def test_perplexity_is_that_of_the_words():
    both, words = make_task(), make_task("mlm")
    assert both.derived_metrics({"loss": 9.0, "mlm": 2.0, "nsp": 7.0}) == {
        "perplexity": np.exp(2.0)
    }
    assert words.derived_metrics({"loss": 2.0}) == {"perplexity": np.exp(2.0)}
    assert (words.terms, words.monitor) == ({"loss": 1.0}, "val_loss")


# --- refused models and arguments -----------------------------------------------------------------


def error_of(name, model, arrays, known=None, **arguments):
    data = Dataset("toy", {"train": arrays}, (), "toy", known)
    task = registry.build_task(name, **arguments).bind(model, data)
    with pytest.raises(UsageError) as error:
        task.check(model, data)
    return " ".join(str(error.value).split())


def test_a_model_of_other_heads_is_refused(model):
    words = {"tokens": stored()["tokens"]}
    assert "model.next_sentence=False. Received: 'bert'" in error_of("mlm", model, words)
    gpt = registry.build("gpt_nano", **registry.entry("gpt_nano").tiny)
    assert "with the named outputs: none" in error_of("mlm", gpt, words)
    alone = registry.build("roberta_base", **registry.entry("bert_tiny").tiny)
    assert "model.next_sentence=True" in error_of("nsp", alone, stored())


def test_data_that_do_not_fit_are_refused(model):
    arrays = stored()
    del arrays["types"]
    assert "requires the array 'types'" in error_of("nsp", model, arrays)
    longer = {name: np.repeat(array, 2, axis=-1) for name, array in stored().items()}
    longer["label"] = stored()["label"]
    assert "the model's 40 positions. Received: sequences of 80" in error_of("nsp", model, longer)
    known = Words(V + 1)
    assert "has 501 tokens, but the model supports 500" in error_of("nsp", model, stored(), known)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, r"must be in \(0, 1\]"),
        (-0.1, "must be of type float from 0"),
        (1.1, r"must be in \(0, 1\]"),
    ],
)
def test_a_share_that_is_none_is_refused(share, words):
    with pytest.raises(UsageError, match=f"mask_share {words}"):
        registry.build_task("mlm", mask_share=share)


def test_the_vocabulary_is_the_tokenizers():
    task = registry.build_task("nsp")
    dataset = Dataset("toy", {"train": stored()}, (), "toy", Words())
    assert task.complete({"vocabulary_size": 0}, dataset) == {"vocabulary_size": V}
    assert task.complete({"vocabulary_size": 512}, dataset) == {"vocabulary_size": 512}
    # Random words are drawn from the tokenizer's words.
    assert task.bind(None, dataset, {"vocabulary_size": 512}).vocabulary_size == V
