"""zoo train RECIPE[:VARIANT] --workdir=D [--strategy=S] [--dry_run] [--config.KEY=VALUE ...]

RECIPE is a name (`cnn_mnist`) or the path of your file (`./my_recipe.py`). Run the same command
again to resume. The Model Garden flags --model_dir, --mode and --params_override are supported.
"""

import sys
from pathlib import Path

from trainers.cli.common import LOG, TERMINATED, Flags, run, writes_files
from trainers.config.recipe import as_dict, list_recipes, resolve
from trainers.config.trainer import check_batch
from trainers.distributed.cluster import read_cluster
from trainers.run.workdir import WorkDirectory
from trainers.train import preflight
from zoo.errors import UsageError
from zoo.start import start_tensorflow

_FLAGS = Flags()
_CONFIG = _FLAGS.string("config", None, "Recipe; an alternative to the first argument.")
_WORKDIR = _FLAGS.string("workdir", None, "Work directory of the run.")
_MODEL_DIR = _FLAGS.string("model_dir", None, "Alias of --workdir.")
_STRATEGY = _FLAGS.string(
    "strategy", None, "trainer.strategy: one_device, mirrored, multi_worker, tpu or auto."
)
_TPU = _FLAGS.string(
    "tpu", None, "TPU of strategy tpu: local (default), the name of a TPU or grpc://HOST:PORT."
)
_WORKERS = _FLAGS.string(
    "workers", "", "All workers, HOST:PORT,HOST:PORT, the chief first; default: TF_CONFIG."
)
_INDEX = _FLAGS.integer("worker_index", None, "Index of this process in --workers.")
_MODE = _FLAGS.choice(
    "mode", "train_and_eval", ["train", "eval", "train_and_eval"],
    "train does not read the test split; eval only evaluates.",
)  # fmt: skip
_DRY_RUN = _FLAGS.boolean(
    "dry_run", False, "Check recipe, data and memory, print the plan, and train nothing."
)
_OVERRIDE = _FLAGS.strings(
    "params_override", [], "Overrides KEY=VALUE[,KEY=VALUE ...], like --config.KEY=VALUE."
)


@writes_files
def command(argv) -> int:
    """Runs `zoo train`; returns the exit status."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_most=1, overrides=True)
    if bool(words) == bool(_CONFIG.value):
        raise UsageError(
            "zoo train requires one recipe: `zoo train RECIPE` or --config=RECIPE. Known: "
            f"{', '.join(list_recipes())}; or a path that ends in .py."
        )
    if bool(_WORKDIR.value) == bool(_MODEL_DIR.value):
        raise UsageError("zoo train requires one work directory: --workdir=D.")
    workdir, source = _WORKDIR.value or _MODEL_DIR.value, _CONFIG.value or words[0]
    for text in _OVERRIDE.value:
        overrides += split_overrides(text)
    if _STRATEGY.value:
        overrides.append(("trainer.strategy", _STRATEGY.value))
    elif _TPU.value and "trainer.strategy" not in dict(overrides):
        overrides.append(("trainer.strategy", "tpu"))
    config = resolve(source, overrides)
    if not config.model.name:  # only then, because it imports Keras
        start_tensorflow()
        from trainers.train.source_model import complete

        config = complete(config)
    if _MODE.value == "eval":
        from trainers.cli.evaluate import evaluate

        if (Path(workdir) / "config.json").exists():
            preflight.check_workdir(config, workdir)
            start_tensorflow()
            from trainers.compression import techniques

            techniques.resolve(config, Path(workdir))
        WorkDirectory(workdir).check_recipe(as_dict(config))
        return evaluate(workdir, None, "final", as_json=False)

    is_multi_worker = config.trainer.strategy == "multi_worker"
    if not is_multi_worker and (_WORKERS.value or _INDEX.value is not None):
        raise UsageError(
            "--workers and --worker_index require --strategy=multi_worker. Received: strategy "
            f"{config.trainer.strategy}."
        )
    if _TPU.value and config.trainer.strategy != "tpu":
        raise UsageError(
            f"--tpu requires --strategy=tpu. Received: strategy {config.trainer.strategy}."
        )
    cluster = read_cluster(_WORKERS.value, _INDEX.value) if is_multi_worker else None
    if is_multi_worker:
        check_batch(config, len(cluster.workers))
    preflight.check_config(config)
    preflight.check_start(config, workdir)
    if _DRY_RUN.value:
        return _print_plan(config, workdir, len(cluster.workers) if cluster else 0)
    dataset = None
    if (
        not is_multi_worker
    ):  # several workers load the data together, so that every worker gets an error
        preflight.check_workdir(config, workdir)
        dataset = preflight.load_data(config)
    start_tensorflow()
    from trainers.train.loop import Terminated
    from trainers.train.trainer import Trainer

    read_test = _MODE.value == "train_and_eval"
    trainer = Trainer(
        config, workdir, source=source, dataset=dataset, read_test=read_test, cluster=cluster,
        tpu_name=_TPU.value or "local",
    )  # fmt: skip
    try:
        trainer.train()
    except Terminated as stop:
        LOG.warning(
            f"stopped by {stop} and saved at step {trainer.state.done}; run again to resume"
        )
        return TERMINATED
    if not trainer.group.chief:
        return 0
    print(trainer.result)
    if trainer.result.split == "training":
        LOG.warning(
            "the dataset has no test or validation split: the metrics are means over the last "
            "training updates. Set data.validation_size=N to hold out N training examples."
        )
    print(f"report: {trainer.workdir / 'report.html'}")
    return 0


def _print_plan(config, workdir: str, num_workers: int) -> int:
    """Prints what the run would do, after all checks that need no training."""
    preflight.check_same_recipe(config, workdir)
    dataset = preflight.load_data(config)
    start_tensorflow()
    import tensorflow as tf

    from trainers.train.plan import describe_run

    replicas = config.trainer.replicas or num_workers
    if not replicas and config.trainer.strategy != "one_device":
        replicas = len(tf.config.list_physical_devices("GPU"))
    for name, value in describe_run(config, dataset, workdir, replicas or 1).items():
        print(f"{name:16}{value}")
    return 0


def split_overrides(text: str) -> list[tuple[str, str]]:
    """Splits Model Garden's `a.b=1,c=(2,3)` into pairs; commas in brackets stay."""
    pairs, depth, start = [], 0, 0
    for i, letter in enumerate(text + ","):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            key, equals, value = text[start:i].partition("=")
            if not equals:
                raise UsageError(
                    f"--params_override must be KEY=VALUE,... Received: {text[start:i]!r}."
                )
            pairs.append((key, value))
            start = i + 1
    if start <= len(text):
        raise UsageError(f"--params_override must close all brackets. Received: {text[start:]!r}.")
    return pairs


if __name__ == "__main__":
    sys.exit(run(command))
