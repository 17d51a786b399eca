"""The rules of the section `compress` that need no weights. Loads no TensorFlow.

Each method checks its own part, and `trainers.preflight` checks all of them before TensorFlow is
loaded.
"""

import re
from collections.abc import Mapping, Sequence

from zoo.errors import UsageError

SCHEDULES = ("polynomial", "constant")
RANKS_BY = ("energy", "budget", "sensitivity")


def check_section(compress: Mapping) -> None:
    """Checks the values of a whole section `compress`.

    Args:
      compress: the section, with all of its keys.

    Raises:
      UsageError: where a value is out of its range.
    """
    check_pruning(**pruning(compress))
    check_decay(compress["qat"]["decay"])
    if compress["cluster"]["number"]:
        check_clusters(compress["cluster"]["number"])
    check_distillation(compress["distill"])
    check_structured(compress["structured"])
    check_low_rank(compress["low_rank"])
    check_trains(compress)


def check_run(config, total_steps: int) -> None:
    """Checks a section `compress` against the length of the run; raises `UsageError`."""
    values = pruning(config.compress)
    if not config.compress["keep_zeros"] and (values["sparsity"] or values["m_by_n"]):
        pruning_updates(total_steps, **values)


def check_source(config, begun: bool) -> None:
    """Checks that sizes which follow from weights have weights to follow from.

    Args:
      config: the recipe.
      begun: whether the work directory has a recipe, with these sizes, already.

    Raises:
      UsageError: where neither `init_from` nor the recipe gives them.
    """
    structured, low = config.compress.structured, config.compress.low_rank
    if begun or config.init_from:
        return
    if structured.sparsity and not (structured.widths or structured.keep):
        raise UsageError("Which units matter follows from weights: set init_from.")
    if (low.keep or any(low[way] for way in RANKS_BY)) and not low.ranks:
        raise UsageError("Ranks follow from weights: set init_from, or compress.low_rank.ranks.")


def check_trains(compress: Mapping) -> None:
    """Raises `UsageError` for rounding without training in the recipe of a training run."""
    if compress["ptq"]["format"]:
        raise UsageError("compress.ptq is of `zoo compress ptq WORKDIR`, which does not train.")


def pruning(compress: Mapping) -> dict:
    """Returns the arguments of `trainers.compress.prune.Pruner`.

    Keys of pruning stand in the section itself; other methods have sections in it.
    """
    names = (
        "sparsity", "schedule", "initial_sparsity", "begin", "end", "frequency", "pattern",
        "m_by_n", "block",
    )  # fmt: skip
    return {name: compress[name] for name in names}


def check_pruning(
    *, sparsity, schedule, initial_sparsity, begin, end, frequency, m_by_n, block, pattern=""
) -> None:
    """Checks the arguments of pruning; raises `UsageError`."""
    for name, value in (("sparsity", sparsity), ("initial_sparsity", initial_sparsity)):
        if not 0 <= value < 1:
            raise UsageError(f"compress.{name} lies in [0, 1). Received: {value}.")
    if schedule not in SCHEDULES:
        raise UsageError(
            f"compress.schedule is one of {', '.join(SCHEDULES)}. Received: {schedule!r}."
        )
    if sparsity and initial_sparsity > sparsity:
        raise UsageError(
            "compress.initial_sparsity must not exceed compress.sparsity. Received: "
            f"{initial_sparsity} and {sparsity}."
        )
    if not 0 <= begin <= end <= 1:
        raise UsageError(
            "compress.begin and compress.end are shares of the run, the first not the larger. "
            f"Received: {begin} and {end}."
        )
    if frequency < 1:
        raise UsageError(f"compress.frequency is at least 1. Received: {frequency}.")
    if m_by_n and not (len(m_by_n) == 2 and 0 < m_by_n[0] < m_by_n[1]):
        raise UsageError(
            f"compress.m_by_n is (2, 4) for two zeros of four, or (). Received: {tuple(m_by_n)}."
        )
    if len(block) != 2 or min(block) < 1 or (m_by_n and tuple(block) != (1, 1)):
        raise UsageError(
            f"compress.block is a height and a width, (1, 1) with m_by_n. Received: {tuple(block)}."
        )


