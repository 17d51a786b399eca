"""Precision policies by name."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from trainers.config.trainer import check_precision
from zoo.lazy import keras


@contextlib.contextmanager
def precision(name: str):
    """Returns a context in which models are built under a dtype policy.

    Raises:
      UsageError: for an unknown name.
    """
    check_precision(name)
    previous_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous_policy)


def slow_bfloat16(name: str, devices: Sequence[str], cpuinfo: str | Path = "/proc/cpuinfo") -> str:
    """Returns a warning if bfloat16 is slow on this CPU; "" if it is not, or if that is unknown.

    Args:
      name: name of the precision.
      devices: names of TensorFlow's devices.
      cpuinfo: path of Linux' description of the CPU.
    """
    if name != "mixed_bfloat16" or any("CPU" not in device.upper() for device in devices):
        return ""
    try:
        flags = re.search(r"^(flags|Features)\s*:(.*)$", Path(cpuinfo).read_text(), re.MULTILINE)
    except OSError:
        return ""
    if not flags or {"avx512_bf16", "amx_bf16", "bf16"} & set(flags[2].split()):
        return ""
    return (
        "this CPU has no bfloat16 instructions: convolutions take up to 30 times as long as with "
        "--config.trainer.precision=float32, text models 1.5 times"
    )
