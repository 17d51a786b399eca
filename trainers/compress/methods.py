"""The methods of `zoo compress`: each changes the recipe that a work directory was made with.

Loads no TensorFlow.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from trainers.recipe import change, of_workdir
from trainers.workdir import read_config
from zoo.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to a smaller model.

    Attributes:
      defaults: keys of the section `compress` and their values, where the user gives none of
        `keys`.
      check: raises `UsageError` for a changed recipe in which nothing would be compressed.
      without: keys of other sections, and the values that the method needs them to have.
    """

    defaults: Mapping[str, str]
    keys: Sequence[str]
    check: Callable[..., None]
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _prunes(config) -> None:
    if not (config.compress.sparsity or config.compress.m_by_n):
        raise UsageError("Nothing is pruned with compress.sparsity=0 and compress.m_by_n=().")


def _quantizes(config) -> None:
    if not config.compress.qat.on:
        raise UsageError("Nothing is quantised with compress.qat.on=False.")
    _one_of_two(config)


def _clusters(config) -> None:
    if not config.compress.cluster.number:
        raise UsageError("Nothing is clustered with compress.cluster.number=0.")
    _one_of_two(config)


def _one_of_two(config) -> None:
    if config.compress.qat.on and config.compress.cluster.number:
        raise UsageError(
            "Training in 8 bits moves weights off their clusters: use one of qat and cluster."
        )


METHODS = {
    "prune": Method({"sparsity": "0.8"}, ("sparsity", "m_by_n"), _prunes),
    "cluster": Method(
        {"cluster.number": "16"},
        ("cluster.number",),
        _clusters,
        {"task.chunk": "0", "trainer.jit_compile": "False"},
    ),
    "qat": Method({"qat.on": "True"}, ("qat.on",), _quantizes, {"task.chunk": "0"}),
}


def plan(methods: Sequence[str], folders: Sequence[str], overrides) -> list:
    """Returns the recipe of each method in a chain.

    A method starts from the recipe of the one before it, so that what was quantised stays so; of
    what was pruned the zeros are kept. Keys of the section `compress` go to the method that they
    belong to, all others to each of them.

    Args:
      methods: names.
      folders: the work directory that each starts from, absolute; the first of them is there.
      overrides: of the user.
    """
    saved = read_config(folders[0])
    config = of_workdir(saved["config"])
    plans = []
    for name, folder in zip(methods, folders, strict=True):
        method = METHODS[name]
        changes = [("init_from", folder)]
        if saved["tokenizer"]:
            changes.append(("data.tokenizer", folders[0]))
        compress = config.compress
        if name != "prune" and (compress.sparsity or compress.m_by_n or compress.keep_zeros):
            changes += [(f"compress.{key}", text) for key, text in _KEEP_ZEROS.items()]
        changes += [
            (key, text)
            for key, text in method.without.items()
            if key.rpartition(".")[2] in config[key.partition(".")[0]]
        ]
        given = [(k, text) for k, text in overrides if _owner(k, methods) in (name, None)]
        if not {key for key, _ in given} & {f"compress.{key}" for key in method.keys}:
            changes += [(f"compress.{key}", text) for key, text in method.defaults.items()]
        config = change(config, [*changes, *given])
        method.check(config)
        plans.append(config)
    return plans


_KEEP_ZEROS = {"sparsity": "0.0", "m_by_n": "()", "keep_zeros": "True"}


def _owner(key: str, methods: Sequence[str]) -> str | None:
    """The method that an override is for; None for all of them."""
    section, _, rest = key.partition(".")
    if section != "compress":
        return None
    owner = rest.partition(".")[0] if "." in rest else "prune"
    return owner if owner in methods else None
