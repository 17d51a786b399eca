"""Processes forked from a server that has imported TensorFlow, which takes eight seconds.

The server forks before TensorFlow starts a thread; each process starts TensorFlow's devices
itself. `start` returns an object with the methods of `subprocess.Popen` that tests use.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.commands import ROOT


class Forked:
    """Forked process with its output in files."""

    def __init__(self, pid: int, folder: Path):
        self.pid, self.returncode, self._folder = pid, None, folder

    def poll(self):
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout=300):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=300) -> tuple[str, str]:
        """Waits for the end of the process; returns its stdout and stderr."""
        self.wait(timeout)
        return tuple((self._folder / name).read_text() for name in ("out", "err"))

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()


def start(code: str, *words, environment=None) -> Forked:
    """Runs Python code in a forked process, with the words as its arguments."""
    folder = Path(tempfile.mkdtemp(dir=_zygote()[1]))
    request = {
        "code": code, "words": [str(word) for word in words], "folder": str(folder),
        "environment": {**os.environ, **(environment or {})},
    }  # fmt: skip
    return Forked(_ask(request), folder)


@functools.cache
def _zygote():
    folder = tempfile.TemporaryDirectory()
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests import zygote; zygote.serve()"], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, folder.name, folder


def _ask(request: dict):
    process = _zygote()[0]
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve() -> None:
    """Forks a process or reports an exit status per request, until stdin ends."""
    # Modules that the code of the processes imports.
    from tests.trainers.distributed import test_preemption  # noqa: F401
    from tests.trainers.train import test_resume  # noqa: F401
    from trainers.train import trainer  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "pid" in request:
            ended, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if not answer:
                break
        print(json.dumps(answer), flush=True)
    else:
        return
    for number, (name, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            ("out", os.O_WRONLY | os.O_CREAT),
            ("err", os.O_WRONLY | os.O_CREAT),
        ]
    ):
        os.dup2(os.open(os.path.join(request["folder"], name), flags), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["-c", *request["words"]]
    exec(request["code"], {"__name__": "__main__"})
