"""Encoder-decoder: model, task and data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests import toys
from trainers.optimization.precision import precision
from zoo import registry
from zoo.data.text import parallel
from zoo.data.text.special_tokens import END, FIRST_WORD, START
from zoo.generation.decoding import Seq2SeqDecoding
from zoo.models import seq2seq
from zoo.models.adapter import Adapter
from zoo.tasks.seq2seq import SequenceToSequence

VOCABULARY = 16
SIZES = {
    "vocabulary_size": VOCABULARY, "num_encoder_layers": 2, "hidden_dim": 16, "num_heads": 4,
    "intermediate_dim": 32, "dropout": 0.0,
}  # fmt: skip
ORDERS = pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])


def model(noise=0.1, seed=0, **arguments):
    keras.utils.set_random_seed(0)
    net = seq2seq.build(**{**SIZES, **arguments})
    # Weights far from their initial values, so that biases and norms are tested.
    generator = np.random.default_rng(seed)
    for weight in net.weights:
        weight.assign(weight.numpy() + noise * generator.normal(size=weight.shape))
    return net


def words(count, seed=0):
    return np.random.default_rng(seed).integers(FIRST_WORD, VOCABULARY, count)


def row(length, *sentences):
    """Returns a row of this length with sentences one after the other."""
    out = np.zeros((1, length), "int32")
    flat = np.concatenate(sentences)
    out[0, : len(flat)] = flat
    return out


def source_of(*sentences, length=12):
    return row(length, *([*sentence, END] for sentence in sentences))


def target_of(*sentences, length=12):
    return row(length, *([START, *sentence] for sentence in sentences))


def run(net, source, target):
    return net({"source": source, "target": target}, training=False).numpy()


# --- masks ----------------------------------------------------------------------------------------


@ORDERS
def test_padding_of_the_source_changes_nothing(norm_first):
    net, target = model(norm_first=norm_first), target_of(words(5, 1), length=6)
    for sentence in ([*words(4), END], words(4)):
        plain = run(net, row(len(sentence), sentence), target)
        np.testing.assert_allclose(run(net, row(12, sentence), target), plain, atol=1e-5)


def test_every_source_word_is_seen():
    net, target = model(), target_of(words(5, 1))
    plain = run(net, source_of(words(4)), target)[:, :6]
    for place in range(4):
        other = words(4)
        other[place] = FIRST_WORD + (other[place] - FIRST_WORD + 1) % 10
        assert np.abs(run(net, source_of(other), target)[:, :6] - plain).min(-1).max() > 1e-4


@ORDERS
def test_a_target_position_sees_none_behind_it(norm_first):
    net, source = model(norm_first=norm_first), source_of(words(4))
    plain = run(net, source, target_of(words(8, 1)))
    other = words(8, 1)
    other[5] = FIRST_WORD + (other[5] - FIRST_WORD + 1) % 10
    changed = run(net, source, target_of(other))
    np.testing.assert_allclose(changed[:, :6], plain[:, :6], atol=1e-5)
    assert np.abs(changed[:, 6:9] - plain[:, 6:9]).max() > 1e-3


def test_pairs_that_share_a_row_do_not_see_each_other():
    net = model()
    sources, targets = [words(4), words(3, 5)], [words(2, 1), words(5, 2)]
    together = run(net, source_of(*sources), target_of(*targets))
    apart = [run(net, source_of(s), target_of(t)) for s, t in zip(sources, targets, strict=True)]
    np.testing.assert_allclose(together[:, :3], apart[0][:, :3], atol=1e-5)
    np.testing.assert_allclose(together[:, 3:9], apart[1][:, :6], atol=1e-5)


# --- against another implementation ---------------------------------------------------------------


def test_it_is_the_marian_transformer(torch, transformers):
    """transformers.MarianMTModel has the same architecture, plus a bias of zeros on the logits."""
    config = transformers.MarianConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32,
        decoder_ffn_dim=32, activation_function="relu", dropout=0.0, attention_dropout=0.0,
        scale_embedding=True, pad_token_id=0, decoder_start_token_id=START, eos_token_id=END,
        max_position_embeddings=32,
    )  # fmt: skip
    other = transformers.MarianMTModel(config).eval()
    net = model()
    other.load_state_dict(marian_weights(net), strict=False)
    source = np.concatenate([source_of(words(4)), source_of(words(11, 3))])
    target = np.concatenate([target_of(words(11, 1)), target_of(words(11, 2))])
    with torch.no_grad():
        expected = other(
            input_ids=torch.tensor(source, dtype=torch.long),
            attention_mask=torch.tensor(source != 0, dtype=torch.long),
            decoder_input_ids=torch.tensor(target, dtype=torch.long),
        ).logits.numpy()
    np.testing.assert_allclose(run(net, source, target), expected, atol=1e-4)


def marian_weights(net):
    """Returns our weights under Marian's names."""
    import torch

    state = {}

    def put(name, *arrays):
        for key, array in zip(("weight", "bias"), arrays, strict=False):
            array = array.numpy() if hasattr(array, "numpy") else array
            state[f"model.{name}.{key}"] = torch.tensor(array.T if array.ndim == 2 else array)

    def put_parts(name, dense, *parts):
        kernels = np.split(dense.kernel.numpy(), len(parts), axis=1)
        biases = np.split(dense.bias.numpy(), len(parts))
        for part, kernel, bias in zip(parts, kernels, biases, strict=True):
            put(f"{name}.{part}_proj", kernel, bias)

    def put_norm(name, norm):
        put(name, norm.gamma, norm.beta)

    table = torch.tensor(net.get_layer("embedding").embeddings.numpy())
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens"):
        state[f"{name}.weight"] = table
    state["lm_head.weight"] = table
    for side in ("encoder", "decoder"):
        for i in range(2):
            block, name = net.get_layer(f"{side}_{i}"), f"{side}.layers.{i}"
            put_parts(f"{name}.self_attn", block.attention.query_key_value, "q", "k", "v")
            out = block.attention.output_projection
            put(f"{name}.self_attn.out_proj", out.kernel, out.bias)
            put_norm(f"{name}.self_attn_layer_norm", block.attention_norm)
            if side == "decoder":
                cross = block.cross_attention
                put_parts(f"{name}.encoder_attn", cross.query, "q")
                put_parts(f"{name}.encoder_attn", cross.key_value, "k", "v")
                out = cross.output_projection
                put(f"{name}.encoder_attn.out_proj", out.kernel, out.bias)
                put_norm(f"{name}.encoder_attn_layer_norm", block.cross_norm)
            put(f"{name}.fc1", block.feed_forward.up.kernel, block.feed_forward.up.bias)
            put(f"{name}.fc2", block.feed_forward.down.kernel, block.feed_forward.down.bias)
            put_norm(f"{name}.final_layer_norm", block.feed_forward_norm)
    return state


