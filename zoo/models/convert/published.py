"""Conversion of the zoo's models from and to KerasHub backbones and transformers folders.

    model = from_keras_hub("gpt2_base_en")
    model = from_transformers("TinyLlama-1.1B")  # a folder: config.json and safetensors
    to_transformers(model, "converted")          # opens with AutoModelForCausalLM.from_pretrained

Conversion only splits, joins and transposes weights (and adds a Longformer's only token type to its
positions): a round trip of a model of the zoo is bit-exact in float32. An error names any setting
that the zoo's model does not support (other activations ...). Each family has its own file, such as
gpt.py.
"""

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.errors import RunError, UsageError, short
from zoo.keras_internals import forget_uninitialized
from zoo.models.convert import safetensors as convert_safetensors
from zoo.models.convert.family import Config, Family, Join, is_block
from zoo.models.convert.gemma import GEMMA3
from zoo.models.convert.gpt import GPT
from zoo.models.convert.llama import LLAMA
from zoo.models.convert.longformer import LONGFORMER
from zoo.models.convert.mistral import MISTRAL
from zoo.models.convert.qwen import QWEN2, QWEN3
from zoo.storage.disk import atomic_path, open_file, read_json, write_json
from zoo.storage.transformers_files import check_model_type
from zoo.storage.weight_files import limit_elements

# The first family that has a model's blocks is its own: every Qwen has the blocks of a Llama.
FAMILIES = (GPT, LONGFORMER, GEMMA3, QWEN3, QWEN2, MISTRAL, LLAMA)

_TRANSFORMERS, _KERAS_HUB = 0, 1  # columns of `Family.tensors`
# Settings of a layer that affect initialization and training, not its output at inference.
_TRAINING_ONLY = frozenset(
    {
        "name", "dtype", "trainable", "rate", "seed", "dropout", "initializer_range",
        "output_range", "embeddings_initializer", "embeddings_regularizer",
        "activity_regularizer", "embeddings_constraint",
    }
)  # fmt: skip


def from_keras_hub(source) -> keras.Model:
    """Returns a model of the zoo with the weights of a KerasHub model.

    Args:
      source: a GPT2Backbone, LlamaBackbone or Llama3Backbone, a CausalLM with one, or an argument
        of `keras_hub.models.Backbone.from_preset`: the name of a preset, or a folder.

    Returns:
      A model of `zoo.models.gpt.build` or `zoo.models.llama.build` in the current global dtype
      policy. KerasHub's Llama has no maximum sequence length: the builder's default applies.

    Raises:
      UsageError: if the kind of model, the preset or a setting is not supported.
      RunError: if the preset cannot be loaded.
    """
    import keras_hub

    backbone = _load_preset(source) if isinstance(source, str) else source
    backbone = getattr(backbone, "backbone", backbone)
    for family in FAMILIES:
        if type(backbone) in [getattr(keras_hub.models, name) for name in family.backbones]:
            break
    else:
        supported_backbones = ", ".join(name for family in FAMILIES for name in family.backbones)
        raise UsageError(
            f"The KerasHub model must have one of the backbones {supported_backbones}. Received: "
            f"{type(backbone).__name__}."
        )
    source_name = f"KerasHub's {type(backbone).__name__}"
    model = _build(family, family.read_backbone(backbone), source_name)
    variables = _backbone_variables(family, model, backbone)

    def fetch(name, shape, linear):
        return keras.ops.convert_to_numpy(variables[name]).astype("float32").reshape(shape)

    _assign_weights(family, model, _KERAS_HUB, fetch)
    return model


def to_keras_hub(model: keras.Model):
    """Returns a KerasHub backbone with the weights of a model of the zoo.

    Args:
      model: a gpt or llama of the zoo. KerasHub's GPT-2 supports neither rotary positions nor an
        output projection that does not share the weights of the embedding.

    Returns:
      A `keras_hub.models.GPT2Backbone` or `LlamaBackbone`.

    Raises:
      UsageError: if the model is not supported.
    """
    import keras_hub

    family, arguments = _recognize(model)
    if not family.backbones:
        raise UsageError(f"KerasHub has no {family.name}. Received: the model {model.name!r}.")
    backbone = getattr(keras_hub.models, family.backbones[0])(**family.write_backbone(arguments))
    variables = _backbone_variables(family, model, backbone)
    for variable, names in _pairs(family, model, _KERAS_HUB):
        for name, part in zip(names, _split(family, model, variable, len(names)), strict=True):
            variables[name].assign(part.reshape(variables[name].shape))
    return backbone


