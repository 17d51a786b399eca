"""Converters: equal outputs, bit-identical round trips, clear errors."""

import json

import keras
import numpy as np
import pytest

from tests.third_party import third_party
from zoo.errors import RunError, UsageError
from zoo.models import gpt, llama
from zoo.models.convert import published as convert
from zoo.models.convert import safetensors as convert_safetensors

SIZES = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "num_heads": 4}
# No setting has its default, so a setting that is not converted changes the outputs.
CASES = {
    "gpt": (gpt, {"sequence_length": 24, "intermediate_dim": 40}),
    "gpt_untied": (gpt, {"sequence_length": 24, "tie_weights": False}),
    "llama": (
        llama,
        {"num_key_value_heads": 2, "intermediate_dim": 24, "rotary_base": 500.0, "epsilon": 1e-4},
    ),
    "llama_untied": (llama, {"num_key_value_heads": 1, "tie_weights": False}),
    "llama_all_heads": (llama, {"epsilon": 1e-6}),
}
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 24)).astype("int32")
IN_KERAS_HUB = [case for case in CASES if case != "gpt_untied"]


def value(shape, path: str, seed: int) -> np.ndarray:
    """Weights that make each property show: embeddings so small that epsilon counts, large kernels
    that reach where the activations differ, biases and scales that are not 0 and 1."""
    deviation = 0.01 if path.endswith("embeddings") and "reverse" not in path else 0.4
    center = 1.0 if path.endswith(("gamma", "scale")) else 0.0
    values = np.random.default_rng(seed).normal(center, deviation, shape)
    return values.astype("float32")


def build(case: str, **arguments) -> keras.Model:
    module, own = CASES[case]
    model = module.build(**{**SIZES, **own, **arguments})
    for seed, variable in enumerate(model.weights):
        variable.assign(value(variable.shape, variable.path, seed))
    return model


def logits(model: keras.Model) -> np.ndarray:
    inputs = {"tokens": TOKENS, "segments": np.ones_like(TOKENS)}
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def torch_logits(torch, model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS.astype("int64"))).logits.numpy()


def hub_logits(backbone) -> np.ndarray:
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    out = backbone.token_embedding(backbone(inputs, training=False), reverse=True)
    return keras.ops.convert_to_numpy(out)


def assert_close(received, expected):
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(received / scale, expected / scale, rtol=0, atol=1e-5)


def assert_same_weights(received: keras.Model, expected: keras.Model):
    assert [v.path for v in received.weights] == [v.path for v in expected.weights]
    for mine, theirs in zip(received.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=mine.path)


def change(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def read(folder) -> dict:
    tensors = convert_safetensors.Tensors([folder / "model.safetensors"])
    return {name: tensors[name] for name in tensors}


def save(folder, tensors, name="model.safetensors") -> None:
    """Writes tensors in their own types; unsigned 16-bit integers are the bits of bfloat16."""
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8", "int64": "I64"}
    header, data = {}, b""
    for key, array in tensors.items():
        place = [len(data), len(data) + array.nbytes]
        header[key] = {
            "dtype": kinds[str(array.dtype)], "shape": list(array.shape), "data_offsets": place
        }  # fmt: skip
        data += array.tobytes()
    text = json.dumps(header).encode()
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + data)


# --- transformers ------------------------------------------------------------------------------


def theirs(transformers, torch, case: str):
    """Returns a transformers model with random weights."""
    common = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    llamas = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, **common,
    }  # fmt: skip
    gpts = {"n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4, **common}
    own = {
        "gpt": {"n_inner": 40},
        "gpt_untied": {"tie_word_embeddings": False},
        "llama": {
            "num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        "llama_untied": {"num_key_value_heads": 1},
        "llama_all_heads": {"tie_word_embeddings": True},
    }[case]  # fmt: skip
    if case.startswith("gpt"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**gpts, **own}))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**llamas, **own}))
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            kind = "embeddings" if name.endswith(("wte.weight", "embed_tokens.weight")) else ""
            kind = "scale" if "ln_" in name or "norm" in name else kind
            parameter.copy_(torch.tensor(value(tuple(parameter.shape), kind, 100 + seed)))
    return model


@pytest.mark.parametrize("shard", ["50GB", "6KB"], ids=["one_file", "shards"])
@pytest.mark.parametrize("case", CASES)
def test_from_transformers(case, shard, transformers, torch, tmp_path):
    published = theirs(transformers, torch, case)
    with third_party():
        published.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > (shard != "50GB")
    model = convert.from_transformers(tmp_path)
    assert_close(logits(model), torch_logits(torch, published))


@pytest.mark.parametrize("case", CASES)
def test_to_transformers(case, transformers, torch, tmp_path):
    model = build(case)
    convert.to_transformers(model, tmp_path / "new" / "folder", sequence_length=24)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
    with third_party():
        published, loading_info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "new" / "folder", output_loading_info=True
        )
    assert type(published).__name__ in ("GPT2LMHeadModel", "LlamaForCausalLM")
    assert not any(loading_info.values())
    assert published.config.max_position_embeddings == 24
    assert_close(torch_logits(torch, published), logits(model))


@pytest.mark.parametrize("case", CASES)
def test_transformers_and_back(case, tmp_path):
    model = build(case)
    convert.to_transformers(model, tmp_path / "folder")
    assert_same_weights(convert.from_transformers(tmp_path / "folder"), model)
    file = tmp_path / "folder" / "model.safetensors"
    assert_same_weights(convert.from_transformers(file), model)


