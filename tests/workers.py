"""Multi-worker runs with local processes as workers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

from tests import zygote

_CHILD = """
import sys
from tests import workers
from trainers.cli.common import run
sys.exit(run(workers.train))
"""


def recipe(**trainer):
    """Returns the config of `test_resume` with validation and short batches."""
    from tests.trainers.train import test_resume

    config = test_resume.recipe(**{"micro": 0, **trainer})
    config.data.validation_size = 6
    return config


def train(argv) -> int:
    """Trains the toy recipe with `key=value` changes in a worker process.

    `KILL=7`, `TERM=7` or `STOP=7` sends this process the signal after update 7. `NOTICE=7`
    simulates a preemption notice of the cloud after update 7.
    """
    import keras

    from tests import toys
    from tests.trainers.distributed import test_preemption
    from trainers.config.recipe import change
    from trainers.distributed import preemption
    from trainers.distributed.cluster import read_cluster
    from trainers.train.loop import Terminated
    from trainers.train.trainer import Trainer

    workdir, workers, index, *changes = argv[1:]
    cluster = read_cluster(workers, int(index), "") if workers else read_cluster()
    config = recipe(strategy="multi_worker")
    changes = dict(word.split("=") for word in changes)
    signals = {name: int(changes.pop(name)) for name in ("KILL", "TERM", "STOP") if name in changes}
    notice = int(changes.pop("NOTICE", 0))
    config = change(config, list(changes.items()))

    class Send(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            now = int(self.model.count.numpy())
            for name, step in signals.items():
                if now == step:
                    os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
            if now == notice:
                cloud.pages[test_preemption.PREEMPTED] = "TRUE"
                assert trainer.stop.requested.wait(20)

    preemption.EVERY = 0.01
    with test_preemption.serving() as cloud:
        preemption.SERVERS["gcp"] = cloud.address
        trainer = Trainer(
            config, workdir, dataset=toys.token_data(), cluster=cluster, callbacks=[Send()]
        )
        try:
            trainer.train()
        except Terminated:
            return 143
    return 0


def free_addresses(count: int) -> list[str]:
    """Returns local addresses (`host:port`) with unused ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def absent(workdir, index: int) -> str:
    """Returns the work directory argument of a non-chief worker, which never creates this path."""
    return f"{workdir}-of-worker-{index}"


class Workers:
    """Started worker processes; leaving the context kills the processes that still run.

    Args:
      count: number of workers.
      workdir: work directory of the chief; `absent` gives the paths of the other workers.
      changes: `key=value` changes of the recipe, for all workers.
      each: list of such changes for each worker.
      tf_config: whether TF_CONFIG, with a job "chief", gives the workers their addresses.
    """

    def __init__(self, count, workdir, *changes, each=None, tf_config=False):
        self.addresses = free_addresses(count)
        each = each or [[]] * count
        environment = {}
        jobs = {"chief": self.addresses[:1], "worker": self.addresses[1:]}
        worker_list = "" if tf_config else ",".join(self.addresses)
        self.processes = []
        for index in range(count):
            task = (
                {"type": "worker", "index": index - 1} if index else {"type": "chief", "index": 0}
            )
            if tf_config:
                environment["TF_CONFIG"] = json.dumps({"cluster": jobs, "task": task})
            folder = absent(workdir, index) if index else workdir
            words = [str(folder), worker_list, str(index), *changes, *each[index]]
            self.processes.append(zygote.start(_CHILD, *words, environment=environment))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait(self, seconds=300) -> list[tuple[int, str]]:
        """Waits for the end of all workers; returns `(exit status, stderr)` of each worker."""
        end = time.monotonic() + seconds
        answers = []
        for process in self.processes:
            try:
                _, err = process.communicate(timeout=max(1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"still running: {process.communicate()}") from None
            answers.append((process.returncode, err))
        return answers
