"""zoo VERB ...: a model zoo and one trainer for Keras 3.

  zoo list [PATTERN]       models: name, task, parameters, paper
  zoo describe NAME        layers, parameters, FLOPs, memory, recipes
  zoo fetch NAME ...       download a data set
  zoo prepare RECIPE       raw pages to records
  zoo train RECIPE         train; run again to resume
  zoo evaluate WORKDIR     metrics of a trained model
  zoo predict WORKDIR FILE ...   labels for pictures
  zoo generate WORKDIR     text
  zoo compress METHOD WORKDIR    a smaller model
  zoo export WORKDIR       a file for TensorFlow, LiteRT, ONNX or Keras
  zoo bench RECIPE         step time and share of the machine's peak
  zoo tpu_check RECIPE     compile the train step for a TPU, without one
  zoo report WORKDIR       write report.html again

`zoo VERB --help` tells the flags of a verb.
"""

import importlib
import sys

from trainers.cli.common import USAGE, run
from zoo.errors import near_names, short
from zoo.processes import drop_current_folder

VERBS = (
    "list", "describe", "fetch", "prepare", "train", "evaluate", "predict", "generate", "compress",
    "export", "bench", "tpu_check", "report",
)  # fmt: skip


def main(argv=None) -> int:
    """Runs `zoo VERB`; returns the exit status."""
    drop_current_folder()
    argv = list(sys.argv if argv is None else argv)
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        asked = len(argv) > 1
        print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else USAGE
    verb = argv[1]
    if verb not in VERBS:
        print(
            f"zoo: error: there is no verb {short(repr(verb))}.{near_names(verb, VERBS)} "
            "See `zoo --help`.",
            file=sys.stderr,
        )
        return USAGE
    command = importlib.import_module(f"trainers.cli.{verb}").command
    return run(command, [f"zoo {verb}", *argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