def from_transformers(source: str | Path) -> keras.Model:
    """Returns a model of the zoo with the weights of a folder written by transformers.

    PyTorch and transformers are not required.

    Args:
      source: a folder of a GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM,
        Qwen3ForCausalLM, Gemma3ForCausalLM or LongformerForMaskedLM (config.json, and
        model.safetensors or its shards with their index), or a .safetensors file in such a folder
        that contains all weights.

    Returns:
      A model of `zoo.models.gpt.build`, `zoo.models.llama.build` or `zoo.models.longformer.build`
      in the current global dtype policy, with the dropout of config.json for GPT-2 and Longformer
      and without dropout for Llama and its relatives. The global tokens of a Longformer are those
      with the id bos_token_id of config.json.

    Raises:
      UsageError: if the folder does not exist, or the kind of model or a setting is not supported.
      RunError: if a file is damaged, or a tensor is missing, unknown or of another shape.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and not (path.suffix == ".safetensors" and path.is_file()):
        raise UsageError(
            f"The source must be a folder or a .safetensors file. Received: {str(source)!r}."
        )
    family, arguments = _read_config(folder / "config.json")
    folder_tensors = convert_safetensors.open_folder(folder) if path.is_dir() else None
    tensors = folder_tensors if folder_tensors is not None else convert_safetensors.Tensors([path])
    with limit_elements(path, sum(math.prod(tensors.shape(name)) for name in tensors)):
        model = _build(family, arguments, folder / "config.json")
    # The tensors of a model saved without its head have no prefix.
    has_no_prefix = not any(name.startswith(family.prefix) for name in tensors)

    def stored_name(name):
        return name.removeprefix(family.prefix) if has_no_prefix else name

    expected = {stored_name(n) for _, names in _pairs(family, model, _TRANSFORMERS) for n in names}
    for copy, shared in family.copies.items():
        if copy in expected or copy not in tensors:
            continue
        expected.add(copy)
        shared = stored_name(family.tensors[shared][_TRANSFORMERS][0])
        if shared in tensors and not np.array_equal(tensors[shared], tensors[copy]):
            raise RunError(
                f"config.json ties the output projection to the embedding, but {copy!r} of "
                f"{tensors.path(copy)} does not equal {shared!r}."
            )
    for name in tensors:
        if name not in expected and not name.endswith(family.ignored):
            raise RunError(
                f"Tensor {name!r} of {tensors.path(name)} is not a weight of the zoo's "
                f"{family.name}."
            )

    def fetch(name, shape, linear):
        name, shape = stored_name(name), shape[::-1] if linear else shape
        if name not in tensors:
            raise RunError(f"Tensor {name!r} is missing in {path}.")
        if tensors.shape(name) != shape:
            raise RunError(
                f"Tensor {name!r} of {tensors.path(name)} has shape {tensors.shape(name)}, but "
                f"config.json requires {shape}."
            )
        return tensors[name].T if linear else tensors[name]

    _assign_weights(family, model, _TRANSFORMERS, fetch)
    return model


def read_settings(folder: str | Path) -> tuple[Callable, dict]:
    """Returns the builder of the model in a folder of transformers, and all its arguments.

    Raises:
      UsageError, RunError: see `from_transformers`.
    """
    family, arguments = _read_config(Path(folder) / "config.json")
    return family.build, arguments


def to_transformers(
    model: keras.Model,
    folder: str | Path,
    *,
    sequence_length: int = 0,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> None:
    """Writes a folder for `from_pretrained` of transformers, atomically.

    Args:
      model: a gpt, llama or longformer of the zoo. Dropout, which affects only training, is not
        written for Llama, since Llama's config.json has no key for it. The id of a Longformer's
        <start> is written as bos_token_id.
      folder: path of a new or an empty folder.
      sequence_length: maximum sequence length, for a model without one (rotary positions); 0 for
        2048.
      bos_token_id: id of the token before a text, known to the tokenizer but not to the model.
      eos_token_id: id of the token after a text; without it, `generate` does not stop by itself.

    Raises:
      UsageError: if the model is not supported, or the folder is not empty.
      RunError: if the folder cannot be written.
    """
    family, arguments = _recognize(model)
    model_length = arguments.get("sequence_length")
    if model_length and sequence_length not in (0, model_length):
        raise UsageError(
            f"sequence_length must be 0 or {model_length}, the model's positions. Received: "
            f"{sequence_length}."
        )
    if not model_length:
        arguments["sequence_length"] = sequence_length or 2048
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        **family.write(arguments),
    }
    tensors = {}
    for variable, names in _pairs(family, model, _TRANSFORMERS):
        linear = family.linear(variable.path)
        shapes = _part_shapes(family, model, variable, len(names))
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            values = functools.partial(_part, family, model, variable, len(names), i, linear)
            tensors[name] = (shape[::-1] if linear else shape, values)
    with _new_folder(Path(folder)) as temporary:
        write_json(temporary / "config.json", config)
        convert_safetensors.write(temporary / convert_safetensors.SINGLE, tensors)


# --- models and settings -----------------------------------------------------------------------


def _read_config(path: Path) -> tuple[Family, dict]:
    if not path.exists():
        raise UsageError(
            f"{path.parent} was not written by transformers: it contains no config.json."
        )
    values = read_json(path)
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: it must contain a JSON object.")
    kind = values.get("model_type")
    check_model_type(path, kind)
    family = next(family for family in FAMILIES if family.model_type == kind)
    config = Config(values, path)
    arguments = family.read(config)
    config.finish()
    return family, arguments


def _load_preset(name: str):
    import keras_hub

    if Path(name).is_dir():
        for path in Path(name).rglob("*"):
            if not path.is_dir():
                open_file(path).close()  # KerasHub would wait for a named pipe
    try:
        return keras_hub.models.Backbone.from_preset(name)
    except Exception as error:  # of the network, of a file, of a class unknown to KerasHub
        text = str(error)
        if "Unknown preset identifier" in text:
            raise UsageError(
                f"KerasHub has no preset {name!r}, and no such folder exists."
            ) from None
        raise RunError(f"Cannot load KerasHub's preset {name!r}: {short(text)}") from None


def _build(family: Family, arguments: dict, source_name) -> keras.Model:
    try:
        return family.build(**arguments)
    except ValueError as error:
        raise UsageError(
            f"{source_name}: cannot build a {family.name} from its settings: {short(error)}"
        ) from None


def _recognize(model: keras.Model) -> tuple[Family, dict]:
    """Returns the family of a model of the zoo and builder arguments that reproduce the model.

    Compares the model, layer by layer, with a model built from these arguments. An error message
    names the first difference.
    """
    layers = {layer.name: layer for layer in getattr(model, "layers", ())}
    block, embedding = layers.get("block_0"), layers.get("embedding")
    settings = getattr(block, "settings", {})
    families = [f for f in FAMILIES if "norm" in settings and f.has_blocks(settings)]
    if not families or not isinstance(embedding, keras.layers.ReversibleEmbedding):
        raise UsageError(
            "Conversion supports the gpt, llama and longformer models of the zoo. Received: a "
            f"{type(model).__name__} named {getattr(model, 'name', None)!r}."
        )
    family = families[0]
    setting_names = ("hidden_dim", "num_heads", "intermediate_dim", "dropout", *family.arguments)
    arguments = {
        "vocabulary_size": embedding.input_dim,
        "num_layers": sum(map(is_block, layers)),
        **{key: settings[key] for key in setting_names},
        **family.read_layers(layers),
    }
    if "positions" in layers:
        arguments["sequence_length"] = layers["positions"].sequence_length
    expected_layers, received_layers = (
        _describe_layers(_build_abstract(family, arguments)),
        _describe_layers(model),
    )
    # Inputs last: a missing layer, which also changes inputs, is the better message.
    for key in sorted(
        {**received_layers, **expected_layers}, key=lambda key: key.endswith(".inputs")
    ):
        if expected_layers.get(key) == received_layers.get(key):
            continue
        difference = f"has {key} {received_layers.get(key)}, not {expected_layers.get(key)}"
        difference = difference if key in expected_layers else f"has the additional {key}"
        difference = difference if key in received_layers else f"lacks {key}"
        raise UsageError(
            f"The model {model.name!r} differs from the published {family.name}: it {difference}."
        )
    return family, arguments


def _build_abstract(family: Family, arguments: dict) -> keras.Model:
    try:
        with keras.StatelessScope(initialize_variables=False):
            return _build(family, arguments, "The model")
    finally:
        forget_uninitialized()  # otherwise the end of the next scope initializes them


def _describe_layers(model: keras.Model) -> dict[str, str]:
    """Returns the layers of a model, their settings and inputs, and the shapes of its weights."""
    description = {}
    for layer in model.get_config().get("layers", ()):
        name = layer["config"]["name"]
        description[name] = layer["class_name"]
        for key, value in layer["config"].items():
            if key not in _TRAINING_ONLY:
                description[f"{name}.{key}"] = json.dumps(value, sort_keys=True, default=str)
        # Only the inputs of a block tell that it runs twice or at another place.
        nodes = json.dumps(layer.get("inbound_nodes"), default=str)
        description[f"{name}.inputs"] = ", ".join(re.findall(r'"keras_history": (\[.*?\])', nodes))
    for variable in model.weights:
        description[variable.path] = str(tuple(variable.shape))
    return description


# --- weights -----------------------------------------------------------------------------------


def _pairs(family: Family, model: keras.Model, side: int) -> Iterator[tuple[Any, list[str]]]:
    """Yields each variable of a model with the names of its tensors in the library `side`."""
    for variable in model.weights:
        block, _, rest = variable.path.partition("/")
        if block.startswith("block_"):
            number = block.removeprefix("block_")
            names = family.tensors["block_{}/" + rest][side]
            yield variable, [name.format(number) for name in names]
        else:
            yield variable, family.tensors[variable.path][side]


def _join(family: Family, path: str) -> Join | None:
    """Returns the `Join` of a variable, or None if its tensors are concatenated."""
    return family.joins.get(re.sub(r"^block_\d+/", "block_{}/", path))


def _part_shapes(family: Family, model: keras.Model, variable, count: int) -> list[tuple]:
    """Returns the shapes of a variable's tensors, each as if it were not transposed."""
    if join := _join(family, variable.path):
        return join.shapes(tuple(variable.shape))
    *lead, total = variable.shape
    if count == 3:  # queries, keys and values
        attention = model.get_layer("block_0").attention
        groups = attention.groups * attention.size
        widths = [attention.heads * attention.size, groups, groups]
    else:
        widths = [total // count] * count
    return [(*lead, width) for width in widths]


def _split(family: Family, model: keras.Model, variable, count: int) -> list[np.ndarray]:
    values = keras.ops.convert_to_numpy(variable).astype("float32")
    if join := _join(family, variable.path):
        return join.split(values)
    ends = np.cumsum([shape[-1] for shape in _part_shapes(family, model, variable, count)])
    return np.split(values, ends[:-1], axis=-1)


def _part(family: Family, model, variable, count: int, i: int, linear: bool) -> np.ndarray:
    part = _split(family, model, variable, count)[i]
    return part.T if linear else part


def _assign_weights(family: Family, model: keras.Model, side: int, fetch: Callable) -> None:
    """Assigns the weights of a model, one variable at a time.

    `fetch(name, shape, linear)` returns a tensor in the shape of the zoo. `linear` is whether
    transformers stores the tensor as (outputs, inputs).
    """
    for variable, names in _pairs(family, model, side):
        shapes = _part_shapes(family, model, variable, len(names))
        linear = family.linear(variable.path)
        parts = [fetch(name, shape, linear) for name, shape in zip(names, shapes, strict=True)]
        join = _join(family, variable.path)
        variable.assign(join.join(parts) if join else np.concatenate(parts, axis=-1))


def _backbone_variables(family: Family, model: keras.Model, backbone) -> dict[str, Any]:
    """Returns a backbone's variables by path; raises `UsageError` unless they match the model."""
    variables = {variable.path: variable for variable in backbone.weights}
    expected = {name for _, names in _pairs(family, model, _KERAS_HUB) for name in names}
    for path in sorted(expected ^ set(variables)):
        # Adapters and quantized kernels are such variables.
        problem = "lacks" if path in expected else "must not have"
        raise UsageError(f"KerasHub's {type(backbone).__name__} {problem} the variable {path!r}.")
    return variables


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, renamed to `folder` at the end; deletes all on failure."""
    folder = Path(os.path.abspath(folder))
    missing_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"The output folder must be new or empty. Received: {folder}.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            yield temporary
    except BaseException as error:
        with contextlib.suppress(OSError):
            for parent in missing_parents:
                parent.rmdir()
        if isinstance(error, OSError):
            raise RunError(f"Cannot write {folder}: {error.strerror or error}.") from None
        raise
