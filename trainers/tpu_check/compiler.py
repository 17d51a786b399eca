"""Runs libtpu's ahead-of-time compiler in a separate process. Does not import TensorFlow."""

import json
import re
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zoo import processes
from zoo.errors import RunError, UsageError

# For the compiler's process: JAX uses no accelerator, and libtpu does not search for a TPU machine.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is used, so several processes may compile
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def check_installed() -> None:
    """Raises `UsageError` if jax or libtpu is missing."""
    for package in ("jax", "libtpu"):
        try:
            version(package)
        except PackageNotFoundError:
            raise UsageError(
                f"zoo tpu_check requires the package {package}: pip install 'keras-zoo[aot]'. "
                "A TPU VM has another libtpu: use a separate environment there."
            ) from None


class Compiler:
    """The compiler's process, as a context manager.

    Args:
      topology: name of a topology.
    """

    def __init__(self, topology: str):
        self.topology = topology

    def __enter__(self):
        check_installed()
        self._folder = tempfile.TemporaryDirectory()
        self._log = open(Path(self._folder.name) / "log", "w+")
        self._process = subprocess.Popen(
            processes.arguments("trainers.tpu_check.ahead_of_time:serve", self.topology),
            env=processes.environment(_ENVIRONMENT),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def compile(self, hlo: bytes) -> dict:
        """Compiles a serialized HloModuleProto for one core.

        Returns:
          {"arguments", "outputs", "aliased", "temporaries", "code"} in bytes of HBM, "flops",
          "bytes", "unknown_loops" and "seconds"; or {"used"}, the bytes that a program needs which
          does not fit.

        Raises:
          RunError: if the compiler rejects the program; the message names the operation.
        """
        file = Path(self._folder.name) / "step.hlo"
        file.write_bytes(hlo)
        try:
            self._process.stdin.write(f"{file}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            raise RunError(f"The TPU compiler stopped: {lines[-1] if lines else 'no message'}")
        result = json.loads(line)
        if "error" in result:
            used_bytes = required_memory(result["error"])
            if used_bytes is None:
                raise RunError(f"The TPU compiler rejects the step: {result['error']}")
            return {"used": used_bytes}
        return result


def required_memory(message: str) -> int | None:
    """Returns the bytes in an out-of-memory message; None for another error."""
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    match = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds", message
    )
    return match and int(float(match[1]) * 2 ** (10 * " KMGT".index(match[2] or " ")))
