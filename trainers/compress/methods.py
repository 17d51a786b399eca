"""The methods of `zoo compress`: each changes the recipe that a work directory was made with.

Loads no TensorFlow.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from trainers.recipe import as_dict, change, of_workdir
from trainers.workdir import read_config
from zoo.errors import UsageError, near_names

# What `zoo compress ptq` makes: a LiteRT file, or a Keras model whose kernels are integers.
FORMATS = (
    "litert_int8", "litert_dynamic", "litert_float16",
    "keras_int8", "keras_int4", "keras_gptq", "keras_awq",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to a smaller model.

    Attributes:
      defaults: keys of the section `compress` and their values, where the user gives none of
        `keys`.
      check: raises `UsageError` for a changed recipe in which nothing would be compressed.
      trains: whether it is a training; one that is not comes last.
    """

    defaults: Mapping[str, str]
    keys: Sequence[str]
    check: Callable[..., None]
    trains: bool = True


def _prunes(config) -> None:
    if not (config.compress.sparsity or config.compress.m_by_n):
        raise UsageError("Nothing is pruned with compress.sparsity=0 and compress.m_by_n=().")


def _rounds(config) -> None:
    form, examples = config.compress.ptq.format, config.compress.ptq.examples
    if form not in FORMATS:
        raise UsageError(
            f"compress.ptq.format is one of {', '.join(FORMATS)}.{near_names(form, FORMATS)} "
            f"Received: {form!r}."
        )
    if examples < 1:
        raise UsageError(f"compress.ptq.examples is at least 1. Received: {examples}.")


METHODS = {
    "prune": Method({"sparsity": "0.8"}, ("sparsity", "m_by_n"), _prunes),
    "ptq": Method({"ptq.format": "litert_dynamic"}, ("ptq.format",), _rounds, trains=False),
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
    if form := config.compress.ptq.format:
        raise UsageError(f"{folders[0]} is rounded already ({form}), after which nothing comes.")
    if early := [name for name in methods[:-1] if not METHODS[name].trains]:
        raise UsageError(f"{early[0]} comes last in a chain. Received: {'+'.join(methods)}.")
    if len(methods) == 1 and not METHODS[methods[0]].trains:
        for key, _ in overrides:
            if _owner(key, methods) != methods[0]:
                raise UsageError(f"{methods[0]} does not train: {key} changes nothing.")
    plans = []
    for name, folder in zip(methods, folders, strict=True):
        method, config = METHODS[name], of_workdir(as_dict(config))  # a copy
        given = [(k, text) for k, text in overrides if _owner(k, methods) in (name, None)]
        if not method.trains:  # of the model that is there
            given = [(k, text) for k, text in given if _owner(k, methods)]
            defaults = [(f"compress.{key}", text) for key, text in method.defaults.items()]
            config = change(config, [*defaults, *given])
            method.check(config)
            plans.append(config)
            continue
        changes = [("init_from", folder)]
        if saved["tokenizer"]:
            changes.append(("data.tokenizer", folders[0]))
        compress = config.compress
        if name != "prune" and (compress.sparsity or compress.m_by_n or compress.keep_zeros):
            changes += [(f"compress.{key}", text) for key, text in _KEEP_ZEROS.items()]
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
