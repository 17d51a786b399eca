"""Batches that other processes of this machine prepare, in the order of one process.

Each worker is a process with a dispatcher and a worker of tf.data service in it. It builds the
pipeline of `zoo.data.pipeline` itself, Python functions and all, for every N-th element, so that
which worker prepares what is a function of the element's number too. The trainer fetches from them
in turn. One dispatcher with N workers would hand out elements as they come, or in turn without
saying to each worker which are its own.

Arrays go by the name of the file that they lie in; those in memory are written to a temporary one.
A worker ends with the process that started it, however that ends.

TensorFlow's servers listen at free ports, without a password, as do those of several machines
(docs/multi_worker.md).
"""

import contextlib
import functools
import io
import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from trainers.link import say_and_end
from zoo.errors import RunError, UsageError

_SMALL = 2**20  # bytes of an array that is sent as it is


class InputWorkers:
    """Processes that prepare batches; they are started when batches are first asked for.

    Use as a context: on leaving it, they end.

    Args:
      count: how many; with 0 this process prepares them itself.
      leave: called, in a thread, with a line where a worker was lost; ends the process.
      last: called by the usual `leave` before it does.
    """

    def __init__(
        self, count: int, leave: Callable[[str], None] | None = None, last: Callable | None = None
    ):
        self.count = count
        self._leave = leave or functools.partial(_leave, last=last)
        self._workers: list[_Worker] = []
        self._open = contextlib.ExitStack()
        self._files: _Files | None = None

    def __enter__(self) -> "InputWorkers":
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:  # all, before any is waited for
            worker.part()
        self._open.close()

    def batches(self, arrays: Mapping, prepare: Callable, **where):
        """Returns the dataset of `zoo.data.pipeline.training_batches`, whose arguments these are.

        Raises:
          UsageError: where `prepare` cannot be sent to another process.
          RunError: where a worker does not start.
        """
        from zoo.data import pipeline

        if not self.count:
            return pipeline.training_batches(arrays, prepare, **where)
        self._files = self._files or _Files(self._open.enter_context(_folder()))
        request = self._files.pickled((dict(arrays), prepare, where))
        fresh = not self._workers
        for number in range(self.count if fresh else 0):
            self._workers.append(_Worker(number, self.count))
            self._open.callback(self._workers[-1].end)
        for worker in self._workers:
            worker.ask(request)
        parts = [worker.answer() for worker in self._workers]
        if fresh:
            for worker in self._workers:
                threading.Thread(target=worker.watch, args=(self._leave,), daemon=True).start()
        shares = where.get("shares") or range(where["replicas"])
        return _in_turn(parts, len(shares))


def _in_turn(parts: list, elements: int):
    """A dataset that takes from each part in turn."""
    import tensorflow as tf

    from zoo.data import pipeline

    service = tf.data.experimental.service
    # One worker a dispatcher: it gives all there is, in order, to the only one who asks.
    found = [
        service.from_dataset_id(service.ShardingPolicy.OFF, address, name)
        for address, name in parts
    ]
    turns = tf.data.Dataset.range(len(found)).repeat()
    batches = tf.data.Dataset.choose_from_datasets(found, turns)
    return batches.prefetch(2 * elements).with_options(pipeline.options())


class _Worker:
    """One process, seen from the trainer."""

    def __init__(self, number: int, count: int):
        self.number = number
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",  # batches are made on the CPU
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        environment.pop("TF_CONFIG", None)  # it is none of the machines that train together
        words = f"serve({theirs.fileno()}, {number}, {count})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from trainers.input_workers import serve; {words}"],
                pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self._connection = Connection(ours.detach())
        self._parted = False

    def ask(self, request: bytes) -> None:
        with contextlib.suppress(OSError):  # `answer` says that it is gone
            self._connection.send_bytes(request)

    def answer(self) -> tuple[str, str]:
        """Returns the address of its dispatcher and the name of the dataset there."""
        try:
            answer = json.loads(self._connection.recv_bytes())
        except (OSError, EOFError):
            raise RunError(self._gone(self._process.wait())) from None
        if "failed" in answer:
            raise RunError(f"Input worker {self.number} failed: {answer['failed']}")
        return answer["address"], answer["name"]

    def watch(self, leave: Callable[[str], None]) -> None:
        """Waits for its end, in a thread: who fetches from it would wait for ever."""
        status = self._process.wait()
        if not self._parted:
            leave(self._gone(status))

    def _gone(self, status: int) -> str:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"Input worker {self.number} (process {self._process.pid}) {how}"

    def part(self) -> None:
        """Tells it to end."""
        self._parted = True
        self._connection.close()

    def end(self) -> None:
        """Waits for its end."""
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # building a pipeline, perhaps
            self._process.kill()
            self._process.wait()


