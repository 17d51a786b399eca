"""Generation: the cached, compiled loop equals uncached models."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo import registry
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import END, START
from zoo.errors import UsageError
from zoo.generation import generate, sampling
from zoo.generation.decoding import decoding
from zoo.generation.generate import Generator, uniforms
from zoo.models.gpt import build as gpt
from zoo.models.llama import build as llama
from zoo.models.lstm import build as lstm
from zoo.models.moe import build as moe

V = 40
SIZES = {"vocabulary_size": V, "num_layers": 2, "hidden_dim": 16}
BUILDERS = {
    "gpt": lambda: gpt(**SIZES, num_heads=2, sequence_length=100),
    "gpt_untied": lambda: gpt(**SIZES, num_heads=2, rotary_base=100.0, tie_weights=False),
    "llama": lambda: llama(**SIZES, num_heads=4, num_key_value_heads=2),
    "moe": lambda: moe(**SIZES, num_heads=4, num_key_value_heads=2, num_experts=4, expert_dim=8),
    "lstm": lambda: lstm(V, embedding_dim=8, hidden_dim=16, num_layers=2),
}
PROMPTS = [[7, 8, 9], list(range(6, 40)), []]


def with_large_weights(model, size=0.4, seed=1):
    """Sets fixed large weights, so that outputs depend on all tokens."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        base = weight if len(weight.shape) == 1 else 0.0
        weight.assign(base + size * generator.standard_normal(weight.shape))
    return model


@pytest.fixture(scope="module")
def models():
    return {name: with_large_weights(build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def generators(models):
    return {
        name: Generator(model, sequence_length=100, jit_compile=False)
        for name, model in models.items()
    }


def equal(some, others):
    assert [list(ids) for ids in some] == [list(ids) for ids in others]


# --- steps ---------------------------------------------------------------------------------------


def whole(model, tokens):
    """Returns uncached logits of the model, up to a constant per position."""
    inputs = {"tokens": tokens, "segments": np.ones_like(tokens)}
    out = model({tensor.name: inputs[tensor.name] for tensor in model.inputs}, training=False)
    out = tf.math.log(out) if model.layers[-1].name == "probabilities" else out
    return np.asarray(tf.nn.log_softmax(tf.cast(out, tf.float32)))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("parts", [[12], [1] * 12, [5, 1, 1, 4, 1]], ids=str)
def test_steps_give_what_the_model_gives(models, name, parts):
    tokens = np.random.default_rng(0).integers(0, V, (3, 12)).astype("int32")
    steps = decoding(models[name])
    assert steps.vocabulary_size == V
    cache, outputs, first = steps.start(3, 16), [], 0
    for part in parts:
        logits, cache = steps.step(tokens[:, first : first + part], cache, first)
        outputs.append(tf.nn.log_softmax(logits))
        first += part
    np.testing.assert_allclose(tf.concat(outputs, 1), whole(models[name], tokens), atol=2e-4)


def test_prepared_weights_change_nothing(models):
    tokens = np.array([[5, 6, 7]], "int32")
    for name in ("gpt", "gpt_untied"):
        steps = decoding(models[name])
        plain, _ = steps.step(tokens, steps.start(1, 4), 0)
        prepared, _ = steps.step(tokens, steps.start(1, 4), 0, steps.weights())
        np.testing.assert_allclose(plain, prepared, atol=1e-4)
    assert decoding(models["gpt"]).weights().shape == (16, V)
    assert decoding(models["gpt_untied"]).weights() is None, "there is no copy to be spared"


def test_what_stands_behind_the_last_position_is_not_looked_at(models):
    steps = decoding(models["llama"])
    tokens = np.array([[9, 8, 7, 6, 5, 4]], "int32")
    _, cache = steps.step(tokens, steps.start(1, 8), 0)
    # Positions from 2 on are overwritten with other tokens.
    again = np.array([[30, 31]], "int32")
    logits, _ = steps.step(again, cache, 2)
    expected = whole(models["llama"], np.array([[9, 8, 30, 31]], "int32"))[:, 2:]
    np.testing.assert_allclose(tf.nn.log_softmax(logits), expected, atol=2e-4)


def test_mixed_precision_keeps_its_type():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = with_large_weights(BUILDERS["llama"]())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    tokens = np.array([[9, 8, 7, 6]], "int32")
    steps = decoding(model)
    cache, outputs = steps.start(1, 4), []
    for i in range(4):
        logits, cache = steps.step(tokens[:, i : i + 1], cache, i, steps.weights())
        outputs.append(tf.nn.log_softmax(logits))
        assert logits.dtype == "float32"
        assert cache[0]["key"].dtype == "bfloat16"
    np.testing.assert_allclose(tf.concat(outputs, 1), whole(model, tokens), atol=0.2)


def test_a_model_of_pictures_generates_no_text():
    with pytest.raises(UsageError, match="requires a decoder .* Received: 'cnn_classifier'"):
        Generator(registry.build("cnn_classifier"))


def test_a_model_that_looks_ahead_generates_no_text():
    model = BUILDERS["gpt"]()
    model.get_layer("mask").causal = False
    with pytest.raises(UsageError, match="requires a decoder .* Received: 'gpt'"):
        Generator(model)


# --- the loop against the model ------------------------------------------------------------------

WAYS = {
    "greedy": {"temperature": 0.0},
    "sample": {"temperature": 0.9},
    "top_k": {"top_k": 5, "temperature": 1.3},
    "top_k and top_p": {"top_k": 7, "top_p": 0.6},
    "top_p": {"top_p": 0.8},
}


@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "greedy") for name in BUILDERS), *((name, "sample") for name in BUILDERS)]
    + [("llama", way) for way in WAYS if way not in ("greedy", "sample")],
)
def test_cached_and_recomputed_texts_agree(generators, name, way):
    generator, options = generators[name], {**WAYS[way], "seed": 3}
    texts = generator.tokens(PROMPTS, 30, **options)
    equal(texts, generator.tokens(PROMPTS, 30, **options, use_cache=False))
    assert all(END not in ids for ids in texts)
    assert len({tuple(ids) for ids in texts}) == len(PROMPTS)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_top_k_of_all_tokens_is_none(generators, top_p):
    generator = generators["gpt"]
    options = {"seed": 7, "temperature": 1.3, "top_p": top_p}
    plain = generator.tokens(PROMPTS, 20, **options)
    for k in (generator.vocabulary_size, generator.vocabulary_size + 1, 10**6):
        equal(generator.tokens(PROMPTS, 20, **options, top_k=k), plain)


