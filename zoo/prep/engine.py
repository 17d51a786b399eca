"""Runs a step of the pipeline on all its shards: on this machine, or by Apache Beam.

A step is a function of a task, a picklable dictionary. It reads files and leaves files, each of
which appears when it is whole, and does nothing where they are there. So a step may run anywhere
that sees the files, in any order and as often as one likes: what it leaves is the same.
"""

import contextlib
import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from zoo.errors import RunError, UsageError
from zoo.processes import safe_children


class Local:
    """Worker processes on this machine; a context manager.

    Args:
      workers: processes; 1 for none but this one. The result does not depend on it.
      modules: of the user, which they import first.
    """

    def __init__(self, workers: int = 0, modules: Sequence[str] = ()):
        self.workers = workers or len(os.sched_getaffinity(0))
        self._modules, self._pool = tuple(modules), None
        self._environment = contextlib.ExitStack()

    def __enter__(self) -> "Local":
        if self.workers > 1:
            self._environment.enter_context(safe_children())
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["zoo.prep.steps"])
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self._modules,))
        return self

    def __exit__(self, kind, *_):
        if self._pool:
            if kind:  # what they have begun is lost, as by a kill, and nobody waits for it
                for worker in multiprocessing.active_children():
                    worker.terminate()
            self._pool.shutdown(cancel_futures=True)
        self._environment.close()

    def run(self, function: Callable, tasks: Sequence[dict]) -> Iterator[dict]:
        """Runs every task; yields each one that is done.

        Raises:
          RunError: where a worker died, as the kernel kills one that takes too much memory.
        """
        if not self._pool:
            for task in tasks:
                function(task)
                yield task
            return
        try:
            # A few more than there are workers: the tasks of a large input are not all copied.
            waiting: dict = {}
            for task in tasks:
                waiting[self._pool.submit(function, task)] = task
                if len(waiting) < 4 * self.workers:
                    continue
                done = next(as_completed(waiting))
                done.result()
                yield waiting.pop(done)
            for done in as_completed(waiting):
                done.result()
                yield waiting[done]
        except BrokenProcessPool:
            raise RunError(
                "A worker died: most likely it was killed for memory. Run again to go on, with a "
                "smaller --workers or prep.max_document_bytes."
            ) from None


def _start_worker(modules: Sequence[str]):
    """Makes a worker end with the process that it works for, however that ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # not the fork server, which may outlive it

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    for name in modules:
        importlib.import_module(name)


class Beam:
    """An Apache Beam runner; every worker must see the input and the output under their paths.

    Args:
      options: Beam's own flags. Without `--runner` it is BundleBasedDirectRunner, which needs
        neither a server nor a download: Beam's default one would fetch Prism from the network.
    """

    workers = 0

    def __init__(self, options: Sequence[str]):
        try:
            import apache_beam  # noqa: F401
        except ImportError:
            raise UsageError(
                "Beam runners need the extra `beam`: pip install 'keras-zoo[prep,beam]'."
            ) from None
        options = list(options)
        if not any(option.startswith("--runner") for option in options):
            options.append("--runner=BundleBasedDirectRunner")
        self._options = options

    def __enter__(self) -> "Beam":
        return self

    def __exit__(self, *error):
        pass

    def run(self, function: Callable, tasks: Sequence[dict]) -> Iterator[dict]:
        """Runs every task in one Beam pipeline; yields them when all are done."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        with safe_children(), beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
            (
                pipeline
                | "Tasks" >> beam.Create(list(tasks))
                | "Spread" >> beam.Reshuffle()
                | function.__name__ >> beam.Map(function)
            )
        yield from tasks
