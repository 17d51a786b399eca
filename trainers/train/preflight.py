"""Rules that need no model: checked before TensorFlow is loaded, which takes seconds.

The trainer checks all of them again, and those that need the model. Loads no TensorFlow.
"""

from collections.abc import Collection
from pathlib import Path

from trainers.config.choices import check_arguments
from trainers.config.compress_rules import check_run, check_section, check_source
from trainers.config.recipe import as_dict, check_batch, check_examples, check_tpu
from trainers.optimization.precision import check_precision
from trainers.optimization.schedules import check_phases, total_steps
from trainers.run.workdir import WorkDirectory, read_config
from trainers.train.callbacks import check_callbacks
from zoo import registry
from zoo.data.arrays import images
from zoo.data.datasets import FOLDER, TFDS
from zoo.data.hold_out import with_hold_out
from zoo.errors import UsageError, compiled
from zoo.saved.workdir import check_init_from, model_path


def check_config(config, coming: Collection[Path] = ()) -> None:
    """Checks names, paths and sizes of a resolved recipe.

    Args:
      config: the recipe.
      coming: work directories that earlier stages of a chain have yet to make.

    Raises:
      UsageError: where a value is wrong or a path is missing.
    """
    registry.entry(config.model.name)
    check_precision(config.trainer.precision)
    check_callbacks(config.trainer.callbacks)
    for key in ("trainer.remat", "compress.pattern"):
        section, _, name = key.partition(".")
        compiled(key, config[section][name])
    for name in ("structured", "low_rank"):
        compiled(f"compress.{name}.pattern", config.compress[name].pattern)
    check_section(config.compress)
    optimizer = config.optimizer.to_dict()
    check_arguments(optimizer.pop("name"), optimizer)
    trainer = config.trainer
    if trainer.strategy == "tpu":
        check_tpu(config)
    if trainer.strategy == "one_device" and trainer.replicas > 1:
        raise UsageError(
            f"Strategy one_device has one replica. Received: trainer.replicas={trainer.replicas}; "
            "use --strategy=mirrored."
        )
    if replicas := 1 if trainer.strategy == "one_device" else trainer.replicas:
        check_batch(config, replicas)
    weights = config.model.get("weights", "none")
    named = not isinstance(weights, str) or weights in ("", "none", "imagenet")
    if not named and not Path(weights).exists():
        raise UsageError(
            "model.weights is none, imagenet, or a path that exists. Received: "
            f"model.weights={weights}."
        )
    teacher = config.compress.distill.teacher
    if teacher and Path(teacher) not in coming:
        model_path(teacher)
    _build_task(config)


def check_workdir(config, workdir: str | Path) -> None:
    """Checks that a run can work in a folder: it is writable, free, and of the same recipe.

    Raises:
      UsageError: where it was made with another recipe, or is no folder.
      RunError: where another process works in it, or it cannot be written.
    """
    directory = WorkDirectory(workdir)
    if directory.is_remote:
        return  # a copy that belongs to the run
    if (directory / "config.json").exists():
        wanted, saved = as_dict(config), read_config(workdir)["config"]
        # Sizes that follow from weights are filled in by the trainer.
        for method, key in (("structured", "widths"), ("low_rank", "ranks")):
            wanted["compress"][method][key] = saved["compress"][method][key]
        directory.check_recipe(wanted)
    directory.open().close()


def check_start(config, workdir: str | Path, coming: Collection[Path] = ()) -> None:
    """Checks that what a new run starts from is there.

    Args:
      config: the recipe.
      workdir: the folder of the run.
      coming: work directories that earlier stages of a chain have yet to make.

    Raises:
      UsageError: where a path does not exist, or sizes follow from weights and none are given.
    """
    start = config.init_from
    begun = (Path(workdir) / "config.json").exists()  # what it started from may be gone
    check_source(config, begun)
    if start and not begun and "://" not in start and Path(start) not in coming:
        check_init_from(start)


def load_data(config):
    """Loads the data of a recipe, and compares it with what the recipe says of the model.

    Returns:
      A `zoo.data.Dataset`.

    Raises:
      UsageError: where the two do not fit.
      RunError: where the data is missing or damaged.
    """
    arguments = {**registry.entry(config.model.name).arguments, **config.model.to_dict()}
    _check_source(config.data, arguments)
    dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
    task = _build_task(config)
    arguments = task.complete(arguments, dataset)
    task.check_arguments(arguments, dataset)
    check_length(config, dataset)
    return dataset


def check_length(config, dataset) -> None:
    """Checks what depends on the number of training examples, and on their classes.

    Args:
      config: the recipe.
      dataset: its `zoo.data.Dataset`.

    Raises:
      UsageError: where examples cannot be held out, or batches, a schedule or a compression do not
        fit the examples that are left.
    """
    dataset, _ = with_hold_out(dataset, config.data.validation_size)
    _build_task(config).remarks(dataset)
    arrays = dataset.splits["train"]
    check_examples(arrays, config.trainer.global_batch_size)
    steps = total_steps(config.trainer, len(next(iter(arrays.values()))))
    schedule = config.schedule.to_dict()
    check_phases(schedule.pop("name"), steps, **schedule)
    check_run(config, steps)


def _build_task(config):
    arguments = config.task.to_dict()
    return registry.build_task(arguments.pop("name"), **arguments)


def _check_source(data, arguments: dict) -> None:
    """Compares sizes before any image is decoded."""
    shape, size = tuple(arguments.get("input_shape") or ()), tuple(data.image_size)
    if not data.source.startswith((FOLDER, TFDS)) or not size:
        return
    given = images.shape_of(size)
    if shape and given != shape:
        raise UsageError(
            f"data.image_size gives images of shape {given}, and the model takes {shape}: set "
            f"model.input_shape={_words(given)} or data.image_size={_words(shape)}."
        )
    classes = arguments.get("num_classes")
    if data.source.startswith(FOLDER) and classes:
        root = Path(data.source.removeprefix(FOLDER)).expanduser()
        _, names, _ = images.scan(root)
        if len(names) != classes:
            raise UsageError(
                f"The model has {classes} classes. Data set {data.source!r} has {len(names)} "
                f"({', '.join(names[:3])}{' …' * (len(names) > 3)}); set "
                f"model.num_classes={len(names)}."
            )


def _words(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
