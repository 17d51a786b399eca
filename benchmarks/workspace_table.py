"""Makes WORKSPACE.md's tables: models, from catalog and results; packages, from the tree.

python -m benchmarks.workspace_table      writes them (`make workspace`); a test checks them
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
    """What the runs of a recipe's last day reached.

    Attributes:
      said: the means over the seeds, time and machine.
      parameters: of the model that was trained.
      arguments: of the command, besides the recipe and its work directory.
    """

    said: str
    parameters: int
    arguments: str


def results() -> dict[str, Result]:
    """Returns recipe -> what it reached."""
    found: dict[str, list[dict]] = {}
    path = RESULTS / "recipes.csv"
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["recipe"], []).append(row)
    reached = {}
    for recipe, rows in found.items():
        rows = [row for row in rows if row["date"] == rows[-1]["date"]]
        rows = list({(row["metric"], row["seed"]): row for row in rows}.values())
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(f"{row['split']} {row['metric']}", []).append(float(row["value"]))
        means = ", ".join(f"{name} {statistics.mean(v):.4f}" for name, v in values.items())
        runs = len({row["seed"] for row in rows})
        seconds = statistics.median(float(row["training_seconds"]) for row in rows)
        said = (
            f"{means}{f', mean of {runs} seeds' if runs > 1 else ''}, "
            f"{seconds:.0f} s on {rows[0]['machine']} ({rows[0]['date']})"
        )
        reached[recipe] = Result(said, int(rows[0]["parameters"]), rows[0]["arguments"])
    return reached


def table() -> str:
    """Returns the table as Markdown: the models that recipes train, as they train them."""
    reached = results()
    recipes = {name: load_recipe(name) for name in list_recipes()}
    lines = ["| model | parameters | recipe | command | measured |", "|---|---|---|---|---|"]
    for row in CATALOG:
        for recipe, config in recipes.items():
            if config.model.name != row.name:
                continue
            its = reached.get(recipe, Result("not measured", 0, ""))
            source = "" if config.data.source else " --config.data.source=prepared:P"
            more = f" {its.arguments}" if its.arguments else source
            count = f"{its.parameters:,}" if its.parameters else "–"
            lines.append(
                f"| `{row.name}` | {count} | `{recipe}` | "
                f"`zoo train {recipe} --workdir=D{more}` | {its.said} |"
            )
    return "\n".join(lines)


def packages() -> str:
    """Returns the packages of zoo and trainers as Markdown, in the order of the import contract."""
    order = (ROOT / ".importlinter").read_text().split()
    lines = ["| package | holds | files |", "|---|---|---|"]
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
    """Returns WORKSPACE.md's text with the tables of now."""
    for name, made in (("models", table()), ("packages", packages())):
        begin, end = f"<!-- {name}: made by `make workspace` -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    WORKSPACE.write_text(with_tables(WORKSPACE.read_text()))
