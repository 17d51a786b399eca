"""Runs with several workers, as processes on this machine."""

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
    """Everything that has state, as in `test_resume`, and validation, with short batches."""
    from tests.trainers.train import test_resume

    config = test_resume.recipe(**{"micro": 0, **trainer})
    config.data.validation_size = 6
    return config


def train(argv) -> int:
    """What a worker runs: the toys' recipe with `key=value` changes.

    `KILL=7` sends this process SIGKILL after update 7, and so does TERM or STOP; `NOTICE=7` is a
    cloud's notice to its machine then.
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
                assert trainer.stop.asked.wait(20)

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
    """Addresses of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def absent(workdir, index: int) -> str:
    """The work directory that a worker who is not the chief is told of, and never makes."""
    return f"{workdir}-of-worker-{index}"


class Workers:
    """Started processes; on leaving the context none of them is left.

    Args:
      count: how many.
      workdir: the run's, of the chief; `absent` names those of the others.
      changes: `key=value` of the recipe, for all workers.
      each: for each worker such a list.
      tf_config: whether the workers are told of each other by TF_CONFIG, with a job "chief".
    """

    def __init__(self, count, workdir, *changes, each=None, tf_config=False):
        self.addresses = free_addresses(count)
        each = each or [[]] * count
        environment = {}
        jobs = {"chief": self.addresses[:1], "worker": self.addresses[1:]}
        told = "" if tf_config else ",".join(self.addresses)
        self.processes = []
        for index in range(count):
            task = (
                {"type": "worker", "index": index - 1} if index else {"type": "chief", "index": 0}
            )
            if tf_config:
                environment["TF_CONFIG"] = json.dumps({"cluster": jobs, "task": task})
            folder = absent(workdir, index) if index else workdir
            words = [str(folder), told, str(index), *changes, *each[index]]
            self.processes.append(zygote.start(_CHILD, *words, environment=environment))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait(self, seconds=300) -> list[tuple[int, str]]:
        """Returns `(exit status, stderr)` of each."""
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
