"""Compiles the train steps of all families for TPUs, on a machine without one.

    python -m benchmarks.tpu_table [--topologies v5e:2x4 v6e:2x4] [--minutes=60] [--largest]

A row a recipe and topology goes to results/tpu_check.csv as soon as it is there: the small ones
first. What the columns are: trainers/tpu_check/check.py.
"""

import argparse
import time

from benchmarks.results_file import append
from trainers.recipe import resolve
from trainers.tpu_check.check import check
from zoo.errors import RunError, UsageError

SMALL = (
    "cnn_digits:debug", "vgg16_transfer:debug", "lstm_pydoc:debug", "gan_mnist:debug",
    "seq2seq_multi30k:debug", "bert_wiki:debug", "llama_wiki:debug", "gpt_pydoc:debug",
)  # fmt: skip
BASE = (
    "cnn_mnist", "vgg16_transfer:pretrain", "lstm_pydoc", "dcgan_mnist", "seq2seq_multi30k",
    "bert_wiki", "llama_wiki", "gpt_pydoc",
)  # fmt: skip


def row(recipe: str, topology: str, largest: bool) -> dict:
    """Returns a row; what does not compile has its reason in the last column."""
    start = time.perf_counter()
    try:
        found, said = check(resolve(recipe), topology, largest), ""
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
    parser.add_argument("--recipes", nargs="+", default=[*SMALL, *BASE])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--largest", action="store_true")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    for recipe in arguments.recipes:
        for topology in arguments.topologies:
            if time.monotonic() > end:
                raise SystemExit("the time is over")
            found = row(recipe, topology, arguments.largest)
            append("tpu_check", [found])
            print(found, flush=True)


if __name__ == "__main__":
    main()
