"""Starts TensorFlow for a command."""

import contextlib
import os
import sys
from pathlib import Path

from zoo import quiet
from zoo.errors import UsageError


def start_tensorflow() -> None:
    """Imports TensorFlow and has it take a GPU's memory as it needs it.

    TF_CPP_MIN_LOG_LEVEL=0 lets it talk.

    Raises:
      UsageError: where the environment asks for another backend of Keras.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise UsageError(f"The trainer runs on TensorFlow. Received: KERAS_BACKEND={backend}.")
    with without_jax():
        import tensorflow as tf
    with quiet.quiet_stderr():
        gpus = tf.config.list_physical_devices("GPU")
    if not quiet.wants_logs():
        tf.get_logger().setLevel("ERROR")  # its profiler warns of what it calls itself
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # in use already, by an earlier command
            tf.config.experimental.set_memory_growth(gpu, True)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not gpus and not hidden and Path("/dev/nvidia0").exists():
        print(
            "zoo: TensorFlow cannot use this machine's GPU: pip install 'keras-zoo[cuda]', or "
            "TF_CPP_MIN_LOG_LEVEL=0 to see why.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def without_jax():
    """Has an import of TensorFlow do without JAX, where that is installed.

    TensorFlow Lite takes a second to import it, for models of JAX' own, of which there are none.
    """
    absent = "jax" not in sys.modules
    if absent:
        sys.modules["jax"] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules["jax"]
