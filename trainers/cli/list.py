"""zoo list [PATTERN] [--task=T] [--json]: lists the models of the registry.

PATTERN is a shell pattern: `zoo list 'cnn*'`.
"""

import json
import sys

from trainers.cli.common import LOG, Flags, run
from zoo import registry

_FLAGS = Flags()
_TASK = _FLAGS.string("task", None, "List only models of this task.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Runs `zoo list`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_most=1)
    rows = [
        registry.entry(name)
        for name in registry.list_models(words[0] if words else "*", _TASK.value)
    ]
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


if __name__ == "__main__":
    sys.exit(run(command))
