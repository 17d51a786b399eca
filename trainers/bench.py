"""Measures a recipe's train step: throughput, input pipeline, and share of the peak FLOPs."""

import dataclasses
import statistics
import time

import tensorflow as tf

from trainers.config.base import section
from trainers.config.compress import check_sizes
from trainers.config.data import sizes_follow_images
from trainers.config.trainer import check_batch, check_examples
from trainers.distributed import tpu
from trainers.distributed.strategy import distribute, make_strategy, prepare_devices
from trainers.input.features import make_synthetic_arrays
from trainers.train.build import build_step, update_function
from zoo import registry
from zoo.data import pipeline
from zoo.description import forward_flops
from zoo.errors import UsageError

_ROUND = 0.05  # seconds of matrix products per round
_ROUNDS = 9  # number of rounds, which alternate between steps and matrix products

ABOVE_PEAK = (
    "above 100 %: other work on this machine slowed down the matrix products, or kernels need "
    "fewer FLOPs than the count, as Winograd convolutions do; repeat with larger --seconds"
)


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """Results of `bench`; times are medians.

    Attributes:
      first_step: seconds from the built model to the end of the first update (tracing,
        compilation).
      step: seconds per update, input included.
      samples_per_second: examples per second in training.
      unit: unit of the loss weight, such as "tokens".
      units_per_second: these units per second in training.
      input_batches_per_second: throughput of the input pipeline alone, in batches.
      input_samples_per_second: throughput of the input pipeline alone, in examples.
      cached_samples_per_second: throughput of the step with cached input batches, in examples.
      bottleneck: "input" if the input pipeline alone is slower than the step with cached batches,
        else "step".
      flops: FLOPs of one update, as three forward passes, without a frozen part that training runs
        once. Too low for GANs, whose model parts run each other.
      peak: FLOPs per second of large matrix products in the recipe's compute dtype, on all replicas
        at once; the median of rounds that alternate with updates.
      share: FLOPs per second of training divided by `peak`.
      remark: reason to doubt the share; "" if there is none.
    """

    first_step: float
    step: float
    samples_per_second: float
    unit: str
    units_per_second: float
    input_batches_per_second: float
    input_samples_per_second: float
    cached_samples_per_second: float
    bottleneck: str
    flops: int
    peak: float
    share: float
    remark: str


def bench(config, seconds: float = 10.0, dataset=None) -> BenchResult:
    """Measures a recipe's train step on synthetic examples from its task.

    Text tasks run on the recipe's dataset, since vocabulary and sequence length follow from it.

    Args:
      config: a resolved configuration.
      seconds: time to measure: half for training, a quarter each for step and input alone.
      dataset: the dataset of a text task, if it is loaded already.

    Returns:
      `BenchResult`.
    """
    trainer = config.trainer
    check_sizes(section(config, "compress"))
    prepare_devices(trainer.replicas, trainer.deterministic)
    strategy = make_strategy(trainer.strategy, trainer.replicas)
    replicas, batch = strategy.num_replicas_in_sync, trainer.global_batch_size
    check_batch(config, replicas)
    chunk = trainer.steps_per_execution
    needs_data = registry.has_loader(config.task.name) or sizes_follow_images(config.model)
    if dataset is None and needs_data:
        dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
    # The number of updates is larger than the phases of any schedule.
    step, task = build_step(config, strategy, 10**9, dataset)
    if step.lora:
        step.lora.begin()
    if dataset:
        task.check(step.net, dataset)
        arrays = dataset.splits["train"]
        check_examples(arrays, batch)
    else:
        arrays = make_synthetic_arrays(task, step.net, 4 * batch, trainer.seed)
    # Training runs a frozen part once, so updates only run the head.
    learner = step.net if task.frozen_part(step.net).model is None else step.net.head
    tpu.check(config, strategy, arrays)
    batches = pipeline.training_batches(
        arrays, step.task.prepare, batch_size=batch, replicas=replicas, seed=trainer.seed,
        first_step=0, last_step=10**9,
    )  # fmt: skip
    run = update_function(step, strategy)

    def execute(iterator, count):
        start = time.perf_counter()
        run(iterator, tf.constant(count))
        totals = step.means.take()  # waits for the device
        return time.perf_counter() - start, totals[next(iter(step.task.terms))][1]

    def measure(batches, seconds):
        iterator = iter(distribute(strategy, lambda shares: batches))
        execute(iterator, chunk)
        results, end = [], time.perf_counter() + seconds
        while len(results) < 5 or time.perf_counter() < end:
            results.append(execute(iterator, chunk))
        return [[value / chunk for value in values] for values in zip(*results, strict=True)]

    iterator = iter(distribute(strategy, lambda shares: batches))
    first_step, _ = execute(iterator, 1)
    products = MatrixProducts(step.net.compute_dtype, strategy)
    execute(iterator, chunk)
    updates, peaks = [], []
    for _ in range(_ROUNDS):  # alternating, so that other work on the machine slows down both
        end = time.perf_counter() + seconds / 2 / _ROUNDS
        updates += [execute(iterator, chunk), execute(iterator, chunk)]
        while time.perf_counter() < end:
            updates.append(execute(iterator, chunk))
        peaks.append(products.flops_per_second())
    times, counts = ([value / chunk for value in values] for values in zip(*updates, strict=True))
    median, peak = statistics.median(times), statistics.median(peaks)
    cached_batches = batches.take(replicas).cache().repeat()
    cached_rate = batch / statistics.median(measure(cached_batches, seconds / 4)[0])
    rate = _input_rate(batches, replicas, seconds / 4)
    lengths = {}
    if learner is step.net:
        free = [i.name for i in step.net.inputs if None in i.shape[1:]]
        if unknown := [name for name in free if name not in batches.element_spec]:
            raise UsageError(
                "A model input of variable length must have the name of an array of the batch: "
                f"{', '.join(batches.element_spec)}. Received: {unknown[0]!r}."
            )
        lengths = {name: batches.element_spec[name].shape[1] for name in free}
    flops = 3 * forward_flops(learner, lengths or None) * batch
    share = flops / median / peak
    return BenchResult(
        first_step=first_step,
        step=median,
        samples_per_second=batch / median,
        unit=task.unit,
        units_per_second=statistics.mean(counts) / median,
        input_batches_per_second=rate,
        input_samples_per_second=rate * batch,
        cached_samples_per_second=cached_rate,
        bottleneck="input" if rate * batch < cached_rate else "step",
        flops=flops,
        peak=peak,
        share=share,
        remark=ABOVE_PEAK if share > 1 else "",
    )


