"""The section `optimizer`: optimizers, their arguments and rules. Does not import Keras."""

from math import inf

from zoo.errors import check_name, compile_pattern, require

_COMMON = {
    "learning_rate": 1e-3,
    "clip_norm": 0.0,
    # `slow_rate` scales the learning rate of variables with a path that matches `slow`, such as
    # "^block5_".
    "slow": "",
    "slow_rate": 0.1,
    # For fine-tuning (Howard and Ruder 2018, ULMFiT, arXiv:1801.06146): the learning rate of each
    # transformer block and of what is below it is `layer_decay` times that of the block above it,
    # and only what is above the last block trains during the first `frozen_steps` updates.
    "layer_decay": 1.0,
    "frozen_steps": 0,
}
# Weight decay skips variables with a matching path, for example "block_1/norm/scale".
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
    # AdamW trains the variables that Muon must not: vectors, embeddings, output layers, and
    # variables with a path that matches `exclude`.
    "muon": {
        **_COMMON, **_DECAY, "momentum": 0.95, "exclude_embeddings": True, "exclude_outputs": True,
        "exclude": "",
    },
}  # fmt: skip
_PATTERNS = ("slow", "weight_decay_exclude", "exclude")  # regular expressions of paths


def check(name: str, **arguments) -> None:
    """Checks an optimizer and its arguments.

    Args:
      name: a key of `OPTIMIZERS`.
      **arguments: all arguments of `OPTIMIZERS[name]`.

    Raises:
      UsageError: for an unknown name or an argument out of its range.
    """
    check_name("optimizer", name, OPTIMIZERS)
    for key, value in arguments.items():
        if key in ("learning_rate", "clip_norm", "weight_decay", "frozen_steps"):
            is_valid, rule = 0 <= value < inf, "at least 0 and finite"
        elif key in ("slow_rate", "epsilon"):
            is_valid, rule = 0 < value < inf, "positive and finite"
        elif key in ("momentum", "beta_1", "beta_2"):
            is_valid, rule = 0 <= value < 1, "in [0, 1)"
        elif key == "layer_decay":
            is_valid, rule = 0 < value <= 1, "in (0, 1]"
        elif key == "beta_2_decay":
            is_valid, rule = value < 0, "negative"
        else:
            continue
        require(is_valid, f"optimizer.{key}", rule, value)
    for key in _PATTERNS:
        compile_pattern(f"optimizer.{key}", arguments.get(key, ""))
