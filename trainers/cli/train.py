"""zoo train RECIPE[:VARIANT] --workdir=D [--strategy=S] [--config.KEY=VALUE ...]

RECIPE is a name (`cnn_mnist`) or a path to your own file (`./my_recipe.py`). Run the same command
again to resume. The flags of Model Garden work: --model_dir, --mode, --params_override.
"""

import sys
from pathlib import Path

from absl import flags

from trainers.cli.common import TERMINATED, leaves_files, modules_flag, parse, run
from trainers.config.recipe import as_dict, list_recipes, resolve
from trainers.config.trainer import check_batch
from trainers.distributed.cluster import read_cluster
from trainers.run.workdir import WorkDirectory
from trainers.train import preflight
from zoo.errors import UsageError
from zoo.start import start_tensorflow

_FLAGS = flags.FlagValues()
_CONFIG = flags.DEFINE_string(
    "config", None, "The recipe, instead of the first word.", flag_values=_FLAGS
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that everything is written to.", flag_values=_FLAGS
)
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "The same as --workdir.", flag_values=_FLAGS)
_STRATEGY = flags.DEFINE_string(
    "strategy",
    None,
    "trainer.strategy: one_device, mirrored, multi_worker, tpu or auto.",
    flag_values=_FLAGS,
)
_TPU = flags.DEFINE_string(
    "tpu", None, "The TPU of strategy tpu: local (default), a TPU's name or grpc://HOST:PORT.",
    flag_values=_FLAGS,
)  # fmt: skip
_WORKERS = flags.DEFINE_string(
    "workers", "", "HOST:PORT,HOST:PORT of multi_worker, the chief first; default: TF_CONFIG.",
    flag_values=_FLAGS,
)  # fmt: skip
_INDEX = flags.DEFINE_integer(
    "worker_index", None, "Index of this process in --workers.", flag_values=_FLAGS
)
_MODE = flags.DEFINE_enum(
    "mode", "train_and_eval", ["train", "eval", "train_and_eval"],
    "train does not read the test split; eval only evaluates.", flag_values=_FLAGS,
)  # fmt: skip
_OVERRIDE = flags.DEFINE_multi_string(
    "params_override", [], "KEY=VALUE[,KEY=VALUE ...], like --config.KEY=VALUE.", flag_values=_FLAGS
)
_IMPORT = modules_flag(_FLAGS)


@leaves_files
def command(argv) -> int:
    """Trains."""
    words, overrides = parse(_FLAGS, argv, __doc__, at_most=1, overrides=True, modules=_IMPORT)
    if bool(words) == bool(_CONFIG.value):
        raise UsageError(
            "Give one recipe: `zoo train RECIPE`, or --config=RECIPE. Known: "
            f"{', '.join(list_recipes())}; or a path that ends in .py."
        )
    if bool(_WORKDIR.value) == bool(_MODEL_DIR.value):
        raise UsageError("Give one work directory: --workdir=D.")
    workdir, source = _WORKDIR.value or _MODEL_DIR.value, _CONFIG.value or words[0]
    for text in _OVERRIDE.value:
        overrides += split_overrides(text)
    if _STRATEGY.value:
        overrides.append(("trainer.strategy", _STRATEGY.value))
    elif _TPU.value and "trainer.strategy" not in dict(overrides):
        overrides.append(("trainer.strategy", "tpu"))
    config = resolve(source, overrides)
    if _MODE.value == "eval":
        from trainers.cli.evaluate import evaluate

        if (Path(workdir) / "config.json").exists():
            preflight.check_workdir(config, workdir)
            start_tensorflow()
            from trainers.compression import techniques

            techniques.resolve(config, Path(workdir))
        WorkDirectory(workdir).check_recipe(as_dict(config))
        return evaluate(workdir, None, "final", as_json=False)

    several = config.trainer.strategy == "multi_worker"
    if not several and (_WORKERS.value or _INDEX.value is not None):
        raise UsageError(
            "--workers and --worker_index belong to --strategy=multi_worker. Received: strategy "
            f"{config.trainer.strategy}."
        )
    if _TPU.value and config.trainer.strategy != "tpu":
        raise UsageError(
            f"--tpu belongs to --strategy=tpu. Received: strategy {config.trainer.strategy}."
        )
    cluster = read_cluster(_WORKERS.value, _INDEX.value) if several else None
    if several:
        check_batch(config, len(cluster.workers))
    preflight.check_config(config)
    preflight.check_start(config, workdir)
    dataset = None
    if not several:  # several workers load the data together, so that all hear of an error
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
        print(
            f"stopped by {stop} and saved at step {trainer.state.done}; run again to go on",
            file=sys.stderr,
        )
        return TERMINATED
    if not trainer.group.chief:
        return 0
    print(trainer.result)
    if trainer.result.split == "training":
        print(
            "zoo: there is no test or validation split: these are means over the last training "
            "updates. data.validation_size=N holds out N training examples.",
            file=sys.stderr,
        )
    print(f"report: {trainer.workdir / 'report.html'}")
    return 0


def split_overrides(text: str) -> list[tuple[str, str]]:
    """Splits Model Garden's `a.b=1,c=(2,3)` into pairs; commas in brackets stay."""
    pairs, depth, start = [], 0, 0
    for i, letter in enumerate(text + ","):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            key, equals, value = text[start:i].partition("=")
            if not equals:
                raise UsageError(f"--params_override is KEY=VALUE,... Received: {text[start:i]!r}.")
            pairs.append((key, value))
            start = i + 1
    if start <= len(text):
        raise UsageError(f"--params_override: a bracket stays open. Received: {text[start:]!r}.")
    return pairs


if __name__ == "__main__":
    sys.exit(run(command))
