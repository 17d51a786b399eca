"""Starting TensorFlow without its talk on stderr, so that a command's error is one line."""

import contextlib
import os
import sys
from pathlib import Path


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for GPUs; TF_CPP_MIN_LOG_LEVEL=0 lets it talk."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1") == "0":
        return
    with _quiet_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not gpus and not hidden and Path("/dev/nvidia0").exists():
        print(
            "zoo: TensorFlow cannot use this machine's GPU: pip install 'keras-zoo[cuda]', or "
            "TF_CPP_MIN_LOG_LEVEL=0 to see why.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _quiet_stderr():
    # TensorFlow writes to the file descriptor, which sys.stderr does not see.
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
