"""zoo COMMAND ...: a model zoo and trainer for Keras 3.

  zoo list [PATTERN]       list models: name, task, parameters, paper; --recipes: the recipes
  zoo describe NAME        show layers, parameters, FLOPs, memory, recipes
  zoo fetch NAME ...       download a dataset
  zoo prepare RECIPE       convert raw web pages to training records
  zoo config RECIPE        print the resolved configuration of a recipe
  zoo train RECIPE         train; run again to resume
  zoo evaluate WORKDIR     compute the metrics of a trained model
  zoo predict WORKDIR FILE ...   label images or texts, answer questions
  zoo generate WORKDIR     generate text or images
  zoo index INDEX          encode text, so that a language model finds its neighbors
  zoo compress METHOD WORKDIR    make a smaller model
  zoo export WORKDIR       write a file for TensorFlow, LiteRT, ONNX or Keras
  zoo bench RECIPE         measure the step time and the share of peak FLOPs
  zoo tpu_check RECIPE     compile the train step for a TPU, without one
  zoo tune RECIPE rate     find a learning rate (batch: a batch size; sweep: any keys)
  zoo report WORKDIR       write report.html again
  zoo compare WORKDIR ...  compare runs: metrics, curves, keys that differ

`zoo COMMAND --help` prints the flags of a command. Each command supports -q (log only warnings
and errors) and -v (log more messages). `zoo --version` prints the versions.
"""

import importlib
import importlib.metadata
import sys

from trainers.cli.common import USAGE, Help, run
from zoo.errors import UsageError, near_names
from zoo.processes import drop_current_folder

COMMANDS = (
    "list", "describe", "fetch", "prepare", "config", "train", "evaluate", "predict", "generate",
    "index", "compress", "export", "bench", "tpu_check", "tune", "report", "compare",
)  # fmt: skip


_PACKAGES = ("keras-zoo", "tensorflow", "keras")


def main(argv=None) -> int:
    """Runs `zoo COMMAND`; returns the exit status."""
    drop_current_folder()
    argv = list(sys.argv if argv is None else argv)
    if len(argv) > 1 and argv[1] in COMMANDS:
        try:
            command = importlib.import_module(f"trainers.cli.{argv[1]}").command
        except KeyboardInterrupt:  # importing takes a second or two
            command = _interrupted
        return run(command, [f"zoo {argv[1]}", *argv[2:]])
    return run(_answer, argv)


def _interrupted(argv) -> int:
    raise KeyboardInterrupt


def _answer(argv) -> int:
    """Prints help, or raises `UsageError` for an unknown command."""
    if len(argv) < 2:
        sys.stderr.write(__doc__.lstrip())
        return USAGE
    if argv[1] in ("-h", "--help", "help"):
        raise Help(__doc__.strip())
    if argv[1] == "--version":
        print(", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
        return 0
    raise UsageError(
        f"there is no command {argv[1]!r}.{near_names(argv[1], COMMANDS)} See `zoo --help`."
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout on the import path
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
