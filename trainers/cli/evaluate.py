"""zoo evaluate WORKDIR [--split=test] [--checkpoint=final|best] [--json]: metrics of a split."""

import json
import sys

from absl import flags

from trainers.cli.common import checkpoint_flag, json_flag, modules_flag, parse, run, shown
from trainers.start import start_tensorflow
from zoo.errors import UsageError, near_names

_FLAGS = flags.FlagValues()
_SPLIT = flags.DEFINE_string("split", "test", "Split of the data set.", flag_values=_FLAGS)
_CHECKPOINT = checkpoint_flag(_FLAGS)
_JSON = json_flag(_FLAGS)
_IMPORT = modules_flag(_FLAGS)


def command(argv) -> int:
    """Evaluates."""
    words, _ = parse(_FLAGS, argv, __doc__, at_least=1, at_most=1, modules=_IMPORT)
    return evaluate(words[0], _SPLIT.value, _CHECKPOINT.value, _JSON.value)


def evaluate(workdir: str, split: str, checkpoint: str, as_json: bool) -> int:
    """Evaluates a work directory's model, prints the metrics and keeps them in it."""
    from trainers.workdir import (
        WorkDirectory,
        data_section,
        is_litert,
        model_path,
        read_config,
    )
    from zoo.registry import load_data

    # What needs no TensorFlow comes first: a wrong request is answered at once.
    saved = read_config(workdir)
    config = saved["config"]
    if checkpoint == "best" or not is_litert(saved):
        model_path(workdir, checkpoint)
    dataset = load_data(data_section(workdir, saved), config["task"])
    if split not in dataset.splits:
        raise UsageError(
            f"Data set {dataset.name!r} has no split {split!r}.{near_names(split, dataset.splits)} "
            f"It has: {', '.join(dataset.splits)}; give one by --split."
        )
    directory = WorkDirectory(workdir).open()
    try:
        metrics = _evaluate(directory, saved, dataset, split, checkpoint)
    finally:
        directory.close()
    if as_json:
        print(json.dumps({"split": split, "checkpoint": checkpoint, "metrics": metrics}))
    else:
        print(shown(metrics))
    return 0


def _evaluate(directory, saved, dataset, split: str, checkpoint: str) -> dict[str, float]:
    start_tensorflow()
    import tensorflow as tf

    from trainers.evaluate import Evaluator, write_evaluation
    from trainers.workdir import is_litert, load_model, read_metrics
    from zoo import registry
    from zoo.data.disk import read_object

    whole = True
    if is_litert(saved):
        from trainers.compress.subject import load

        found = load(directory.path, dataset)
        model, task, whole = found.measured(), found.task, found.makes_whole_samples
    else:
        model = load_model(directory.path, checkpoint)
        task_arguments = dict(saved["config"]["task"])
        task = registry.build_task(task_arguments.pop("name"), **task_arguments)
        task.complete(saved["config"]["model"], dataset)
        task.check(model, dataset)
    # A teacher's sentences, which make other data of the training split alone, are not made anew.
    taught = saved["config"].get("compress", {}).get("distill", {}).get("sentences")
    if dataset.fingerprint != saved["data_fingerprint"] and not taught:
        print(f"zoo: {dataset.name!r} holds other data than in training.", file=sys.stderr)
    trainer = saved["config"]["trainer"]
    batch_size = trainer.get("micro_batch_size") or trainer["global_batch_size"]
    strategy = tf.distribute.get_strategy()
    evaluator = Evaluator(model, task, dataset.splits[split], batch_size, strategy)
    metrics, predictions = evaluator()
    found, samples = task.whole_split(model, dataset, split) if whole else ({}, [])
    metrics |= found
    if checkpoint == "best":
        step = read_object(directory / "best" / "metrics.json", step=int)["step"]
    else:
        lines = read_metrics(directory.path)
        step = max((line.get("step", 0) for line in lines), default=0)
    write_evaluation(
        directory, split, checkpoint, step, metrics, predictions, dataset, samples,
        None if is_litert(saved) else model,
    )  # fmt: skip
    return metrics


if __name__ == "__main__":
    sys.exit(run(command))
