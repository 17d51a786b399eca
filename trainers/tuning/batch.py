"""Finds the largest micro-batch that fits into the memory, and the fastest one.

Each size is measured in a child process, so that the memory of one size does not count for the next
and a process that is killed for its memory ends only its measurement.
"""

import dataclasses
import json
import logging

import psutil
import tensorflow as tf

from trainers import bench
from trainers.config.recipe import as_dict, of_workdir
from zoo import processes
from zoo.errors import RunError, UsageError
from zoo.storage.disk import open_file

_LOG = logging.getLogger(__name__)

_SHARE = 0.9  # of the free memory that a measurement may use
_GAIN = 1.02  # a larger size is faster only beyond this ratio, which is within the noise


@dataclasses.dataclass(frozen=True)
class Size:
    """Measurement of one micro-batch.

    Attributes:
      rows: examples per forward pass.
      samples_per_second: examples per second in training; None if the size does not fit.
      bytes: largest memory: of the whole process on a CPU, of the allocator on a GPU; None if
        unknown.
    """

    rows: int
    samples_per_second: float | None
    bytes: int | None


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """Result of `find_batch`.

    Attributes:
      sizes: the measured sizes, in rising order.
      largest: largest measured size that fits; 0 if none fits.
      fastest: smallest size whose speed is within 2 % of the best; 0 if none fits.
      limit: bytes that a measurement may use.
      device: "CPU" or "GPU".
    """

    sizes: tuple[Size, ...]
    largest: int
    fastest: int
    limit: int
    device: str


def find_batch(config, *, highest: int = 0, seconds: float = 4.0, limit: int = 0) -> BatchResult:
    """Measures micro-batches of 1, 2, 4 ... examples.

    Args:
      config: a resolved configuration with strategy one_device.
      highest: largest size to measure; 0 for the recipe's global batch size.
      seconds: duration of each measurement, without start and tracing.
      limit: bytes that a measurement may use; 0 for 90 % of the free memory.

    Raises:
      UsageError: for another strategy.
      RunError: if a measurement fails for another reason than its memory.
    """
    if config.trainer.strategy != "one_device":
        raise UsageError(
            "zoo tune batch measures one device: trainer.strategy must be one_device. Received: "
            f"{config.trainer.strategy}."
        )
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    limit = limit or int(_SHARE * psutil.virtual_memory().available)
    highest = highest or config.trainer.global_batch_size
    sizes: list[Size] = []
    rows = 1
    while rows <= highest:
        if device == "CPU" and _next_bytes(sizes) > limit:
            _LOG.info(f"{rows} examples are not measured: they would exceed the memory")
            sizes.append(Size(rows, None, None))
            break
        size = _measured(config, rows, seconds)
        fits = size.samples_per_second is not None and (
            device == "GPU" or size.bytes is None or size.bytes <= limit
        )
        sizes.append(size if fits else dataclasses.replace(size, samples_per_second=None))
        if not fits:
            break
        _LOG.info(
            f"{rows} examples: {size.samples_per_second:,.1f} samples/s, "
            f"{(size.bytes or 0) / 2**20:,.0f} MiB"
        )
        rows *= 2
    fitting = [size for size in sizes if size.samples_per_second is not None]
    best = max((size.samples_per_second for size in fitting), default=0.0)
    fast = [size.rows for size in fitting if _GAIN * size.samples_per_second >= best]
    return BatchResult(
        tuple(sizes), max((size.rows for size in fitting), default=0), min(fast, default=0), limit,
        device,
    )  # fmt: skip


def _next_bytes(sizes: list[Size]) -> float:
    """Returns the memory of the next size, extrapolated from the last two."""
    if len(sizes) < 2 or not (sizes[-1].bytes and sizes[-2].bytes):
        return 0.0
    # The next size adds twice as many examples as the last one did.
    return sizes[-1].bytes + 2 * max(0, sizes[-1].bytes - sizes[-2].bytes)


def _measured(config, rows: int, seconds: float) -> Size:
    config = of_workdir(as_dict(config)).unlock()
    config.trainer.update(global_batch_size=rows, micro_batch_size=0)
    try:
        rate, peak = processes.call(
            f"The measurement of {rows} examples", "trainers.tuning.batch:measure",
            json.dumps(as_dict(config)), str(seconds), tensorflow=True,
        )  # fmt: skip
    except RunError as error:
        # A process that exceeds its memory is killed, or TensorFlow's allocator raises.
        if "signal 9" in str(error) or "ResourceExhausted" in str(error):
            return Size(rows, None, None)
        raise
    return Size(rows, rate, peak)


def measure(config: str, seconds: str) -> tuple[float, int]:
    """Measures the train step of a configuration in this process.

    Args:
      config: the configuration as JSON.
      seconds: duration of the measurement, as text.

    Returns:
      Samples per second, and the largest memory in bytes.
    """
    result = bench.bench(of_workdir(json.loads(config)).unlock(), float(seconds))
    if tf.config.list_physical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        peak = _largest_resident()
    return result.samples_per_second, int(peak)


def _largest_resident() -> int:
    """Returns the largest resident memory of this process in bytes.

    `resource.getrusage` would also count that of the parent before it started this program.
    """
    with open_file("/proc/self/status") as file:
        for line in file:
            name, _, value = line.decode().partition(":")
            if name == "VmHWM":
                return 1024 * int(value.split()[0])
    raise RunError("This system does not tell the largest memory of a process.")
