"""Optimizers by name: Keras' own, with weight decay kept off biases and norms.

The table of names and arguments loads no Keras, so that recipes can be read without it.
"""

import re

from zoo.errors import UsageError, near_names

_COMMON = {"learning_rate": 1e-3, "clip_norm": 0.0}
# Weight decay leaves alone what these match: a variable's path, e.g. "block_1/norm/scale".
_DECAY = {
    "weight_decay": 0.0,
    "weight_decay_exclude": r"(^|/)(bias|gamma|beta|scale|.*norm[^/]*/[^/]+)$",
}
OPTIMIZERS: dict[str, dict] = {
    "sgd": {**_COMMON, **_DECAY, "momentum": 0.9, "nesterov": False},
    "adam": {**_COMMON, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "adamw": {**_COMMON, **_DECAY, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    "lion": {**_COMMON, **_DECAY, "beta_1": 0.9, "beta_2": 0.99},
    "adafactor": {**_COMMON, **_DECAY, "beta_2_decay": -0.8, "relative_step": False},
    "muon": {**_COMMON, **_DECAY, "momentum": 0.95, "exclude_embeddings": True},
}
_CLASSES = {
    "sgd": "SGD", "adam": "Adam", "adamw": "AdamW",
    "lion": "Lion", "adafactor": "Adafactor", "muon": "Muon",
}  # fmt: skip


def check_optimizer(name: str) -> None:
    """Raises `UsageError` for an unknown optimizer."""
    if name not in OPTIMIZERS:
        raise UsageError(
            f"No optimizer is named {name!r}.{near_names(name, OPTIMIZERS)} "
            f"Known: {', '.join(OPTIMIZERS)}."
        )


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
      `(optimizer, exclude)`: the second is the regular expression of `exclude_from_decay`.
    """
    import keras

    check_optimizer(name)
    arguments = {**OPTIMIZERS[name], **arguments}
    arguments.pop("learning_rate")
    clip_norm = arguments.pop("clip_norm")
    exclude = arguments.pop("weight_decay_exclude", "")
    if not arguments.get("weight_decay", 0.0) and name != "adamw":  # AdamW wants a number
        arguments["weight_decay"] = None
    if name == "muon":
        arguments["adam_weight_decay"] = arguments["weight_decay"]
    optimizer = getattr(keras.optimizers, _CLASSES[name])(
        learning_rate=schedule,
        global_clipnorm=clip_norm or None,
        use_ema=bool(ema),
        ema_momentum=ema or 0.99,
        **arguments,
    )
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer, exclude


def inner(optimizer):
    """Returns the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def exclude_from_decay(optimizer, variables, pattern: str) -> list[str]:
    """Keeps weight decay off the variables whose path matches; returns their paths.

    Keras matches names ("bias"), which cannot tell a norm's scale from another's; paths can.
    """
    if not pattern or not inner(optimizer).weight_decay:
        return []
    try:
        excluded = [v for v in variables if re.search(pattern, v.path)]
    except re.error as error:
        raise UsageError(
            "optimizer.weight_decay_exclude is a regular expression. "
            f"Received: {pattern!r} ({error})."
        ) from None
    inner(optimizer).exclude_from_weight_decay(var_list=excluded)
    return [v.path for v in excluded]
