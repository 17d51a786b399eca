"""zoo list [PATTERN] [--recipes] [--task=T] [--json]: lists the models, or the recipes.

PATTERN is a part of the name (`zoo list cnn`) or a shell pattern (`zoo list 'cnn*'`).
"""

import dataclasses
import json
import sys

from trainers.cli.common import LOG, Flags, run
from zoo import registry

_FLAGS = Flags()
_TASK = _FLAGS.string("task", None, "List only models of this task.")
_RECIPES = _FLAGS.boolean("recipes", False, "List the recipes: name, model, task, purpose.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Runs `zoo list`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_most=1)
    pattern = words[0] if words else "*"
    pattern = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    if _RECIPES.value:
        return _list_recipes(pattern)
    rows = [registry.entry(name) for name in registry.list_models(pattern, _TASK.value)]
    if _JSON.value:
        keys = ("name", "task", "parameters", "paper", "licence")
        print(json.dumps([{key: getattr(row, key) for key in keys} for row in rows], indent=2))
        return 0
    if not rows:
        LOG.warning("no model matches")
    for row in rows:
        count = f"{row.parameters:,}" if row.parameters else "–"  # unknown for a user's model
        print(f"{row.name:24} {row.task:22} {count:>14}  {row.paper}".rstrip())
    return 0


def _list_recipes(pattern: str) -> int:
    # Imported late, because it takes half the time of the command.
    from trainers.config import recipe

    rows = recipe.describe_recipes(pattern, _TASK.value)
    if _JSON.value:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return 0
    if not rows:
        LOG.warning("no recipe matches")
    for row in rows:
        print(f"{row.name:24} {row.model:22} {row.task:22} {row.purpose}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
