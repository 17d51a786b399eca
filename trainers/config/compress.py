"""The section `compress`: the keys of each technique, and their rules that need no weights.

Each technique checks its section when it is built; `check` checks all before TensorFlow loads.
"""

import re
from collections.abc import Mapping, Sequence
from math import inf

from zoo.errors import UsageError, check_minimums, check_name, compile_pattern, require

# Formats of `zoo compress ptq`: a LiteRT file, or a Keras model with integer kernels.
FORMATS = (
    "litert_int8", "litert_dynamic", "litert_float16",
    "keras_int8", "keras_int4", "keras_gptq", "keras_awq",
)  # fmt: skip
RANKS_BY = ("energy", "budget", "sensitivity")
_SCHEDULES = ("polynomial", "constant")

KEYS = {
    "prune": {  # zeros in kernels
        "sparsity": 0.0,  # fraction of each kernel that is 0 at the end; 0: no pruning
        "schedule": "polynomial",  # or "constant"
        "initial_sparsity": 0.0,
        "begin": 0.0,  # start of mask updates, as a fraction of the run
        "end": 0.7,  # end of mask updates, as a fraction of the run
        "frequency": 100,  # updates per mask update; begin to end must contain at least one period
        "pattern": "",  # regular expression of the paths of variables; "": all kernels
        "m_by_n": (),  # (2, 4): two zeros among four inputs, instead of sparsity
        "block": (1, 1),  # inputs and outputs that are 0 together
        "keep_zeros": False,  # weights that are 0 at the start stay 0, instead of sparsity
    },
    "qat": {  # quantization-aware training
        "on": False,  # round kernels and outputs to 8 bits in training
        "decay": 0.99,  # decay of the moving average of output ranges
    },
    "cluster": {
        "number": 0,  # number of distinct values per kernel; 0: no clustering
    },
    "distill": {
        "teacher": "",  # a work directory; "": no distillation
        "alpha": 0.5,  # weight of the teacher's loss; the loss of the labels has 1 - alpha
        "temperature": 2.0,
        "hidden": 0.0,  # weight of the difference of hidden states
        "attention": 0.0,  # weight of the difference of attention probabilities
        "cache": False,  # keep the teacher's outputs for unchanged examples on the disk
        "sentences": 0,  # beam width of the teacher for new translations of the training split
    },
    "structured": {  # structured pruning: whole units are removed
        "sparsity": 0.0,  # fraction of the units of each layer to remove; 0: none
        "pattern": "",  # regular expression of the paths of layers; "": all
        "widths": (),  # PATH=UNITS to keep; filled in when the run starts
        "keep": False,  # take the widths of init_from
    },
    "low_rank": {  # kernels as products; one of the first three keys chooses the ranks
        "energy": 0.0,  # fraction of the squared sum of each kernel to keep
        "budget": 0.0,  # fraction of the parameters of the model to keep
        "sensitivity": 0.0,  # relative growth of the loss allowed per kernel; 0.01: 1 %
        "pattern": "",  # regular expression of the paths of layers; "": all
        "ranks": (),  # PATH=RANK, PATH=INxOUT; filled in when the run starts
        "keep": False,  # take the ranks of init_from
    },
    "ptq": {  # post-training quantization, only for `zoo compress ptq`
        "format": "",  # one of FORMATS; "": none
        "examples": 200,  # number of training examples to calibrate with
    },
}


def check(compress, trainer, task) -> None:
    """Checks the section `compress`, and other settings that it excludes.

    Args:
      compress: the section, with all its keys.
      trainer, task: sections of the same configuration.

    Raises:
      UsageError: for a value out of its range, or mutually exclusive settings.
    """
    prune = dict(compress["prune"])
    keep_zeros = prune.pop("keep_zeros")
    check_pruning(**prune)
    if keep_zeros and (prune["sparsity"] or prune["m_by_n"]):
        raise UsageError(
            "compress.prune.keep_zeros excludes compress.prune.sparsity and compress.prune.m_by_n. "
            f"Received: sparsity={prune['sparsity']}, m_by_n={prune['m_by_n']}."
        )
    check_decay(compress["qat"]["decay"])
    number, chunk = compress["cluster"]["number"], task.get("chunk", 0)
    if number:
        check_clusters(number)
    if (number or compress["qat"]["on"]) and chunk:
        raise UsageError(
            "compress.qat and compress.cluster require task.chunk=0, because they compute all "
            f"logits at once. Received: {chunk}."
        )
    if number and trainer["jit_compile"]:
        raise UsageError(
            "compress.cluster requires trainer.jit_compile=False, because XLA cannot compile "
            "weight clustering. Received: True."
        )
    check_distillation(compress["distill"])
    check_structured(compress["structured"])
    check_low_rank(compress["low_rank"])
    check_quantization(**compress["ptq"])


