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
from zoo.models.adapter import Adapter

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
      layer_decay: factor of the learning rate from each transformer block to the one below it.
      frozen_steps: number of updates during which only what is above the last block trains.
      muon: arguments of `trainers.optimization.muon.variables_for_adamw`, or None.
    """

    exclude: str = ""
    slow: str = ""
    slow_rate: float = 0.1
    layer_decay: float = 1.0
    frozen_steps: int = 0
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
        arguments.pop("layer_decay"),
        arguments.pop("frozen_steps"),
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
    """Excludes variables from weight decay, and lowers or delays the training of others.

    Keras matches variable names ("bias"), which cannot tell the scale of a norm from other scales;
    paths can.

    Args:
      optimizer: an optimizer that is not built yet.
      variables: the variables that it will train.
      rules: rules that `make_optimizer` returned.
      models: the models that hold the variables, for Muon and for `layer_decay`; see
        `trainers.optimization.muon.variables_for_adamw`.

    Raises:
      UsageError: for an invalid regular expression, or a model without blocks for `layer_decay` or
        `frozen_steps`.
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
    factors = {v.path: rules.slow_rate for v in _matching("slow", rules.slow, variables)}
    frozen = set()
    if rules.layer_decay < 1 or rules.frozen_steps:
        for path, blocks in blocks_above(models[-1], variables).items():
            factors[path] = factors.get(path, 1.0) * rules.layer_decay**blocks
            if blocks and rules.frozen_steps:
                frozen.add(path)
    if not factors:
        if excluded_variables:
            optimizer.exclude_from_weight_decay(var_list=excluded_variables)
        return
    if decay:
        # Keras decays by the one learning rate, so `_change_rates` decays these variables.
        changed_variables = [v for v in variables if v.path in factors]
        optimizer.exclude_from_weight_decay(var_list=[*excluded_variables, *changed_variables])
    without_decay = {v.path for v in excluded_variables}
    decays = {path: decay for path in factors if decay and path not in without_decay}
    _change_rates(optimizer, variables, factors, decays, frozen, rules.frozen_steps)


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


def _change_rates(
    optimizer, variables, factors: Mapping, decays: Mapping, frozen: set, frozen_steps: int
) -> None:
    """Multiplies the learning rate, also of weight decay, by a factor for each path in `factors`.

    Variables with paths in `frozen` do not change during the first `frozen_steps` updates.
    """
    step = optimizer.update_step

    def update_step(gradient, variable, learning_rate):
        path = variables[keras_internals.variable_index(optimizer, variable)].path
        if path in factors:
            learning_rate = learning_rate * factors[path]
        if path in frozen:
            is_trained = optimizer.iterations >= frozen_steps
            learning_rate = learning_rate * keras.ops.cast(is_trained, learning_rate.dtype)
        if path in decays:
            optimizer.assign_sub(variable, variable * decays[path] * learning_rate)
        step(gradient, variable, learning_rate)

    optimizer.update_step = update_step


def blocks_above(model, variables) -> dict[str, int]:
    """Returns the number of blocks from each variable's layer to the output, its own included.

    Blocks are transformer blocks and LSTMs. Layers above the last block have 0.

    Raises:
      UsageError: if the model has no such blocks.
    """
    stacks = Adapter(model).stacks.values()
    blocks = {id(block) for stack in stacks for block in stack}
    if not blocks:
        raise UsageError(
            "optimizer.layer_decay and optimizer.frozen_steps require a model with transformer "
            f"blocks or LSTMs. Received: {model.name!r}."
        )
    counts, above = {}, 0
    for layer in reversed(model.layers):
        above += id(layer) in blocks
        counts |= {variable.path: above for variable in layer.weights}
    return {v.path: counts.get(v.path, 0) for v in variables}
