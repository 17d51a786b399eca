"""What makes a model smaller, one file a method. What a recipe's section `compress` asks for."""

from trainers.compress.settings import check_trains, pruning
from zoo.errors import UsageError


def settle(config, workdir, dataset):
    """Writes into a recipe what of its section `compress` follows from weights and data.

    Returns the data, which a teacher may have changed.

    Args:
      config: a recipe; changed in place.
      workdir: the folder of the run, where one that was begun before has it.
      dataset: the run's data.
    """
    settle_weights(config, workdir, dataset)
    if config.compress.distill.teacher and config.compress.distill.sentences:
        from trainers.compress.teacher_files import taught_sentences

        dataset = taught_sentences(dataset, config.compress.distill.to_dict(), config)
    return dataset


def settle_weights(config, workdir, dataset=None) -> None:
    """The part of `settle` that follows from weights; of a run that was begun it takes no data."""
    from trainers.compress import low_rank, structured

    structured.settle(config, workdir)
    low_rank.settle(config, workdir, dataset)


def check_sizes(section) -> None:
    """Raises `UsageError` where sizes of layers would follow from weights, which are not read."""
    structured, low = section.structured, section.low_rank
    if (structured.sparsity or structured.keep) and not structured.widths:
        key, where = "structured", "widths"
    elif (low.energy or low.budget or low.sensitivity or low.keep) and not low.ranks:
        key, where = "low_rank", "ranks"
    else:
        return
    raise UsageError(
        f"compress.{key} chooses sizes by the weights' values, which are not read here: give "
        f"compress.{key}.{where}, as the config.json of a run has them."
    )


def changed(model, settings: dict):
    """Returns the model with the layers that compression asks for, before optimizers are made.

    Args:
      model: a built model; may be changed in place, or left for another.
      settings: the section `compress` of a recipe.
    """
    if settings["structured"]["widths"]:
        from trainers.compress import structured

        model = structured.rebuilt(model, settings["structured"]["widths"])
    if settings["low_rank"]["ranks"]:
        from trainers.compress.low_rank import rebuilt

        model = rebuilt(model, settings["low_rank"]["ranks"])
    if settings["qat"]["on"] or settings["cluster"]["number"]:
        _check_parts(model)
    if settings["cluster"]["number"]:
        from trainers.compress.cluster import cluster

        cluster(model, settings["cluster"]["number"])
    if settings["qat"]["on"]:
        from trainers.compress.qat import quantize

        quantize(model, settings["qat"]["decay"])
    return model


def _check_parts(model) -> None:
    from trainers.keras_internals import all_layers
    from zoo.layers.low_rank import LowRankReversibleEmbedding

    if any(isinstance(layer, LowRankReversibleEmbedding) for layer in all_layers(model)):
        raise UsageError(
            "An embedding that is a product and gives the logits too is neither rounded nor "
            "clustered: leave it out by compress.low_rank.pattern=block_."
        )


def taught(task, model, config, dataset=None):
    """Returns the task as a student learns it, where the recipe names a teacher.

    Args:
      task: the recipe's.
      model: the student, built.
      config: the recipe.
      dataset: the run's data, where there are some.
    """
    if not config.compress.distill.teacher:
        return task
    from trainers.compress.distill import distillation

    return distillation(task, model, config, dataset)


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
    check_trains(settings)
    found = []
    if settings["keep_zeros"]:
        from trainers.compress.prune import KeptZeros

        found.append(KeptZeros(step.net))
    elif settings["sparsity"] or settings["m_by_n"]:
        from trainers.compress.prune import Pruner

        found.append(Pruner(step.net, step.step, total_steps, **pruning(settings)))
    if settings["cluster"]["number"]:
        from trainers.compress.cluster import SetClusters

        found.append(SetClusters(step.net))
    if settings["qat"]["on"]:
        from trainers.compress.qat import FreshRanges

        found.append(FreshRanges(step.net))
    return tuple(found)