def check_training(compress) -> None:
    """Raises `UsageError` for quantization without training in a training run."""
    if compress["ptq"]["format"]:
        raise UsageError(
            "A training run does not support compress.ptq: use `zoo compress ptq WORKDIR` after "
            "training."
        )


def check_run(compress, total_steps: int) -> None:
    """Checks a section `compress` for a run of `total_steps` updates; raises `UsageError`."""
    prune = compress["prune"]
    if prune["sparsity"] or prune["m_by_n"]:
        pruning_updates(total_steps, **prune)


def check_source(compress, init_from: str) -> None:
    """Raises `UsageError` if sizes are to be chosen by weights and `init_from` gives none."""
    key, sizes = _chosen_by_weights(compress)
    if key and not init_from:
        raise UsageError(
            f"compress.{key} chooses sizes by weights and requires init_from: set init_from, or "
            f"compress.{key}.{sizes}."
        )


def check_sizes(compress) -> None:
    """Raises `UsageError` if sizes are to be chosen by weights, which are not read here."""
    key, sizes = _chosen_by_weights(compress)
    if key:
        raise UsageError(
            f"compress.{key} chooses sizes by weights, which this command does not read: set "
            f"compress.{key}.{sizes} as in the config.json of a run."
        )


def _chosen_by_weights(compress) -> tuple[str, str]:
    """Returns the section with sizes that are not known yet, and their key; or two ""."""
    structured, low_rank = compress["structured"], compress["low_rank"]
    if (structured["sparsity"] or structured["keep"]) and not structured["widths"]:
        return "structured", "widths"
    if (low_rank["keep"] or any(low_rank[key] for key in RANKS_BY)) and not low_rank["ranks"]:
        return "low_rank", "ranks"
    return "", ""


def check_pruning(
    *, sparsity, schedule, initial_sparsity, begin, end, frequency, m_by_n, block, pattern=""
) -> None:
    """Checks the arguments of pruning; raises `UsageError`."""
    require(0 <= sparsity < 1, "compress.prune.sparsity", "in [0, 1)", sparsity)
    check_name("schedule of compress.prune.schedule", schedule, _SCHEDULES)
    compile_pattern("compress.prune.pattern", pattern)
    is_valid = 0 <= initial_sparsity < 1 and not 0 < sparsity < initial_sparsity
    rule = "in [0, 1) and not above compress.prune.sparsity"
    require(is_valid, "compress.prune.initial_sparsity", rule, initial_sparsity)
    rule = "fractions of the run with begin <= end"
    is_valid = 0 <= begin <= end <= 1
    require(is_valid, "compress.prune.begin and compress.prune.end", rule, (begin, end))
    check_minimums("compress.prune", {"frequency": frequency}, {"frequency": 1})
    is_valid = not m_by_n or (len(m_by_n) == 2 and 0 < m_by_n[0] < m_by_n[1])
    require(
        is_valid,
        "compress.prune.m_by_n",
        "() or (m, n), such as (2, 4) for two zeros of four",
        tuple(m_by_n),
    )
    is_valid = len(block) == 2 and min(block) >= 1 and (not m_by_n or tuple(block) == (1, 1))
    rule = "a height and a width, and (1, 1) with m_by_n"
    require(is_valid, "compress.prune.block", rule, tuple(block))


def pruning_updates(
    total_steps: int, *, sparsity, schedule, begin, end, frequency, m_by_n, **_
) -> tuple[int, int]:
    """Returns the first update after which masks change, and the number of periods after it.

    Args:
      total_steps: number of updates of the whole run.
      **_: the other arguments of pruning, which do not matter here.

    Raises:
      UsageError: if a polynomial schedule has less than one period: the sparsity would jump.
    """
    first = max(2, round(begin * total_steps))
    num_updates = max(0, round(end * total_steps) - first)
    periods = num_updates // frequency
    if sparsity and schedule == "polynomial" and not m_by_n and not periods:
        raise UsageError(
            "compress.prune.schedule=polynomial requires at least one whole period of "
            f"compress.prune.frequency={frequency} updates between compress.prune.begin and "
            f"compress.prune.end. Received: {num_updates} of {total_steps} updates between them; "
            + (
                f"set compress.prune.frequency={max(1, num_updates // 10)}"
                if num_updates
                else "train longer"
            )
            + ", or set compress.prune.schedule=constant."
        )
    return first, periods


