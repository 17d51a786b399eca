"""zoo report WORKDIR: writes WORKDIR/report.html again.

The page contains curves, throughput, confusion matrix, worst mistakes, recipe and machine, and
needs no network. The command also works during training.
"""

import sys
from collections.abc import Sequence

from trainers.cli.common import Flags, run, writes_files

_FLAGS = Flags()


@writes_files
def command(argv: Sequence[str]) -> int:
    """Runs `zoo report`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    # Imported late, so that a wrong request fails before matplotlib is loaded.
    from trainers.report.page import write_report

    print(write_report(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
