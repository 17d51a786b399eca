"""Rules that need no model: checked before TensorFlow is loaded, which takes seconds.

The trainer checks all of them again, and those that need the model. Loads no TensorFlow.
"""

from collections.abc import Collection
from pathlib import Path

from trainers.config.recipe import as_dict, check_batch, check_examples, check_tpu
from trainers.optimization.precision import check_precision
from trainers.run.workdir import WorkDirectory, read_config
from trainers.train.callbacks import check_callbacks
from zoo import registry
from zoo.data.arrays import pictures
from zoo.data.datasets import FOLDER, TFDS
from zoo.errors import UsageError, compiled
from zoo.saved.workdir import model_path


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
    for key in ("trainer.remat", "compress.pattern", "optimizer.slow", "optimizer.exclude"):
        section, _, name = key.partition(".")
        compiled(key, config[section].get(name, ""))
    for name in ("structured", "low_rank"):
        compiled(f"compress.{name}.pattern", config.compress[name].pattern)
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


def check_start(config, workdir: str | Path) -> None:
    """Raises `UsageError` where a new run is to start from a path that does not exist."""
    start = config.init_from
    begun = (Path(workdir) / "config.json").exists()  # what it started from may be gone
    if start and not begun and ":" not in start and not Path(start).exists():
        raise UsageError(
            "init_from is a work directory or a .keras file, or a folder of transformers, or "
            f"keras_hub:PRESET. There is no {start}."
        )


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
    if arrays := dataset.splits.get("train"):
        check_examples(arrays, config.trainer.global_batch_size)
    return dataset


def _build_task(config):
    arguments = config.task.to_dict()
    return registry.build_task(arguments.pop("name"), **arguments)


def _check_source(data, arguments: dict) -> None:
    """Compares sizes before any image is decoded."""
    shape, size = tuple(arguments.get("input_shape") or ()), tuple(data.image_size)
    if not data.source.startswith((FOLDER, TFDS)) or not size:
        return
    given = pictures.shape_of(size)
    if shape and given != shape:
        raise UsageError(
            f"data.image_size gives images of shape {given}, and the model takes {shape}: set "
            f"model.input_shape={_words(given)} or data.image_size={_words(shape)}."
        )
    classes = arguments.get("num_classes")
    if data.source.startswith(FOLDER) and classes:
        root = Path(data.source.removeprefix(FOLDER)).expanduser()
        _, names, _ = pictures.scan(root)
        if len(names) != classes:
            raise UsageError(
                f"The model has {classes} classes. Data set {data.source!r} has {len(names)} "
                f"({', '.join(names[:3])}{' …' * (len(names) > 3)}); set "
                f"model.num_classes={len(names)}."
            )


def _words(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
