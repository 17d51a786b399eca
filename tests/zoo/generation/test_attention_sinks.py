"""Generation beyond the trained length, against a loop that keeps keys and values in lists."""

import gc
import time
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.memory import peak_of
from tests.zoo.generation.test_generate import V, equal, with_large_weights
from zoo import registry
from zoo.data.text import special_tokens
from zoo.errors import UsageError
from zoo.generation import generate, sampling
from zoo.generation.decoding import decoding
from zoo.generation.generate import Generator, uniforms
from zoo.models.gpt import build as gpt
from zoo.models.llama import build as llama
from zoo.models.lstm import build as lstm

SIZES = {
    "vocabulary_size": V, "num_layers": 2, "hidden_dim": 16, "num_heads": 4, "rotary_base": 100.0,
}  # fmt: skip
SINKS, LENGTH = 3, 12
FORMS = {
    "plain": "plain",
    "a window inside the cache": "plain,window:3:2",
    "a window longer than the cache": "window:20,plain",
}


def model_of(form):
    return with_large_weights(llama(**SIZES, num_key_value_heads=2, attention=form))


@pytest.fixture(scope="module")
def models():
    return {name: model_of(form) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def mixed(models):
    return models["a window inside the cache"]


@pytest.fixture(scope="module")
def generator(mixed):
    return Generator(mixed, trained_length=LENGTH, attention_sinks=SINKS, jit_compile=False)


# --- the reference -------------------------------------------------------------------------------


def turned(x, position):
    """Rotates (H, D) by complex multiplication: dimension i is paired with i + D/2."""
    half = x.shape[-1] // 2
    angles = position * SIZES["rotary_base"] ** (-np.arange(half) / half)
    x = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([x.real, x.imag], -1)


def normalized(x, norm):
    return x / np.sqrt(np.mean(x**2) + norm.epsilon) * array(norm.scale)


def array(variable):
    return np.asarray(keras.ops.cast(variable, "float32"), "float64")


class Reference:
    """Continues one text token by token; per layer, lists of keys without rotation and values."""

    def __init__(self, model, sinks=SINKS, length=LENGTH):
        steps, self.sinks, self.length = decoding(model), sinks, length
        self.table, self.final_norm = array(steps.embedding.embeddings), steps.final_norm
        self.layers = [
            (
                block,
                [array(dense.kernel) for dense in (
                    block.attention.query_key_value, block.attention.output_projection,
                    block.feed_forward.up, block.feed_forward.down,
                )],
                [],
            )
            for block in steps.blocks
        ]  # fmt: skip

    def attend(self, attention, entries, parts):
        heads, groups, form = attention.heads, attention.groups, attention.form
        parts = parts.reshape(-1, attention.size)
        query, key, value = np.split(parts, [heads, heads + groups])
        entries.append((key, value))
        is_local = form.reach is not None and form.reach <= self.length
        if len(entries) > (form.reach if is_local else self.length):
            del entries[0 if is_local else self.sinks]
        last, dilation = len(entries) - 1, getattr(form, "dilation", 1)
        places = range(last % dilation, last + 1, dilation)
        keys = np.stack([turned(entries[p][0], p) for p in places]).repeat(heads // groups, 1)
        values = np.stack([entries[p][1] for p in places]).repeat(heads // groups, 1)
        scores = np.einsum("hd,phd->hp", turned(query, last), keys) / attention.size**0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("hp,phd->hd", shares, values).reshape(-1)

    def __call__(self, token):
        """Returns the logits (V,) after the next token of the text."""
        x = self.table[token]
        for block, (query_key_value, output, up, down), entries in self.layers:
            h = normalized(x, block.attention_norm) @ query_key_value
            x = x + self.attend(block.attention, entries, h) @ output
            gate, h = np.split(normalized(x, block.feed_forward_norm) @ up, 2)
            x = x + (gate / (1 + np.exp(-gate)) * h) @ down
        return (self.table @ normalized(x, self.final_norm)).astype("float32")


def reference_text(model, prompt, count, seed):
    """Returns tokens that are sampled from the reference with the random numbers of a seed."""
    reference, text = Reference(model), list(prompt)
    numbers = uniforms(seed, 1, len(prompt) + count)[0]
    for token in prompt[:-1]:
        reference(token)
    for _ in range(count):
        logits = reference(text[-1])
        text += sampling.sample(logits[None], numbers[None, len(text)]).numpy().tolist()
    return text[len(prompt) :]


# --- steps ---------------------------------------------------------------------------------------


def step_logits(model, tokens, sinks=SINKS, length=LENGTH):
    steps = decoding(model, sinks)
    step = tf.function(steps.step, autograph=False)
    cache, outputs = steps.start(len(tokens), length), []
    for i in range(tokens.shape[1]):
        logits, cache = step(tokens[:, i : i + 1], cache, tf.constant(i))
        outputs.append(logits[:, 0])
    return np.stack(outputs, 1), cache


def random_tokens(batch, length):
    return np.random.default_rng(0).integers(0, V, (batch, length)).astype("int32")


@pytest.mark.parametrize("name", FORMS)
def test_steps_give_the_logits_of_the_reference(models, name):
    tokens = random_tokens(2, 40)
    logits, cache = step_logits(models[name], tokens)
    for row, row_logits in zip(tokens, logits, strict=True):
        reference = Reference(models[name])
        np.testing.assert_allclose(row_logits, [reference(t) for t in row], atol=1e-3)
    assert max(x["key"].shape[1] for x in cache) == LENGTH


def test_a_window_without_sinks_gives_the_logits_of_the_reference(models):
    tokens = random_tokens(1, 30)
    logits, _ = step_logits(models["plain"], tokens, sinks=0, length=5)
    reference = Reference(models["plain"], sinks=0, length=5)
    np.testing.assert_allclose(logits[0], [reference(t) for t in tokens[0]], atol=1e-3)


def test_far_positions_are_exact(models):
    """Positions count inside the cache: the same window has the same logits anywhere."""
    one_layer = with_large_weights(llama(**{**SIZES, "num_layers": 1}))
    steps, tokens = decoding(one_layer, SINKS), random_tokens(1, LENGTH)
    far = tf.constant(2**24 // (LENGTH - SINKS) * (LENGTH - SINKS))
    results = []
    for start in (0, far):
        cache = steps.start(1, LENGTH)
        for i in range(LENGTH):
            logits, cache = steps.step(tokens[:, i : i + 1], cache, tf.constant(i))
        for i in range(2 * LENGTH):
            token = tokens[:, i % LENGTH, None]
            logits, cache = steps.step(token, cache, tf.constant(LENGTH + i) + start)
        results.append(logits)
    np.testing.assert_array_equal(*results)


def test_bfloat16_keeps_its_type():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = with_large_weights(llama(**SIZES, num_key_value_heads=2), size=0.2)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    tokens = random_tokens(1, 30)
    logits, cache = step_logits(model, tokens)
    assert {str(x.dtype) for entry in cache for x in entry.values()} == {"<dtype: 'bfloat16'>"}
    reference = Reference(model)
    gaps = np.abs(np.asarray(logits[0], "float32") - [reference(t) for t in tokens[0]])
    assert gaps.mean() < 0.02  # single logits differ by up to 0.15, which depends on the CPU


# --- texts ---------------------------------------------------------------------------------------

# The second prompt exceeds the cache and, with BLOCK = 16, two blocks.
PROMPTS = [[7, 8, 9], [int(t) for t in random_tokens(1, 37)[0]], []]


@pytest.mark.parametrize("prefill", [4, 32])
@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[1], PROMPTS[1][:20]]], ids=["short", "long"])
def test_texts_are_those_of_the_reference(mixed, generator, monkeypatch, prompts, prefill):
    monkeypatch.setattr(generate, "PREFILL", prefill)
    monkeypatch.setattr(generate, "BLOCK", 16)
    texts = generator.tokens(prompts, 40, seed=3, end_id=None)
    expected = [
        reference_text(mixed, prompt or [special_tokens.START], 40, 3 + b)
        for b, prompt in enumerate(prompts)
    ]
    equal(texts, expected)


def test_a_text_that_fits_the_cache_is_that_of_ordinary_generation(mixed):
    ordinary = Generator(mixed, jit_compile=False)
    generator = Generator(mixed, trained_length=64, attention_sinks=SINKS, jit_compile=False)
    prompts = [[7], list(range(6, 40))]
    options = {"max_tokens": 30, "seed": 5, "end_id": None}
    expected = ordinary.tokens(prompts, **options)
    equal(generator.tokens(prompts, **options), expected)
    equal(generator.tokens(prompts[1:], **{**options, "seed": 6}), expected[1:])


@pytest.mark.slow
def test_compiled_by_xla_it_gives_the_same(mixed, generator):
    compiled = Generator(mixed, trained_length=LENGTH, attention_sinks=SINKS)
    options = {"max_tokens": 40, "seed": 3, "end_id": None}
    equal(compiled.tokens(PROMPTS, **options), generator.tokens(PROMPTS, **options))


@pytest.mark.slow
def test_xla_compiles_once_for_all_blocks(mixed, monkeypatch):
    monkeypatch.setattr(generate, "BLOCK", 16)
    generator = Generator(mixed, trained_length=LENGTH, attention_sinks=SINKS)
    seconds = []
    for count in (10, 160):  # one block; eleven blocks
        start = time.perf_counter()
        generator.tokens([[7]], count, end_id=None)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < seconds[0]


def test_a_stream_crosses_blocks(generator, monkeypatch):
    monkeypatch.setattr(generate, "BLOCK", 16)
    options = generate.Options(50, seed=3, end_id=None)
    pieces = list(generator._pieces(PROMPTS[1], options))
    assert len(pieces) > 3
    equal([np.concatenate(pieces)], generator.tokens(PROMPTS[1:2], 50, seed=3, end_id=None))


def test_texts_end_at_the_end_token(generator, monkeypatch):
    monkeypatch.setattr(generate, "BLOCK", 16)
    endless = generator.tokens([[7]] * 4, 60, seed=1, end_id=None)
    end = int(endless[0][20])
    lengths = [list(ids).index(end) if end in ids else 60 for ids in endless]
    assert len(set(lengths)) > 1
    texts = generator.tokens([[7]] * 4, 60, seed=1, end_id=end)
    equal(texts, [ids[:n] for ids, n in zip(endless, lengths, strict=True)])


def test_random_numbers_depend_on_the_position_alone():
    whole = uniforms(7, 2, 1200)
    for first in (0, 1, 7, 8, 511, 1000):
        np.testing.assert_array_equal(uniforms(7, 2, 100, first), whole[:, first : first + 100])


def test_no_length_is_traced_twice(mixed, monkeypatch):
    monkeypatch.setattr(generate, "BLOCK", 16)
    generator = Generator(mixed, trained_length=LENGTH, attention_sinks=SINKS, jit_compile=False)
    for count in (5, 30, 70):
        generator.tokens([[7]], count, end_id=None)
    assert generator._loops["sample", True].experimental_get_tracing_count() == 1


def growth_while_generating(texts: int) -> int:
    """Returns by how many bytes tokens 1,700 to 2,700 of each text raise what Python keeps."""
    model = llama(**SIZES)
    generator = Generator(model, trained_length=LENGTH, attention_sinks=SINKS)
    options = generate.Options(2700, end_id=None)
    run = generator._start_run([[7]] * texts, options)

    def kept_after(first, last):
        for stop in range(first, last + 1, 100):
            generator._advance(run, stop, options)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    before = kept_after(100, 1700)
    return kept_after(1800, 2700) - before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text():
    texts = 512  # so many that Python's own garbage, up to 500 KB, is small beside their tokens
    growth, _ = peak_of(growth_while_generating, texts)
    a_number_per_position = 1000 * texts * 4
    assert growth < a_number_per_position / 2


def test_tensors_do_not_grow_with_the_text(generator):
    sizes = []
    for count in (10, 100_000):
        options = generate.Options(count, end_id=None)
        run = generator._start_run([[7]], options)
        for stop in (4, 600):
            generator._advance(run, min(stop, count), options)
            tensors = tf.nest.flatten([run.tokens, run.uniforms, run.cache])
            sizes.append([x.shape for x in tensors])
    assert all(shapes == sizes[0] for shapes in sizes)


def test_nothing_is_said_of_limits(mixed, capsys):
    generator = Generator(
        mixed, sequence_length=LENGTH + 1, trained_length=LENGTH, attention_sinks=SINKS,
        jit_compile=False,
    )  # fmt: skip
    assert len(generator.tokens([[7] * 20], 30, end_id=None)[0]) == 30
    assert capsys.readouterr().err == ""


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: gpt(V, 16, 1, 8, 1),
        lambda: lstm(V, embedding_dim=8, hidden_dim=8, num_layers=1),
        lambda: registry.build("reformer_nano", **registry.entry("reformer_nano").tiny),
        lambda: llama(**SIZES, attention="plain,lsh:2"),
        lambda: llama(**SIZES, attention="plain,row:4"),
    ],
    ids=["learned positions", "lstm", "reformer", "lsh", "row"],
)
def test_models_without_rotary_positions_are_refused(build):
    model = build()
    with pytest.raises(UsageError, match=f"require a decoder with rotary .* '{model.name}'"):
        Generator(model, trained_length=16, attention_sinks=4)


@pytest.mark.parametrize("sinks", [-1, LENGTH, LENGTH + 1])
def test_sinks_must_leave_a_window(mixed, sinks):
    with pytest.raises(UsageError, match=f"used in training, 12; .* Received: {sinks}"):
        Generator(mixed, trained_length=LENGTH, attention_sinks=sinks)


def test_the_length_of_the_cache_must_be_known(mixed):
    with pytest.raises(UsageError, match="used in training, 0; .* Received: 4"):
        Generator(mixed, attention_sinks=4)


@pytest.mark.parametrize("options", [{"beams": 2}, {"use_cache": False}], ids=str)
def test_what_has_no_sinks_is_refused(generator, options):
    with pytest.raises(UsageError, match="neither a beam search nor use_cache=False"):
        generator.tokens([[7]], 5, **options)
