"""zoo evaluate WORKDIR [--split=S] [--checkpoint=final|best] [--json]: metrics of a split.

--index=D interpolates a language model with the neighbors of an index (`zoo index`): share and
temperature are tuned on the validation split, and the other split is evaluated once with them. A
neighbor is never of the same document as the query, or of a near duplicate of it.

A model with looped blocks (looped_*) runs --loops=N loops instead of those of its recipe. With
--halt=EPS the loops of a position end once its state changes by less than EPS, relative to its
size; "saved_loops" is the share of loops that were not needed. These results are printed, not
stored for the report.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping

from trainers.cli.common import (
    LOG,
    RETRIEVAL,
    Flags,
    loop_flags,
    loop_options,
    require_extra,
    run,
)
from zoo.errors import UsageError, check_minimums, near_names
from zoo.start import start_tensorflow

_FLAGS = Flags()
_SPLIT = _FLAGS.string(
    "split", None, "Split of the dataset; default: test if the dataset has it, else validation."
)
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_LOOPS, _HALT = loop_flags(_FLAGS)
_JSON = _FLAGS.boolean("json", False, "Print JSON.")
_INDEX = _FLAGS.string("index", None, "Index of the model's states, written by `zoo index`.")
_NEIGHBORS = _FLAGS.integer("neighbors", 64, "With --index: number of neighbors of a token.")
_PROBES = _FLAGS.integer("probes", 32, "With --index: number of clusters that a search visits.")
_MAX_TOKENS = _FLAGS.integer("max_tokens", 0, "With --index: tokens per split; 0 for all.")


def command(argv) -> int:
    """Runs `zoo evaluate`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    loops = loop_options(_LOOPS, _HALT)
    if _INDEX.value is not None:
        if loops:
            raise UsageError("--index does not support --loops and --halt.")
        return _print(_evaluate_with_index(words[0]), _CHECKPOINT.value, _JSON.value)
    for flag in (_NEIGHBORS, _PROBES, _MAX_TOKENS):
        if flag.present:
            raise UsageError(f"--{flag.name} requires --index.")
    return evaluate(words[0], _SPLIT.value, _CHECKPOINT.value, _JSON.value, loops)


def evaluate(
    workdir: str, split: str | None, checkpoint: str, as_json: bool, loops: Mapping | None = None
) -> int:
    """Evaluates the model of a work directory, and prints and stores the metrics.

    Args:
      workdir: path of the work directory of a finished run.
      split: name of the split; None for test if the dataset has it, else validation.
      checkpoint: "final" or "best".
      as_json: whether to print JSON.
      loops: arguments of `zoo.models.looped.set_loops`; None for the recipe's loops.
    """
    from trainers.run.workdir import WorkDirectory, read_config
    from zoo.data.hold_out import evaluation_split, with_hold_out
    from zoo.registry import load_data
    from zoo.saved.workdir import data_section, is_litert, model_path

    # Checks without TensorFlow come first, so that a wrong request fails at once.
    saved_config = read_config(workdir)
    config = saved_config["config"]
    if checkpoint == "best" or not is_litert(saved_config):
        model_path(workdir, checkpoint)
    dataset = load_data(data_section(workdir, saved_config), config["task"])
    dataset, _ = with_hold_out(dataset, config["data"]["validation_size"])
    if split is None:
        split = evaluation_split(dataset.splits) or "test"
    if split not in dataset.splits:
        raise UsageError(
            f"Dataset {dataset.name!r} has no split {split!r}.{near_names(split, dataset.splits)} "
            f"Set --split to one of: {', '.join(dataset.splits)}."
        )
    directory = WorkDirectory(workdir).open()
    try:
        result = _evaluate(directory, saved_config, dataset, split, checkpoint, loops)
    finally:
        directory.close()
    return _print(result, checkpoint, as_json)


def _print(result, checkpoint: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({**dataclasses.asdict(result), "checkpoint": checkpoint}))
    else:
        print(result)
    return 0


def _evaluate_with_index(workdir: str):
    from trainers.run.workdir import WorkDirectory, read_config
    from zoo.saved.workdir import model_path

    require_extra("--index", "retrieval", RETRIEVAL)
    check_minimums("index", {"max_tokens": _MAX_TOKENS.value})
    saved_config = read_config(workdir)
    model_path(workdir, _CHECKPOINT.value)
    start_tensorflow()
    from trainers.evaluation.with_index import evaluate_with_index
    from zoo.retrieval.index import Index

    index = Index(_INDEX.value)
    directory = WorkDirectory(workdir).open()
    try:
        return evaluate_with_index(
            workdir, saved_config, index, _SPLIT.value, _CHECKPOINT.value, _NEIGHBORS.value,
            _PROBES.value, _MAX_TOKENS.value,
        )  # fmt: skip
    finally:
        directory.close()


def _evaluate(directory, saved_config, dataset, split: str, checkpoint: str, loops: Mapping | None):
    start_tensorflow()
    import tensorflow as tf

    from trainers.evaluation.evaluate import Evaluator, Result, weights_name, write_evaluation
    from trainers.run.workdir import read_metrics
    from zoo import registry
    from zoo.models.looped import set_loops
    from zoo.saved.model import load_model
    from zoo.saved.workdir import is_litert
    from zoo.storage.disk import read_object

    evaluates_whole_split = True
    if is_litert(saved_config):
        from trainers.compress_jobs.loaded_run import load

        loaded_run = load(directory.path, dataset)
        model, task, evaluates_whole_split = (
            loaded_run.model_to_evaluate(),
            loaded_run.task,
            loaded_run.supports_whole_split,
        )
    else:
        model = load_model(directory.path, checkpoint)
        if loops:
            set_loops(model, **loops)
        task = registry.build_task(**saved_config["config"]["task"])
        task.bind(model, dataset, saved_config["config"]["model"])
        task.check(model, dataset)
    # `compress.distill.sentences` changed only the training split; it is not computed again.
    uses_teacher_sentences = (
        saved_config["config"].get("compress", {}).get("distill", {}).get("sentences")
    )
    if dataset.fingerprint != saved_config["data_fingerprint"] and not uses_teacher_sentences:
        LOG.warning(f"{dataset.name!r} contains other data than in training.")
    trainer = saved_config["config"]["trainer"]
    batch_size = trainer.get("micro_batch_size") or trainer["global_batch_size"]
    strategy = tf.distribute.get_strategy()
    evaluator = Evaluator(model, task, dataset.splits[split], batch_size, strategy)
    metrics, predictions = evaluator()
    split_metrics, samples = (
        task.evaluate_split(model, dataset, split) if evaluates_whole_split else ({}, [])
    )
    metrics |= split_metrics
    if checkpoint == "best":
        step = read_object(directory / "best" / "metrics.json", step=int)["step"]
    else:
        lines = read_metrics(directory.path)
        step = max((line.get("step", 0) for line in lines), default=0)
    result = Result(split, weights_name(checkpoint, saved_config["config"]), step, metrics)
    if loops:
        return result
    write_evaluation(
        directory, result, checkpoint, predictions, dataset, samples,
        None if is_litert(saved_config) else model,
    )  # fmt: skip
    return result


if __name__ == "__main__":
    sys.exit(run(command))
