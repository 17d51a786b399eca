"""Describes a run before it starts: what would be trained, on what, and with how much memory."""

import psutil

from trainers.optimization.schedules import total_steps
from trainers.run.workdir import WorkDirectory
from zoo import registry
from zoo.data import pipeline
from zoo.data.hold_out import with_hold_out
from zoo.formatting import short_number

_FINISHED = ("model.keras", "model.tflite")


def describe_run(config, dataset, workdir, replicas: int) -> dict[str, str]:
    """Returns name -> value as text of what a run would do; trains and writes nothing.

    The memory is an estimate for float32, see `zoo.description.Description`.

    Args:
      config: resolved configuration.
      dataset: its `zoo.data.Dataset`.
      workdir: path of the work directory.
      replicas: number of devices that share the global batch.

    Raises:
      UsageError: if data and model do not match.
    """
    dataset, _ = with_hold_out(dataset, config.data.validation_size)
    counts = {name: len(next(iter(arrays.values()))) for name, arrays in dataset.splits.items()}
    trainer = config.trainer
    steps = total_steps(trainer, counts["train"])
    per_epoch = pipeline.steps_per_epoch(counts["train"], trainer.global_batch_size)
    rows = trainer.micro_batch_size or trainer.global_batch_size // replicas
    task = registry.build_task(**config.task.to_dict())
    arguments = task.complete(config.model.to_dict(), dataset)
    model = registry.describe(arguments.pop("name"), rows, **arguments)
    free = psutil.virtual_memory().available
    enough = "" if model.memory < free else "; MORE THAN IS FREE: lower trainer.micro_batch_size"
    return {
        "model": f"{model.name}, {model.parameters:,} parameters, {model.trainable:,} trainable",
        "task": config.task.name,
        "data": f"{config.data.source}: "
        + ", ".join(f"{count:,} {name}" for name, count in counts.items()),
        "updates": f"{steps:,}, {steps / per_epoch:.4g} epochs of {per_epoch:,}",
        "batch": f"{trainer.global_batch_size:,} examples per update on {replicas} "
        f"device{'s' * (replicas > 1)}, {rows:,} per forward pass",
        "optimizer": f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}, "
        f"schedule {config.schedule.name}",
        "precision": trainer.precision,
        "FLOPs": f"about {short_number(3.0 * model.flops * trainer.global_batch_size)} per update",
        "memory": f"about {model.memory / 2**20:,.0f} MiB per device, {free / 2**20:,.0f} MiB are "
        f"free on this machine{enough}",
        "work directory": f"{workdir}: {_state(WorkDirectory(workdir))}",
    }


def _state(directory: WorkDirectory) -> str:
    if directory.is_remote:
        return "remote"
    if any((directory / name).exists() for name in _FINISHED):
        return "finished; nothing would be trained"
    steps = [
        int(path.stem.removeprefix("step_"))
        for path in (directory / "checkpoints").glob("step_*.npz")
    ]
    return f"would resume at step {max(steps):,}" if steps else "a new run"