@pytest.mark.parametrize("name", ["gpt", "lstm"])
def test_the_batch_changes_no_text(generators, name):
    together = generators[name].tokens(PROMPTS, 20, seed=5)
    alone = [generators[name].tokens([p], 20, seed=5 + b)[0] for b, p in enumerate(PROMPTS)]
    equal(together, alone)


def test_each_text_stops_at_its_own_end(generators):
    generator = generators["gpt"]
    endless = generator.tokens([[7]] * 8, 60, seed=1, end_id=None)
    ends = [list(ids).index(END) if END in ids else 60 for ids in endless]
    assert len(set(ends)) > 2, "the model should end its texts at several places"
    equal(
        generator.tokens([[7]] * 8, 60, seed=1),
        [ids[:end] for ids, end in zip(endless, ends, strict=True)],
    )


def test_an_end_in_a_prompt_ends_nothing(generators):
    texts = generators["llama"].tokens([[7, END, 8]], 10, temperature=0.0)
    equal(texts, generators["llama"].tokens([[7, END, 8]], 10, temperature=0.0, end_id=None))
    assert len(texts[0]) == 10


def test_nothing_is_computed_after_the_last_end(generators):
    options = generate.Options(60, seed=1)
    run = generators["lstm"]._start_run([[7]] * 8, options)
    generators["lstm"]._advance(run, 61, options)
    texts = generators["lstm"].tokens([[7]] * 8, 60, seed=1)
    assert run.position == 1 + max(len(ids) for ids in texts) < 60


def test_compiled_by_xla_it_gives_the_same(models, generators):
    compiled = Generator(models["gpt"])
    options = WAYS["top_p"]
    expected = generators["gpt"].tokens(PROMPTS, 30, **options)
    equal(compiled.tokens(PROMPTS, 30, **options), expected)


