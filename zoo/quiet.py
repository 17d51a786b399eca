"""Keeps TensorFlow's import off stderr, whoever imports it after `import zoo`.

While it is imported, TensorFlow writes a dozen lines to file descriptor 2, whatever
TF_CPP_MIN_LOG_LEVEL says: C++ logs before its logger is set up. On a machine without a GPU it adds
an error when it first looks for one. TF_CPP_MIN_LOG_LEVEL=0 shows all of it.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path


def install() -> None:
    """Makes the first import of TensorFlow in this process a quiet one."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors
    if not wants_logs() and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietTensorFlow())


def wants_logs() -> bool:
    """Whether the environment asks for all of TensorFlow's logs."""
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"


@contextlib.contextmanager
def quiet_stderr():
    """Discards what is written to file descriptor 2, which C++ code uses and sys.stderr does not.

    Does nothing where the environment asks for TensorFlow's logs.
    """
    if wants_logs():
        yield
        return
    if sys.stderr:
        with contextlib.suppress(OSError, ValueError):  # closed
            sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            with quiet_stderr():
                execute(module)
                if not Path("/dev/nvidia0").exists():
                    # It looks for a GPU once, and logs that there is none as an error.
                    module.config.list_physical_devices()

        spec.loader.exec_module = exec_module
        return spec
