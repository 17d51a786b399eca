"""zoo tune RECIPE rate|batch|sweep --workdir=D [--config.KEY=VALUE ...]

  rate   trains with a rising learning rate and suggests a peak
  batch  measures the largest micro-batch that fits, and the fastest one
  sweep  trains with many values: --search.optimizer.learning_rate=log:1e-4:1e-2 (others are
         float:LOW:HIGH, int:LOW:HIGH, choice:A,B); run again to continue, also in several processes

The test split is not read. Each result is a page in D.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.cli.common import LOG, TERMINATED, Flags, run, writes_files
from trainers.config.recipe import resolve
from trainers.train import preflight
from trainers.tuning import search
from zoo.errors import UsageError, check_name
from zoo.start import start_tensorflow
from zoo.storage.disk import atomic

_FLAGS = Flags()
_WORKDIR = _FLAGS.string("workdir", None, "Folder of the results.")
_LOWEST = _FLAGS.floating("lowest", 1e-6, "rate: first learning rate.")
_HIGHEST = _FLAGS.floating("highest", 1.0, "rate: last learning rate.")
_STEPS = _FLAGS.integer("steps", 100, "rate: number of updates.", lower_bound=1)
_LARGEST = _FLAGS.integer(
    "largest", 0, "batch: largest size to measure; 0 for the global batch size.", lower_bound=0
)
_SECONDS = _FLAGS.floating("seconds", 4.0, "batch: duration of each measurement.", lower_bound=0.1)
_MEMORY = _FLAGS.floating("memory", 0.0, "batch: usable GiB; 0 for what is free.", lower_bound=0)
_TRIALS = _FLAGS.integer("trials", 20, "sweep: number of trials of the study.", lower_bound=1)
_SAMPLER = _FLAGS.choice("sampler", "tpe", ["tpe", "random", "grid"], "sweep: choice of values.")
_PRUNER = _FLAGS.choice(
    "pruner", "median", ["median", "hyperband", "none"], "sweep: how bad trials are stopped."
)
_SEED = _FLAGS.integer("seed", 0, "sweep: random seed of the sampler.", lower_bound=0)
_BEST = _FLAGS.string("best", None, "sweep: recipe file to write with the best values.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")
_METHODS = ("rate", "batch", "sweep")


@writes_files
def command(argv: Sequence[str]) -> int:
    """Runs `zoo tune`; returns the exit status."""
    argv, pairs = _split_searches(argv)
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=2, at_most=2, overrides=True)
    source, method = words
    check_name("method of zoo tune", method, _METHODS)
    if pairs and method != "sweep":
        raise UsageError(f"--search requires zoo tune RECIPE sweep. Received: {method}.")
    if not _WORKDIR.value:
        raise UsageError("zoo tune requires a folder for its results: --workdir=D.")
    ranges = search.parse(pairs) if method == "sweep" else ()
    config = resolve(source, overrides)
    preflight.check_config(config)
    folder = Path(_WORKDIR.value)
    if method == "rate":
        return _rate(config, source, folder)
    if method == "batch":
        return _batch(config, folder)
    return _sweep(source, overrides, ranges, folder)


def _split_searches(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--search.KEY=RANGE` from the other arguments."""
    pairs, others = [], []
    for word in argv:
        if word.startswith("--search"):
            key, equals, text = word.removeprefix("--search.").partition("=")
            if not equals or not word.startswith("--search."):
                raise UsageError(f"A search must be --search.KEY=RANGE. Received: {word}.")
            pairs.append((key, text))
        else:
            others.append(word)
    return others, pairs


def _rate(config, source: str, folder: Path) -> int:
    dataset = preflight.load_data(config)
    start_tensorflow()
    from trainers.tuning.page import write_rate_page
    from trainers.tuning.rate import range_test

    result = range_test(
        config, folder / "rate", lowest=_LOWEST.value, highest=_HIGHEST.value, steps=_STEPS.value,
        source=source, dataset=dataset,
    )  # fmt: skip
    write_rate_page(result, folder / "rate.html", source)
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(result), indent=2))
        return 0
    end = "; the test ended when the loss grew" if result.diverged else ""
    print(f"steepest fall of the loss at {result.steepest:.2g}, lowest at {result.lowest:.2g}{end}")
    print(f"suggested: --config.optimizer.learning_rate={result.suggested:.2g}")
    print(f"page: {folder / 'rate.html'}")
    return 0


def _batch(config, folder: Path) -> int:
    start_tensorflow()
    from trainers.tuning.batch import find_batch

    result = find_batch(
        config, highest=_LARGEST.value, seconds=_SECONDS.value,
        limit=int(_MEMORY.value * 2**30),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps(dataclasses.asdict(result), indent=2)
    with atomic(folder / "batch.json") as file:
        file.write(values.encode())
    if _JSON.value:
        print(values)
        return 0
    for size in result.sizes:
        rate = (
            "does not fit" if size.samples_per_second is None else f"{size.samples_per_second:,.1f}"
        )
        memory = "–" if size.bytes is None else f"{size.bytes / 2**20:,.0f}"
        print(f"{size.rows:>8} examples {rate:>14} samples/s {memory:>10} MiB")
    print(
        f"largest that fits into {result.limit / 2**30:.1f} GiB: {result.largest}, fastest: "
        f"--config.trainer.micro_batch_size={result.fastest}"
    )
    return 0


def _sweep(source: str, overrides, ranges, folder: Path) -> int:
    from trainers.tuning.page import write_sweep_page
    from trainers.tuning.sweep import Sweep

    sweep = Sweep(
        folder, source, overrides, ranges, sampler=_SAMPLER.value, pruner=_PRUNER.value,
        seed=_SEED.value,
    )  # fmt: skip
    preflight.load_data(sweep.config)
    try:
        if not sweep.run(_TRIALS.value):
            LOG.warning("stopped by SIGTERM; run again to continue")
            return TERMINATED
    finally:
        write_sweep_page(sweep, folder / "report.html")
    best = sweep.best()
    pairs = [*overrides, *best.overrides.items()]
    if _BEST.value:
        _write_recipe(Path(_BEST.value), source, pairs, sweep, best)
    if _JSON.value:
        print(json.dumps([dataclasses.asdict(trial) for trial in sweep.outcomes()], indent=2))
        return 0
    value = f"{sweep.metric} {best.value:.6g}"
    print(f"best of {len(sweep.outcomes())} trials: trial {best.number}, {value}")
    print("  ".join(f"--config.{key}={text}" for key, text in best.overrides.items()))
    print(f"page: {folder / 'report.html'}")
    return 0


def _write_recipe(path: Path, source: str, pairs, sweep, best) -> None:
    """Writes a recipe with the values of the best trial."""
    lines = "".join(f"        ({key!r}, {text!r}),\n" for key, text in pairs)
    text = (
        f'"""{source} with the best of {len(sweep.outcomes())} trials of a sweep: {sweep.metric} '
        f'{best.value:.6g}."""\n\n'
        "from trainers.config.recipe import check_variant, resolve\n\n\n"
        'def get_config(arg=""):\n'
        "    check_variant(arg, [])\n"
        f"    return resolve(\n        {source!r},\n        [\n"
        + lines.replace("        (", "            (")
        + "        ],\n    )\n"
    )
    with atomic(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    sys.exit(run(command))
