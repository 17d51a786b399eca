"""zoo list [PATTERN] [--task=T] [--json]: the models of the registry.

PATTERN is a shell pattern: `zoo list 'cnn*'`.
"""

import json
import sys

from absl import flags

from trainers.cli.common import json_flag, modules_flag, parse, run
from zoo import registry

_FLAGS = flags.FlagValues()
_TASK = flags.DEFINE_string("task", None, "Models of this task only.", flag_values=_FLAGS)
_JSON = json_flag(_FLAGS)
_IMPORT = modules_flag(_FLAGS)


def command(argv) -> int:
    """Prints the table."""
    words, _ = parse(_FLAGS, argv, __doc__, at_most=1, modules=_IMPORT)
    rows = [
        registry.entry(name)
        for name in registry.list_models(words[0] if words else "*", _TASK.value)
    ]
    if _JSON.value:
        keys = ("name", "task", "parameters", "paper", "licence")
        print(json.dumps([{key: getattr(row, key) for key in keys} for row in rows], indent=2))
        return 0
    if not rows:
        print("zoo: no model matches", file=sys.stderr)
    for row in rows:
        count = f"{row.parameters:,}" if row.parameters else "–"  # not known of a user's own
        print(f"{row.name:24} {row.task:22} {count:>14}  {row.paper}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
