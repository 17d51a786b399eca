"""Runs user code: recipe files and modules of --import. Each error is one line."""

import importlib
import importlib.util
import traceback
from collections.abc import Sequence
from pathlib import Path

from zoo.errors import RunError, UsageError, short
from zoo.processes import search_current_folder_last, shadowed

# User files that were run; all workers must have the same (`trainers.distributed.cluster`).
user_files: set[Path] = set()


def run(what: str, function, file: str = ""):
    """Calls a function that runs code of the user, and returns its result.

    Args:
      what: name of the code for the error message.
      function: function without arguments.
      file: source file; the error message gives the number of its failing line.

    Raises:
      UsageError: for any exception but RunError and Ctrl-C, even SystemExit and MemoryError.
    """
    try:
        return function()
    except (UsageError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if file and frame.filename == file]
        where = f" in line {lines[-1]}" if lines else ""
        try:
            message = str(error)
        except Exception:
            message = "an error without a message"
        raise UsageError(
            f"{what} failed{where}: {type(error).__name__}: {short(message)}."
        ) from None


def load_file(path: Path):
    """Runs a recipe file of the user and returns its module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    run(f"The recipe {path}", lambda: spec.loader.exec_module(module), str(path))
    user_files.add(path.resolve())
    return module


def import_user_modules(names: Sequence[str]) -> None:
    """Imports modules of the user, which register models, tasks and datasets.

    Raises:
      UsageError: for a module that is missing or fails.
    """
    search_current_folder_last()
    for name in names:
        if "/" in name or name.endswith(".py"):
            module = name.removesuffix(".py").strip("./").replace("/", ".")
            raise UsageError(
                f"--import requires the name of a module, not a path. Received: {name!r}; in the "
                f"folder of the file use --import={module}."
            )
        if installed_module := shadowed(name):
            raise UsageError(
                f"--import={name} must not have the name of an installed module, because the "
                f"current folder is searched last. Received: {installed_module}. Rename your "
                "module."
            )
        module = run(f"--import={name}", lambda name=name: importlib.import_module(name))
        if file := getattr(module, "__file__", None):
            path = Path(file).resolve()  # all files of a package count
            user_files.update(path.parent.rglob("*.py") if path.stem == "__init__" else [path])