class MatrixProducts:
    """Products of (size, size) matrices, to measure the peak FLOPs of a machine.

    All replicas compute at once, as in training, since logical devices share the cores of a CPU. A
    round takes at least `_ROUND` seconds, so that the time of the function call does not matter.

    Args:
      dtype: dtype of the matrices.
      strategy: the strategy of the run.
      size: rows and columns of the matrices.
    """

    def __init__(self, dtype: str, strategy: tf.distribute.Strategy, size: int = 2048):
        self.strategy, self.size, self.count = strategy, size, 1

        def matrix():  # scaled so that its powers neither grow nor vanish
            return tf.cast(tf.random.stateless_normal((size, size), (0, 0)) * size**-0.5, dtype)

        def power(a, count):
            end = tf.while_loop(
                lambda i, _: i < count, lambda i, x: (i + 1, tf.matmul(a, x)), (tf.constant(0), a)
            )[1]
            return tf.reduce_sum(tf.cast(end, tf.float32))

        self.matrices = tf.function(lambda: strategy.run(matrix), autograph=False)()
        self.run = tf.function(lambda a, n: strategy.run(power, (a, n)), autograph=False)
        self._seconds()
        while self._seconds() < _ROUND:
            self.count *= 2

    def flops_per_second(self) -> float:
        """Runs one round and returns its FLOPs per second."""
        replicas = self.strategy.num_replicas_in_sync
        return 2 * self.size**3 * self.count * replicas / self._seconds()

    def _seconds(self) -> float:
        start = time.perf_counter()
        totals = self.run(self.matrices, tf.constant(self.count))
        for total in self.strategy.experimental_local_results(totals):
            float(total)  # waits for the device
        return time.perf_counter() - start


def matmul_peak(dtype: str, strategy: tf.distribute.Strategy, rounds: int = 7) -> float:
    """Returns FLOPs per second of large matrix products, the fastest of several rounds."""
    products = MatrixProducts(dtype, strategy)
    return max(products.flops_per_second() for _ in range(rounds))


def _input_rate(batches: tf.data.Dataset, replicas: int, seconds: float) -> float:
    """Returns batches per second; an element is a per-replica batch."""
    iterator, count = iter(batches), 0
    for _ in range(4 * replicas):  # skips prefetched batches
        next(iterator)
    start = time.perf_counter()
    while count < 20 or time.perf_counter() < start + seconds:
        for _ in range(replicas):
            next(iterator)
        count += 1
    return count / (time.perf_counter() - start)