def check_decay(decay: float) -> None:
    """Checks the decay of the moving average of the ranges of outputs; raises `UsageError`."""
    require(0 < decay < 1, "compress.qat.decay", "in (0, 1)", decay)


def check_clusters(number: int) -> None:
    """Checks the number of distinct values per kernel; raises `UsageError`."""
    check_minimums("compress.cluster", {"number": number}, {"number": 2})


def check_distillation(settings: Mapping) -> None:
    """Checks the section `compress.distill`; raises `UsageError`."""
    alpha, temperature = settings["alpha"], settings["temperature"]
    require(0 <= alpha <= 1, "compress.distill.alpha", "in [0, 1]", alpha)
    require(0 < temperature < inf, "compress.distill.temperature", "positive", temperature)
    for key in ("hidden", "attention", "sentences"):
        value = settings[key]
        require(0 <= value < inf, f"compress.distill.{key}", "at least 0; 0 disables it", value)
    if not any(settings[key] for key in ("alpha", "hidden", "attention", "sentences")):
        raise UsageError(
            "At least one of compress.distill.alpha, hidden, attention and sentences must be "
            "positive. Received: 0 for all."
        )
    if settings["cache"] and (settings["hidden"] or settings["attention"]):
        raise UsageError(
            "compress.distill.cache does not support compress.distill.hidden and attention, "
            "because the cache contains only the outputs of the teacher."
        )


def check_structured(settings: Mapping) -> None:
    """Checks the section `compress.structured`; raises `UsageError`."""
    value = settings["sparsity"]
    require(0 <= value < 1, "compress.structured.sparsity", "in [0, 1)", value)
    compile_pattern("compress.structured.pattern", settings["pattern"])
    parse_widths(settings["widths"])


def parse_widths(widths: Sequence[str]) -> dict[str, int]:
    """Returns layer path -> units of ("convolution_1=16", "block_0/attention=2")."""
    units_by_path = {}
    for text in widths:
        path, _, number = text.partition("=")
        if not path or not re.fullmatch(r"[1-9]\d*", number):
            raise UsageError(
                "compress.structured.widths must contain PATH=UNITS with at least one unit. "
                f"Received: {text!r}."
            )
        units_by_path[path] = int(number)
    return units_by_path


def check_low_rank(settings: Mapping) -> None:
    """Checks the section `compress.low_rank`; raises `UsageError`."""
    active_keys = [key for key in RANKS_BY if settings[key]]
    if len(active_keys) > 1:
        raise UsageError(
            "Only one of compress.low_rank.energy, budget and sensitivity may be set. Received: "
            + ", ".join(f"compress.low_rank.{key}={settings[key]}" for key in active_keys)
        )
    for key in ("energy", "budget"):
        value = settings[key]
        require(0 <= value < 1, f"compress.low_rank.{key}", "in [0, 1); 0 disables it", value)
    value, rule = settings["sensitivity"], "at least 0, such as 0.01 for 1 %; 0 disables it"
    require(0 <= value < inf, "compress.low_rank.sensitivity", rule, value)
    compile_pattern("compress.low_rank.pattern", settings["pattern"])
    parse_ranks(settings["ranks"])


def parse_ranks(ranks: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns path -> ranks of ("block_0/attention/output=12", "convolution_2=8x16")."""
    ranks_by_path = {}
    for text in ranks:
        path, _, numbers = text.partition("=")
        if not path or not re.fullmatch(r"\d+(x\d+)?", numbers):
            raise UsageError(
                "compress.low_rank.ranks must contain PATH=RANK, or PATH=INxOUT for a convolution. "
                f"Received: {text!r}."
            )
        ranks_by_path[path] = tuple(int(n) for n in numbers.split("x"))
    return ranks_by_path


def check_quantization(format: str, examples: int) -> None:
    """Checks the section `compress.ptq`; raises `UsageError`."""
    if format:
        check_name("format of compress.ptq.format", format, FORMATS)
    check_minimums("compress.ptq", {"examples": examples}, {"examples": 1})
