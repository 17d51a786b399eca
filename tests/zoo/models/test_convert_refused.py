"""Converters refuse damaged files and unsupported settings with a one-line error."""

import errno
import json
import os
import shutil

import keras
import numpy as np
import pytest

from tests.zoo.models.test_convert import build, change, read, save
from zoo.errors import RunError, UsageError
from zoo.models.convert import published as convert
from zoo.models.convert import safetensors as convert_safetensors


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns folders written by `to_transformers`; tests change only copies."""
    folder = tmp_path_factory.mktemp("written")
    for case in ("gpt", "llama_untied"):
        convert.to_transformers(build(case), folder / case)
    return folder


@pytest.fixture
def copied(written, tmp_path):
    return lambda case: shutil.copytree(written / case, tmp_path / case)


@pytest.mark.parametrize(
    ("case", "key", "setting"),
    [
        ("gpt", "model_type", "bert"),
        ("gpt", "activation_function", "gelu"),
        ("gpt", "layer_norm_epsilon", 1e-6),
        ("gpt", "scale_attn_weights", False),
        ("gpt", "scale_attn_by_inverse_layer_idx", True),
        ("gpt", "add_cross_attention", True),
        ("gpt", "attn_pdrop", 0.5),
        ("gpt", "quantization_config", {"bits": 4}),
        ("llama_untied", "hidden_act", "gelu"),
        ("llama_untied", "attention_bias", True),
        ("llama_untied", "mlp_bias", True),
        ("llama_untied", "attention_dropout", 0.1),
        ("llama_untied", "sliding_window", 128),
        ("llama_untied", "partial_rotary_factor", 0.5),
        ("llama_untied", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("llama_untied", "rope_parameters", {"rope_type": "yarn", "rope_theta": 10000.0}),
        ("llama_untied", "rope_parameters", {"partial_rotary_factor": 0.5}),
        ("llama_untied", "logit_scale", 0.5),
    ],
)  # fmt: skip
def test_settings_that_we_do_not_have(case, key, setting, copied):
    folder = copied(case)
    change(folder, **{key: setting})
    name = "bert" if key == "model_type" else key
    with pytest.raises(UsageError, match=name) as error:
        convert.from_transformers(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "setting"),
    [("n_embd", None), ("n_layer", "2"), ("n_head", 0), ("tie_word_embeddings", "no"),
     ("resid_pdrop", -1)],
)  # fmt: skip
def test_settings_that_make_no_sense(key, setting, copied):
    folder = copied("gpt")
    change(folder, **{key: setting})
    with pytest.raises(RunError, match=rf"config.json: {key} must be "):
        convert.from_transformers(folder)


def _without_a_tensor(folder):
    tensors = read(folder)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save(folder, tensors)


def _with_another_tensor(folder):
    save(folder, {**read(folder), "score.weight": np.zeros((2, 16), "float32")})


def _with_another_shape(folder):
    save(folder, {**read(folder), "model.norm.weight": np.zeros(17, "float32")})


def _with_another_type(folder):
    save(folder, {**read(folder), "model.norm.weight": np.zeros(16, "int64")})


def _cut_short(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


def _cut_in_the_header(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])


def _of_zeros(folder):
    (folder / "model.safetensors").write_bytes(bytes(64))


def _empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def _with_a_wrong_header(folder):
    text = b'{"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}'
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    (folder / "model.safetensors").write_bytes(data)


def _shards(folder, places):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _shards_without_one(folder):
    _shards(folder, {"model.norm.weight": "model-00002-of-00002.safetensors"})


def _shards_elsewhere(folder):
    _shards(folder, {"model.norm.weight": "../model.safetensors"})


def _shards_without_a_tensor(folder):
    _shards(folder, {"other.weight": "model-00001-of-00001.safetensors"})


def _with_half_a_config(folder):
    (folder / "config.json").write_text('{"model_type": "lla')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_tensor, "'model.layers.1.self_attn.k_proj.weight' is missing in"),
        (_with_another_tensor, "'score.weight' of .*model.safetensors is not a weight"),
        (_with_another_shape, r"'model.norm.weight' of .* has shape \(17,\), .* \(16,\)"),
        (_with_another_type, "'model.norm.weight' of .* Received: I64"),
        (_cut_short, "is damaged: .*not fully covered"),
        (_cut_in_the_header, "is damaged: .*header length"),
        (_of_zeros, "is damaged: .*invalid JSON in header"),
        (_empty, "is damaged: .*header too small"),
        (_with_a_wrong_header, "is damaged: .*offset for tensor"),
        (_shards_without_one, "model-00002-of-00002.safetensors cannot be read: No such file"),
        (_shards_elsewhere, "weight_map must map tensors to files in the same folder"),
        (_shards_without_a_tensor, "lacks tensor 'other.weight'"),
        (_with_half_a_config, "config.json cannot be read"),
    ],
)
def test_damaged_folders(damage, message, copied):
    folder = copied("llama_untied")
    damage(folder)
    with pytest.raises(RunError, match=message) as error:
        convert.from_transformers(folder)
    assert "\n" not in str(error.value)


def test_folders_that_are_none(tmp_path, copied):
    with pytest.raises(UsageError, match="must be a folder or a .safetensors file"):
        convert.from_transformers(tmp_path / "nothing")
    with pytest.raises(UsageError, match="it contains no config.json"):
        convert.from_transformers(tmp_path)
    folder = copied("gpt")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="contains neither .* pytorch_model.bin is not supported"):
        convert.from_transformers(folder)


def test_models_that_are_not_as_published(tmp_path):
    capped, mixed, adapted, shallow = (build("gpt") for _ in range(4))
    rotary = build("gpt", rotary_base=100.0)
    capped.get_layer("embedding").logit_soft_cap = 30.0
    mixed.get_layer("block_1").settings["epsilon"] = 0.5
    adapted.get_layer("block_0").feed_forward.up.enable_lora(2)
    x = shallow.get_layer("block_1").output
    shallow = keras.Model(shallow.input, shallow.get_layer("embedding")(x, reverse=True))
    twice = build("gpt")
    x = twice.get_layer("block_1")(
        twice.get_layer("block_1").output, twice.get_layer("mask").output
    )
    x = twice.get_layer("embedding")(twice.get_layer("final_norm")(x), reverse=True)
    twice = keras.Model(twice.input, twice.get_layer("logits")(x))
    cases = {
        "has block_1.inputs": twice,
        "has block_0.rotary_base 100.0, not 0.0": rotary,
        "has embedding.logit_soft_cap 30.0, not null": capped,
        "has block_1.epsilon 0.5, not 1e-05": mixed,
        "has the additional block_0/feed_forward/up/lora_kernel_a": adapted,
        "lacks final_norm": shallow,
        "Conversion supports .* Received: a Sequential": keras.Sequential(),
    }
    for message, model in cases.items():
        for converter in (convert.to_keras_hub, lambda m: convert.to_transformers(m, tmp_path)):
            with pytest.raises(UsageError, match=message):
                converter(model)
    assert not list(tmp_path.iterdir())


def test_writing_leaves_all_or_nothing(tmp_path, monkeypatch):
    model = build("gpt")
    with pytest.raises(UsageError, match="must be 0 or 24, the model's positions. Received: 30"):
        convert.to_transformers(model, tmp_path / "folder", sequence_length=30)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UsageError, match="must be new or empty"):
        convert.to_transformers(model, tmp_path / "full")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")

    monkeypatch.setattr(convert_safetensors, "write", full)
    with pytest.raises(RunError, match="Cannot write .*folder: No space left"):
        convert.to_transformers(model, tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_preset_folder_with_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(RunError, match="config.json cannot be read: it is a named pipe"):
        convert.from_keras_hub(str(tmp_path))