def _leave(line: str, last: Callable[[], None] | None = None) -> None:
    # The main thread may wait for a batch for ever; nothing but this ends it.
    say_and_end(f"{line}; run the same command again to go on", last)


# --- in the worker ------------------------------------------------------------------------------


def serve(descriptor: int, number: int, count: int) -> None:
    """What a worker runs: builds and serves its part of each dataset that it is asked for.

    Args:
      descriptor: of the socket to the trainer, whose end is the worker's.
      number: of this worker.
      count: of all workers.
    """
    # Signals to all processes of a terminal or a job are the trainer's matter.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    connection = Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):
        try:
            server = _Server(number, count)
            while True:
                address, name = server.register(connection.recv_bytes())
                connection.send_bytes(json.dumps({"address": address, "name": name}).encode())
        except (EOFError, OSError):
            raise
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            connection.send_bytes(json.dumps({"failed": line}).encode())
    os._exit(0)  # servers have threads that do not end


class _Server:
    """tf.data's own servers, and what they serve."""

    def __init__(self, number: int, count: int):
        from trainers.start import start_tensorflow

        start_tensorflow()
        import tensorflow as tf

        self._service = tf.data.experimental.service
        self._ignore = tf.data.experimental.ExternalStatePolicy.IGNORE
        self._part = number, count
        self._dispatcher = self._service.DispatchServer()
        address = self._dispatcher.target.partition("://")[2]
        self._worker = self._service.WorkerServer(
            self._service.WorkerConfig(dispatcher_address=address)
        )
        self._asked = 0

    def register(self, request: bytes) -> tuple[str, str]:
        import tensorflow as tf

        from zoo.data import pipeline

        arrays, prepare, where = pickle.loads(request)
        batches = pipeline.training_batches(arrays, prepare, part=self._part, **where)
        options = tf.data.Options()
        options.experimental_external_state_policy = self._ignore  # Python functions have none
        # Kept: with the dataset, its Python functions would go.
        self._batches = batches.with_options(options)
        self._asked += 1
        name = f"batches_{self._asked}"
        self._service.register_dataset(
            self._dispatcher.target, self._batches, compression=None, dataset_id=name
        )
        return self._dispatcher.target, name


# --- sending arrays -----------------------------------------------------------------------------


def _folder():
    return tempfile.TemporaryDirectory(prefix="zoo_input_", ignore_cleanup_errors=True)


class _Files:
    """Arrays as files that several processes map.

    Args:
      folder: for those that lie in memory; each is written once.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self._written: dict[int, tuple[np.ndarray, Path]] = {}

    def pickled(self, value) -> bytes:
        """Pickles `value`, large arrays in it by file.

        Raises:
          UsageError: where something in it cannot be pickled.
        """
        files = self

        class Pickler(pickle.Pickler):
            def reducer_override(self, part):
                if (
                    isinstance(part, np.ndarray)
                    and part.nbytes > _SMALL
                    and not part.dtype.hasobject
                ):
                    return _mapped, files.place(part)
                return NotImplemented

        stream = io.BytesIO()
        try:
            Pickler(stream, protocol=5).dump(value)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(
                "With trainer.input_workers data and task are sent to other processes, and Python "
                f"must be able to pickle them. Received: {error}."
            ) from None
        return stream.getvalue()

    def place(self, array: np.ndarray) -> tuple:
        """Returns what `_mapped` opens."""
        base = array
        while isinstance(base, np.ndarray) and not isinstance(base.base, mmap.mmap):
            base = base.base
        if isinstance(base, np.memmap) and base.mode == "r" and array.flags.c_contiguous:
            offset = base.offset + array.ctypes.data - base.ctypes.data
            return base.filename, array.dtype, array.shape, offset
        if id(array) not in self._written:
            path = self._folder / str(len(self._written))
            with open(path, "wb") as file:
                np.ascontiguousarray(array).tofile(file)
            self._written[id(array)] = array, path  # with the array, so that its id is kept
        return self._written[id(array)][1], array.dtype, array.shape, 0


def _mapped(path, dtype, shape, offset) -> np.ndarray:
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)
