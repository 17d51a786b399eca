"""Compares pretrained encoders, encoders from scratch and the linear baseline on labeled texts.

    python -m benchmarks.finetune RECIPE ... --pretrained=W [--arms=linear,scratch,pretrained]
        [--seeds=3] [--rates=3e-4,1e-3] [--linear_rates=0.01,0.03] [--write] [KEY=VALUE ...]

For each recipe (sst2, imdb, trec, sick, farstail, rte) and each arm, the learning rate with the
best accuracy on the validation split is chosen with seed 0; then all seeds are trained, and
evaluated on the test split once. Rows of results/finetune.csv have the mean, the lowest and the
highest accuracy of the seeds, and the processor seconds of the longest run. W is the work directory
of `encoder_wiki`, `electra_wiki` or `encoder_persian`; the arm "scratch" uses its tokenizer, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def train(recipe: str, workdir: Path, values: dict, *, read_test: bool) -> tuple[dict, float]:
    """Trains in a separate process; returns the metrics and the processor seconds."""
    code = (
        "import json, sys; from trainers.config.recipe import resolve; "
        "from trainers.train.trainer import Trainer; "
        "recipe, folder, values, read_test = json.loads(sys.argv[1]); "
        "run = Trainer(resolve(recipe, values), folder, read_test=read_test); "
        "print(json.dumps(run.train()))"
    )
    arguments = json.dumps([recipe, str(workdir), list(values.items()), read_test])
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    return json.loads(done.stdout.splitlines()[-1]), seconds


def settings(arm: str, recipe: str, pretrained: str) -> tuple[str, dict]:
    """Returns the recipe of an arm and its values."""
    if arm == "linear":
        from trainers.config.recipe import load_recipe

        data = load_recipe(recipe).data
        names = ("source", "validation_size", "normalization")
        return "linear_text", {f"data.{name}": str(data[name]) for name in names}
    values = {"data.tokenizer": pretrained}
    return recipe, values | ({"init_from": pretrained} if arm == "pretrained" else {})


def compare(recipe: str, arm: str, rates: list[str], arguments, folder: Path) -> dict:
    """Searches the rate of an arm, and trains it with all seeds; returns a row of the results."""
    name, values = settings(arm, recipe, arguments.pretrained)
    values |= dict(value.split("=", 1) for value in arguments.values)

    def run(rate, seed, read_test):
        workdir = folder / f"{recipe}-{arm}-{rate}-{seed}"  # seed 0 of the search is not repeated
        changed = {**values, "optimizer.learning_rate": rate, "trainer.seed": str(seed)}
        return train(name, workdir, changed, read_test=read_test)

    found = {rate: run(rate, 0, False)[0]["accuracy"] for rate in rates} if rates[1:] else {}
    best = max(found, key=found.get) if found else rates[0]
    results = [run(best, seed, True) for seed in range(arguments.seeds)]
    accuracies = [metrics["accuracy"] for metrics, _ in results]
    return {
        "recipe": recipe, "arm": arm, "seeds": arguments.seeds,
        "pretrained": Path(arguments.pretrained).name if arm == "pretrained" else "",
        "learning_rate": best, "validation_of_rates": json.dumps(found),
        "mean": round(statistics.mean(accuracies), 4), "lowest": round(min(accuracies), 4),
        "highest": round(max(accuracies), 4),
        "processor_seconds": round(max(seconds for _, seconds in results), 1),
        "values": " ".join(arguments.values),
    }  # fmt: skip


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="+", help="recipes, then KEY=VALUE")
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--arms", default="linear,scratch,pretrained")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", default="3e-4,1e-3")
    parser.add_argument("--linear_rates", default="0.01,0.03")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_intermixed_args()
    arguments.values = [word for word in arguments.recipes if "=" in word]
    recipes = [word for word in arguments.recipes if "=" not in word]
    with tempfile.TemporaryDirectory() as folder:
        for recipe in recipes:
            for arm in arguments.arms.split(","):
                rates = arguments.linear_rates if arm == "linear" else arguments.rates
                row = compare(recipe, arm, rates.split(","), arguments, Path(folder))
                print(row, file=sys.stderr, flush=True)
                if arguments.write:
                    from benchmarks.results_file import append

                    append("finetune", [row])


if __name__ == "__main__":
    main()
