"""libtpu's ahead-of-time compiler, in a process of its own. Loads no TensorFlow."""

import json
import re
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zoo import processes
from zoo.errors import RunError, UsageError

# Of the other process alone: JAX stays off devices, libtpu does not look for a TPU machine.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is held: several may compile at once
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def check_installed() -> None:
    """Raises `UsageError` where jax or libtpu is missing."""
    for package in ("jax", "libtpu"):
        try:
            version(package)
        except PackageNotFoundError:
            raise UsageError(
                f"zoo tpu_check takes the package {package}: pip install 'keras-zoo[aot]', in "
                "another environment than that of a TPU VM, whose libtpu is another."
            ) from None


class Compiler:
    """A process that compiles; a context manager, for it ends with the block.

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
        """Compiles a serialised HloModuleProto for one core.

        Returns:
          {"arguments", "outputs", "aliased", "temporaries", "code"} in bytes of HBM, "flops",
          "bytes", "unknown_loops" and "seconds"; or {"used"}, the bytes of what does not fit.

        Raises:
          RunError: where the compiler refuses the program; it names the operation.
        """
        file = Path(self._folder.name) / "step.hlo"
        file.write_bytes(hlo)
        try:
            print(file, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            raise RunError(f"The TPU compiler ended: {said[-1] if said else 'without a word'}")
        answer = json.loads(line)
        if "error" in answer:
            used = memory_wanted(answer["error"])
            if used is None:
                raise RunError(f"The TPU compiler refuses the step: {answer['error']}")
            return {"used": used}
        return answer


def memory_wanted(message: str) -> int | None:
    """Returns the bytes that a program was said to need; None where it is another error."""
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds", message
    )
    return found and int(float(found[1]) * 2 ** (10 * " KMGT".index(found[2] or " ")))
