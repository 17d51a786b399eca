"""Connects to TPUs and checks whether a recipe can train on one.

The train step is the same as for every other strategy (`trainers.train.step`). A TPU also requires
static shapes (`zoo.data.pipeline` pads the last batch of an epoch with rows of weight 0), bfloat16
as the only 16-bit float, and trainer.jit_compile=False, since the whole step is compiled anyway.
`zoo tpu_check` compiles a recipe's step without a TPU.
"""

import os
from collections.abc import Mapping

import tensorflow as tf

from trainers.config.trainer import check_tpu
from zoo.data import pipeline
from zoo.errors import RunError, UsageError

# Beginnings of lines without information in TensorFlow's errors.
_EMPTY_LINES = ("Graph execution error", "Detected at node", "<stack traces")


def tpu_strategy(name: str) -> tf.distribute.Strategy:
    """Connects to a TPU and returns a strategy for all its cores.

    Args:
      name: "local" for the TPU of this machine, the name of a TPU, or `grpc://HOST:PORT`.

    Raises:
      UsageError: for a TPU generation that TensorFlow does not support.
      RunError: if there is no TPU, or it does not respond.
    """
    kind = os.environ.get("TPU_ACCELERATOR_TYPE", "").lower()
    if kind.startswith(("tpu7", "v7")):
        raise UsageError(
            "tensorflow-tpu 2.20, the last release, does not support TPU7x: use a v5e, v5p or v6e. "
            "Received: "
            f"TPU_ACCELERATOR_TYPE={kind}."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    # Name service, gRPC, the metadata server and libtpu each raise types of their own.
    except Exception as error:
        lines = str(getattr(error, "message", error)).splitlines()
        lines = [line.strip() for line in lines if not line.startswith(_EMPTY_LINES)]
        reason = next(filter(None, lines), type(error).__name__)
        raise RunError(
            f"No TPU responds at --tpu={name}: {reason[:160]}. On a TPU VM use --tpu=local, with "
            "tensorflow-tpu in place of tensorflow and no other process on the chips; see "
            "docs/tpu_vm.md."
        ) from None


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy runs on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def check(config, strategy: tf.distribute.Strategy, arrays: Mapping) -> None:
    """Raises `UsageError` if a TPU cannot train this configuration on a split."""
    if not is_tpu(strategy):
        return
    check_tpu(config.trainer, config.task)
    hosts = strategy.extended.num_hosts
    if hosts > 1 and not pipeline.all_in_memory(arrays):
        raise UsageError(
            "A training split that is read from files requires a TPU of one host (up to "
            f"v5litepod-8 or v6e-8), since each host makes its batches. Received: {hosts} hosts."
        )
