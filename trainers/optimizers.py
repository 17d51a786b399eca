"""Optimizers by name: Keras' own, with weight decay kept off biases and norms.

The table of names and arguments loads no Keras, so that recipes can be read without it.
"""

import dataclasses
import re
from collections.abc import Mapping

from zoo.errors import UsageError, compiled, near_names, short

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
_CLASSES = {
    "sgd": "SGD", "adam": "Adam", "adamw": "AdamW",
    "lion": "Lion", "adafactor": "Adafactor", "muon": "Muon",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which variables an optimizer treats otherwise; regular expressions of their paths.

    Attributes:
      exclude: weight decay leaves them alone.
      slow: they learn at `slow_rate` times the learning rate.
      slow_rate: see there.
      muon: arguments of `trainers.muon.left_to_adamw`; None for another optimizer.
    """

    exclude: str = ""
    slow: str = ""
    slow_rate: float = 0.1
    muon: Mapping | None = None


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


def make_optimizer(
    name: str, schedule, *, ema: float = 0.0, loss_scaling: bool = False, **arguments
):
    """Makes an optimizer.

    Args:
      name: a name of `OPTIMIZERS`.
      schedule: learning-rate schedule, or a number.
      ema: momentum of the moving average of the weights; 0 for none.
      loss_scaling: dynamic loss scaling, for mixed_float16.
      **arguments: those of `OPTIMIZERS[name]`. `clip_norm` clips by the global norm, 0 for none.

    Returns:
      `(optimizer, rules)`: the second are those of `apply_rules`, to be applied before it is built.
    """
    import keras

    check_optimizer(name)
    arguments = {**OPTIMIZERS[name], **arguments}
    check_arguments(name, arguments)
    clip_norm = arguments.pop("clip_norm")
    del arguments["learning_rate"]  # the schedule has it
    muon = None
    if name == "muon":
        keys = ("exclude_embeddings", "exclude_outputs", "exclude")
        muon = {key: arguments.pop(key) for key in keys}
    rules = Rules(
        arguments.pop("weight_decay_exclude", ""),
        arguments.pop("slow"),
        arguments.pop("slow_rate"),
        muon,
    )
    if not arguments.get("weight_decay", 0.0) and name != "adamw":  # AdamW wants a number
        arguments["weight_decay"] = None
    if name == "muon":
        arguments["adam_weight_decay"] = arguments["weight_decay"]
    try:
        optimizer = getattr(keras.optimizers, _CLASSES[name])(
            learning_rate=schedule,
            global_clipnorm=clip_norm or None,
            use_ema=bool(ema),
            ema_momentum=ema or 0.99,
            **arguments,
        )
    except ValueError as error:
        said = short(error)
        raise UsageError(f"No optimizer {name!r} has such values: {said}") from None
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer, rules


def inner(optimizer):
    """Returns the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply_rules(optimizer, variables, rules: Rules, models=()) -> list[str]:
    """Keeps weight decay off some variables and slows others down; before the optimizer is built.

    Keras matches names ("bias"), which cannot tell a norm's scale from another's; paths can.

    Args:
      optimizer: not built yet.
      variables: those that it will train.
      rules: from `make_optimizer`.
      models: what the variables are a part of, for Muon; see `trainers.muon.left_to_adamw`.

    Returns:
      Paths of the variables that weight decay leaves alone.

    Raises:
      UsageError: for what is no regular expression.
    """
    optimizer = inner(optimizer)
    if rules.muon is not None:
        from trainers.muon import left_to_adamw

        excluded = left_to_adamw(models, variables, **rules.muon)
        optimizer.exclude_embeddings = (
            False  # Keras goes by layer names; the next line has them all
        )
        optimizer.exclude_layers = [f"^{re.escape(v.path)}$" for v in excluded]
    decay = getattr(optimizer, "weight_decay", None)
    excluded = _matching("weight_decay_exclude", rules.exclude, variables) if decay else []
    slow = _matching("slow", rules.slow, variables)
    if decay and (excluded or slow):
        # Keras knows one learning rate, so the decay of slow variables is done below.
        optimizer.exclude_from_weight_decay(var_list=[*excluded, *slow])
    if slow:
        kept = {id(v) for v in excluded}
        decays = {v.path: decay if id(v) not in kept else 0.0 for v in slow}
        _slow_down(optimizer, variables, decays, rules.slow_rate)
    return [v.path for v in excluded]


def check_rules(variables, rules: Rules) -> None:
    """Raises `UsageError` for a `slow` that matches none of the variables that are trained."""
    if rules.slow and not _matching("slow", rules.slow, variables):
        raise UsageError(
            f"optimizer.slow matches no variable that is trained. Received: {rules.slow!r}; "
            f"the first of them are {', '.join(v.path for v in variables[:3])}."
        )


def _matching(key: str, pattern: str, variables) -> list:
    matches = compiled(f"optimizer.{key}", pattern).search
    return [v for v in variables if pattern and matches(v.path)]


def _slow_down(optimizer, variables, decays: dict[str, float | None], rate: float) -> None:
    """Makes steps of the variables in `decays` by `rate` times the learning rate, decay and all."""
    from trainers import keras_internals

    step = optimizer.update_step

    def update_step(gradient, variable, learning_rate):
        path = variables[keras_internals.variable_index(optimizer, variable)].path
        if path in decays:
            learning_rate = learning_rate * rate
            if decays[path]:
                optimizer.assign_sub(variable, variable * decays[path] * learning_rate)
        step(gradient, variable, learning_rate)

    optimizer.update_step = update_step