# --- one position at a time -----------------------------------------------------------------------


@pytest.mark.parametrize(("norm_first", "tie_weights"), [(False, True), (True, False)])
def test_cached_decoding_equals_the_model(norm_first, tie_weights):
    net = model(norm_first=norm_first, tie_weights=tie_weights)
    source = np.concatenate([source_of(words(4)), source_of(words(9, 3))])
    target = np.concatenate([target_of(words(9, 1)), target_of(words(9, 2))])[:, :10]
    steps = Seq2SeqDecoding(Adapter(net))
    cache = steps.start(2, 16, source=ops.convert_to_tensor(source))
    first, cache = steps.step(ops.convert_to_tensor(target[:, :3]), cache, 0)
    outputs = [first]
    for place in range(3, 10):
        token = ops.convert_to_tensor(target[:, place : place + 1])
        logits, cache = steps.step(token, cache, place)
        outputs.append(logits)
    np.testing.assert_allclose(
        ops.concatenate(outputs, 1).numpy(), run(net, source, target), atol=1e-5
    )


# --- the loss -------------------------------------------------------------------------------------


def stored(seed=0, rows=3):
    """Returns rows of two pairs each."""
    pairs = [
        [words(4, seed + 9 * i + j) for j in range(4)] for i in range(rows)
    ]  # fmt: skip
    return {
        "source": np.concatenate([source_of(a, b) for a, b, _, _ in pairs]),
        "target": np.concatenate([source_of(a[:3], b) for _, _, a, b in pairs]),
    }


def batch_of(task, arrays, weight=(1.0, 1.0, 0.0)):
    arrays = {key: tf.constant(value) for key, value in arrays.items()}
    return task.prepare({**arrays, "weight": tf.constant(weight)}, None, True)


