"""Makes WORKSPACE.md's table from the catalog, the recipes and results/recipes.csv.

python -m benchmarks.workspace_table      writes it (`make workspace`); a test checks it
"""

import csv
import statistics
from pathlib import Path

from benchmarks.results_file import RESULTS
from trainers.recipe import list_recipes, load_recipe
from zoo.catalog import CATALOG

WORKSPACE = Path(__file__).parent.parent / "WORKSPACE.md"
BEGIN, END = "<!-- models: made by `make workspace` -->", "<!-- end of models -->"


def results() -> dict[str, str]:
    """Returns what each recipe reached: the mean over the seeds of its last day."""
    found: dict[str, list[dict]] = {}
    path = RESULTS / "recipes.csv"
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["recipe"], []).append(row)
    said = {}
    for recipe, rows in found.items():
        rows = [row for row in rows if row["date"] == rows[-1]["date"]]
        rows = list({(row["metric"], row["seed"]): row for row in rows}.values())
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(f"{row['split']} {row['metric']}", []).append(float(row["value"]))
        means = ", ".join(f"{name} {statistics.mean(v):.4f}" for name, v in values.items())
        runs = len({row["seed"] for row in rows})
        seconds = statistics.median(float(row["training_seconds"]) for row in rows)
        said[recipe] = (
            f"{means}{f', mean of {runs} seeds' if runs > 1 else ''}, "
            f"{seconds:.0f} s on {rows[0]['machine']} ({rows[0]['date']})"
        )
    return said


def table() -> str:
    """Returns the table as Markdown."""
    reached = results()
    recipes = {name: load_recipe(name).model.name for name in list_recipes()}
    lines = ["| model | parameters | recipe | command | measured |", "|---|---|---|---|---|"]
    for row in CATALOG:
        for recipe in (r for r, model in recipes.items() if model == row.name):
            lines.append(
                f"| `{row.name}` | {row.parameters:,} | `{recipe}` | "
                f"`zoo train {recipe} --workdir=D` | {reached.get(recipe, 'not measured')} |"
            )
    return "\n".join(lines)


def with_table(text: str) -> str:
    """Returns WORKSPACE.md's text with the table of now."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    WORKSPACE.write_text(with_table(WORKSPACE.read_text()))
