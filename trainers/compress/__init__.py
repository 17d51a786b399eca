"""What makes a model smaller, one file a method. What a recipe's section `compress` asks for."""

from zoo.errors import UsageError


def changed(model, settings: dict):
    """Returns the model with the layers that compression asks for, before optimizers are made.

    Args:
      model: a built model; may be changed in place.
      settings: the section `compress` of a recipe.
    """
    return model


def compressors(step, settings: dict, total_steps: int) -> tuple:
    """Returns what changes a step's weights after each update, in order.

    Each has `begin()`, called once the weights are there that a run starts from; `update()`, called
    in a replica after the optimizer; `restore()`, called after other weights were put into the
    model; and `variables`, which a checkpoint keeps.

    Args:
      step: a `trainers.step.TrainStep`.
      settings: the section `compress` of a recipe.
      total_steps: updates of the whole run.
    """
    if settings["ptq"]["format"]:
        raise UsageError("compress.ptq is of `zoo compress ptq WORKDIR`, which does not train.")
    found = []
    if settings["keep_zeros"]:
        from trainers.compress.prune import KeptZeros

        found.append(KeptZeros(step.net))
    elif settings["sparsity"] or settings["m_by_n"]:
        from trainers.compress.prune import Pruner

        found.append(Pruner(step.net, step.step, total_steps, **_pruning(settings)))
    return tuple(found)


def _pruning(settings: dict) -> dict:
    """The keys of pruning stand in the section itself; other methods have sections in it."""
    return {
        key: value
        for key, value in settings.items()
        if key != "keep_zeros" and not isinstance(value, dict)
    }
