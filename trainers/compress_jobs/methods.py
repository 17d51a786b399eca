"""The methods of `zoo compress`: each changes the recipe that a work directory was made with.

Loads no TensorFlow.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from trainers.config.base import base, section
from trainers.config.compress import FORMATS, RANKS_BY
from trainers.config.recipe import as_dict, change, of_workdir
from trainers.run.workdir import read_config
from zoo import registry
from zoo.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to a smaller model.

    Attributes:
      defaults: keys of the section `compress` and their values, where the user gives none of
        `keys`.
      check: raises `UsageError` for a section `compress` by which nothing would be compressed.
      without: keys of other sections, and the values that the method needs them to have.
      trains: whether it is a training; one that is not comes last.
    """

    defaults: Mapping[str, str]
    keys: Sequence[str]
    check: Callable[..., None]
    without: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trains: bool = True


def _prunes(compress) -> None:
    prune = compress.prune
    if not (prune.sparsity or prune.m_by_n):
        raise UsageError(
            "Nothing is pruned with compress.prune.sparsity=0 and compress.prune.m_by_n=()."
        )
    if prune.sparsity and prune.m_by_n:
        raise UsageError(
            "compress.prune.m_by_n decides how many zeros there are: it excludes "
            f"compress.prune.sparsity. Received: {prune.sparsity}."
        )


def _rounds(compress) -> None:
    if not compress.ptq.format:
        raise UsageError(f"compress.ptq.format must be one of {', '.join(FORMATS)}. Received: ''.")


def _quantizes(compress) -> None:
    if not compress.qat.on:
        raise UsageError("Nothing is quantized with compress.qat.on=False.")
    _one_of_two(compress)


def _clusters(compress) -> None:
    if not compress.cluster.number:
        raise UsageError("Nothing is clustered with compress.cluster.number=0.")
    _one_of_two(compress)


def _one_of_two(compress) -> None:
    if compress.qat.on and compress.cluster.number:
        raise UsageError(
            "Training in 8 bits moves weights off their clusters: use one of qat and cluster."
        )


def _has_low_ranks(compress) -> None:
    low = compress.low_rank
    if not (low.energy or low.budget or low.sensitivity or low.ranks):
        raise UsageError(
            "No ranks follow: give compress.low_rank.energy, .budget, .sensitivity or .ranks."
        )


def _cuts(compress) -> None:
    if not (compress.structured.sparsity or compress.structured.widths):
        raise UsageError("No unit is removed with compress.structured.sparsity=0.")


def _has_a_teacher(compress) -> None:
    if not compress.distill.teacher:
        raise UsageError("Distillation takes the work directory of a teacher.")


