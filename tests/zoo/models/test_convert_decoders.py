"""Published relatives of Llama: logits and generated tokens equal those of transformers."""

import json
import shutil

import keras
import numpy as np
import pytest

from tests.third_party import third_party
from tests.zoo.models.test_convert import assert_same_weights, change, value
from zoo.errors import RunError, UsageError
from zoo.generation.generate import Generator
from zoo.models import llama
from zoo.models.convert import published as convert

CONTEXT = 16  # original context of scaled positions; the texts are longer
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": CONTEXT,
}  # fmt: skip
SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 4 * CONTEXT,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
# Class in transformers, and settings of which none has no effect.
CASES = {
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama_linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    ),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-4}),
    "llama_head_dim": ("Llama", {"head_dim": 6}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 8}),
    "mistral_full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 8, "rms_norm_eps": 1e-3}),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
}
FAST = ("llama3", "qwen3", "gemma3")  # compiling the generation of others takes too long
BATCH = np.random.default_rng(0).integers(0, 50, (2, 3 * CONTEXT)).astype("int32")
PADDED = 11  # number of padded positions before the second text


def theirs(transformers, torch, case: str):
    """Returns a transformers model with random weights that make each setting show."""
    kind, own = CASES[case]
    config_class = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, config_class)(**{**SIZES, **own})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            kind = "embeddings" if name.endswith("embed_tokens.weight") else ""
            kind = "scale" if "norm" in name and case != "gemma3" else kind
            parameter.copy_(torch.tensor(value(tuple(parameter.shape), kind, 300 + seed)))
    return model


@pytest.fixture(scope="module")
def published(transformers, torch, tmp_path_factory):
    """Returns `published(case) -> (transformers' model, its folder, the zoo's model)`."""
    results = {}

    def convert_once(case):
        if case not in results:
            model, folder = theirs(transformers, torch, case), tmp_path_factory.mktemp(case)
            with third_party():
                model.save_pretrained(folder)
            results[case] = model, folder, convert.from_transformers(folder)
        return results[case]

    return convert_once


def torch_logits(torch, model, mask) -> np.ndarray:
    with torch.no_grad():
        tokens, mask = torch.tensor(BATCH.astype("int64")), torch.tensor(mask.astype("int64"))
        return model(tokens, attention_mask=mask).logits.numpy()


def assert_close(received, expected, mask):
    received, expected = received[mask == 1], expected[mask == 1]
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(received / scale, expected / scale, rtol=0, atol=2e-5)


def padding() -> np.ndarray:
    mask = np.ones_like(BATCH)
    mask[1, :PADDED] = 0
    return mask


@pytest.mark.parametrize("case", CASES)
def test_logits_with_padding_beyond_the_original_context(case, published, torch):
    reference, _, model = published(case)
    mask = padding()
    received = model({"tokens": BATCH, "segments": mask}, training=False).numpy()
    assert_close(received, torch_logits(torch, reference, mask), mask)


@pytest.mark.parametrize(
    "case",
    [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_greedy_tokens(case, published, torch):
    reference, _, model = published(case)
    # The zoo computes the second prompt, and its ring buffers, in one call.
    prompts, count = [BATCH[0, :5].tolist(), BATCH[1, :36].tolist()], 24
    generator = Generator(model, sequence_length=4 * CONTEXT, jit_compile=False)
    for prompt in prompts:
        with third_party(), torch.no_grad():
            expected = reference.generate(
                torch.tensor([prompt]), max_new_tokens=count, do_sample=False, use_cache=True
            )[0, len(prompt) :].tolist()
        received = generator.tokens([prompt], count, temperature=0.0, end_id=None)[0]
        assert received.tolist() == expected


@pytest.mark.parametrize("case", CASES)
def test_to_transformers_and_back(case, published, transformers, torch, tmp_path):
    reference, _, model = published(case)
    convert.to_transformers(model, tmp_path / "folder", sequence_length=4 * CONTEXT)
    with third_party():
        written, loading_info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "folder", output_loading_info=True
        )
    expected = "Llama" if case == "mistral_full" else CASES[case][0]
    assert type(written).__name__ == f"{expected}ForCausalLM"
    assert not any(loading_info.values())
    mask = padding()
    assert_close(torch_logits(torch, written, mask), torch_logits(torch, reference, mask), mask)
    again = convert.from_transformers(tmp_path / "folder")
    if case == "gemma3":  # its files have the scales minus 1
        assert again.get_config() == model.get_config()
        for mine, other in zip(again.weights, model.weights, strict=True):
            np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=1e-6, err_msg=mine.path)
    else:
        assert_same_weights(again, model)


def test_settings_become_arguments(published):
    settings = {case: published(case)[2].get_layer("block_1").settings for case in CASES}
    assert settings["llama3"]["rotary_scaling"] == f"llama3:4:1:4:{CONTEXT}"
    assert settings["llama_linear"]["rotary_scaling"] == "linear:4"
    assert settings["mistral"]["attention"] == "window:5"
    assert settings["qwen2_windows"]["attention"] == "window:7"
    windows = published("qwen2_windows")[2].get_layer("block_0")
    assert windows.settings["attention"] == "plain"
    assert settings["llama_head_dim"]["head_dim"] == 6


