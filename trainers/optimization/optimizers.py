"""Optimizers by name: Keras' own, with weight decay kept off biases and norms.

Their arguments and defaults are in `trainers.config.choices`.
"""

import dataclasses
import re
from collections.abc import Mapping

import keras

from trainers.config.choices import OPTIMIZERS, check_arguments, check_optimizer
from trainers.optimization.muon import left_to_adamw
from zoo import keras_internals
from zoo.errors import UsageError, compiled, short

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
      muon: arguments of `trainers.optimization.muon.left_to_adamw`; None for another optimizer.
    """

    exclude: str = ""
    slow: str = ""
    slow_rate: float = 0.1
    muon: Mapping | None = None


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
      models: what the variables are a part of, for Muon; see
        `trainers.optimization.muon.left_to_adamw`.

    Returns:
      Paths of the variables that weight decay leaves alone.

    Raises:
      UsageError: for what is no regular expression.
    """
    optimizer = inner(optimizer)
    if rules.muon is not None:
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
    step = optimizer.update_step

    def update_step(gradient, variable, learning_rate):
        path = variables[keras_internals.variable_index(optimizer, variable)].path
        if path in decays:
            learning_rate = learning_rate * rate
            if decays[path]:
                optimizer.assign_sub(variable, variable * decays[path] * learning_rate)
        step(gradient, variable, learning_rate)

    optimizer.update_step = update_step
