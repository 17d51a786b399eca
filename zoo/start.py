"""Import and configuration of TensorFlow for a command."""

import contextlib
import logging
import os
import sys
from pathlib import Path

from zoo import quiet
from zoo.errors import UsageError

_LOG = logging.getLogger(__name__)


def start_tensorflow() -> None:
    """Imports TensorFlow and lets it allocate GPU memory on demand.

    TF_CPP_MIN_LOG_LEVEL=0 shows the logs of TensorFlow.

    Raises:
      UsageError: if KERAS_BACKEND names another backend.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise UsageError(f"KERAS_BACKEND must be tensorflow. Received: {backend}.")
    with without_jax():
        import tensorflow as tf
    with quiet.quiet_stderr():
        gpus = tf.config.list_physical_devices("GPU")
    if not quiet.are_logs_enabled():
        tf.get_logger().setLevel("ERROR")  # TensorFlow's profiler calls deprecated functions
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # the GPU is already initialized
            tf.config.experimental.set_memory_growth(gpu, True)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not gpus and not hidden and Path("/dev/nvidia0").exists():
        _LOG.warning(
            "TensorFlow cannot use the GPU of this machine. Install keras-zoo[cuda], or set "
            "TF_CPP_MIN_LOG_LEVEL=0 to see why."
        )


@contextlib.contextmanager
def without_jax():
    """Hides JAX inside the context, so that the import of TensorFlow or bm25s does not use it.

    TensorFlow Lite would import JAX, which takes a second and is needed for JAX models only. bm25s
    would start JAX, and with it the library of TPUs if that is installed.
    """
    before = sys.modules.get("jax")
    sys.modules["jax"] = None
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop("jax", None)
        else:
            sys.modules["jax"] = before
