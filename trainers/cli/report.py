"""zoo report WORKDIR: write WORKDIR/report.html again.

One page that opens offline: curves, throughput, confusion matrix,
worst mistakes, recipe and machine. It can be run while the training is still going.
"""

import sys
from collections.abc import Sequence

from trainers.cli.common import Flags, leaves_files, run

_FLAGS = Flags()


@leaves_files
def command(argv: Sequence[str]) -> int:
    """Writes the report."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    # matplotlib takes a second to load, which a wrong request need not wait for.
    from trainers.report.page import write_report

    print(write_report(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
