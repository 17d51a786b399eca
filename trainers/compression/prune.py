"""Magnitude pruning (Zhu and Gupta 2017, arXiv:1710.01878) by TF-MOT's engine, in the train step.

After each update the masks follow the schedule and the kernels are masked, so that every forward
pass sees them sparse. Masks are part of a checkpoint: a resumed run goes on with the same ones.
"""

import math

import keras
import tensorflow as tf
from keras import layers

from trainers.config.compress import check_pruning, pruning_updates
from zoo import keras_internals
from zoo.errors import UsageError, compiled
from zoo.layers.tfmot import engines

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


class Pruner:
    """Masks of a model's kernels; made inside the strategy's scope.

    Args:
      model: a built model.
      step: counts the updates done; an int64 Keras variable.
      total_steps: length of the run.
      sparsity: share of each kernel that is 0 in the end, in (0, 1).
      schedule: "polynomial": the sparsity grows from `initial_sparsity` by a cubic; or "constant":
        all of it at once. Masks are chosen anew every `frequency` updates.
      initial_sparsity: at the beginning of a polynomial schedule.
      begin, end: shares of the run between which masks change.
      frequency: updates. A polynomial schedule needs a whole period of it between `begin` and
        `end`: without one the sparsity would not grow, but jump.
      pattern: regular expression of the paths of the variables to prune.
      m_by_n: (2, 4): two of four neighbours along a kernel's input are 0, from `begin` on; () for
        none. It goes without `sparsity`'s schedule.
      block: (height, width) of the blocks of a kernel, seen as (inputs, outputs), that are 0
        together; those at its ends may be smaller.

    Raises:
      UsageError: for values out of bounds, or a pattern that matches nothing.
    """

    def __init__(
        self,
        model: keras.Model,
        step,
        total_steps: int,
        *,
        sparsity: float,
        schedule: str = "polynomial",
        initial_sparsity: float = 0.0,
        begin: float = 0.0,
        end: float = 0.7,
        frequency: int = 100,
        pattern: str = "",
        m_by_n: tuple[int, ...] = (),
        block: tuple[int, int] = (1, 1),
    ):
        values = {
            "sparsity": sparsity, "schedule": schedule, "begin": begin, "end": end,
            "frequency": frequency, "m_by_n": m_by_n,
        }  # fmt: skip
        check_pruning(**values, initial_sparsity=initial_sparsity, block=block)
        self.kernels = _chosen(model, pattern)
        first, periods = pruning_updates(total_steps, **values)
        last = first + periods * frequency  # a turn of the schedule, so that it is reached
        tfmot = engines()
        if schedule == "polynomial" and periods:  # without, of m_by_n
            plan = tfmot.pruning_schedule.PolynomialDecay(
                initial_sparsity, sparsity, first, last, frequency=frequency
            )
        else:
            plan = tfmot.pruning_schedule.ConstantSparsity(sparsity, first, last, frequency)

        def turn():
            # What is chosen after an update is the next one's, as TF-MOT counts. It chooses m:n
            # masks when its step is 1.
            return step.value + 1 - (first - 1 if m_by_n else 0)

        self.masks, self._engines = [], []
        for variable, inputs in self.kernels:
            mask = _beside(variable, "mask", tf.ones(variable.shape))
            threshold = _beside(variable, "threshold", tf.zeros(()))
            self.masks.append(mask)
            self._engines.append(
                _viewed(tfmot.pruning_impl.Pruning, inputs)(
                    turn, [(variable.value, mask.value, threshold.value)], plan, block, "AVG",
                    tuple(m_by_n) or None,
                )
            )  # fmt: skip

    @property
    def variables(self) -> list:
        """What a checkpoint keeps."""
        return self.masks

    def begin(self) -> None:
        """Nothing is masked before the schedule says so."""

    def update(self) -> None:
        """Chooses masks where it is time to, and masks; in a replica, after the update."""
        for engine in self._engines:
            engine.conditional_mask_update()
            engine.weight_mask_op()

    def restore(self) -> None:
        """Masks what was put into the model from outside, such as averages."""
        for (variable, _), mask in zip(self.kernels, self.masks, strict=True):
            variable.assign(variable * mask)


class KeptZeros:
    """Keeps the zeros that a model's kernels have at the start; made inside the strategy's scope.

    Args:
      model: a built model.
    """

    def __init__(self, model: keras.Model):
        self.kernels = [variable for variable, _ in prunable(model)]
        self.masks = [_beside(v, "mask", tf.ones(v.shape)) for v in self.kernels]

    @property
    def variables(self) -> list:
        """What a checkpoint keeps."""
        return self.masks

    def begin(self) -> None:
        """Looks where the zeros are."""
        for variable, mask in zip(self.kernels, self.masks, strict=True):
            mask.assign(tf.cast(variable.value != 0, mask.dtype))

    def update(self) -> None:
        """Masks, in a replica, after the update."""
        for variable, mask in zip(self.kernels, self.masks, strict=True):
            variable.assign(variable * mask)

    restore = update


