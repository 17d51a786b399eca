"""Initialization from other models: loaded weights, reported weights, refused architectures."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.third_party import third_party
from tests.zoo.models.test_convert import change
from trainers.train.init_from import initialize
from zoo import registry
from zoo.errors import UsageError
from zoo.models import bert, cnn, gan, gpt, llama, lstm, seq2seq
from zoo.models.convert import published as convert

SIZES = {
    "vocabulary_size": 20, "sequence_length": 12, "num_layers": 2, "hidden_dim": 16,
    "num_heads": 4, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Saves a GPT-2 as a transformers folder and a .keras file; returns the paths and the model."""
    folder = tmp_path_factory.mktemp("sources")
    keras.utils.set_random_seed(1)
    model = gpt.build(**SIZES)
    convert.to_transformers(model, folder / "hf")
    model.save(folder / "model.keras")
    return {"transformers": str(folder / "hf"), "keras": str(folder / "model.keras")}, model


DIFFERENT = {
    "rotary": ({"rotary_base": 1e4}, r"rotary_base of block_0 .*; positions/embeddings only in"),
    "more layers": ({"num_layers": 3}, "block_2/.* and 11 more of block_2 only in this model"),
    "fewer layers": ({"num_layers": 1}, "block_1/.* and 11 more of block_1 only in /"),
    "heads": ({"num_heads": 2}, "num_heads of block_0 and 3 more layers is 4 in the source"),
    "untied": ({"tie_weights": False}, "tie_weights of embedding is true in the source"),
    "positions": ({"sequence_length": 8}, r"positions/embeddings \(12, 16\) -> \(8, 16\)"),
    "width inside": ({"intermediate_dim": 32}, r"up/kernel \(16, 64\) -> \(16, 32\) in shape"),
}


@pytest.mark.parametrize("kind", ["transformers", "keras"])
@pytest.mark.parametrize("case", DIFFERENT)
def test_another_architecture_is_refused_and_nothing_is_filled(case, kind, sources):
    arguments, message = DIFFERENT[case]
    model = gpt.build(**{**SIZES, **arguments})
    before = [v.numpy() for v in model.weights]
    with pytest.raises(UsageError, match=f"same architecture.*{message}") as error:
        initialize(model, sources[0][kind])
    assert "\n" not in str(error.value)
    for value, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(value, variable)


def test_the_family_is_a_part_of_the_architecture(sources):
    with pytest.raises(UsageError, match="activation of block_0 .*norm of block_0"):
        initialize(llama.build(**SIZES), sources[0]["transformers"])


@pytest.mark.parametrize("kind", ["transformers", "keras"])
def test_what_acts_in_training_alone_and_the_vocabulary_may_differ(kind, sources):
    model = gpt.build(**{**SIZES, "dropout": 0.2, "vocabulary_size": 30})
    message = initialize(model, sources[0][kind])
    assert message.startswith("init_from: 27 of 28 weights")
    assert message.endswith("; with another shape: embedding/embeddings (20, 16) -> (30, 16)")
    for mine, theirs in zip(model.weights[1:], sources[1].weights[1:], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_rounds_of_hashing_may_differ_but_no_other_form(tmp_path):
    gpt.build(**SIZES, attention="window:4,lsh:1:8").save(tmp_path / "model.keras")
    model = gpt.build(**SIZES, attention="window:4,lsh:4:16")
    assert "28 of 28 weights" in initialize(model, str(tmp_path / "model.keras"))
    for form in ("window:2,lsh:1:8", "window:4,chunked"):
        with pytest.raises(UsageError, match="same architecture.*block_"):
            initialize(gpt.build(**SIZES, attention=form), str(tmp_path / "model.keras"))


def test_a_bert_takes_another_vocabulary(tmp_path):
    """The bias of BERT's logits, next to the tied kernel, depends on the vocabulary size too."""
    bert.build(**SIZES).save(tmp_path / "model.keras")
    message = initialize(
        bert.build(**{**SIZES, "vocabulary_size": 30}), str(tmp_path / "model.keras")
    )
    assert message.startswith("init_from: 36 of 38 weights")
    assert "embedding/embeddings (20, 16) -> (30, 16)" in message
    assert "mlm/bias (20,) -> (30,)" in message


def test_a_folder_that_transformers_itself_wrote(transformers, tmp_path):
    config = transformers.GPT2Config(vocab_size=20, n_positions=12, n_embd=16, n_layer=2, n_head=4)
    with third_party():
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "folder")
    assert "28 of 28 weights" in initialize(gpt.build(**SIZES), str(tmp_path / "folder"))
    with pytest.raises(UsageError, match="positions/embeddings only in"):
        initialize(gpt.build(**{**SIZES, "rotary_base": 1e4}), str(tmp_path / "folder"))
    change(tmp_path / "folder", activation_function="relu")
    with pytest.raises(UsageError, match="activation_function='relu'"):
        initialize(gpt.build(**SIZES), str(tmp_path / "folder"))


