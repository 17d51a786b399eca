"""Starts child Python processes, and keeps the current folder out of their imports.

Python puts the current folder first in `sys.path` for `-c` and `-m`, and for an empty entry of
PYTHONPATH. A folder that holds a `json.py` or a `trainers/` would then run its own code in place of
the standard library's or ours. Every child is started in safe-path mode (PYTHONSAFEPATH) with the
zoo's own folder first in PYTHONPATH. The user's modules are searched last.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]  # of the packages zoo, trainers and configs


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a child Python.

    Args:
      more: variables that the child gets in addition.

    Returns:
      This process's environment with PYTHONSAFEPATH set, and with a PYTHONPATH of absolute paths
      that leaves the current folder out.
    """
    found = [] if str(_ROOT) in _package_folders() else [str(_ROOT)]
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if entry and not _is_current(entry):
            found.append(os.path.abspath(entry))
    path = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(found))}
    return {**os.environ, **path, "PYTHONSAFEPATH": "1", **(more or {})}


def arguments(function: str, *words: str) -> list[str]:
    """Returns the command line of a child Python that calls a function of the zoo.

    Args:
      function: such as "trainers.export:main"; what it returns is the exit status.
      *words: its arguments.
    """
    module, _, name = function.partition(":")
    code = f"import sys; from {module} import {name}; sys.exit({name}(*sys.argv[1:]))"
    return [sys.executable, "-P", "-c", code, *words]


def run(function: str, *words: str, more: Mapping[str, str] | None = None):
    """Calls a function of the zoo in a child Python without input and captures what it prints.

    Args:
      function: as for `arguments`.
      *words: its arguments.
      more: environment variables that the child gets in addition.

    Returns:
      A `subprocess.CompletedProcess` with text output.
    """
    return subprocess.run(
        arguments(function, *words), env=environment(more), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip


@contextlib.contextmanager
def safe_children():
    """Gives this process the environment of `environment` for the duration of the context.

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
    """Leaves the current folder for the duration of the context.

    For libraries that read settings from it when they are imported.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was deleted
        yield
        return
    os.chdir(_ROOT)
    try:
        yield
    finally:
        os.chdir(here)


def search_current_folder_last() -> None:
    """Moves the current folder to the end of `sys.path`, or adds it there.

    Called before modules of the user are imported: none of them takes the place of a module of the
    standard library, of an installed package or of the zoo.
    """
    drop_current_folder()
    sys.path.append("")


def drop_current_folder() -> None:
    """Removes the current folder from `sys.path`, unless the zoo itself lies in it."""
    sys.path[:] = [entry for entry in sys.path if not _is_current(entry)]


def shadowed(name: str) -> str:
    """Returns what `import name` runs in place of a module in the current folder.

    Args:
      name: of a module, as in an import statement.

    Returns:
      A path or "a built-in module"; "" where the module in the current folder is the one that is
      imported, or where there is none.
    """
    here = Path.cwd().resolve()
    mine = here.joinpath(*name.split("."))
    if not (mine.with_name(f"{mine.name}.py").is_file() or (mine / "__init__.py").is_file()):
        return ""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    if any(here in Path(place).resolve().parents for place in places):
        return ""
    return str(places[0]) if places else "a built-in module"


def _is_current(entry: str) -> bool:
    """Whether an entry of a search path is the current folder, and no folder of packages."""
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # the current folder was deleted
        return not entry
    kept = [str(_ROOT), *map(os.path.realpath, _package_folders())]
    return not entry or (os.path.realpath(entry) == here and here not in kept)


def _package_folders() -> list[str]:
    """The folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    return [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
