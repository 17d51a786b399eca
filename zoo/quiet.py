"""Suppression of the logs of TensorFlow's import after `import zoo`.

TensorFlow writes a dozen lines to file descriptor 2 during its import, whatever the value of
TF_CPP_MIN_LOG_LEVEL, because C++ logs before the logger is set up. On a machine without a GPU,
TensorFlow logs an error at the first search for one. TF_CPP_MIN_LOG_LEVEL=0 shows all logs.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path


def install() -> None:
    """Silences the first import of TensorFlow in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors
    if not are_logs_enabled() and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _QuietTensorFlow())


def are_logs_enabled() -> bool:
    """Returns whether the environment asks for all logs of TensorFlow."""
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"


@contextlib.contextmanager
def quiet_stderr():
    """Discards output to file descriptor 2, such as logs of C++ code, inside the context.

    Does nothing if the environment asks for all logs of TensorFlow.
    """
    if are_logs_enabled():
        yield
        return
    if sys.stderr:
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    try:
        with open(os.devnull, "w") as null_device:
            os.dup2(null_device.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


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
                    # The first search for a GPU logs an error if there is none.
                    module.config.list_physical_devices()

        spec.loader.exec_module = exec_module
        return spec
