"""Compiles the train steps of all families for TPUs, on a machine without a TPU.

    python -m benchmarks.tpu_table [--topologies v5e:2x4 v6e:2x4] [--minutes=60] [--largest]
        [--recipes gpt_pydoc ...] [--models gpt2_base ...]

One row per recipe and topology goes to results/tpu_check.csv as soon as it is measured, small
recipes first. trainers/tpu_check/check.py explains the columns. --models compiles models of the
catalog (`all` for all of them) with their own arguments, smallest first, as `catalog:MODEL`.
"""

import argparse
import time

import ml_collections

from benchmarks.results_file import append
from trainers.config.base import base, optimizer
from trainers.config.recipe import resolve
from trainers.tpu_check.check import check
from zoo import registry
from zoo.errors import RunError, UsageError

SMALL = (
    "cnn_digits:debug", "vgg16_transfer:debug", "lstm_pydoc:debug", "gan_mnist:debug",
    "seq2seq_multi30k:debug", "bert_wiki:debug", "llama_wiki:debug", "gpt_pydoc:debug",
)  # fmt: skip
BASE = (
    "cnn_mnist", "vgg16_transfer:pretrain", "lstm_pydoc", "dcgan_mnist", "seq2seq_multi30k",
    "bert_wiki", "llama_wiki", "gpt_pydoc",
)  # fmt: skip
EXAMPLES = 64  # per update, over all cores
PREFIX = "catalog:"


def of_catalog(name: str) -> ml_collections.ConfigDict:
    """Returns a configuration for a model of the catalog: AdamW in mixed_bfloat16.

    The blocks of transformers are recomputed (`trainer.remat`). Sequences have the maximum length
    of the model, or 512 tokens if it has none.
    """
    entry, config = registry.entry(name), base()
    config.model = {"name": name, **registry.arguments(name)}
    config.task = {"name": entry.task, **entry.task_arguments}
    config.optimizer = optimizer("adamw", learning_rate=1e-4)
    config.trainer.update({"precision": "mixed_bfloat16", "global_batch_size": EXAMPLES})
    if entry.task == "clm":
        config.data.sequence_length = config.model.get("sequence_length", 512)
    if entry.family == "transfer":
        config.task.feature_views = 0  # the base runs in the step; features are not cached
    if registry.has_loader(entry.task) and entry.family != "lstm":
        config.trainer.remat = r"(block|encoder|decoder)_\d+"
    return config


def row(recipe: str, topology: str, largest: bool) -> dict:
    """Returns a row; its last column is the reason if the step does not compile."""
    start = time.perf_counter()
    try:
        model = recipe.removeprefix(PREFIX)
        config = resolve(recipe) if model == recipe else of_catalog(model)
        result, reason = check(config, topology, largest), ""
    except (RunError, UsageError) as error:
        result, reason = None, " ".join(str(error).split())
    program = result and result.program
    flops = program and program.flops
    return {
        "recipe": recipe,
        "topology": topology,
        "precision": result.precision if result else "",
        "parameters": result.parameters if result else "",
        "rows_a_core": result.rows if result else "",
        "micro_batches": result.micro_batches if result else "",
        "blocks": result.depth if result else "",
        "blocks_compiled": " ".join(map(str, result.depths)) if result else "",
        "compiles": bool(result),
        "fits": bool(result and result.fits),
        "peak_mib": _mib(program.peak) if result else "",
        "hbm_mib": _mib(result.usable) if result else "",
        "gflops": round(flops / 1e9, 3) if flops else "",
        "gbytes": round(program.bytes / 1e9, 3) if flops else "",
        "step_at_best_ms": round(result.roofline * 1e3, 4) if flops else "",
        "bound": result.bound if result else "",
        "largest_rows": result.largest_rows if result and largest else "",
        "largest_mib": _mib(result.largest_peak) if result and largest else "",
        "seconds": round(time.perf_counter() - start, 1),
        "reason": reason,
    }


def _mib(count: float) -> float:
    return round(count / 2**20, 1)


def main() -> None:
    """Compiles the recipes until the time limit passes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x4", "v6e:2x4"])
    parser.add_argument("--recipes", nargs="+")
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--largest", action="store_true")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    models = registry.list_models() if arguments.models == ["all"] else arguments.models
    models = sorted(models, key=lambda name: registry.entry(name).parameters)
    recipes = arguments.recipes or ([] if models else [*SMALL, *BASE])
    for recipe in [*recipes, *(PREFIX + name for name in models)]:
        for topology in arguments.topologies:
            if time.monotonic() > end:
                raise SystemExit("The time limit of --minutes passed.")
            result = row(recipe, topology, arguments.largest)
            append("tpu_check", [result])
            print(result, flush=True)


if __name__ == "__main__":
    main()
