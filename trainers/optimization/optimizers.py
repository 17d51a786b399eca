"""Makes Keras optimizers by name, without weight decay on biases and norms.

Their arguments and defaults are in `trainers.config.optimizer`.
"""

import dataclasses
import re
from collections.abc import Mapping

import keras

from trainers.config import optimizer as section
from trainers.config.optimizer import OPTIMIZERS
from trainers.optimization.muon import variables_for_adamw
from zoo import keras_internals
from zoo.errors import UsageError, check_name, compile_pattern, short

_CLASSES = {
    "sgd": "SGD", "adam": "Adam", "adamw": "AdamW",
    "lion": "Lion", "adafactor": "Adafactor", "muon": "Muon",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rules:
    """Per-variable overrides of weight decay and learning rate.

    Attributes:
      exclude: regular expression of the paths of variables without weight decay.
      slow: regular expression of the paths of variables with a lower learning rate.
      slow_rate: factor of the learning rate for `slow`.
      muon: arguments of `trainers.optimization.muon.variables_for_adamw`, or None.
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
      name: a key of `OPTIMIZERS`.
      schedule: learning-rate schedule, or a number.
      ema: momentum of the moving average of the weights; 0 for none.
      loss_scaling: whether to scale the loss dynamically, for mixed_float16.
      **arguments: see `OPTIMIZERS[name]`. `clip_norm` clips by the global norm; 0 for none.

    Returns:
      `(optimizer, rules)`. Call `apply_rules` with both before the optimizer is built.
    """
    check_name("optimizer", name, OPTIMIZERS)
    arguments = {**OPTIMIZERS[name], **arguments}
    section.check(name, **arguments)
    clip_norm = arguments.pop("clip_norm")
    del arguments["learning_rate"]  # it is part of the schedule
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
    if not arguments.get("weight_decay", 0.0) and name != "adamw":  # AdamW requires a number
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
        raise UsageError(
            f"Keras rejects the arguments of optimizer {name!r}: {short(error)}"
        ) from None
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer, rules


def inner(optimizer):
    """Returns the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply_rules(optimizer, variables, rules: Rules, models=()) -> None:
    """Excludes variables from weight decay and lowers the learning rate of others.

    Keras matches variable names ("bias"), which cannot tell the scale of a norm from other scales;
    paths can.

    Args:
      optimizer: an optimizer that is not built yet.
      variables: the variables that it will train.
      rules: rules that `make_optimizer` returned.
      models: the models that hold the variables, for Muon; see
        `trainers.optimization.muon.variables_for_adamw`.

    Raises:
      UsageError: for an invalid regular expression.
    """
    optimizer = inner(optimizer)
    if rules.muon is not None:
        excluded_variables = variables_for_adamw(models, variables, **rules.muon)
        # Keras identifies embeddings by layer name; `exclude_layers` lists all of them already.
        optimizer.exclude_embeddings = False
        optimizer.exclude_layers = [f"^{re.escape(v.path)}$" for v in excluded_variables]
    decay = getattr(optimizer, "weight_decay", None)
    excluded_variables = (
        _matching("weight_decay_exclude", rules.exclude, variables) if decay else []
    )
    slow = _matching("slow", rules.slow, variables)
    if decay and (excluded_variables or slow):
        # Keras decays by the one learning rate, so `_slow_down` decays slow variables.
        optimizer.exclude_from_weight_decay(var_list=[*excluded_variables, *slow])
    if slow:
        without_decay = {id(v) for v in excluded_variables}
        decays = {v.path: decay if id(v) not in without_decay else 0.0 for v in slow}
        _slow_down(optimizer, variables, decays, rules.slow_rate)


def check_rules(variables, rules: Rules) -> None:
    """Raises `UsageError` if `rules.slow` matches no trainable variable."""
    if rules.slow and not _matching("slow", rules.slow, variables):
        raise UsageError(
            f"optimizer.slow must match a trainable variable. Received: {rules.slow!r}; the first "
            f"trainable variables are {', '.join(v.path for v in variables[:3])}."
        )


def _matching(key: str, pattern: str, variables) -> list:
    matches = compile_pattern(f"optimizer.{key}", pattern).search
    return [v for v in variables if pattern and matches(v.path)]


def _slow_down(optimizer, variables, decays: dict[str, float | None], rate: float) -> None:
    """Multiplies the learning rate, also of weight decay, by `rate` for the paths in `decays`."""
    step = optimizer.update_step

    def update_step(gradient, variable, learning_rate):
        path = variables[keras_internals.variable_index(optimizer, variable)].path
        if path in decays:
            learning_rate = learning_rate * rate
            if decays[path]:
                optimizer.assign_sub(variable, variable * decays[path] * learning_rate)
        step(gradient, variable, learning_rate)

    optimizer.update_step = update_step
