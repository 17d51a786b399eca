"""Strategy names to tf.distribute strategies, and the devices they run on."""

import tensorflow as tf

from zoo.errors import UsageError, near_names

STRATEGIES = ("one_device", "mirrored")


def prepare_devices(replicas: int, deterministic: bool = False) -> None:
    """Sets up the process's devices; must run before TensorFlow first uses one.

    GPU memory grows with need. Without GPUs, `replicas` logical devices stand in on the CPU.

    Raises:
      UsageError: where TensorFlow runs already with fewer devices.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
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


def make_strategy(name: str, replicas: int = 0) -> tf.distribute.Strategy:
    """Returns the strategy of that name.

    Args:
      name: "one_device", or "mirrored" for all GPUs of this machine.
      replicas: how many devices a mirrored strategy takes; 0 takes all.

    Raises:
      UsageError: for an unknown name, or more replicas than devices.
    """
    if name not in STRATEGIES:
        raise UsageError(
            f"No strategy is named {name!r}.{near_names(name, STRATEGIES)} "
            f"Known: {', '.join(STRATEGIES)}."
        )
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


def distribute(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset):
    """Hands a dataset of replicas' shares, in turn, to the replicas."""
    if strategy.num_replicas_in_sync == 1:
        return dataset
    return strategy.distribute_datasets_from_function(lambda context: dataset)
