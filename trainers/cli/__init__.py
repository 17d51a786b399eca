"""Commands of `zoo`; each one is also an absl script."""

import os
import sys

# `python -m trainers.cli.COMMAND` searches the current folder first. Nothing else was imported yet.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    _root = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
    if os.path.realpath(sys.path[0]) != _root:
        del sys.path[0]
