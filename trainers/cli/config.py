"""zoo config RECIPE[:VARIANT] [--json] [--config.KEY=VALUE ...]: the resolved configuration.

Prints each key and its value. A star marks a value that differs from the default; a changed value
is followed by the value of the recipe. --json prints what config.json of a run would hold.
"""

import json
import sys
from collections.abc import Sequence

from trainers.cli.common import Flags, run
from trainers.config.base import base
from trainers.config.recipe import as_dict, load_recipe, resolve
from trainers.report.sections import pairs

_FLAGS = Flags()
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv: Sequence[str]) -> int:
    """Runs `zoo config`; returns the exit status."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1, overrides=True)
    config = as_dict(resolve(words[0], overrides))
    if _JSON.value:
        print(json.dumps(config, indent=2))
        return 0
    defaults = dict(pairs(json.loads(base().to_json())))
    recipe = {**defaults, **dict(pairs(as_dict(load_recipe(words[0]))))}
    for key, value in pairs(config):
        star = " " if defaults.get(key) == value else "*"
        before = recipe.get(key, "no such key")
        changed = "" if before == value else f"   (recipe: {before})"
        print(f"{star} {key} = {value}{changed}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
