"""Checks that need no model and run before TensorFlow is loaded, which takes seconds.

`trainers.config.recipe.check` has checked the values of each section. The trainer repeats all
checks and adds those that need the model. Does not import TensorFlow.
"""

from collections.abc import Collection
from pathlib import Path

from trainers.config.base import section
from trainers.config.compress import check_run, check_source, check_training
from trainers.config.recipe import as_dict
from trainers.config.schedule import check_phases
from trainers.config.trainer import check_batch, check_examples
from trainers.optimization.schedules import total_steps
from trainers.run.workdir import WorkDirectory, read_config
from trainers.train.callbacks import check_callbacks
from zoo import registry
from zoo.data.arrays import images
from zoo.data.datasets import FOLDER, TFDS
from zoo.data.hold_out import with_hold_out
from zoo.errors import UsageError
from zoo.saved.workdir import check_init_from, model_path


def check_config(config, future_workdirs: Collection[Path] = ()) -> None:
    """Checks registered names, paths and batch sizes of a configuration for training.

    Args:
      config: a resolved configuration.
      future_workdirs: work directories that earlier stages of a chain will create.

    Raises:
      UsageError: for an unknown name, a wrong value or a missing path.
    """
    if not config.model.name:
        raise UsageError(
            'The command requires model.name. Received: "", which only `zoo train` '
            "with init_from supports."
        )
    registry.entry(config.model.name)
    check_callbacks(config.trainer.callbacks)
    check_training(section(config, "compress"))
    trainer = config.trainer
    if replicas := 1 if trainer.strategy == "one_device" else trainer.replicas:
        check_batch(config, replicas)
    weights = config.model.get("weights", "none")
    is_name = not isinstance(weights, str) or weights in ("", "none", "imagenet")
    if not is_name and not Path(weights).exists():
        raise UsageError(
            "model.weights must be none, imagenet, or a path that exists. Received: "
            f"model.weights={weights}."
        )
    teacher = section(config, "compress.distill").teacher
    if teacher and Path(teacher) not in future_workdirs:
        model_path(teacher)
    registry.build_task(**config.task.to_dict())


def check_workdir(config, workdir: str | Path) -> None:
    """Checks that a run can use a folder: it is writable, not in use, and of the same recipe.

    Raises:
      UsageError: if the folder was made with another recipe, or the path is not a folder.
      RunError: if another process uses the folder, or it cannot be written.
    """
    check_same_recipe(config, workdir)
    directory = WorkDirectory(workdir)
    if not directory.is_remote:  # its local copy belongs to the run
        directory.open().close()


def check_same_recipe(config, workdir: str | Path) -> None:
    """Raises `UsageError` if a folder was made with another recipe; writes nothing."""
    directory = WorkDirectory(workdir)
    if directory.is_remote or not (directory / "config.json").exists():
        return
    values, saved_config = as_dict(config), read_config(workdir)["config"]
    # The trainer has chosen these sizes from weights.
    for technique, key in (("structured", "widths"), ("low_rank", "ranks")):
        if technique in values.get("compress", {}):
            sizes = section(saved_config, f"compress.{technique}")[key]
            values["compress"][technique][key] = list(sizes)
    directory.check_recipe(values)


def check_start(config, workdir: str | Path, future_workdirs: Collection[Path] = ()) -> None:
    """Checks that the initial weights of a new run exist.

    Args:
      config: a resolved configuration.
      workdir: the folder of the run.
      future_workdirs: work directories that earlier stages of a chain will create.

    Raises:
      UsageError: if a path does not exist, or sizes are chosen by weights and init_from is empty.
    """
    start = config.init_from
    is_resumed = (Path(workdir) / "config.json").exists()
    if not is_resumed:
        check_source(section(config, "compress"), start)
    # A resumed run needs its initial weights only if the checkpoints leave out frozen ones.
    needs_source = not is_resumed or section(config, "lora").rank
    if start and needs_source and "://" not in start and Path(start) not in future_workdirs:
        check_init_from(start)


def load_data(config):
    """Loads the data of a configuration and checks that the model matches the data.

    Returns:
      A `zoo.data.Dataset`.

    Raises:
      UsageError: if data and model do not match.
      RunError: if the data is missing or damaged.
    """
    arguments = {**registry.entry(config.model.name).arguments, **config.model.to_dict()}
    _check_source(config.data, arguments)
    dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
    task = registry.build_task(**config.task.to_dict())
    arguments = task.complete(arguments, dataset)
    task.check_arguments(arguments, dataset)
    check_length(config, dataset)
    return dataset


def check_length(config, dataset) -> None:
    """Checks the rules that depend on the number and classes of training examples.

    Args:
      config: a resolved configuration.
      dataset: its `zoo.data.Dataset`.

    Raises:
      UsageError: if examples cannot be held out, or there are too few remaining examples for the
        batch size, schedule or compression.
    """
    dataset, _ = with_hold_out(dataset, config.data.validation_size)
    registry.build_task(**config.task.to_dict()).data_warnings(dataset)
    arrays = dataset.splits["train"]
    check_examples(arrays, config.trainer.global_batch_size)
    steps = total_steps(config.trainer, len(next(iter(arrays.values()))))
    schedule = config.schedule.to_dict()
    check_phases(schedule.pop("name"), steps, **schedule)
    check_run(section(config, "compress"), steps)


def _check_source(data, arguments: dict) -> None:
    """Checks image size and number of classes before any image is decoded."""
    shape, size = tuple(arguments.get("input_shape") or ()), tuple(data.image_size)
    if not data.source.startswith((FOLDER, TFDS)) or not size:
        return
    image_shape = images.shape_of(size)
    if shape and image_shape != shape:
        raise UsageError(
            "Images must have the input shape of the model. Received: images of shape "
            f"{image_shape} (data.image_size), model input of shape {shape}; set "
            f"model.input_shape={_join(image_shape)} or data.image_size={_join(shape)}."
        )
    classes = arguments.get("num_classes")
    if data.source.startswith(FOLDER) and classes:
        root = Path(data.source.removeprefix(FOLDER)).expanduser()
        _, names, _ = images.scan(root)
        if len(names) != classes:
            raise UsageError(
                "Model and dataset must have the same number of classes. Received: "
                f"model.num_classes={classes}, dataset {data.source!r} with {len(names)} classes "
                f"({', '.join(names[:3])}{' …' * (len(names) > 3)}); set "
                f"model.num_classes={len(names)}."
            )


def _join(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
