"""How fast a recipe's train step runs here, and what share of the machine that is."""

import dataclasses
import statistics
import time

import tensorflow as tf

from trainers.config.compress_rules import check_sizes
from trainers.config.recipe import check_batch, check_examples
from trainers.distributed import tpu
from trainers.distributed.strategy import distribute, make_strategy, prepare_devices
from trainers.input.features import made_up
from trainers.train.build import build_step, update_function
from zoo import registry
from zoo.data import pipeline
from zoo.description import forward_flops
from zoo.errors import UsageError

_ROUND = 0.05  # seconds of matrix products
_ROUNDS = 9  # of steps and matrix products in turns, at least

ABOVE_PEAK = (
    "above 100 %: other work on this machine slowed the matrix products down, or kernels take "
    "fewer FLOPs than are counted, as Winograd's convolutions do; measure again, with a larger "
    "--seconds"
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured; times are medians.

    Attributes:
      first_step: seconds from built model to the end of the first update (tracing, compiling).
      step: seconds of one update, its input and all.
      samples_per_second: examples of one update over its seconds.
      unit: what the loss counts, such as "tokens", and
      units_per_second: of those.
      input_batches_per_second: what the input pipeline gives with no step behind it, and
      input_samples_per_second: in examples.
      appetite: examples a second that the step takes where its batches are there already.
      bottleneck: "input" where the pipeline gives less than that, else "step".
      flops: of one update, forward and backward (three times forward), without a frozen part that
        training runs once. Of a GAN, whose players run each other, it is too low.
      peak: FLOPs a second of large matrix products in the recipe's compute type, one on each
        replica at once; the median of rounds that alternate with the updates.
      share: of that peak.
      remark: what casts doubt on the share; "" for nothing.
    """

    first_step: float
    step: float
    samples_per_second: float
    unit: str
    units_per_second: float
    input_batches_per_second: float
    input_samples_per_second: float
    appetite: float
    bottleneck: str
    flops: int
    peak: float
    share: float
    remark: str


def bench(config, seconds: float = 10.0, dataset=None) -> Measured:
    """Runs a recipe's train step on made-up examples, which its task provides.

    A task that makes its data set itself, as those on text do, is run on it: vocabulary and
    sequence length follow from there.

    Args:
      config: a resolved recipe.
      seconds: how long to measure: half of it training, a quarter each step and input alone.
      dataset: the data of such a task, where it is loaded already.
    """
    trainer = config.trainer
    check_sizes(config.compress)
    prepare_devices(trainer.replicas, trainer.deterministic)
    strategy = make_strategy(trainer.strategy, trainer.replicas)
    replicas, batch = strategy.num_replicas_in_sync, trainer.global_batch_size
    check_batch(config, replicas)
    chunk = trainer.steps_per_execution
    if dataset is None and registry.makes_data(config.task.name):
        dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
    # A length that every schedule's phases fit into.
    step, task = build_step(config, strategy, 10**9, dataset)
    if dataset:
        task.check(step.net, dataset)
        arrays = dataset.splits["train"]
        check_examples(arrays, batch)
    else:
        arrays = made_up(task, step.net, 4 * batch, trainer.seed)
    # Training runs a frozen part once: its updates begin behind it.
    learner = step.net if task.frozen(step.net).model is None else step.net.head
    tpu.check(config, strategy, arrays)
    batches = pipeline.training_batches(
        arrays, step.task.prepare, batch_size=batch, replicas=replicas, seed=trainer.seed,
        first_step=0, last_step=10**9,
    )  # fmt: skip
    run = update_function(step, strategy)

    def execute(iterator, count):
        start = time.perf_counter()
        run(iterator, tf.constant(count))
        taken = step.means.take()  # waits for the device
        return time.perf_counter() - start, taken[next(iter(step.task.terms))][1]

    def measure(batches, seconds):
        iterator = iter(distribute(strategy, lambda shares: batches))
        execute(iterator, chunk)
        found, end = [], time.perf_counter() + seconds
        while len(found) < 5 or time.perf_counter() < end:
            found.append(execute(iterator, chunk))
        return [[value / chunk for value in values] for values in zip(*found, strict=True)]

    iterator = iter(distribute(strategy, lambda shares: batches))
    first_step, _ = execute(iterator, 1)
    products = MatrixProducts(step.net.compute_dtype, strategy)
    execute(iterator, chunk)
    updates, peaks = [], []
    for _ in range(_ROUNDS):  # in turns: what slows the machine down slows down both
        end = time.perf_counter() + seconds / 2 / _ROUNDS
        updates += [execute(iterator, chunk), execute(iterator, chunk)]
        while time.perf_counter() < end:
            updates.append(execute(iterator, chunk))
        peaks.append(products.flops_per_second())
    times, counts = ([value / chunk for value in values] for values in zip(*updates, strict=True))
    median, peak = statistics.median(times), statistics.median(peaks)
    same = batches.take(replicas).cache().repeat()  # one batch, again and again
    appetite = batch / statistics.median(measure(same, seconds / 4)[0])
    rate = _input_rate(batches, replicas, seconds / 4)
    lengths = {}
    if learner is step.net:
        free = [i.name for i in step.net.inputs if None in i.shape[1:]]
        if unknown := [name for name in free if name not in batches.element_spec]:
            raise UsageError(
                f"The model's input {unknown[0]!r} is of any length and has no array's name: call "
                f"it {' or '.join(batches.element_spec)}."
            )
        lengths = {name: batches.element_spec[name].shape[1] for name in free}
    flops = 3 * forward_flops(learner, lengths or None) * batch
    share = flops / median / peak
    return Measured(
        first_step=first_step,
        step=median,
        samples_per_second=batch / median,
        unit=task.unit,
        units_per_second=statistics.mean(counts) / median,
        input_batches_per_second=rate,
        input_samples_per_second=rate * batch,
        appetite=appetite,
        bottleneck="input" if rate * batch < appetite else "step",
        flops=flops,
        peak=peak,
        share=share,
        remark=ABOVE_PEAK if share > 1 else "",
    )


class MatrixProducts:
    """Products of (size, size) matrices, one after the other, as a measure of a machine's peak.

    All replicas compute at once, as in training: logical devices of a CPU share its cores. A round
    is as many products as take `_ROUND` seconds, beside which a call is nothing.

    Args:
      dtype: name of the type of the matrices.
      strategy: on whose replicas they are computed.
      size: of the matrices.
    """

    def __init__(self, dtype: str, strategy: tf.distribute.Strategy, size: int = 2048):
        self.strategy, self.size, self.count = strategy, size, 1

        def matrix():  # whose powers neither grow nor vanish
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
        """Computes one round."""
        replicas = self.strategy.num_replicas_in_sync
        return 2 * self.size**3 * self.count * replicas / self._seconds()

    def _seconds(self) -> float:
        start = time.perf_counter()
        totals = self.run(self.matrices, tf.constant(self.count))
        for total in self.strategy.experimental_local_results(totals):
            float(total)  # waits for the device
        return time.perf_counter() - start


def matmul_peak(dtype: str, strategy: tf.distribute.Strategy, rounds: int = 7) -> float:
    """Returns FLOPs a second of large matrix products, the fastest of some rounds."""
    products = MatrixProducts(dtype, strategy)
    return max(products.flops_per_second() for _ in range(rounds))


def _input_rate(batches: tf.data.Dataset, replicas: int, seconds: float) -> float:
    """Returns batches a second; an element is a replica's share of one."""
    iterator, count = iter(batches), 0
    for _ in range(4 * replicas):  # what was prepared before anybody asked
        next(iterator)
    start = time.perf_counter()
    while count < 20 or time.perf_counter() < start + seconds:
        for _ in range(replicas):
            next(iterator)
        count += 1
    return count / (time.perf_counter() - start)
