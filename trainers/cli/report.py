"""Usage: zoo report WORKDIR

Writes WORKDIR/report.html, one page that opens offline: curves, throughput, confusion matrix,
worst mistakes, recipe and machine. It can be run while the training is still going.
"""

import sys
from collections.abc import Sequence

from absl import flags

from trainers.cli.common import parse, run
from zoo.errors import UsageError

FLAGS = flags.FlagValues()


def command(argv: Sequence[str]) -> int:
    words, _ = parse(FLAGS, argv)
    if len(words) != 1:
        raise UsageError(f"One work directory is needed: zoo report WORKDIR. Received: {words}.")
    # matplotlib takes a second to load, which a wrong request need not wait for.
    from trainers.report import write_report

    print(write_report(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
