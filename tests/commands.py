"""Runs `zoo` commands as a user does and inspects their output files."""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from zoo import processes
from zoo.errors import RunError, UsageError, short

ROOT = Path(__file__).parents[1]
ZOO = "import sys; from trainers.cli.main import main; sys.exit(main())"


@dataclasses.dataclass
class Answer:
    """Exit status, stdout and stderr of a command."""

    status: int
    out: str
    err: str

    def one_line(self) -> str:
        """Returns the error, which must be the only line on stderr besides progress lines."""
        lines = [x for x in self.err.splitlines() if not x.startswith(("step ", "hold-out at "))]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("zoo: error: "), self.err
        assert "Traceback" not in self.out + self.err
        return lines[0]


def zoo_process(*words, **options) -> Answer:
    """Runs `zoo WORD ...` in a separate process."""
    command = [sys.executable, "-c", ZOO, *(str(word) for word in words)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    options["env"] = {**os.environ, "PYTHONPATH": path, **options.get("env", {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    return Answer(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def children_here():
    """Makes `zoo.processes.call` call its function in this process instead of a child process.

    For tests of results: a child process takes eight seconds to start TensorFlow.
    """

    def call(what, function, *words, extra=None, tensorflow=False, killed=""):
        module, _, name = function.partition(":")
        with warnings.catch_warnings(action="ignore"):
            try:
                return getattr(importlib.import_module(module), name)(*words)
            except (UsageError, RunError) as error:
                raise RunError(f"{what} failed: {error}") from None
            except Exception as error:
                raise RunError(f"{what} failed: {type(error).__name__}: {short(error)}") from None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "call", call)
        yield


def started(code: str, *words, **environment) -> subprocess.Popen:
    """Starts Python code in a process that can import the zoo; `output` waits for its end."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen) -> str:
    """Returns the stdout of a started process, which must exit with status 0."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def content(folder: Path) -> dict[str, str]:
    """Returns the relative path of each file and folder, with the sha256 of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def metrics(line: str) -> dict[str, float]:
    """Reads `test (final weights, step 30): loss 2.19  accuracy 0.47`."""
    words = line.partition(": ")[2].split()
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