def test_seeds_are_of_rows_and_places():
    numbers = uniforms(7, 3, 50)
    assert numbers.dtype == np.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    np.testing.assert_array_equal(numbers[1], uniforms(8, 1, 50)[0])
    np.testing.assert_array_equal(numbers[:, :20], uniforms(7, 3, 20))
    assert len(np.unique(numbers)) > 140


def test_other_seeds_give_other_texts(generators):
    first = generators["gpt"].tokens([[7]], 30, seed=0, end_id=None)
    equal(first, generators["gpt"].tokens([[7]], 30, seed=0, end_id=None))
    assert list(first[0]) != list(generators["gpt"].tokens([[7]], 30, seed=9, end_id=None)[0])


@pytest.mark.parametrize("name", ["gpt", "lstm"])
def test_prompts_of_any_length_are_computed_at_once_by_one_trace(models, name, monkeypatch):
    monkeypatch.setattr(generate, "PREFILL", 4)
    generator = Generator(models[name], jit_compile=False)
    prompts = [list(range(6, 6 + n)) for n in (5, 6, 11, 17, 30)]
    texts = [generator.tokens([p], 12, temperature=0.0)[0] for p in prompts]
    (prefill,) = generator._prefills.values()
    assert prefill.experimental_get_tracing_count() == 1
    loop = generator._loops["greedy", True]
    assert loop.experimental_get_tracing_count() == 1
    monkeypatch.setattr(generate, "PREFILL", 1000)
    equal(texts, [generator.tokens([p], 12, temperature=0.0)[0] for p in prompts])
    assert prefill.experimental_get_tracing_count() == 1


def test_no_option_is_traced_twice(models):
    generator = Generator(models["gpt"], jit_compile=False)
    for options in (
        {"temperature": 0.5, "max_tokens": 10},
        {"temperature": 2.0, "max_tokens": 50, "seed": 4},
        {"temperature": 1.0, "max_tokens": 20, "end_id": None},
    ):
        generator.tokens([[7, 8]], **options)
    assert generator._loops["sample", True].experimental_get_tracing_count() == 1


# --- limits --------------------------------------------------------------------------------------


def test_an_empty_prompt_begins_a_text(generators):
    empty, start, other = (
        list(generators["llama"].tokens([prompt], 10, temperature=0.0, end_id=None)[0])
        for prompt in ([], [START], [START + 1])
    )
    assert empty == start != other


def test_the_models_positions_are_the_limit(models, capsys):
    generator = Generator(models["gpt"], jit_compile=False)
    assert generator.sequence_length == 100
    texts = generator.tokens([[7] * 95, [7] * 90], 50, end_id=None)
    assert [len(ids) for ids in texts] == [5, 10]
    line = "zoo: the text ends at the model's limit of 100 positions, which includes the prompt\n"
    assert capsys.readouterr().err == line
    generator.tokens([[7] * 95], 50, end_id=None)
    assert capsys.readouterr().err == "", "said once"
    with pytest.raises(UsageError, match="the model's 100 positions. Received: 100 tokens"):
        generator.tokens([[7] * 100], 1)


def test_the_smaller_limit_counts(models):
    assert Generator(models["gpt"], sequence_length=20).sequence_length == 20
    assert Generator(models["gpt"], sequence_length=200).sequence_length == 100
    assert Generator(models["llama"]).sequence_length is None


