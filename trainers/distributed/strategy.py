"""Makes tf.distribute strategies by name, and sets up their devices."""

import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from trainers.config.trainer import check_strategy
from trainers.distributed.cluster import Cluster
from trainers.distributed.tpu import is_tpu, tpu_strategy
from zoo.errors import UsageError

_LOG = logging.getLogger(__name__)

_SILENCE = 120_000  # ms until TensorFlow ends a process with a silent peer, without a clear message


def prepare_devices(replicas: int, deterministic: bool = False) -> None:
    """Sets up the devices of the process; must run before TensorFlow first uses one.

    GPU memory grows on demand. Without GPUs the CPU is split into `replicas` logical devices.

    Raises:
      UsageError: if TensorFlow is already initialized with fewer devices.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        # With oneDNN, Grappler's remapper tries to fuse convolution, bias and LeakyReLU although
        # the gradient reads their intermediate results; it fails, logs an error and changes
        # nothing. Without it training is as fast on a CPU (measured: CNN, GAN and GPT).
        tf.config.optimizer.set_experimental_options({"remapping": False})
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if not gpus and replicas > 1:
            cpu = tf.config.list_physical_devices("CPU")[0]
            present = tf.config.get_logical_device_configuration(cpu)
            if present is None or len(present) < replicas:
                tf.config.set_logical_device_configuration(
                    cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
                )
    except RuntimeError:  # an earlier run in this process uses the devices
        kind = "GPU" if gpus else "CPU"
        present = len(tf.config.list_logical_devices(kind))
        if present < replicas:
            raise UsageError(
                f"trainer.replicas must not exceed the {present} logical {kind} device(s) that "
                f"TensorFlow has already initialized. Received: {replicas}; start a new process."
            ) from None


def make_strategy(
    name: str, replicas: int = 0, cluster: Cluster | None = None, tpu: str = "local"
) -> tf.distribute.Strategy:
    """Returns a strategy by name.

    Args:
      name: "one_device", "mirrored" for all GPUs of this machine, "multi_worker" for the GPUs of
        several machines, "tpu" for all cores of a TPU, or "auto" to choose by the devices of this
        machine.
      replicas: number of devices of a mirrored strategy; 0 for all.
      cluster: the workers of "multi_worker".
      tpu: name of the TPU, see `trainers.distributed.tpu.tpu_strategy`.

    Raises:
      UsageError: for an unknown name, or more replicas than devices.
      RunError: if no TPU responds.
    """
    if name == "auto":
        name = _choose(replicas)
    check_strategy(name, replicas)
    if name == "multi_worker":
        return _multi_worker(cluster)
    if name == "tpu":
        return tpu_strategy(tpu)
    if name == "one_device":
        return tf.distribute.get_strategy()  # the default one: no wrapping at all
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    replicas = replicas or len(devices)
    if replicas > len(devices):
        raise UsageError(
            f"trainer.replicas must not exceed the {len(devices)} {kind} device(s) of this "
            f"machine. Received: {replicas}."
        )
    return tf.distribute.MirroredStrategy(
        devices[:replicas],
        # A sum on one device has a fixed order, so results are equal to the bit.
        cross_device_ops=tf.distribute.ReductionToOneDevice() if kind == "CPU" else None,
    )


def _choose(replicas: int) -> str:
    """Returns the strategy's name for the devices of this machine, and reports it."""
    if tf.config.list_physical_devices("TPU"):
        _LOG.info("strategy tpu, for the TPU of this machine")
        return "tpu"
    gpus = len(tf.config.list_logical_devices("GPU"))
    name = "mirrored" if max(gpus, replicas) > 1 and replicas != 1 else "one_device"
    _LOG.info(f"strategy {name}, for {gpus or 'no'} GPU(s)")
    return name


def _multi_worker(cluster: Cluster | None) -> tf.distribute.Strategy:
    if cluster is None:
        raise UsageError("Strategy multi_worker is only supported by `zoo train` and `Trainer`.")
    if context.context()._initialized:
        raise UsageError(
            "Strategy multi_worker requires a process in which TensorFlow is not initialized yet. "
            "Received: trainer.strategy=multi_worker; start a new process."
        )
    jobs = [coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(cluster.workers))]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        coordinated_jobs=jobs,
        heartbeat_timeout_in_ms=_SILENCE,
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


def local_replicas(strategy: tf.distribute.Strategy) -> range:
    """Returns the indices of the replicas that this process provides with input."""
    if strategy.num_replicas_in_sync == 1 or is_tpu(strategy):
        return range(strategy.num_replicas_in_sync)
    count = len(strategy.extended.worker_devices)
    first = count * strategy.cluster_resolver.task_id if strategy.cluster_resolver else 0
    return range(first, first + count)


def gather_results(strategy: tf.distribute.Strategy, values) -> np.ndarray:
    """Returns results of `strategy.run`, concatenated in the order of all replicas.

    All workers must call it.
    """
    local = strategy.experimental_local_results(values)
    if len(local) < strategy.num_replicas_in_sync:
        return strategy.gather(values, axis=0).numpy()
    return np.concatenate([value.numpy() for value in local])


def distribute(strategy: tf.distribute.Strategy, batches: Callable[[range], tf.data.Dataset]):
    """Returns a dataset that provides each replica with its per-replica batches.

    Args:
      strategy: the strategy of the run.
      batches: takes a range of replica indices and returns a dataset of their per-replica batches,
        in turn.
    """
    local = local_replicas(strategy)
    if len(local) == 1:
        return batches(local)

    def of_one_host(context):
        count = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * count
        return batches(range(first, first + count))

    return strategy.distribute_datasets_from_function(of_one_host)
