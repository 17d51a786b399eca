"""Child Python processes that import nothing from the current folder.

Python puts the current folder first in `sys.path` for `-c` and `-m`, and for an empty entry of
PYTHONPATH. A `json.py` or `trainers/` in that folder would then replace the module of the standard
library or of the zoo. Every child is started in safe-path mode (PYTHONSAFEPATH) with the folder of
the zoo first in PYTHONPATH. Modules of the user are searched last.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from zoo import logs
from zoo.errors import RunError, UsageError, short

_LOG = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]  # contains the packages zoo, trainers and configs


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a child Python.

    Args:
      extra: additional variables of the child.

    Returns:
      The environment of this process with PYTHONSAFEPATH, and with a PYTHONPATH of absolute paths
      without the current folder.
    """
    paths = [] if str(_ROOT) in _package_folders() else [str(_ROOT)]
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if entry and not _is_current(entry):
            paths.append(os.path.abspath(entry))
    path = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    return {**os.environ, **path, "PYTHONSAFEPATH": "1", **(extra or {})}


def arguments(function: str, *words: str, tensorflow: bool = False) -> list[str]:
    """Returns the command line of a child Python that calls a function of the zoo.

    Args:
      function: such as "trainers.export.formats:main"; returns the exit status.
      *words: arguments of the function.
      tensorflow: whether to call `zoo.start.start_tensorflow` first.
    """
    module, _, name = function.partition(":")
    start = "from zoo.start import start_tensorflow; start_tensorflow(); " if tensorflow else ""
    code = f"import sys; {start}from {module} import {name}; sys.exit({name}(*sys.argv[1:]))"
    return [sys.executable, "-P", "-c", code, *words]


def call(
    description: str, function: str, *words: str, extra: Mapping[str, str] | None = None,
    tensorflow: bool = False, killed: str = "",
):  # fmt: skip
    """Calls a function of the zoo in a child Python without stdin, and repeats its warnings.

    Args:
      description: description of the work, the subject of error messages.
      function: see `arguments`; its result must be a JSON value.
      *words: arguments of the function.
      extra: additional environment variables of the child.
      tensorflow: see `arguments`.
      killed: end of the error message if a signal ended the child.

    Returns:
      The result of the function.

    Raises:
      RunError: if the function raises, or its process dies.
    """
    _LOG.debug(f"{function} runs in a child process")
    result = subprocess.run(
        arguments("zoo.processes:_answer", function, *words, tensorflow=tensorflow),
        env=environment(extra), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace",
    )  # fmt: skip
    if result.returncode < 0:
        raise RunError(f"{description} was ended by signal {-result.returncode}{killed}.")
    lines = result.stderr.strip().splitlines()
    if result.returncode:
        raise RunError(
            f"{description} failed: {lines[-1] if lines else f'exit status {result.returncode}'}"
        )
    for line in lines:
        if line.startswith("zoo: "):
            _LOG.warning(line.removeprefix("zoo: "))
    return json.loads(result.stdout.splitlines()[-1])


def _answer(function: str, *words: str) -> None:
    """Writes the result of a function as the last line of stdout, or its error to stderr."""
    logs.set_level(logging.WARNING)
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(*words)
    except (UsageError, RunError) as error:
        sys.exit(str(error))
    except Exception as error:  # libraries raise any type, often with many lines
        sys.exit(f"{type(error).__name__}: {short(error)}")
    sys.stdout.write(f"\n{json.dumps(result)}\n")


@contextlib.contextmanager
def safe_children():
    """Sets the variables of `environment` in this process inside the context.

    For libraries that start Python themselves: multiprocessing's fork server and resource tracker,
    and workers of Apache Beam.
    """
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        yield
    finally:
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@contextlib.contextmanager
def out_of_current_folder():
    """Changes the current folder inside the context.

    For libraries that read settings from the current folder when they are imported.
    """
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # the current folder was deleted
        yield
        return
    os.chdir(_ROOT)
    try:
        yield
    finally:
        os.chdir(folder)


def search_current_folder_last() -> None:
    """Moves the current folder to the end of `sys.path`, or appends it.

    Called before modules of the user are imported, so that none of them replaces a module of the
    standard library, of an installed package or of the zoo.
    """
    drop_current_folder()
    sys.path.append("")


def drop_current_folder() -> None:
    """Removes the current folder from `sys.path`, unless it contains the zoo itself."""
    sys.path[:] = [entry for entry in sys.path if not _is_current(entry)]


def shadowed(name: str) -> str:
    """Returns the module that shadows a module of the same name in the current folder.

    Args:
      name: name of a module, as in an import statement.

    Returns:
      A path or "a built-in module"; "" if `import name` imports the module in the current folder,
      or if the folder has no such module.
    """
    current_folder = Path.cwd().resolve()
    local = current_folder.joinpath(*name.split("."))
    if not (local.with_name(f"{local.name}.py").is_file() or (local / "__init__.py").is_file()):
        return ""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    if any(current_folder in Path(entry).resolve().parents for entry in places):
        return ""
    return str(places[0]) if places else "a built-in module"


def _is_current(entry: str) -> bool:
    """Returns whether an entry of a search path is the current folder and has no packages."""
    try:
        current = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # the current folder was deleted
        return not entry
    package_folders = [str(_ROOT), *map(os.path.realpath, _package_folders())]
    return not entry or (os.path.realpath(entry) == current and current not in package_folders)


def _package_folders() -> list[str]:
    """Returns the folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    return [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
