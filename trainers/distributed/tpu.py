"""TPUs: how to reach one, and what cannot train on it.

The step is the one of every other strategy (`trainers.train.step`). What a TPU asks besides: shapes
that never change, which `zoo.data.pipeline` gives (the last batch of an epoch is padded with rows
of weight 0); no number type of 16-bit floats but bfloat16; no XLA of our own, since the whole step
is compiled anyway. `zoo tpu_check` compiles a recipe's step without a TPU.
"""

import os
from collections.abc import Mapping

import tensorflow as tf

from trainers.config.recipe import check_tpu
from zoo.data import pipeline
from zoo.errors import RunError, UsageError

# How lines begin of TensorFlow's errors that say nothing.
_EMPTY_WORDS = ("Graph execution error", "Detected at node", "<stack traces")


def tpu_strategy(name: str) -> tf.distribute.Strategy:
    """Connects to a TPU and returns the strategy of all its cores.

    Args:
      name: "local" for that of this machine, a TPU's name, or `grpc://HOST:PORT`.

    Raises:
      UsageError: for a generation that TensorFlow has no support for.
      RunError: where there is none, or it does not answer.
    """
    kind = os.environ.get("TPU_ACCELERATOR_TYPE", "").lower()
    if kind.startswith(("tpu7", "v7")):
        raise UsageError(
            "TensorFlow's last release for TPUs, tensorflow-tpu 2.20, does not support TPU7x, and "
            "the zoo has no engine on JAX yet: take a v5e, v5p or v6e. Received: "
            f"TPU_ACCELERATOR_TYPE={kind}."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    # Name service, gRPC, the metadata server and libtpu raise each their own kinds.
    except Exception as error:
        lines = str(getattr(error, "message", error)).splitlines()
        lines = [line.strip() for line in lines if not line.startswith(_EMPTY_WORDS)]
        said = next(filter(None, lines), type(error).__name__)
        raise RunError(
            f"No TPU answers at --tpu={name}: {said[:160]}. On a TPU VM it is "
            "--tpu=local, with tensorflow-tpu in place of tensorflow and no other process on the "
            "chips; see docs/tpu_vm.md."
        ) from None


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy computes on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def check(config, strategy: tf.distribute.Strategy, arrays: Mapping) -> None:
    """Checks that a TPU can train a recipe on a split; raises `UsageError` for what it cannot."""
    if not is_tpu(strategy):
        return
    check_tpu(config)
    hosts = strategy.extended.num_hosts
    if hosts > 1 and not pipeline.all_held(arrays):
        raise UsageError(
            f"The {hosts} hosts of this TPU make their batches by themselves, "
            "and this training split is read piece by piece from files that they do not have. Take "
            "a TPU of one host (up to v5litepod-8 or v6e-8)."
        )
