"""The methods of `zoo compress`, and the file formats of `ptq`. Does not import TensorFlow."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from trainers.config import compress


@dataclasses.dataclass(frozen=True)
class PtqFormat:
    """One output format of `zoo compress ptq`.

    Attributes:
      name: value of `compress.ptq.format`.
      runtime: "litert" for a LiteRT file, "keras" for a Keras model with integer kernels.
      mode: quantization mode of the runtime.
    """

    name: str
    runtime: str
    mode: str


FORMATS = {name: PtqFormat(name, *name.split("_")) for name in compress.FORMATS}


@dataclasses.dataclass(frozen=True)
class Method:
    """One compression method: the changes that it makes to the config of the model.

    Keys without a section are keys of the section `compress`.

    Attributes:
      name: name on the command line.
      keys: keys of which at least one must be set.
      defaults: key -> value if the user sets none of `keys`.
      keep: key -> value with which a later training preserves the result of this method.
      result: key that stores the result of this method; if it is set, `keep` is not needed.
      requires: key of another section -> value that this method needs.
      trains: whether the method trains. Other methods must come last in a chain.
    """

    name: str
    keys: Sequence[str]
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    keep: Mapping[str, str] = dataclasses.field(default_factory=dict)
    result: str = ""
    requires: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trains: bool = True

    def reset(self) -> Mapping[str, str]:
        """Returns key -> default value, which removes an earlier use of this method."""
        return {key: str(value_of(compress.KEYS, key)) for key in (*self.keys, *self.keep)}

    def is_used(self, settings: Mapping) -> bool:
        """Returns whether a section `compress` uses this method or preserves its result."""
        return any(value_of(settings, key) for key in (*self.keys, *self.keep))

    def settings_to_keep(self, settings: Mapping) -> Mapping[str, str]:
        """Returns key -> value that preserves the result of this method in a later training."""
        is_used = any(value_of(settings, key) for key in self.keys)
        return (
            self.keep if is_used and not (self.result and value_of(settings, self.result)) else {}
        )


def value_of(settings: Mapping, key: str):
    """Returns the value of a key such as "low_rank.energy" of the section `compress`."""
    return functools.reduce(lambda section, name: section[name], key.split("."), settings)


_RANKS_BY = tuple(f"low_rank.{way}" for way in compress.RANKS_BY)
METHODS = {
    method.name: method
    for method in (
        Method(
            "prune", ("prune.sparsity", "prune.m_by_n"), {"prune.sparsity": "0.8"},
            keep={"prune.sparsity": "0", "prune.m_by_n": "()", "prune.keep_zeros": "True"},
        ),
        Method(
            "cluster", ("cluster.number",), {"cluster.number": "16"},
            requires={"task.chunk": "0", "trainer.jit_compile": "False"},
        ),
        Method("qat", ("qat.on",), {"qat.on": "True"}, requires={"task.chunk": "0"}),
        Method("distill", ("distill.teacher",)),
        Method(
            "low_rank", (*_RANKS_BY, "low_rank.ranks"), {"low_rank.energy": "0.9"},
            keep={"low_rank.keep": "True"}, result="low_rank.ranks",
        ),
        Method(
            "structured", ("structured.sparsity", "structured.widths"),
            {"structured.sparsity": "0.5"},
            keep={"structured.keep": "True"}, result="structured.widths",
        ),
        Method("ptq", ("ptq.format",), {"ptq.format": "litert_dynamic"}, trains=False),
    )
}  # fmt: skip
