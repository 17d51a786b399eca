"""Tensor names and settings of a model family in the zoo, in transformers and in KerasHub.

A family lists three names per weight: the path of the zoo's variable, the name in transformers'
files, and the path in KerasHub's backbone. Several tensors of one variable are concatenated along
its last axis in the listed order, unless the family has a `Join` for the variable.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import RunError, UsageError


@dataclasses.dataclass(frozen=True)
class Join:
    """How a variable follows from its tensors in transformers.

    Attributes:
      shapes: `shapes(shape of the variable) -> shapes of the tensors`.
      join: `join(tensors) -> value of the variable`.
      split: `split(value of the variable) -> tensors`.
    """

    shapes: Callable
    join: Callable
    split: Callable


@dataclasses.dataclass(frozen=True)
class Family:
    """Model family with its names in other libraries.

    Attributes:
      name: name in messages.
      build: builder of the zoo.
      has_blocks: `has_blocks(settings of a block) -> whether a model with such blocks may be of
        the family`.
      arguments: builder arguments to read from the settings of a block, besides the sizes.
      tensors: `{path in the zoo: (names in transformers, names in KerasHub)}`, with `{}` for the
        number of a block; see `tensors`.
      prefix: prefix of tensor names in transformers, except the head's; absent if a model was
        saved without its head.
      linear: `linear(path in the zoo) -> whether transformers stores (outputs, inputs)`.
      model_type: `model_type` in config.json.
      architecture: name of the class in transformers.
      ignored: suffixes of the names of tensors that are constants, not weights.
      copies: `{name in transformers: path in the zoo}` of tensors that files may repeat.
      backbones: names of KerasHub's classes; the first one is built by `to_keras_hub`. Empty if
        KerasHub has none.
      read: `read(config) -> builder arguments`, for transformers.
      write: `write(arguments) -> config.json without token ids`.
      read_backbone: `read_backbone(backbone) -> builder arguments`, for KerasHub.
      write_backbone: `write_backbone(arguments) -> arguments of the backbone's class`.
      read_layers: `read_layers(layers by name) -> further builder arguments` of a model.
      joins: `{path in the zoo: Join}`, with `{}` for the number of a block.
    """

    name: str
    build: Callable
    has_blocks: Callable
    arguments: tuple[str, ...]
    tensors: Mapping[str, tuple[list[str], list[str]]]
    prefix: str
    linear: Callable[[str], bool]
    model_type: str
    architecture: str
    ignored: tuple[str, ...]
    copies: Mapping[str, str]
    read: Callable
    write: Callable
    backbones: tuple[str, ...] = ()
    read_backbone: Callable | None = None
    write_backbone: Callable | None = None
    read_layers: Callable = lambda layers: {}
    joins: Mapping[str, Join] = dataclasses.field(default_factory=dict)


# Keys of a config.json without effect on the output: metadata, tokens, training, generation.
_WITHOUT_EFFECT = frozenset(
    {
        "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label",
        "initializer_range", "label2id", "model_type", "n_ctx", "pad_token_id", "pretraining_tp",
        "problem_type", "return_dict", "task_specific_params", "torch_dtype",
        "transformers_version", "use_cache", "do_sample", "max_length", "temperature", "top_k",
        "top_p", "unk_token_id", "tokenizer_class", "is_llama_config", "predict_special_tokens",
        "n_special", "output_past", "gradient_checkpointing", "transformers.js_config",
        "cache_implementation",
        # The zoo always computes the softmax of attention scores in float32.
        "reorder_and_upcast_attn",
    }
)  # fmt: skip


class Config:
    """config.json of transformers; a key must be used or known to have no effect.

    Args:
      values: content of the file.
      path: path of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.path = path
        self._remaining = dict(values)

    def pop(self, key: str, default: Any = None) -> Any:
        """Returns a value and marks its key as used."""
        return self._remaining.pop(key, default)

    def set_default(self, key: str, value: Any) -> None:
        """Sets a value if the file has none, where the default of a family differs."""
        if self._remaining.get(key) is None:
            self._remaining[key] = value

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a positive integer.

        Raises:
          RunError: if the value is not a positive integer.
        """
        value = self.pop(key)
        return self.positive(key, default if value is None else value)

    def positive(self, key: str, value) -> int:
        """Returns the value of a key; raises `RunError` if it is not a positive integer."""
        if type(value) is not int or value < 1:
            raise RunError(f"{self.path}: {key} must be a positive integer. Received: {value!r}.")
        return value

    def natural(self, key: str, value) -> int:
        """Returns the value of a key; raises `RunError` if it is no integer of at least 0."""
        if type(value) is not int or value < 0:
            raise RunError(
                f"{self.path}: {key} must be an integer of at least 0. Received: {value!r}."
            )
        return value

    def number(self, key: str, default: float) -> float:
        """Returns a number >= 0; raises `RunError` for any other value."""
        value = self.pop(key, default)
        if type(value) not in (int, float) or value < 0:
            raise RunError(
                f"{self.path}: {key} must be a number of at least 0. Received: {value!r}."
            )
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a boolean; raises `RunError` for any other value."""
        value = self.pop(key, default)
        if type(value) is not bool:
            raise RunError(f"{self.path}: {key} must be true or false. Received: {value!r}.")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Raises `UsageError` if a value is not in `allowed`; the first is the default."""
        value = self.pop(key, allowed[0])
        if value not in allowed:
            self.refuse(key, value, " or ".join(repr(a) for a in allowed if a is not None))

    def refuse(self, key: str, value: Any, supported: str = "") -> None:
        """Raises `UsageError` for a setting that the zoo's model does not support."""
        supported = supported or "no such setting"
        raise UsageError(
            f"{self.path}: {key}={value!r} cannot be converted: the zoo's model supports "
            f"{supported}."
        )

    def finish(self) -> None:
        """Raises `UsageError` for an unknown key, unless its value is false, zero or empty."""
        if self._remaining.pop("auto_map", None):
            raise UsageError(
                f"{self.path}: auto_map names code of the folder, which is never run. Remove the "
                f"key if the model is a standard {self._remaining.get('model_type')}."
            )
        for key, value in self._remaining.items():
            has_no_effect = key in _WITHOUT_EFFECT or key.startswith(("_", "summary_"))
            if not has_no_effect and value:
                self.refuse(key, value)


def tensors(block_prefix: str, outside: Mapping[str, tuple], block: Mapping[str, tuple]) -> dict:
    """Returns `Family.tensors` from two tables `{zoo: (transformers, KerasHub)}` of names.

    Args:
      block_prefix: prefix of the names of a block's tensors in transformers.
      outside: table of the variables outside the blocks.
      block: table of the variables of a block.
    """
    table = {path: tuple(names.split() for names in row) for path, row in outside.items()}
    for path, row in block.items():
        prefixes = (block_prefix, "transformer_layer_{}/")
        table["block_{}/" + path] = tuple(
            [prefix + name for name in names.split()]
            for prefix, names in zip(prefixes, row, strict=True)
        )
    return table


def is_block(name: str) -> bool:
    """Returns whether a layer of a model of the zoo is a block, by its name."""
    return name.startswith("block_")


def tied(layers: Mapping) -> dict:
    """Returns the argument `tie_weights` of a decoder of the zoo; see `Family.read_layers`."""
    return {"tie_weights": layers["embedding"].tie_weights}