def test_a_saved_model_is_converted_too(tmp_path):
    model = build("llama")
    model.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    convert.to_transformers(saved, tmp_path / "folder")
    assert_same_weights(convert.from_transformers(tmp_path / "folder"), model)


def test_the_published_form_of_gpt2(tmp_path):
    """Published GPT-2 files have no prefix, contain masks and repeat the tied embedding."""
    model = build("gpt")
    convert.to_transformers(model, tmp_path / "folder")
    tensors = read(tmp_path / "folder")
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), "int8")
    tensors["lm_head.weight"] = tensors["wte.weight"]
    save(tmp_path / "folder", tensors)
    path = tmp_path / "folder" / "config.json"
    bookkeeping = {"n_special": 1, "output_past": True, "predict_special_tokens": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **bookkeeping}))
    assert_same_weights(convert.from_transformers(tmp_path / "folder"), model)
    tensors["lm_head.weight"] = tensors["wte.weight"] + 1
    save(tmp_path / "folder", tensors)
    with pytest.raises(RunError, match="ties the output projection to the embedding"):
        convert.from_transformers(tmp_path / "folder")


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_read_as_it_is(kind, tmp_path):
    model = build("gpt")
    for variable in model.weights:  # values that both types represent exactly
        variable.assign(np.round(variable.numpy() * 16) / 16)
    convert.to_transformers(model, tmp_path / "folder")
    tensors = read(tmp_path / "folder")
    if kind == "F16":
        tensors = {name: array.astype("float16") for name, array in tensors.items()}
    else:
        tensors = {n: (a.view("uint32") >> 16).astype("uint16") for n, a in tensors.items()}
    save(tmp_path / "folder", tensors)
    assert_same_weights(convert.from_transformers(tmp_path / "folder"), model)


def test_rotary_base_as_transformers_4_wrote_it(tmp_path):
    convert.to_transformers(build("llama"), tmp_path / "folder")
    change(tmp_path / "folder", rope_parameters=None, rope_scaling=None)
    model = convert.from_transformers(tmp_path / "folder")
    assert model.get_layer("block_0").settings["rotary_base"] == 500.0
    change(tmp_path / "folder", rope_parameters={"rope_theta": 600.0})
    with pytest.raises(UsageError, match="rope_parameters.rope_theta=600.0"):
        convert.from_transformers(tmp_path / "folder")


# --- KerasHub ----------------------------------------------------------------------------------


def hub_backbone(keras_hub, case: str):
    if case == "gpt":
        backbone = keras_hub.models.GPT2Backbone(50, 2, 4, 16, 40, max_sequence_length=24)
    else:
        groups = {"llama": 2, "llama_untied": 1, "llama_all_heads": 4}[case]
        cls = keras_hub.models.LlamaBackbone
        cls = keras_hub.models.Llama3Backbone if case == "llama_untied" else cls
        backbone = cls(
            50, 2, 4, 16, 24, groups, rope_max_wavelength=500, layer_norm_epsilon=1e-4,
            tie_word_embeddings=case != "llama_untied",
        )  # fmt: skip
    for seed, variable in enumerate(backbone.weights):
        variable.assign(value(variable.shape, variable.path, 200 + seed))
    return backbone


@pytest.mark.parametrize("case", IN_KERAS_HUB)
def test_from_keras_hub(case, keras_hub):
    backbone = hub_backbone(keras_hub, case)
    assert_close(logits(convert.from_keras_hub(backbone)), hub_logits(backbone))


@pytest.mark.parametrize("case", IN_KERAS_HUB)
def test_to_keras_hub_and_back(case, keras_hub):
    model = build(case)
    backbone = convert.to_keras_hub(model)
    assert_close(hub_logits(backbone), logits(model))
    assert_same_weights(convert.from_keras_hub(backbone), model)


def test_a_causal_lm_and_a_preset_of_keras_hub(keras_hub, tmp_path):
    backbone = hub_backbone(keras_hub, "gpt")
    expected = convert.from_keras_hub(backbone)
    whole = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    assert_same_weights(convert.from_keras_hub(whole), expected)
    backbone.save_to_preset(str(tmp_path))
    assert_same_weights(convert.from_keras_hub(str(tmp_path)), expected)


def test_refused_of_keras_hub(keras_hub):
    bert = keras_hub.models.BertBackbone(50, 1, 2, 16, 16)
    with pytest.raises(UsageError, match="LlamaBackbone.* Received: BertBackbone"):
        convert.from_keras_hub(bert)
    with pytest.raises(UsageError, match="no preset 'gpt9_base_en'"):
        convert.from_keras_hub("gpt9_base_en")
    scaled = keras_hub.models.LlamaBackbone(50, 1, 4, 16, 24, 2, rope_position_scaling_factor=2.0)
    with pytest.raises(UsageError, match="rope_position_scaling_factor=2.0"):
        convert.from_keras_hub(scaled)
    with pytest.raises(UsageError, match="GPT-2.*multiple of num_heads"):
        convert.from_keras_hub(keras_hub.models.GPT2Backbone(50, 1, 3, 16, 16))
    adapted = hub_backbone(keras_hub, "gpt")
    adapted.enable_lora(2)
    with pytest.raises(UsageError, match="must not have the variable .*lora"):
        convert.from_keras_hub(adapted)
    with pytest.raises(UsageError, match="requires model.tie_weights=True"):
        convert.to_keras_hub(build("gpt_untied"))