def _beside(variable, name: str, value) -> keras.Variable:
    return keras.Variable(
        value, dtype=variable.dtype, trainable=False, aggregation="mean",
        name=f"{name}_of_{variable.path.replace('/', '_')}",
    )  # fmt: skip


def prunable(model: keras.Model) -> list[tuple]:
    """Returns `(variable, inputs)` of every kernel that pruning knows, at any depth.

    `inputs` are the axes of the kernel that are summed over; all others are outputs.
    """
    found, seen = [], set()

    def add(variable, *inputs):
        if id(variable) not in seen and variable.trainable:
            seen.add(id(variable))
            found.append((variable, inputs))

    for layer in keras_internals.all_layers(model):
        if isinstance(layer, layers.EinsumDense):
            taken, _, rest = layer.equation.partition(",")
            letters = enumerate(rest.partition("->")[0])
            add(layer.kernel, *(axis for axis, letter in letters if letter in taken))
        elif isinstance(layer, layers.Dense):
            add(layer.kernel, 0)
        elif isinstance(layer, (layers.Conv1D, layers.Conv2D, layers.Conv3D)):
            add(layer.kernel, *range(layer.kernel.ndim - 1))
        elif isinstance(layer, _TRANSPOSED):  # their channels of outputs come first
            add(layer.kernel, *range(layer.kernel.ndim - 2), layer.kernel.ndim - 1)
        elif isinstance(layer, (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)):
            add(layer.kernel, 0)
            add(layer.recurrent_kernel, 0)
        elif isinstance(layer, layers.Embedding):
            add(layer.embeddings, 0)
            if not getattr(layer, "tie_weights", True):
                add(layer.reverse_embeddings, 0)
    return found


def _chosen(model: keras.Model, pattern: str) -> list[tuple]:
    found = prunable(model)
    if not found:
        raise UsageError(
            "Pruning knows kernels of Dense, EinsumDense, convolutions and recurrent cells, and "
            f"embeddings. The model {model.name!r} trains none."
        )
    matches = compiled("compress.prune.pattern", pattern).search
    chosen = [pair for pair in found if matches(pair[0].path)]
    if not chosen:
        raise UsageError(
            f"compress.prune.pattern matches nothing. Received: {pattern!r}; there are "
            f"{', '.join(variable.path for variable, _ in found[:5])}."
        )
    return chosen


def _viewed(engine, inputs: tuple[int, ...]):
    """TF-MOT's engine that sees a kernel of any rank as (inputs, outputs)."""

    class Viewed(engine):
        def _validate_block(self):
            pass  # of rank 2 by what follows

        def _maybe_update_block_mask(self, weights):
            axes = [*inputs, *(axis for axis in range(weights.shape.rank) if axis not in inputs)]
            seen = tf.transpose(tf.convert_to_tensor(weights), axes)
            height = math.prod(seen.shape[: len(inputs)])
            flat = tf.reshape(seen, (height, seen.shape.num_elements() // height))
            blocks = self._block_size != [1, 1]
            choose = self._by_blocks if blocks else super()._maybe_update_block_mask
            threshold, mask = choose(flat)
            back = [axes.index(axis) for axis in range(len(axes))]
            return threshold, tf.transpose(tf.reshape(mask, seen.shape), back)

        def _by_blocks(self, flat):
            """As TF-MOT's, which cannot tell a row of blocks from a column of them."""
            utils, (tall, wide) = engines().pruning_impl.pruning_utils, self._block_size
            pooled = utils.factorized_pool(
                tf.abs(flat), window_shape=self._block_size, strides=self._block_size,
                pooling_type=self._block_pooling_type, padding="SAME",
            )  # fmt: skip
            height, width = flat.shape
            pooled = tf.reshape(pooled, (-(-height // tall), -(-width // wide)))
            threshold, mask = self._update_mask(pooled)
            mask = tf.repeat(tf.repeat(mask, tall, 0), wide, 1)
            return threshold, mask[:height, :width]

    return Viewed


def sparsities(model: keras.Model) -> dict[str, float]:
    """Returns path -> share of zeros of every kernel that can be pruned."""
    return {variable.path: float((variable.numpy() == 0).mean()) for variable, _ in prunable(model)}
