"""zoo report WORKDIR: write WORKDIR/report.html again.

One page that opens offline: curves, throughput, confusion matrix,
worst mistakes, recipe and machine. It can be run while the training is still going.
"""

import sys
from collections.abc import Sequence

from absl import flags

from trainers.cli.common import leaves_files, parse, run

_FLAGS = flags.FlagValues()


@leaves_files
def command(argv: Sequence[str]) -> int:
    """Writes the report."""
    words, _ = parse(_FLAGS, argv, __doc__, at_least=1, at_most=1)
    # matplotlib takes a second to load, which a wrong request need not wait for.
    from trainers.report.page import write_report

    print(write_report(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
