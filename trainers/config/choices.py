"""Values that keys of a recipe may have, by name. Loads no Keras.

Optimizers and learning-rate schedules come with their arguments and defaults.
"""

from collections.abc import Mapping

from zoo.errors import UsageError, compiled, near_names

# Clouds whose preemption notices are understood (`trainers.distributed.preemption`).
CLOUDS = ("gcp", "aws", "azure")

_COMMON = {
    "learning_rate": 1e-3,
    "clip_norm": 0.0,
    # What `slow` matches in a variable's path ("^block5_") learns at `slow_rate` times the rate.
    "slow": "",
    "slow_rate": 0.1,
}
# Weight decay leaves alone what these match: a variable's path, e.g. "block_1/norm/scale".
_DECAY = {
    "weight_decay": 0.0,
    "weight_decay_exclude": r"(^|/)(bias|gamma|beta|scale|[^/]*centroids/.*"
    r"|.*norm[^/]*/(?![^/]*(kernel|embeddings)$)[^/]+)$",
}
OPTIMIZERS: dict[str, dict] = {
    "sgd": {**_COMMON, **_DECAY, "momentum": 0.9, "nesterov": False},
    "adam": {**_COMMON, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "adamw": {**_COMMON, **_DECAY, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "lion": {**_COMMON, **_DECAY, "beta_1": 0.9, "beta_2": 0.99},
    "adafactor": {**_COMMON, **_DECAY, "beta_2_decay": -0.8},
    # AdamW trains what Muon must not: vectors, embeddings, output layers, and variables whose path
    # `exclude` matches.
    "muon": {
        **_COMMON, **_DECAY, "momentum": 0.95, "exclude_embeddings": True, "exclude_outputs": True,
        "exclude": "",
    },
}  # fmt: skip
PATTERNS = ("slow", "weight_decay_exclude", "exclude")  # regular expressions of paths
# name -> arguments and their defaults. The peak is optimizer.learning_rate.
SCHEDULES: dict[str, dict] = {
    "constant": {"warmup_steps": 0},
    "cosine": {"warmup_steps": 0, "final_fraction": 0.0},
    "linear": {"warmup_steps": 0, "final_fraction": 0.0},
    # Warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4: a decay of 10 % of
    # the run suffices); decay_steps=0 is a tenth of the run.
    "wsd": {"warmup_steps": 0, "decay_steps": 0, "final_fraction": 0.0},
}


def check_optimizer(name: str) -> None:
    """Raises `UsageError` for an unknown optimizer."""
    if name not in OPTIMIZERS:
        raise UsageError(
            f"No optimizer is named {name!r}.{near_names(name, OPTIMIZERS)} "
            f"Known: {', '.join(OPTIMIZERS)}."
        )


def check_arguments(name: str, arguments: Mapping) -> None:
    """Checks the arguments of an optimizer.

    Args:
      name: a name of `OPTIMIZERS`.
      arguments: all those of `OPTIMIZERS[name]`.

    Raises:
      UsageError: where one is out of its range.
    """
    check_optimizer(name)
    for key, value in arguments.items():
        if key in ("learning_rate", "clip_norm", "weight_decay"):
            fits, rule = 0 <= value < float("inf"), "is 0 or positive"
        elif key in ("slow_rate", "epsilon"):
            fits, rule = 0 < value < float("inf"), "is positive"
        elif key in ("momentum", "beta_1", "beta_2"):
            fits, rule = 0 <= value < 1, "lies in [0, 1)"
        elif key == "beta_2_decay":
            fits, rule = value < 0, "is negative"
        else:
            continue
        if not fits:
            raise UsageError(f"optimizer.{key} {rule}. Received: {value}.")
    for key in PATTERNS:
        compiled(f"optimizer.{key}", arguments.get(key, ""))


def check_schedule(name: str) -> None:
    """Raises `UsageError` for an unknown schedule."""
    if name not in SCHEDULES:
        raise UsageError(
            f"No schedule is named {name!r}.{near_names(name, SCHEDULES)} "
            f"Known: {', '.join(SCHEDULES)}."
        )
