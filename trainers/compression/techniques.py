"""The compression techniques, in the order in which they take effect."""

from trainers.compression.cluster import Cluster
from trainers.compression.distill import Distill
from trainers.compression.low_rank import LowRankKernels
from trainers.compression.prune import Prune
from trainers.compression.qat import QuantizationAwareTraining
from trainers.compression.structured import StructuredPruning
from trainers.config.base import section
from trainers.config.compress import check_training

TECHNIQUES = (
    StructuredPruning(), LowRankKernels(), Prune(), Cluster(), QuantizationAwareTraining(),
    Distill(),
)  # fmt: skip


def resolve(config, workdir, dataset=None):
    """Writes values computed from weights into a config; see `Technique.resolve`."""
    for technique in TECHNIQUES:
        dataset = technique.resolve(config, workdir, dataset)
    return dataset


def change_model(model, config):
    """Returns the model that a recipe trains; see `Technique.change_model`."""
    for technique in TECHNIQUES:
        model = technique.change_model(model, section(config, "compress"))
    return model


def wrap_task(task, model, config, dataset=None):
    """Returns the task that a recipe trains; see `Technique.wrap_task`."""
    for technique in TECHNIQUES:
        task = technique.wrap_task(task, model, config, dataset)
    return task


def compressors(step, config, total_steps: int) -> tuple:
    """Returns the `Compressor`s of a recipe in order; see `Technique.compressor`."""
    settings = section(config, "compress")
    check_training(settings)
    candidates = (t.compressor(step, settings, total_steps) for t in TECHNIQUES)
    return tuple(filter(None, candidates))


def initial_values(model, source, config) -> dict:
    """Returns variable path -> initial value of a run; see `Technique.initial_values`."""
    settings = section(config, "compress")
    values = [technique.initial_values(model, source, settings) for technique in TECHNIQUES]
    return {path: value for technique_values in values for path, value in technique_values.items()}
