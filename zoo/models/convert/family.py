"""What each family is called elsewhere: tensors, settings, and what we have no counterpart of.

A converter holds three names of one weight: ours (the path of the variable), that in transformers'
files, and that in KerasHub's backbones. Where the others have several tensors for one of ours,
they stand in our order along our last axis.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import RunError, UsageError


@dataclasses.dataclass(frozen=True)
class Family:
    """A family and its names elsewhere.

    Attributes:
      name: as messages have it.
      build: our builder.
      norm: of our blocks, by which a model's family is told.
      arguments: builder arguments that are read off a block of a model, besides the sizes.
      tensors: `{path of ours: (names in transformers, names in KerasHub)}`, `{}` for the number
        of a block; see `tensors`.
      prefix: of tensor names in transformers, but for the head's; a model that was saved without
        its head has none.
      linear: our variables whose tensors transformers keeps as (outputs, inputs).
      model_type: of config.json.
      architecture: transformers' class.
      ignored: ends of tensor names that hold constants, not weights.
      backbones: KerasHub's classes, the one to build first.
      read: `read(config) -> builder arguments`, for transformers.
      write: `write(arguments) -> config.json without token ids`.
      read_backbone: `read_backbone(backbone) -> builder arguments`, for KerasHub.
      write_backbone: `write_backbone(arguments) -> arguments of the backbone's class`.
    """

    name: str
    build: Callable
    norm: str
    arguments: tuple[str, ...]
    tensors: Mapping[str, tuple[list[str], list[str]]]
    prefix: str
    linear: Callable[[str], bool]
    model_type: str
    architecture: str
    ignored: tuple[str, ...]
    backbones: tuple[str, ...]
    read: Callable
    write: Callable
    read_backbone: Callable
    write_backbone: Callable


# Keys of a config.json that change no output: bookkeeping, tokens, training, generation.
_WITHOUT_EFFECT = frozenset(
    {
        "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "id2label",
        "initializer_range", "label2id", "model_type", "n_ctx", "pad_token_id", "pretraining_tp",
        "problem_type", "return_dict", "task_specific_params", "torch_dtype",
        "transformers_version", "use_cache", "do_sample", "max_length", "temperature", "top_k",
        "top_p", "unk_token_id", "tokenizer_class", "is_llama_config", "predict_special_tokens",
        "n_special", "output_past", "gradient_checkpointing",
        # The scores' softmax is computed in float32 here in any case.
        "reorder_and_upcast_attn",
    }
)  # fmt: skip


class Config:
    """A config.json of transformers, of which every key is used, without effect, or refused.

    Args:
      values: the content.
      path: of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.path = path
        self._left = dict(values)

    def take(self, key: str, default: Any = None) -> Any:
        """Returns a value and counts it as used."""
        return self._left.pop(key, default)

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a positive integer.

        Raises:
          RunError: where there is none.
        """
        value = self.take(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise RunError(f"{self.path}: {key} is a positive integer. Received: {value!r}.")
        return value

    def number(self, key: str, default: float) -> float:
        """Returns a number that is not negative; raises `RunError` where there is none."""
        value = self.take(key, default)
        if type(value) not in (int, float) or value < 0:
            raise RunError(f"{self.path}: {key} is a number >= 0. Received: {value!r}.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a truth value; raises `RunError` where there is none."""
        value = self.take(key, default)
        if type(value) is not bool:
            raise RunError(f"{self.path}: {key} is true or false. Received: {value!r}.")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Raises `UsageError` where a value is none of those allowed; the first is the default."""
        value = self.take(key, allowed[0])
        if value not in allowed:
            self.refuse(key, value, " or ".join(repr(a) for a in allowed if a is not None))

    def refuse(self, key: str, value: Any, instead: str = "") -> None:
        """Raises `UsageError` for a setting that our model has no counterpart of."""
        instead = instead or "nothing of the kind"
        raise UsageError(
            f"{self.path}: {key}={value!r} cannot be converted: our model has {instead}."
        )

    def finish(self) -> None:
        """Raises `UsageError` for a key that nobody knows, unless it switches something off."""
        for key, value in self._left.items():
            known = key in _WITHOUT_EFFECT or key.startswith(("_", "summary_"))
            if not known and value:
                self.refuse(key, value)


def tensors(theirs: str, outside: Mapping[str, tuple], block: Mapping[str, tuple]) -> dict:
    """Returns `Family.tensors` of two tables `{ours: (in transformers, in KerasHub)}`.

    Args:
      theirs: what stands before the names of a block's tensors in transformers.
      outside: the variables outside the blocks.
      block: those of a block.
    """
    found = {ours: tuple(names.split() for names in row) for ours, row in outside.items()}
    for ours, row in block.items():
        starts = (theirs, "transformer_layer_{}/")
        found["block_{}/" + ours] = tuple(
            [start + name for name in names.split()]
            for start, names in zip(starts, row, strict=True)
        )
    return found
