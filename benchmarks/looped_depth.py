"""Measures the accuracy of questions by depth and number of loops, beside plain decoders.

    python -m benchmarks.looped_depth [--recipe=looped_chase] [--cases looped plain deep steps]
        [--seeds 0] [--rows=128] [--write]

Trains each case in a separate process: `looped`, and the variants `plain` (a decoder of equal
parameters), `deep` (of equal computation) and `steps` (plain, with written-out steps). Each model
answers test questions of all depths up to twice the trained one; the looped model does so with
several numbers of loops. `guess` is the best guess that does not follow the steps. Rows go to
results/looped_depth.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = ("looped", "plain", "deep", "steps")
FACTORS = (0.5, 1, 2, 4)


def train(recipe: str, case: str, seed: int, arguments: list[str], folder: Path) -> Path:
    """Trains a case in a separate process; returns its work directory."""
    workdir = folder / f"{case}-{seed}"
    name = recipe if case == "looped" else f"{recipe}:{case}"
    command = [
        *(sys.executable, "-m", "trainers.cli.main", "train", name),
        f"--workdir={workdir}",
        f"--config.trainer.seed={seed}",
        *arguments,
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return workdir


def measure(case: str, seed: int, workdir: Path, count: int) -> list[dict]:
    """Returns one row per number of loops and depth.

    Args:
      case: name of the case.
      seed: random seed of the run.
      workdir: work directory of the run.
      count: number of test rows.
    """
    import zoo
    from trainers.run.workdir import read_config, read_metrics
    from zoo import registry
    from zoo.data.text.synthetic.reasoning import kind_of
    from zoo.models.looped import looped_layer, set_loops

    model, config = zoo.load(str(workdir)), read_config(workdir)["config"]
    dataset = registry.load_data(config["data"], config["task"])
    task = registry.build_task(**config["task"]).bind(model, dataset, config["model"])
    arrays = {name: array[:count] for name, array in dataset.splits["test"].items()}
    kind, _ = kind_of(dataset.name)
    seconds = max(line.get("seconds", 0) for line in read_metrics(workdir))
    layer, rows = looped_layer(model), []
    for loops in [0] if layer is None else [max(1, round(f * layer.loops)) for f in FACTORS]:
        if layer is not None:
            set_loops(model, loops)
        for depth, accuracy in task.accuracy_by_depth(model, arrays).items():
            rows.append(
                {
                    "source": dataset.name,
                    "case": case,
                    "seed": seed,
                    "parameters": model.count_params(),
                    "trained_depth": config["task"]["depth"],
                    "depth": depth,
                    "loops": loops or "",
                    "accuracy": round(accuracy, 4),
                    "guess": round(kind.guess(depth), 4),
                    "rows": count,
                    "training_seconds": seconds,
                }
            )
    return rows


def main():
    """Measures each case and seed, prints the rows, and appends them with --write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="looped_chase")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--argument", action="append", default=[], help="flag of zoo train")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for case in arguments.cases:
            with tempfile.TemporaryDirectory() as folder:
                workdir = train(arguments.recipe, case, seed, arguments.argument, Path(folder))
                rows = measure(case, seed, workdir, arguments.rows)
            print(json.dumps(rows), flush=True)
            if arguments.write:
                from benchmarks.results_file import append

                append("looped_depth", rows)


if __name__ == "__main__":
    main()
