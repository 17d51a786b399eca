"""Compiles the train steps of all families for TPUs, on a machine without one.

    python -m benchmarks.tpu_table [--topologies v5e:2x4 v6e:2x4] [--minutes=60] [--largest]
        [--recipes gpt_pydoc ...] [--models gpt2_base ...]

A row a recipe and topology goes to results/tpu_check.csv as soon as it is there: the small ones
first. What the columns are: trainers/tpu_check/check.py. With --models it is the catalog's models
by the arguments it has for them, named `catalog:MODEL`, smallest first; `all` stands for all.
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
EXAMPLES = 64  # of an update, over all cores
PREFIX = "catalog:"


def of_catalog(name: str) -> ml_collections.ConfigDict:
    """Returns a recipe for a model as the catalog has it: AdamW in mixed_bfloat16.

    The blocks of transformers are recomputed (`trainer.remat`). Text is as long as the model takes;
    where it takes any length, 512 tokens.
    """
    entry, config = registry.entry(name), base()
    config.model = {"name": name, **registry.arguments(name)}
    config.task = {"name": entry.task, **entry.task_arguments}
    config.optimizer = optimizer("adamw", learning_rate=1e-4)
    config.trainer.update({"precision": "mixed_bfloat16", "global_batch_size": EXAMPLES})
    if entry.task == "clm":
        config.data.sequence_length = config.model.get("sequence_length", 512)
    if entry.family == "transfer":
        config.task.feature_views = 0  # the base runs in the step, not once before it
    if registry.makes_data(entry.task) and entry.family != "lstm":
        config.trainer.remat = entry.remat
    return config


def row(recipe: str, topology: str, largest: bool) -> dict:
    """Returns a row; what does not compile has its reason in the last column."""
    start = time.perf_counter()
    try:
        model = recipe.removeprefix(PREFIX)
        config = resolve(recipe) if model == recipe else of_catalog(model)
        found, said = check(config, topology, largest), ""
    except (RunError, UsageError) as error:
        found, said = None, " ".join(str(error).split())
    program = found and found.program
    flops = program and program.flops
    return {
        "recipe": recipe,
        "topology": topology,
        "precision": found.precision if found else "",
        "parameters": found.parameters if found else "",
        "rows_a_core": found.rows if found else "",
        "micro_batches": found.micro_batches if found else "",
        "blocks": found.depth if found else "",
        "blocks_compiled": " ".join(map(str, found.depths)) if found else "",
        "compiles": bool(found),
        "fits": bool(found and found.fits),
        "peak_mib": _mib(program.peak) if found else "",
        "hbm_mib": _mib(found.usable) if found else "",
        "gflops": round(flops / 1e9, 3) if flops else "",
        "gbytes": round(program.bytes / 1e9, 3) if flops else "",
        "step_at_best_ms": round(found.roofline * 1e3, 4) if flops else "",
        "bound": found.bound if found else "",
        "largest_rows": found.largest_rows if found and largest else "",
        "largest_mib": _mib(found.largest_peak) if found and largest else "",
        "seconds": round(time.perf_counter() - start, 1),
        "said": said,
    }


def _mib(count: float) -> float:
    return round(count / 2**20, 1)


def main() -> None:
    """Measures as far as the time goes."""
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
                raise SystemExit("the time is over")
            found = row(recipe, topology, arguments.largest)
            append("tpu_check", [found])
            print(found, flush=True)


if __name__ == "__main__":
    main()