def test_a_whole_text_says_nothing_of_limits(generators, capsys):
    generators["gpt"].tokens([[7] * 90], 10, end_id=None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"beams": 0}, {"max_tokens": 0}, {"seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused(generators, options):
    ((name, value),) = options.items()
    with pytest.raises(UsageError, match=f"{name} must be .*Received: {value}"):
        generators["gpt"].tokens([[7]], **{"max_tokens": 5, **options})


def test_tokens_outside_of_the_vocabulary_are_refused(generators):
    with pytest.raises(UsageError, match="from 0 to 39. Received: 40"):
        generators["gpt"].tokens([[7, 40]], 5)


# --- text ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("character", ["abcdefgh é€😀\n"])


@pytest.fixture(scope="module")
def writer(models, tokenizer):
    assert tokenizer.vocabulary_size < V
    return Generator(models["gpt"], tokenizer, jit_compile=False)


def test_only_tokens_of_the_text_are_drawn(models, writer, tokenizer):
    # At this temperature all allowed tokens are equally likely; 90 * 8 draws include each.
    texts = writer.tokens([[7]] * 8, 90, temperature=1e9, end_id=None)
    words = set(range(6, tokenizer.vocabulary_size))
    assert {int(token) for ids in texts for token in ids} == words | {END}
    free = Generator(models["gpt"], jit_compile=False)
    texts = free.tokens([[7]] * 8, 90, temperature=1e9, end_id=None)
    assert {0, 1, 2, 3, 4, 5, V - 1} <= {int(token) for ids in texts for token in ids}


def test_a_stream_is_the_text_in_pieces(writer, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 5)
    for prompt, seed in (("abc", 1), ("", 2), ("😀é", 3)):
        pieces = list(writer.stream(prompt, 60, seed=seed))
        assert "".join(pieces) == writer.text([prompt], 60, seed=seed)[0]
        assert all(pieces)
    pieces = list(writer.stream("abc", 60, seed=1, end_id=None))
    assert len(pieces) >= 12
    assert {len(piece) for piece in pieces} <= {1, 2, 3, 4, 5}


def test_a_slow_models_stream_comes_token_by_token(writer, monkeypatch):
    clock = iter(range(1000))  # each call advances the clock by one second
    monkeypatch.setattr(generate.time, "perf_counter", lambda: next(clock))
    assert {len(p) for p in writer.stream("abc", 20, end_id=None)} == {1}


def test_a_stream_gives_whole_characters_only(monkeypatch):
    byte = Generator(gpt(262, 64, 1, 8, 1), tokenizers.train("byte", ["x"]), jit_compile=False)
    text = "aé€😀z"
    ids = [*byte.encode(text), *byte.encode("€")[:2]]
    monkeypatch.setattr(byte, "_pieces", lambda *_: ([token] for token in ids))
    assert list(byte.stream("", 50)) == list(text)
    assert byte.decode(ids, "") == text


def test_lines_of_words_begin_without_a_space(monkeypatch):
    """Words of this tokenizer are decoded with a leading space."""
    tokenizer = tokenizers.train("word", ["the cat\nsat on\nit"], 20)
    words = Generator(gpt(20, 64, 1, 8, 1), tokenizer, jit_compile=False)
    ids = words.encode("sat on\nthe cat\n\nsat")
    monkeypatch.setattr(words, "_pieces", lambda *_: ([token] for token in ids))
    for prompt, text in (
        ("", "sat on\nthe cat\n\nsat"),
        ("it", " sat on\nthe cat\n\nsat"),
        ("it\n", "sat on\nthe cat\n\nsat"),
    ):
        assert "".join(words.stream(prompt, 50)) == text
        assert words.decode(ids, prompt) == text


def test_a_prompt_begins_a_document_where_it_is_said(models, tokenizer, writer):
    starting = Generator(models["gpt"], tokenizer, start=True, jit_compile=False)
    assert starting.encode("ab") == [START, *writer.encode("ab")]
    texts = starting.text(["ab", ""], 20, temperature=0.0)
    expected = writer.tokens([[START, *writer.encode("ab")], [START]], 20, temperature=0.0)
    assert texts == [writer.decode(ids, "ab") for ids in expected]


def test_positions_that_were_not_trained_are_said(models, tokenizer, capsys):
    line = "zoo: the text exceeds the 30 positions used in training (data.sequence_length): text"
    for make in (
        lambda writer: writer.text(["abc"], 28, end_id=None),
        lambda writer: list(writer.stream("abc", 28, end_id=None)),
        lambda writer: writer.text(["abc"], 28, beams=2, end_id=None),
    ):
        writer = Generator(models["gpt"], tokenizer, trained_length=30, jit_compile=False)
        writer.text(["abc"], 27, end_id=None)
        assert capsys.readouterr().err == ""
        make(writer)
        make(writer)
        assert capsys.readouterr().err.splitlines() == [line + " beyond them may be incoherent"]


@pytest.mark.parametrize("temperature", [1.1e9, math.inf, math.nan, -1.0])
def test_temperatures(writer, temperature):
    with pytest.raises(UsageError, match="temperature must be from 0 to 1,000,000,000. Received: "):
        writer.text(["a"], 1, temperature=temperature)


def test_a_stream_refuses_at_once(writer):
    with pytest.raises(UsageError, match="top_p"):
        writer.stream("a", 10, top_p=2.0)
    with pytest.raises(UsageError, match="Received: 120 tokens"):
        writer.stream("a" * 120, 10)


def test_a_larger_tokenizer_is_not_the_models(tokenizer):
    with pytest.raises(UsageError, match=f"{tokenizer.vocabulary_size} tokens, but the model .* 9"):
        Generator(gpt(9, 16, 1, 8, 1), tokenizer)


def test_text_needs_a_tokenizer(generators):
    with pytest.raises(UsageError, match="requires a tokenizer"):
        generators["gpt"].text(["a"], 5)


# --- sampling -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logits():
    """Returns logits (4, 300) with equal values among them."""
    return np.round(np.random.default_rng(0).normal(size=(4, 300)) * 3, 1).astype("float32")


def softmax(x):
    x = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def token_shares(draw, row, count=20_000):
    """Returns the share of each token for equally spaced random numbers: (V,)."""
    uniform = (np.arange(count, dtype="float32") + 0.5) / count
    tokens = draw(tf.repeat(row[None], count, 0), tf.constant(uniform))
    assert tokens.dtype == "int32"
    return np.bincount(tokens, minlength=len(row)) / count


def test_sampling_draws_by_the_probabilities(logits):
    for temperature in (0.5, 1.0, 3.0):
        shares = token_shares(lambda x, u: sampling.sample(x, u, temperature), logits[0])  # noqa: B023
        np.testing.assert_allclose(shares, softmax(logits[0] / temperature), atol=2e-4)


def test_top_k_draws_from_the_likeliest(logits):
    row = logits[1]
    order = np.argsort(-row, kind="stable")[:9]
    expected = np.zeros(300)
    expected[order] = softmax(row[order] / 2)
    shares = token_shares(lambda x, u: sampling.top_k(x, u, 9, 2.0), row)
    np.testing.assert_allclose(shares, expected, atol=2e-4)


def reference_nucleus(p, share):
    """Computes the nucleus by sorting; tokens as likely as the last one are included."""
    descending = np.sort(p)[::-1]
    last = descending[np.searchsorted(np.cumsum(descending), share)]
    return p >= last


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_top_p_draws_from_the_nucleus(logits, share):
    for row in logits:
        p = softmax(row)
        inside = reference_nucleus(p, share)
        weights = tf.exp(row - row.max())[None]
        np.testing.assert_array_equal(sampling.nucleus(weights, share)[0], inside)
    expected = np.where(inside, p, 0) / p[inside].sum()
    shares = token_shares(lambda x, u: sampling.top_p(x, u, share), row)
    np.testing.assert_allclose(shares, expected, atol=2e-4)


def test_top_p_of_top_k_is_of_what_is_left():
    row = np.log(np.array([0.4, 0.05, 0.3, 0.05, 0.2], "float32"))
    # Of the three likeliest tokens, the first two have 7/9 of the probability: more than 0.7.
    shares = token_shares(lambda x, u: sampling.top_k(x, u, 3, p=0.7), row)
    np.testing.assert_allclose(shares, [4 / 7, 0, 3 / 7, 0, 0], atol=2e-4)
    assert token_shares(lambda x, u: sampling.top_k(x, u, 3, p=0.4 / 0.9 - 0.01), row)[0] == 1


def test_what_cannot_be_is_never_drawn():
    ends = tf.constant([0.0, 0.5, 1 - 2.0**-24, 0.9999])
    weights = np.zeros((4, 1000), "float32")
    weights[:, [130, 600]] = 1e-30, 3e-30
    np.testing.assert_array_equal(sampling.choose(tf.constant(weights), ends), [130, 600, 600, 600])
    generator = np.random.default_rng(0)
    for _ in range(20):
        weights = generator.random((4, 1000)).astype("float32") ** 20
        weights[:, generator.integers(0, 1000, 600)] = 0
        weights[:, -200:] = 0
        tokens = sampling.choose(tf.constant(weights), ends)
        assert (np.take_along_axis(weights, np.asarray(tokens)[:, None], 1) > 0).all()


def test_greedy_takes_the_first_of_equals():
    np.testing.assert_array_equal(sampling.greedy(tf.constant([[1.0, 3, 3], [5, 0, 5]])), [1, 0])
