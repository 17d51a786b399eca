"""Writes the tables of WORKSPACE.md: models from catalog and results, packages from the tree.

python -m benchmarks.workspace_table      or `make workspace`; a test checks that they are current
"""

import ast
import csv
import dataclasses
import statistics
from pathlib import Path

from benchmarks.results_file import RESULTS
from trainers.config.recipe import list_recipes, load_recipe
from zoo.catalog import CATALOG

ROOT = Path(__file__).parent.parent
WORKSPACE = ROOT / "WORKSPACE.md"


@dataclasses.dataclass
class Result:
    """Result of a recipe's runs on the last day with a measurement.

    Attributes:
      summary: means over the seeds, time and machine.
      parameters: number of parameters of the trained model.
      arguments: arguments of the command besides recipe and work directory.
    """

    summary: str
    parameters: int
    arguments: str


def read_results() -> dict[str, Result]:
    """Returns recipe -> result."""
    by_recipe: dict[str, list[dict]] = {}
    path = RESULTS / "recipes.csv"
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                by_recipe.setdefault(row["recipe"], []).append(row)
    results = {}
    for recipe, rows in by_recipe.items():
        rows = [row for row in rows if row["date"] == rows[-1]["date"]]
        rows = list({(row["metric"], row["seed"]): row for row in rows}.values())
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(f"{row['split']} {row['metric']}", []).append(float(row["value"]))
        means = ", ".join(f"{name} {statistics.mean(v):.4f}" for name, v in values.items())
        runs = len({row["seed"] for row in rows})
        seconds = statistics.median(float(row["training_seconds"]) for row in rows)
        summary = (
            f"{means}{f', mean of {runs} seeds' if runs > 1 else ''}, "
            f"{seconds:.0f} s on {rows[0]['machine']} ({rows[0]['date']})"
        )
        results[recipe] = Result(summary, int(rows[0]["parameters"]), rows[0]["arguments"])
    return results


def table() -> str:
    """Returns the table of models as Markdown, one row per recipe."""
    results = read_results()
    recipes = {name: load_recipe(name) for name in list_recipes()}
    lines = ["| model | parameters | recipe | command | measured |", "|---|---|---|---|---|"]
    for row in CATALOG:
        for recipe, config in recipes.items():
            if config.model.name != row.name:
                continue
            result = results.get(recipe, Result("not measured", 0, ""))
            source = "" if config.data.source else " --config.data.source=prepared:P"
            more = f" {result.arguments}" if result.arguments else source
            count = f"{result.parameters:,}" if result.parameters else "–"
            lines.append(
                f"| `{row.name}` | {count} | `{recipe}` | "
                f"`zoo train {recipe} --workdir=D{more}` | {result.summary} |"
            )
    return "\n".join(lines)


def packages() -> str:
    """Returns the packages of zoo and trainers as Markdown, in the order of the import contract."""
    order = (ROOT / ".importlinter").read_text().split()
    lines = ["| package | contents | files |", "|---|---|---|"]
    for top in ("zoo", "trainers"):
        folders = [path.parent for path in (ROOT / top).rglob("__init__.py")]
        rank = {name: -place for place, name in enumerate(order)}
        for folder in sorted(folders, key=lambda path: _place(path.relative_to(ROOT), rank)):
            docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
            files = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
            lines.append(
                f"| `{folder.relative_to(ROOT)}/` | {docstring.splitlines()[0].rstrip('.')} | "
                f"{', '.join(files)} |"
            )
    return "\n".join(lines)


def _place(path: Path, rank: dict[str, int]) -> tuple:
    """Sorts packages by the import order, and packages inside them by name."""
    inside = path.parts[1:]
    return (rank[inside[0]] if inside else -(10**6), inside)


def with_tables(text: str) -> str:
    """Returns the text of WORKSPACE.md with current tables."""
    for name, content in (("models", table()), ("packages", packages())):
        begin, end = f"<!-- {name}: made by `make workspace` -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    WORKSPACE.write_text(with_tables(WORKSPACE.read_text()))