_RANKS_BY = (*RANKS_BY, "ranks")
METHODS = {
    "prune": Method({"prune.sparsity": "0.8"}, ("prune.sparsity", "prune.m_by_n"), _prunes),
    "cluster": Method(
        {"cluster.number": "16"},
        ("cluster.number",),
        _clusters,
        {"task.chunk": "0", "trainer.jit_compile": "False"},
    ),
    "qat": Method({"qat.on": "True"}, ("qat.on",), _quantizes, {"task.chunk": "0"}),
    "distill": Method({}, (), _has_a_teacher),
    "low_rank": Method(
        {"low_rank.energy": "0.9"}, [f"low_rank.{way}" for way in _RANKS_BY], _has_low_ranks
    ),
    "structured": Method(
        {"structured.sparsity": "0.5"}, ("structured.sparsity", "structured.widths"), _cuts
    ),
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
    if form := section(config, "compress.ptq").format:
        raise UsageError(f"{folders[0]} is rounded already ({form}), after which nothing comes.")
    if early := [name for name in methods[:-1] if not METHODS[name].trains]:
        raise UsageError(f"{early[0]} comes last in a chain. Received: {'+'.join(methods)}.")
    if len(methods) == 1 and not METHODS[methods[0]].trains:
        for key, _ in overrides:
            if _owner(key, methods) != methods[0]:
                raise UsageError(f"{methods[0]} does not train: {key} changes nothing.")
    chosen = dict(overrides)
    if "init_from" in chosen and "distill" not in methods:
        raise UsageError(
            f"zoo compress starts from {folders[0]}: init_from is for the student of distill. "
            f"Received: {chosen['init_from']}."
        )
    if chosen.get("trainer.strategy", "") == "multi_worker":
        raise UsageError("zoo compress runs in one process. Received: multi_worker.")
    if config.trainer.strategy == "multi_worker":
        config = change(config, [("trainer.strategy", "one_device")])
    plans = []
    for i, (name, folder) in enumerate(zip(methods, folders, strict=True)):
        method, config = METHODS[name], of_workdir(as_dict(config))  # a copy
        given = [(k, text) for k, text in overrides if _owner(k, methods) in (name, None)]
        if name != "distill":
            given = [(k, text) for k, text in given if k != "init_from"]
        if "distill" in methods[i + 1 :]:  # what is said of the model is said of the student
            given = [(k, text) for k, text in given if not k.startswith("model.")]
        if not method.trains:  # of the model that is there
            given = [(k, text) for k, text in given if _owner(k, methods)]
            defaults = [(f"compress.{key}", text) for key, text in method.defaults.items()]
            config = change(config, [*defaults, *given])
            compress = section(config, "compress")
            method.check(compress)
            if compress.cluster.number and compress.ptq.format.startswith("keras_"):
                raise UsageError(
                    "Keras' integers have a scale per output, which splits the clusters of a "
                    "kernel: use compress.ptq.format=litert_dynamic or litert_int8, which keep "
                    f"them by one scale per kernel. Received: {compress.ptq.format}."
                )
            low = compress.low_rank
            if compress.ptq.format.startswith("keras_") and any(
                low[way] for way in (*_RANKS_BY, "keep")
            ):
                raise UsageError(
                    "Keras' integers cannot be kept of kernels that are products: use "
                    f"compress.ptq.format=litert_dynamic. Received: {compress.ptq.format}."
                )
            plans.append(config)
            continue
        changes = [("init_from", folder)]
        if name == "distill":
            config = _of_student(config, overrides)
            changes = [("init_from", ""), ("compress.distill.teacher", folder)]
        if saved["tokenizer"]:
            changes.append(("data.tokenizer", folders[0]))
        compress = section(config, "compress")
        pruned = compress.prune.sparsity or compress.prune.m_by_n or compress.prune.keep_zeros
        if name == "low_rank" and pruned:
            raise UsageError("Products of a pruned kernel have no zeros: prune after low_rank.")
        if name == "structured" and any(compress.low_rank[way] for way in (*_RANKS_BY, "keep")):
            raise UsageError("Units of products are not known: use structured before low_rank.")
        if name != "prune" and pruned:
            changes += [(f"compress.prune.{key}", text) for key, text in _KEEP_ZEROS.items()]
        if name == "prune":
            changes.append(("compress.prune.keep_zeros", "False"))
            # In place of what the recipe may have had.
            other = "sparsity=0.0" if "compress.prune.m_by_n" in chosen else "m_by_n=()"
            changes.append(tuple(f"compress.prune.{other}".split("=")))
        changes += [
            (key, text)
            for key, text in method.without.items()
            if key.rpartition(".")[2] in config[key.partition(".")[0]]
        ]
        changes += _ranks(name, compress.low_rank) + _widths(name, compress.structured)
        if not {key for key, _ in given} & {f"compress.{key}" for key in method.keys}:
            changes += [(f"compress.{key}", text) for key, text in method.defaults.items()]
        config = change(config, [*changes, *given])
        method.check(section(config, "compress"))
        _check_same_data(saved["config"], config)
        plans.append(config)
    return plans


# Of the sections data and task, what changes neither the examples nor what they are measured by.
_MAY_CHANGE = {"data.tokenizer", "data.manual_dir", "task.chunk"}


def _check_same_data(before: Mapping, config) -> None:
    """Raises `UsageError` where a result could not be compared with what it was made of."""
    for part in ("data", "task"):
        for key, value in as_dict(config)[part].items():
            old = before[part].get(key, value)
            if value != old and f"{part}.{key}" not in _MAY_CHANGE:
                raise UsageError(
                    "zoo compress compares a model with what becomes of it, on the same examples: "
                    f"{part}.{key} stays {old!r}. Received: {value!r}."
                )


_KEEP_ZEROS = {"sparsity": "0.0", "m_by_n": "()", "keep_zeros": "True"}


# What a student of another family takes over: it follows from the data.
_OF_THE_DATA = ("vocabulary_size", "sequence_length", "input_shape", "num_classes", "next_sentence")


def _of_student(config, overrides):
    """The recipe of a teacher for a student, which is compressed in no other way yet.

    A student of another name has the arguments of its row of the catalog, and those of the user.
    """
    config = copy.deepcopy(config)
    given = {k.removeprefix("model."): v for k, v in overrides if k.startswith("model.")}
    with config.unlocked():
        config.compress = base().compress
        if "chunk" in config.task:  # the teacher's word is on all logits
            config.task.chunk = 0
        name = given.get("name", config.model.name)
        if name != config.model.name:
            teacher = config.model.to_dict()
            known = registry.arguments(name)
            shared = {k: teacher[k] for k in _OF_THE_DATA if k in known and k in teacher}
            config.model = {**known, **shared, "name": name}
    return config


def _ranks(name: str, low) -> list[tuple[str, str]]:
    """Products stay what they are, but for a method that chooses ranks anew."""
    if name == "low_rank":
        fresh = {"energy": "0", "budget": "0", "sensitivity": "0", "ranks": "()", "keep": "False"}
        return [(f"compress.low_rank.{key}", text) for key, text in fresh.items()]
    asked = any(low[way] for way in _RANKS_BY)
    return [("compress.low_rank.keep", "True")] if asked and not low.ranks else []


def _widths(name: str, structured) -> list[tuple[str, str]]:
    """Layers stay as small as they are, but for a method that takes more units out."""
    if name == "structured":
        fresh = {"sparsity": "0", "widths": "()", "keep": "False"}
        return [(f"compress.structured.{key}", text) for key, text in fresh.items()]
    asked = structured.sparsity and not structured.widths
    return [("compress.structured.keep", "True")] if asked else []


def _owner(key: str, methods: Sequence[str]) -> str | None:
    """The method that an override is for; None for all of them."""
    part, _, rest = key.partition(".")
    owner = rest.partition(".")[0] if part == "compress" else None
    return owner if owner in methods else None
