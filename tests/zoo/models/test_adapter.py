"""The adapter of every family, also for models with renamed layers."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.quantizers import Int8QuantizationConfig

from trainers.compression import low_rank, structured
from zoo import registry
from zoo.catalog import CATALOG
from zoo.errors import UsageError
from zoo.generation.decoding import can_generate, decoding
from zoo.generation.translate import Translator
from zoo.layers.attention import MaskBias
from zoo.layers.rounding import quantize
from zoo.models.adapter import Adapter
from zoo.models.transfer import TransferClassifier

# Module of the family -> attributes of its adapter: family, whether outputs are probabilities,
# stacks in debug size.
BLOCKS, ROWS = ("TransformerBlock", "tokens"), [row for row in CATALOG if row.tiny]
EXPECTED = {
    "gpt": ("decoder", False, {BLOCKS: 2}),
    "llama": ("decoder", False, {BLOCKS: 2}),
    "moe": ("decoder", False, {("ExpertBlock", "tokens"): 2}),
    "looped": ("decoder", False, {BLOCKS: 2}),  # prelude and coda
    "reformer": ("decoder", False, {}),
    "retro": ("", False, {BLOCKS: 2, ("TransformerBlock", "neighbors"): 1}),
    "axial": ("axial", False, {BLOCKS: 3}),
    "lstm": ("recurrent", True, {("LSTM", "tokens"): 2}),
    "seq2seq": (
        "encoder_decoder", False,
        {("TransformerBlock", "source"): 2, ("TransformerBlock", "target"): 2},
    ),
    "bert": ("", False, {BLOCKS: 2}),
    "longformer": ("", False, {BLOCKS: 2}),
    "encoder": ("", False, {BLOCKS: 2}),
    "electra": ("", False, {BLOCKS: 4}),  # those of the generator and of the discriminator
    "linear": ("", False, {}),
    "cnn": ("", True, {}),
    "gan": ("", False, {}),
    "transfer": ("", True, {}),
}  # fmt: skip


def renamed(model):
    """Returns a copy of a model in which all layers except the inputs have other names."""

    def change(layer):
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation without weights
        names.append(f"other{len(names)}")
        return type(layer).from_config({**layer.get_config(), "name": names[-1]})

    names = []
    copy = keras.models.clone_model(model, clone_function=change)
    copy.set_weights(model.get_weights())
    shared_names = {x.name for x in copy.layers} & {x.name for x in model.layers}
    assert shared_names == {x.name for x in model.inputs}
    return copy


def built(row, **arguments):
    keras.utils.set_random_seed(0)
    return registry.build(row.name, **{**row.tiny, **arguments})


def files(model, folder):
    """Returns the model as plain Keras reads it from its file."""
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras", safe_mode=True)


def batch_of(task, row, model):
    task.bind(model, arguments=row.tiny)
    batch = {key: tf.constant(x[:3]) for key, x in task.synthetic(model, 4, 0).items()}
    batch["weight"] = tf.ones(3)
    return task.prepare(batch, lambda n: tf.random.stateless_uniform((3, n), (0, 0)), False)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_names_of_layers_decide_nothing(row, tmp_path):
    model = built(row)
    family, probabilities, stacks = EXPECTED[row.family]
    task = registry.build_task(row.task, **row.task_arguments)
    batch = batch_of(task, row, model)
    expected = task.forward(model, batch, training=False).sums
    for copy in (model, renamed(model), files(renamed(model), tmp_path)):
        parts = Adapter(copy)
        assert parts.family == family
        assert parts.probabilities == probabilities
        assert {key: len(stack) for key, stack in parts.stacks.items()} == stacks
        assert parts.can_split
        for key, value in task.forward(copy, batch, training=False).sums.items():
            np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.task in ("clm", "moe", "seq2seq")], ids=lambda row: row.name
)
def test_the_trunk_and_the_head_give_what_the_model_gives(row, tmp_path):
    model = built(row)
    task = registry.build_task(row.task, **row.task_arguments)
    batch = batch_of(task, row, model)
    for copy in (model, files(renamed(model), tmp_path)):
        trunk, head = Adapter(copy).split()
        inputs = {x.name: batch[x.name] for x in copy.inputs}
        kernel, bias = head()
        logits = trunk(inputs) @ tf.transpose(kernel) + (0 if bias is None else bias)
        actual = tf.nn.softmax(logits) if Adapter(copy).probabilities else logits
        np.testing.assert_allclose(actual, copy(inputs), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["gpt_nano", "llama_nano", "moe_nano", "reformer_nano", "axial_image_nano", "lstm_generator"],
)
def test_a_renamed_model_is_decoded(name):
    model = built(registry.entry(name))
    tokens = np.array([[6, 7, 8, 9]], "int32")
    outputs = []
    for copy in (model, renamed(model)):
        steps = decoding(copy)
        outputs.append(steps.step(tokens, steps.start(1, 4), 0)[0])
    np.testing.assert_array_equal(*outputs)


def test_a_renamed_model_translates():
    model = built(registry.entry("transformer_tiny"))
    source = np.array([[6, 7, 8, 3]], "int32")
    outputs = []
    for copy in (model, renamed(model)):
        steps = Translator(copy, Known()).decoding
        outputs.append(steps.step(np.array([[2, 7]]), steps.start(1, 4, source), 0)[0])
    np.testing.assert_array_equal(*outputs)


class Known:
    vocabulary_size = 16


@pytest.mark.parametrize("name", ["vgg16_transfer", "dcgan_mnist"])
def test_parts_of_a_renamed_model_are_its_parts(name):
    model = built(registry.entry(name))
    copy = renamed(model)
    if isinstance(model, TransferClassifier):
        image = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
        np.testing.assert_array_equal(copy.extractor(image), model.extractor(image))
        np.testing.assert_array_equal(copy.head(copy.extractor(image)), model(image))
        assert len(copy.base.weights) == len(model.base.weights)
    else:
        noise = np.random.default_rng(0).random((2, 8), "float32")
        images = model.generator(noise)
        np.testing.assert_array_equal(copy.generator(noise), images)
        np.testing.assert_array_equal(copy.discriminator(images), model(noise))


def test_a_smaller_copy_has_the_same_adapter():
    model = built(registry.entry("llama_nano"))
    fewer = structured.build_smaller(model, ["block_0/feed_forward=8"])
    products = low_rank.factorize(fewer, ["embedding=4", "block_1/attention/output=4"])
    parts = Adapter(renamed(products))
    assert parts.family == "decoder"
    assert len(parts.layers_of_kind("block")) == 2
    trunk, head = parts.split()
    assert head()[0].shape == (16, trunk.output_shape[-1])


def test_a_quantized_copy_has_the_same_adapter():
    """A chunked loss cannot use the quantized last kernel."""
    model = built(registry.entry("gpt_nano"))
    quantize(model)
    assert Adapter(model).family == "decoder"
    model = built(registry.entry("gpt_nano"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns about layers that it does not quantize
        model.quantize(config=Int8QuantizationConfig(activation_quantizer=None))
    assert Adapter(model).family == "decoder"
    assert not Adapter(model).can_split


def own(mask=True, softmax=False, end=None):
    """Returns a custom model of gpt layers with another structure."""
    model = built(registry.entry("gpt_nano"))
    parts = Adapter(model)
    embedding, (first, second), (norm,) = (
        parts.layers_of_kind(x) for x in ("embedding", "block", "norm")
    )
    tokens, segments = (keras.Input((None,), dtype="int32", name=x) for x in ("tokens", "segments"))
    x, bias = embedding[0](tokens), MaskBias(causal=mask)(segments)
    x = norm(second(first(x, bias) * 2.0, bias))
    x = end(x) if end else embedding[0](x, reverse=True)
    return keras.Model([tokens, segments], keras.layers.Softmax()(x) if softmax else x)


def test_a_users_own_model_is_of_no_family():
    """Trunk, head and blocks are still detected; layer names do not decide the family."""
    model = own()
    assert Adapter(model).family == ""
    assert not can_generate(model)
    assert [len(x) for x in Adapter(model).stacks.values()] == [2]
    assert Adapter(model).split()[0].output_shape == (None, None, 16)
    assert Adapter(own(softmax=True)).probabilities
    assert not Adapter(own(end=keras.layers.Dense(16, name="probabilities"))).probabilities


def test_a_decoder_that_looks_ahead_is_none():
    model = built(registry.entry("gpt_nano"))
    (mask,) = (x for x in model.layers if isinstance(x, MaskBias))
    mask.causal = False
    assert Adapter(model).family == ""


def test_a_model_without_a_graph():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = keras.layers.Dense(3, activation="softmax")

        def call(self, x):
            return self.last(x)

    model = Own()
    model(np.zeros((1, 2), "float32"))
    assert (Adapter(model).probabilities, Adapter(model).stacks) == (True, {})
    with pytest.raises(UsageError, match="Received: 'own'; set task.chunk=0"):
        Adapter(model).split()
