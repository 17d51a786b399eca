"""Runs a step of the pipeline on all its shards: on this machine, or by Apache Beam.

A step is a function of a task, a picklable dictionary. It reads and writes files; each output file
is renamed into place once it is complete, and a task whose output exists does nothing. So tasks may
run on any machine that sees the files, in any order and repeatedly, with the same output.
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


class LocalEngine:
    """Runs tasks in worker processes on this machine; a context manager.

    Args:
      workers: number of processes; 1 runs tasks in this process, 0 starts one per core. The output
        does not depend on it.
      modules: names of modules of the user that each worker imports first.
    """

    def __init__(self, workers: int = 0, modules: Sequence[str] = ()):
        self.workers = workers or len(os.sched_getaffinity(0))
        self._modules, self._pool = tuple(modules), None
        self._environment = contextlib.ExitStack()

    def __enter__(self) -> "LocalEngine":
        if self.workers > 1:
            self._environment.enter_context(safe_children())
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["zoo.prep.steps"])
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self._modules,))
        return self

    def __exit__(self, kind, *_):
        if self._pool:
            if kind:  # running tasks are lost, as after a kill: do not wait for them
                for worker in multiprocessing.active_children():
                    worker.terminate()
            self._pool.shutdown(cancel_futures=True)
        self._environment.close()

    def run(self, function: Callable, tasks: Sequence[dict]) -> Iterator[dict]:
        """Runs every task; yields each task once it is done.

        Raises:
          RunError: a worker died, for example because it ran out of memory.
        """
        if not self._pool:
            for task in tasks:
                function(task)
                yield task
            return
        try:
            # Few tasks are submitted ahead, so that not all tasks of a large input are pickled.
            pending: dict = {}
            for task in tasks:
                pending[self._pool.submit(function, task)] = task
                if len(pending) < 4 * self.workers:
                    continue
                future = next(as_completed(pending))
                future.result()
                yield pending.pop(future)
            for future in as_completed(pending):
                future.result()
                yield pending[future]
        except BrokenProcessPool:
            raise RunError(
                "A worker process died, most likely out of memory. Run the command again to "
                "continue, with a smaller --workers or prep.max_document_bytes."
            ) from None


def _start_worker(modules: Sequence[str]):
    """Makes a worker exit with the process that started it, even if that process is killed."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()  # not the fork server, which may outlive it

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    for name in modules:
        importlib.import_module(name)


class BeamEngine(contextlib.AbstractContextManager):
    """Runs tasks on an Apache Beam runner; workers must see input and output by the same paths.

    Args:
      options: Beam's own flags. The default runner is BundleBasedDirectRunner, because Beam's own
        default downloads Prism from the network.
    """

    workers = 0

    def __init__(self, options: Sequence[str]):
        try:
            import apache_beam  # noqa: F401
        except ImportError:
            raise UsageError(
                "Beam runners require the extra `beam`: pip install 'keras-zoo[prep,beam]'."
            ) from None
        options = list(options)
        if not any(option.startswith("--runner") for option in options):
            options.append("--runner=BundleBasedDirectRunner")
        self._options = options

    def __exit__(self, *error):
        pass

    def run(self, function: Callable, tasks: Sequence[dict]) -> Iterator[dict]:
        """Runs every task in one Beam pipeline; yields the tasks when all are done."""
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