def test_a_preset_of_keras_hub(keras_hub, tmp_path):
    with third_party():
        keras_hub.models.GPT2Backbone(20, 2, 4, 16, 64, 0.0, 12).save_to_preset(tmp_path / "preset")
        source = f"keras_hub:{tmp_path / 'preset'}"
        assert "28 of 28 weights" in initialize(gpt.build(**SIZES), source)
        with pytest.raises(UsageError, match="positions/embeddings only in"):
            initialize(gpt.build(**{**SIZES, "rotary_base": 1e4}), source)


CNN = {"input_shape": (20, 20, 1), "filters": (4, 4, 4), "hidden_dim": 8, "num_classes": 3}
SEQ2SEQ = {"vocabulary_size": 16, "num_encoder_layers": 1, "hidden_dim": 8, "num_heads": 2}
LSTM = {"vocabulary_size": 9, "embedding_dim": 4, "hidden_dim": 4, "num_layers": 2}
GAN = {"noise_dim": 4, "hidden_dim": 8, "filters": 2}


@pytest.mark.parametrize(
    ("build", "arguments", "changes", "message"),
    [
        (cnn.build, CNN, {"filters": (4, 8, 4)}, "convolution_2/kernel .* in shape"),
        (cnn.build, CNN, {"input_shape": (28, 28, 1)}, "hidden/kernel .* in shape"),
        (lstm.build, LSTM, {"num_layers": 1}, "probabilities: connected to lstm_1 in the source"),
        (seq2seq.build, SEQ2SEQ, {"norm_first": True}, "norm_first of encoder_0"),
        (seq2seq.build, SEQ2SEQ, {"activation": "gelu"}, 'is "relu" in the source and "gelu"'),
        (bert.build, SIZES, {"next_sentence": False}, "pooler/kernel and 1 more of pooler only"),
        (bert.build, SIZES, {"epsilon": 1e-5}, "epsilon of embedding_norm .* is 1e-12 in"),
        (gan.build, GAN, {"filters": 3}, "convolution_1/kernel .* in shape"),
    ],
)
def test_every_family(build, arguments, changes, message, tmp_path):
    build(**arguments).save(tmp_path / "model.keras")
    model = build(**arguments)
    count = len(model.weights)
    assert initialize(model, str(tmp_path / "model.keras")).startswith(
        f"init_from: {count} of {count} weights"
    )
    with pytest.raises(UsageError, match=message):
        initialize(build(**{**arguments, **changes}), str(tmp_path / "model.keras"))