def test_gemma3_as_transformers_4_wrote_it(published, tmp_path):
    _, folder, model = published("gemma3")
    old = shutil.copytree(folder, tmp_path / "old")
    change(
        old, layer_types=None, sliding_window_pattern=2, rope_parameters=None, rope_theta=300.0,
        rope_local_base_freq=50.0, rope_scaling={"rope_type": "linear", "factor": 4.0},
    )  # fmt: skip
    assert convert.from_transformers(old).get_config() == model.get_config()
    change(old, rope_parameters={"full_attention": {"rope_theta": 400.0}})
    with pytest.raises(UsageError, match="full_attention.rope_theta=400.0"):
        convert.from_transformers(old)


def test_scaled_embeddings_are_saved(published, tmp_path):
    _, _, model = published("gemma3")
    mask = padding()
    expected = model({"tokens": BATCH, "segments": mask}, training=False).numpy()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    inputs = {"tokens": BATCH, "segments": mask}
    np.testing.assert_allclose(loaded(inputs, training=False), expected, rtol=1e-5, atol=1e-5)
    embedding = loaded.get_layer("embedding")
    vectors = embedding(BATCH).numpy()
    np.testing.assert_allclose(vectors, embedding.embeddings.numpy()[BATCH] * 4, rtol=1e-6)


def test_windows_without_a_list_of_layers(published, tmp_path):
    _, folder, model = published("qwen2_windows")
    shutil.copytree(folder, tmp_path / "old")
    change(tmp_path / "old", layer_types=None)
    old = convert.from_transformers(tmp_path / "old")
    for name in ("block_0", "block_1"):
        assert old.get_layer(name).settings == model.get_layer(name).settings


def test_scaling_as_transformers_4_wrote_it(published, tmp_path):
    _, folder, model = published("llama3")
    shutil.copytree(folder, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    table = config.pop("rope_parameters")
    config |= {"rope_theta": table.pop("rope_theta"), "rope_scaling": table}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    old = convert.from_transformers(tmp_path / "old")
    assert old.get_layer("block_0").settings == model.get_layer("block_0").settings
    change(tmp_path / "old", rope_parameters={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(UsageError, match="rope_scaling='llama3:.* rope_parameters is linear:2"):
        convert.from_transformers(tmp_path / "old")


@pytest.mark.parametrize(
    ("case", "key", "setting", "message"),
    [
        ("llama3", "rope_parameters", {**LLAMA3, "rope_type": "yarn"}, "rope_type='yarn'"),
        ("llama3", "rope_parameters", {**LLAMA3, "beta_fast": 32}, "rope_parameters.beta_fast=32"),
        ("llama3", "auto_map", {"AutoModel": "code.Model"}, "auto_map names code .* never run"),
        ("llama3", "sliding_window", 4, "sliding_window=4"),
        ("mistral", "attention_bias", True, "attention_bias=True"),
        ("qwen2", "layer_types", ["full_attention", "chunked_attention"], "layer_types="),
        ("qwen2", "layer_types", ["sliding_attention"] * 2, "layer_types="),
        ("qwen3", "attention_bias", True, "attention_bias=True"),
        ("gemma3", "final_logit_softcapping", 30.0, "final_logit_softcapping=30.0"),
        ("gemma3", "hidden_activation", "gelu", "hidden_activation='gelu'"),
        ("gemma3", "use_bidirectional_attention", True, "use_bidirectional_attention=True"),
        ("gemma3", "model_type", "gemma3", "model_type must be one of"),
        ("qwen3", "rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_type='dynamic'"),
    ],
)
def test_settings_that_we_do_not_have(case, key, setting, message, published, tmp_path):
    folder = shutil.copytree(published(case)[1], tmp_path / "changed")
    change(folder, **{key: setting})
    with pytest.raises(UsageError, match=message) as error:
        convert.from_transformers(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("case", "key", "setting", "message"),
    [
        ("llama3", "rope_parameters", {**LLAMA3, "factor": -1}, "factor must be a positive"),
        ("llama3", "rope_parameters", {**LLAMA3, "low_freq_factor": 8.0}, "LOW < HIGH"),
        ("llama3", "head_dim", "4", "head_dim must be a positive integer"),
        ("mistral", "sliding_window", 0, "sliding_window must be a positive integer"),
        ("qwen2_windows", "vocab_size", 51, "config.json requires"),
    ],
)
def test_settings_that_make_no_sense(case, key, setting, message, published, tmp_path):
    folder = shutil.copytree(published(case)[1], tmp_path / "changed")
    change(folder, **{key: setting})
    with pytest.raises(RunError, match=message):
        convert.from_transformers(folder)


def test_models_that_are_not_published():
    sizes = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "num_heads": 2}
    both = {"query_key_norm": True, "query_key_value_bias": True}
    cases = {
        "Mistral has the same window": {"attention": "window:4:2"},
        "it has embedding ReversibleEmbedding, not Scaled": {"post_norm": True},
        "it has block_0.query_key_value_bias true, not false": both,
    }
    for message, arguments in cases.items():
        with pytest.raises(UsageError, match=message):
            convert.to_transformers(llama.build(**sizes, **arguments), "unused")
    scaled = llama.build(**sizes, rotary_scaling="linear:2")
    with pytest.raises(UsageError, match="does not support model.rotary_scaling"):
        convert.to_keras_hub(scaled)
    with pytest.raises(UsageError, match="KerasHub has no Qwen3"):
        convert.to_keras_hub(llama.build(**sizes, query_key_norm=True))