def pruning_updates(
    total_steps: int, *, sparsity, schedule, begin, end, frequency, m_by_n, **_
) -> tuple[int, int]:
    """Returns the first update after which masks change, and the number of periods after it.

    Args:
      total_steps: updates of the whole run.
      **_: the other arguments of pruning, which matter for its masks alone.

    Raises:
      UsageError: where a polynomial schedule has no whole period: the sparsity would not grow, but
        jump.
    """
    first = max(2, round(begin * total_steps))
    room = max(0, round(end * total_steps) - first)
    periods = room // frequency
    if sparsity and schedule == "polynomial" and not m_by_n and not periods:
        raise UsageError(
            f"A polynomial schedule takes a whole period of compress.frequency={frequency}, "
            f"and between compress.begin and compress.end lie {room} updates of "
            f"{total_steps}: "
            + (f"set compress.frequency={max(1, room // 10)}" if room else "train longer")
            + ", or compress.schedule=constant."
        )
    return first, periods


def check_decay(decay: float) -> None:
    """Checks the decay of the average of outputs' ranges; raises `UsageError`."""
    if not 0 < decay < 1:
        raise UsageError(f"compress.qat.decay lies in (0, 1). Received: {decay}.")


def check_clusters(number: int) -> None:
    """Checks the number of values that a kernel keeps; raises `UsageError`."""
    if number < 2:
        raise UsageError(f"compress.cluster.number is at least 2. Received: {number}.")


def check_distillation(settings: Mapping) -> None:
    """Checks the section `compress.distill`; raises `UsageError`."""
    if not 0 <= settings["alpha"] <= 1:
        raise UsageError(f"compress.distill.alpha lies in [0, 1]. Received: {settings['alpha']}.")
    if not 0 < settings["temperature"] < float("inf"):
        raise UsageError(
            f"compress.distill.temperature is positive. Received: {settings['temperature']}."
        )
    for key in ("hidden", "attention", "sentences"):
        if not 0 <= settings[key] < float("inf"):
            raise UsageError(
                f"compress.distill.{key} is 0 (off) or positive. Received: {settings[key]}."
            )
    if not any(settings[key] for key in ("alpha", "hidden", "attention", "sentences")):
        raise UsageError(
            "Nothing is learned from the teacher with compress.distill.alpha, hidden, attention "
            "and sentences all 0."
        )
    if settings["cache"] and (settings["hidden"] or settings["attention"]):
        raise UsageError(
            "compress.distill.cache keeps the teacher's outputs: it goes without hidden and "
            "attention, for which the teacher runs."
        )


def check_structured(settings: Mapping) -> None:
    """Checks the section `compress.structured`; raises `UsageError`."""
    if not 0 <= settings["sparsity"] < 1:
        raise UsageError(
            "compress.structured.sparsity is the share of each layer's units that goes, in [0, 1). "
            f"Received: {settings['sparsity']}."
        )
    parse_widths(settings["widths"])


def parse_widths(widths: Sequence[str]) -> dict[str, int]:
    """Reads ("convolution_1=16", "block_0/attention=2")."""
    found = {}
    for text in widths:
        path, _, number = text.partition("=")
        if not path or not re.fullmatch(r"[1-9]\d*", number):
            raise UsageError(
                f"compress.structured.widths holds PATH=UNITS, at least 1. Received: {text!r}."
            )
        found[path] = int(number)
    return found


def check_low_rank(low: Mapping) -> None:
    """Checks the section `compress.low_rank`; raises `UsageError`."""
    given = [way for way in RANKS_BY if low[way]]
    if len(given) > 1:
        raise UsageError(
            "Ranks follow from energy, from budget or from sensitivity. Received: "
            + ", ".join(f"compress.low_rank.{way}={low[way]}" for way in given)
        )
    for way in ("energy", "budget"):
        if not 0 <= low[way] < 1:
            raise UsageError(
                f"compress.low_rank.{way} lies in (0, 1); 0 is off. Received: {low[way]}."
            )
    if not 0 <= low["sensitivity"] < float("inf"):
        raise UsageError(
            "compress.low_rank.sensitivity is how much the loss may grow, 0.01 for one percent; 0 "
            f"is off. Received: {low['sensitivity']}."
        )
    parse_ranks(low["ranks"])


def parse_ranks(ranks: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Reads ("block_0/attention/output=12", "convolution_2=8x16")."""
    found = {}
    for text in ranks:
        path, _, numbers = text.partition("=")
        if not path or not re.fullmatch(r"\d+(x\d+)?", numbers):
            raise UsageError(
                "compress.low_rank.ranks holds PATH=RANK, or PATH=INxOUT of a convolution. "
                f"Received: {text!r}."
            )
        found[path] = tuple(int(n) for n in numbers.split("x"))
    return found
