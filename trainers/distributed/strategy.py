"""Strategy names to tf.distribute strategies, and the devices they run on."""

import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from trainers.config.recipe import check_replicas, check_strategy
from trainers.distributed.cluster import Cluster
from trainers.distributed.tpu import is_tpu, tpu_strategy
from zoo.errors import UsageError

_SILENCE = 120_000  # ms; TensorFlow ends a process whose peer is silent, without a word to users


def prepare_devices(replicas: int, deterministic: bool = False) -> None:
    """Sets up the process's devices; must run before TensorFlow first uses one.

    GPU memory grows with need. Without GPUs, `replicas` logical devices stand in on the CPU.

    Raises:
      UsageError: where TensorFlow runs already with fewer devices.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        # With oneDNN, Grappler's remapper fuses convolution, bias and LeakyReLU although the
        # gradient reads what is in between; it fails, logs an error and changes nothing. Training
        # gains nothing from it on a CPU (steps of a CNN, a GAN and a GPT: the same time).
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
    except RuntimeError:  # devices are in use already, by an earlier run in this process
        kind = "GPU" if gpus else "CPU"
        present = len(tf.config.list_logical_devices(kind))
        if present < replicas:
            raise UsageError(
                f"TensorFlow runs already in this process with {present} logical {kind} "
                f"device(s). Received: trainer.replicas={replicas}; start a new process."
            ) from None


def make_strategy(
    name: str, replicas: int = 0, cluster: Cluster | None = None, tpu: str = "local"
) -> tf.distribute.Strategy:
    """Returns the strategy of that name.

    Args:
      name: "one_device", "mirrored" for all GPUs of this machine, "multi_worker" for those of
        several machines, "tpu" for all cores of a TPU, or "auto" for what this machine has.
      replicas: how many devices a mirrored strategy takes; 0 takes all.
      cluster: of "multi_worker".
      tpu: which one, see `trainers.distributed.tpu.tpu_strategy`.

    Raises:
      UsageError: for an unknown name, or more replicas than devices.
      RunError: where no TPU answers.
    """
    check_strategy(name)
    if name == "auto":
        name = _choose(replicas)
    if name == "multi_worker":
        return _multi_worker(cluster, replicas)
    if name == "tpu":
        check_replicas(replicas)
        return tpu_strategy(tpu)
    if name == "one_device":
        if replicas > 1:
            raise UsageError(
                f"Strategy one_device has one replica. Received: trainer.replicas={replicas}; "
                "use --strategy=mirrored."
            )
        return tf.distribute.get_strategy()  # the default one: no wrapping at all
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    replicas = replicas or len(devices)
    if replicas > len(devices):
        raise UsageError(
            f"This machine has {len(devices)} {kind} device(s). Received: "
            f"trainer.replicas={replicas}."
        )
    return tf.distribute.MirroredStrategy(
        devices[:replicas],
        # Adding up on one device keeps the order of the sum, and so the last bit, the same.
        cross_device_ops=tf.distribute.ReductionToOneDevice() if kind == "CPU" else None,
    )


def _choose(replicas: int) -> str:
    """The strategy for what this machine has, said aloud."""
    if tf.config.list_physical_devices("TPU"):
        print("zoo: strategy tpu, for the TPU of this machine", file=sys.stderr, flush=True)
        return "tpu"
    gpus = len(tf.config.list_logical_devices("GPU"))
    name = "mirrored" if max(gpus, replicas) > 1 and replicas != 1 else "one_device"
    print(f"zoo: strategy {name}, for {gpus or 'no'} GPU(s)", file=sys.stderr, flush=True)
    return name


def _multi_worker(cluster: Cluster | None, replicas: int) -> tf.distribute.Strategy:
    if cluster is None:
        raise UsageError("Strategy multi_worker is one of `zoo train` and `Trainer` alone.")
    if replicas:
        raise UsageError(
            "Strategy multi_worker takes all GPUs of each machine. Received: "
            f"trainer.replicas={replicas}; leave it at 0."
        )
    if context.context()._initialized:
        raise UsageError(
            "TensorFlow runs already in this process, and workers connect when it starts. "
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
    """Which of all replicas, by number, this process feeds: all but those of other workers."""
    if strategy.num_replicas_in_sync == 1 or is_tpu(strategy):
        return range(strategy.num_replicas_in_sync)
    count = len(strategy.extended.worker_devices)
    first = count * strategy.cluster_resolver.task_id if strategy.cluster_resolver else 0
    return range(first, first + count)


def gathered(strategy: tf.distribute.Strategy, values) -> np.ndarray:
    """What `strategy.run` gave, of all replicas in order; all workers call it."""
    local = strategy.experimental_local_results(values)
    if len(local) < strategy.num_replicas_in_sync:
        return strategy.gather(values, axis=0).numpy()
    return np.concatenate([value.numpy() for value in local])


def distribute(strategy: tf.distribute.Strategy, batches: Callable[[range], tf.data.Dataset]):
    """Hands each replica its share of the batches, host by host.

    Args:
      strategy: under which the step runs.
      batches: given numbers of replicas, returns a dataset of the shares of these, in turn.
    """
    local = local_replicas(strategy)
    if len(local) == 1:
        return batches(local)

    def of_one_host(context):
        count = context.num_replicas_in_sync // context.num_input_pipelines
        first = context.input_pipeline_id * count
        return batches(range(first, first + count))

    return strategy.distribute_datasets_from_function(of_one_host)