def test_the_inputs_are_the_labels_moved_to_the_right():
    arrays = {"source": source_of([7, 8]), "target": source_of([9, 10], [11], length=8)}
    batch = batch_of(SequenceToSequence(), arrays, [1.0])
    np.testing.assert_array_equal(batch["target"], [[START, 9, 10, START, 11, 0, 0, 0]])
    np.testing.assert_array_equal(batch["labels"], [[9, 10, END, 11, END, 0, 0, 0]])
    np.testing.assert_array_equal(batch["counts"], [[1, 1, 1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_keras(chunk, smoothing):
    net = model()
    task = SequenceToSequence(label_smoothing=smoothing, chunk=chunk)
    batch = batch_of(task, stored())
    logits = net({"source": batch["source"], "target": batch["target"]})
    labels = ops.one_hot(batch["labels"], VOCABULARY)
    counts = batch["counts"]

    def expected(smoothing):
        losses = keras.losses.categorical_crossentropy(
            labels, logits, from_logits=True, label_smoothing=smoothing
        )
        return float(ops.sum(losses * counts))

    result = task.forward(net, batch, training=True)
    weight = float(task.term_counts(batch)["loss"])
    assert weight == 2 * 9
    np.testing.assert_allclose(float(result.sums["loss"]), expected(smoothing), rtol=1e-5)
    total, count = result.statistics["nll"]
    np.testing.assert_allclose(float(total), expected(0.0), rtol=1e-5)
    assert float(count) == weight
    right = np.argmax(logits, -1) == batch["labels"].numpy()
    assert float(result.statistics["accuracy"][0]) == (right * counts.numpy()).sum()
    # Label smoothing applies only in training.
    evaluated = task.forward(net, batch, training=False)
    np.testing.assert_allclose(float(evaluated.sums["loss"]), expected(0.0), rtol=1e-5)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_chunks_change_no_gradient(tie_weights):
    net, gradients = model(tie_weights=tie_weights), []
    for chunk in (0, 5):
        task = SequenceToSequence(label_smoothing=0.2, chunk=chunk)
        batch = batch_of(task, stored())
        with tf.GradientTape() as tape:
            loss = task.forward(net, batch, training=True).sums["loss"]
        chunked_gradients = tape.gradient(loss, [v.value for v in net.trainable_variables])
        gradients.append([tf.convert_to_tensor(g).numpy() for g in chunked_gradients])
    for plain, chunked in zip(*gradients, strict=True):
        np.testing.assert_allclose(chunked, plain, atol=1e-5 * np.abs(plain).max() + 1e-7)


# --- data -----------------------------------------------------------------------------------------

# Some numbers have two words, so that neither side is always longer.
NUMBERS = {
    "only one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf",
    "six": "drei drei", "seven": "sieben", "eight": "vier vier", "nine": "neun", "ten": "zehn",
}  # fmt: skip


@pytest.fixture
def numbers(tmp_path, cache):
    """Returns `numbers(**data) -> dataset`; its sentence pairs are number words."""
    generator = np.random.default_rng(0)
    chosen = [generator.integers(0, 10, generator.integers(1, 6)) for _ in range(200)]
    pairs = [
        tuple(" ".join(words[i] for i in line) for words in (list(NUMBERS), list(NUMBERS.values())))
        for line in chosen
    ]
    path = tmp_path / "numbers.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))

    def load(**changes):
        data = toys.recipe().data.to_dict()
        data |= {
            "source": f"pairs:{path}", "tokenizer": "word", "vocabulary_size": 40,
            "sequence_length": 12, "packing": "best_fit", **changes,
        }  # fmt: skip
        return registry.load_data(data, {"name": "seq2seq"})

    return load


def sentences(tokenizer, array):
    """Returns the texts of all sentences of (N, length) ids."""
    decoded = []
    for ids in np.asarray(array):
        parts = np.split(ids, np.flatnonzero(ids == END) + 1)
        decoded += [tokenizer.decode(part) for part in parts if END in part]
    return decoded


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_every_pair_is_stored_once_and_stays_a_pair(numbers, packing):
    dataset = numbers(packing=packing)
    for split, arrays in dataset.splits.items():
        stored_pairs = zip(
            *(sentences(dataset.tokenizer, arrays[key]) for key in ("source", "target")),
            strict=True,
        )
        assert sorted(stored_pairs) == sorted(dataset.pairs[split]()), split
    rows, examples = len(dataset.splits["train"]["source"]), len(list(dataset.pairs["train"]()))
    assert rows == examples if packing == "none" else rows < 0.6 * examples


def test_pairs_that_are_too_long_are_left_out_or_cut_and_said(numbers, capsys):
    dataset = numbers(sequence_length=6)
    message = capsys.readouterr().err
    for split, arrays in dataset.splits.items():
        pairs = list(dataset.pairs[split]())
        fits = [max(len(text.split()) for text in pair) <= 5 for pair in pairs]
        long = fits.count(False)
        action = "left out" if split == "train" else "truncated"
        line = f"zoo: {split}: {long} of {len(pairs)} pairs are longer than data.sequence_length=6"
        assert f"{line} tokens and were {action}." in message
        stored = sentences(dataset.tokenizer, arrays["target"])
        expected = [" ".join(target.split()[:5]) for _, target in pairs]
        if split == "train":
            expected = [target for (_, target), short in zip(pairs, fits, strict=True) if short]
        assert sorted(stored) == sorted(expected)
    numbers(sequence_length=6)
    assert not capsys.readouterr().err, "it is said where the records are made"


def test_the_report_knows_the_data(numbers):
    dataset = numbers()
    assert dataset.facts["Tokenizer"]["kind"] == dataset.tokenizer.kind
    assert dataset.facts["Data"]["train"] == len(dataset.splits["train"]["source"])


def test_in_float16_padding_stays_finite():
    """Padding of the target attends to no position."""
    with precision("mixed_float16"):
        net = model()
    source = source_of(words(11))
    assert np.isfinite(run(net, source, target_of(words(3)))).all()


def test_one_language_is_refused(numbers, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one two three\n" * 50)
    with pytest.raises(parallel.UsageError, match="requires pairs of sentences"):
        numbers(source=f"text:{path}")


def test_another_packing_is_refused(numbers):
    with pytest.raises(parallel.UsageError, match="data.packing must be one of best_fit, none"):
        numbers(packing="stream")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"beams": -1}, "beams=-1"),
        ({"length_penalty": -1.0}, "length_penalty must be finite and at least 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(parallel.UsageError, match=words):
        SequenceToSequence(**arguments)