def network(activation="relu", head="probabilities", padding="valid", pool=False, scale=1.0,
            dropout=False, epsilon=1e-3, residual=False):  # fmt: skip
    """Returns a model of built-in Keras layers, some with automatic names."""
    image = keras.Input((8, 8, 1))
    x = layers.Rescaling(scale)(image)
    x = layers.Conv2D(2, 3, padding=padding, name="first")(x)
    x = layers.Activation(activation)(layers.BatchNormalization(epsilon=epsilon, name="norm")(x))
    if dropout:
        x = layers.Dropout(0.5)(x)
    if pool:
        x = layers.MaxPooling2D(2)(x)
    y = layers.Conv2D(2, 1, name="second")(x)
    x = layers.GlobalAveragePooling2D()(x + y if residual else y)
    return keras.Model(image, layers.Dense(3, name=head)(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, 'second: connected to Activation.*"relu".* and .*"gelu"'),
        ({"padding": "same"}, "padding of first"),
        ({"pool": True}, "second: connected to Activation.* and MaxPooling2D"),
        ({"scale": 2.0}, "first: connected to Rescaling"),
        ({"epsilon": 1e-5}, "epsilon of norm"),
        ({"residual": True}, "probabilities: connected to .* and GlobalAveragePooling2D.Add"),
        ({"dropout": True}, ""),
        ({"head": "logits"}, ""),
    ],
)
def test_layers_without_weights_are_a_part_of_the_architecture(changes, message, tmp_path):
    network().save(tmp_path / "model.keras")
    if message:
        with pytest.raises(UsageError, match=message):
            initialize(network(**changes), str(tmp_path / "model.keras"))
        return
    answer = initialize(network(**changes), str(tmp_path / "model.keras"))
    expected = "10 of 10 weights"
    if "head" in changes:
        expected = "8 of 10 weights"
        assert answer.endswith(
            "; missing in the source: logits/kernel, logits/bias; unused in the source: "
            "probabilities/kernel, probabilities/bias"
        )
    assert expected in answer


def test_what_compression_adds_is_named(tmp_path):
    from zoo.layers.rounding import quantize

    network().save(tmp_path / "plain.keras")
    rounded = network()
    quantize(rounded)
    assert "; missing in the source: first_ranges/kernel_min" in initialize(
        rounded, str(tmp_path / "plain.keras")
    )
    rounded.save(tmp_path / "rounded.keras")
    message = initialize(network(), str(tmp_path / "rounded.keras"))
    assert "10 of 10 weights" in message
    assert "; unused in the source: first_ranges/kernel_min" in message


# --- a backbone's weights ------------------------------------------------------------------------

TRANSFER = {"input_shape": (32, 32, 3), "hidden_dim": 8, "num_classes": 3}


def test_keras_own_none_is_fresh_weights():
    assert registry.build("vgg16_transfer", **TRANSFER, weights=None).count_params()


@pytest.mark.slow
def test_a_backbone_names_what_it_does_not_use_and_refuses_other_architectures(tmp_path, capsys):
    def build(name):
        return registry.build("vgg16_transfer", **TRANSFER, weights=str(tmp_path / name))

    base = registry.build("vgg16_transfer", **TRANSFER).base
    flat = layers.Flatten(name="flat")(base.output)
    whole = keras.Model(base.input, layers.Dense(2, name="predictions")(flat))
    whole.save(tmp_path / "whole.keras")
    whole.save_weights(tmp_path / "whole.weights.h5")
    for name, unused in (
        ("whole.keras", "predictions/kernel, predictions/bias"),
        ("whole.weights.h5", "predictions"),
    ):
        for one, other in zip(build(name).base.weights, base.weights, strict=True):
            np.testing.assert_array_equal(one, other)
        message = capsys.readouterr().err
        assert f"from {tmp_path / name}; unused weights or layers: {unused}\n" in message

    def other(layer):
        settings = layer.get_config()
        if settings.get("activation") == "relu":
            settings["activation"] = "gelu"
        return type(layer).from_config(settings)

    plain = keras.Model(base.input, base.output)
    keras.models.clone_model(plain, clone_function=other).save(tmp_path / "gelu.keras")
    with pytest.raises(UsageError, match="activation of block1_conv1 and 12 more layers"):
        build("gelu.keras")
    # Loaded in order, the layers after the inserted one would get the weights of their neighbors.
    image = x = keras.Input((32, 32, 3))
    for layer in base.layers[1:]:
        settings = layer.get_config()
        if layer.name == "block5_conv1":
            x = layers.Conv2D(512, 3, padding="same", activation="relu", name="inserted")(x)
        x = type(layer).from_config(settings)(x)
    longer = keras.Model(image, x)
    longer.save(tmp_path / "longer.keras")
    longer.save_weights(tmp_path / "longer.weights.h5")
    with pytest.raises(UsageError, match="block5_conv1: connected to .*inserted in the source"):
        build("longer.keras")
    with pytest.raises(UsageError, match="the weights of layer 'block5_conv1' differ"):
        build("longer.weights.h5")
