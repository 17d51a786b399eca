"""What a recipe's section `compress` asks for, at the places of a run where it takes effect."""

from trainers.compression import low_rank, structured
from trainers.compression.cluster import SetClusters, cluster
from trainers.compression.distill import distillation
from trainers.compression.prune import KeptZeros, Pruner
from trainers.compression.teacher_files import with_teacher_sentences
from trainers.config.base import section
from trainers.config.compress import check_decay, check_training
from zoo.errors import UsageError
from zoo.keras_internals import all_layers
from zoo.layers.low_rank import LowRankReversibleEmbedding
from zoo.layers.rounding import FreshRanges, quantize


def resolve(config, workdir, dataset):
    """Writes into a recipe what of its section `compress` follows from weights and data.

    Returns the data, which a teacher may have changed.

    Args:
      config: a recipe; changed in place.
      workdir: the folder of the run, where one that was begun before has it.
      dataset: the run's data.
    """
    resolve_from_weights(config, workdir, dataset)
    distill = section(config, "compress.distill")
    if distill.teacher and distill.sentences:
        dataset = with_teacher_sentences(dataset, distill.to_dict(), config)
    return dataset


def resolve_from_weights(config, workdir, dataset=None) -> None:
    """The part of `resolve` that follows from weights; of a run that was begun it takes no data."""
    structured.resolve_from_weights(config, workdir)
    low_rank.resolve_from_weights(config, workdir, dataset)


def changed(model, settings: dict):
    """Returns the model with the layers that compression asks for, before optimizers are made.

    Args:
      model: a built model; may be changed in place, or left for another.
      settings: the section `compress` of a recipe.
    """
    if settings["structured"]["widths"]:
        model = structured.rebuilt(model, settings["structured"]["widths"])
    if settings["low_rank"]["ranks"]:
        model = low_rank.rebuilt(model, settings["low_rank"]["ranks"])
    if settings["qat"]["on"] or settings["cluster"]["number"]:
        _check_parts(model)
    if settings["cluster"]["number"]:
        cluster(model, settings["cluster"]["number"])
    if settings["qat"]["on"]:
        check_decay(settings["qat"]["decay"])
        quantize(model, settings["qat"]["decay"])
    return model


def _check_parts(model) -> None:
    if any(isinstance(layer, LowRankReversibleEmbedding) for layer in all_layers(model)):
        raise UsageError(
            "An embedding that is a product and gives the logits too is neither rounded nor "
            "clustered: leave it out by compress.low_rank.pattern=block_."
        )


def with_teacher(task, model, config, dataset=None):
    """Returns the task as a student learns it, where the recipe names a teacher.

    Args:
      task: the recipe's.
      model: the student, built.
      config: the recipe.
      dataset: the run's data, where there are some.
    """
    if not section(config, "compress.distill").teacher:
        return task
    return distillation(task, model, config, dataset)


def compressors(step, settings: dict, total_steps: int) -> tuple:
    """Returns what changes a step's weights after each update, in order.

    Each has `begin()`, called once the weights are there that a run starts from; `update()`, called
    in a replica after the optimizer; `restore()`, called after other weights were put into the
    model; and `variables`, which a checkpoint keeps.

    Args:
      step: a `trainers.train.step.TrainStep`.
      settings: the section `compress` of a recipe.
      total_steps: updates of the whole run.
    """
    check_training(settings)
    found = []
    prune = dict(settings["prune"])
    if prune.pop("keep_zeros"):
        found.append(KeptZeros(step.net))
    elif prune["sparsity"] or prune["m_by_n"]:
        found.append(Pruner(step.net, step.count, total_steps, **prune))
    if settings["cluster"]["number"]:
        found.append(SetClusters(step.net))
    if settings["qat"]["on"]:
        found.append(FreshRanges(step.net))
    return tuple(found)
