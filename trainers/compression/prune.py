"""Magnitude pruning (Zhu and Gupta 2017, arXiv:1710.01878) by TF-MOT's engine, in the train step.

After each update the masks follow the schedule and are applied to the kernels, so that every
forward pass uses sparse kernels. Checkpoints contain the masks, so a resumed run continues them.
"""

import math
from collections.abc import Mapping

import keras
import tensorflow as tf
from keras import layers

from trainers.compression.technique import Compressor, Technique, select_paths
from trainers.config.compress import check_pruning, pruning_updates
from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.tfmot import engines

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


class Prune(Technique):
    """`compress.prune`: prunes by a schedule, or keeps the zeros that a model has at the start."""

    def compressor(self, step, settings, total_steps):
        settings = settings.prune.to_dict()
        if settings.pop("keep_zeros"):
            return SparsityPreserver(step.net)
        if settings["sparsity"] or settings["m_by_n"]:
            return Pruner(step.net, step.count, total_steps, settings)
        return None


class _Masked(Compressor):
    """Compressor with one mask per kernel; must be created inside the strategy's scope."""

    def __init__(self, model: keras.Model, kernels):
        super().__init__(model)
        self._masked = [(v, _variable_like(v, "mask", tf.ones(v.shape))) for v, _ in kernels]
        self.masks = self.variables = [mask for _, mask in self._masked]

    def restore(self) -> None:
        """Applies the masks to the current weights."""
        for variable, mask in self._masked:
            variable.assign(variable * mask)


class Pruner(_Masked):
    """Pruning during training; must be created inside the strategy's scope.

    Args:
      model: a built model.
      step: int64 Keras variable, the number of updates so far.
      total_steps: number of updates of the whole run.
      settings: the section `compress.prune` without `keep_zeros`. The polynomial schedule is
        equation 1 of Zhu and Gupta. With `m_by_n` the masks apply from `begin` on. `block` is the
        (height, width) of blocks of an (inputs, outputs) matrix; edge blocks may be smaller.

    Raises:
      UsageError: if a value is out of bounds, or the pattern matches no kernel.
    """

    def __init__(self, model: keras.Model, step, total_steps: int, settings: Mapping):
        check_pruning(**settings)
        sparsity, m_by_n = settings["sparsity"], tuple(settings["m_by_n"])
        frequency, block = settings["frequency"], settings["block"]
        self.kernels = _selected(model, settings["pattern"])
        super().__init__(model, self.kernels)
        first, periods = pruning_updates(total_steps, **settings)
        last = first + periods * frequency  # updates masks: the end is reached
        tfmot = engines()
        schedule = tfmot.pruning_schedule.ConstantSparsity(sparsity, first, last, frequency)
        if settings["schedule"] == "polynomial" and periods:  # m_by_n needs no period
            schedule = tfmot.pruning_schedule.PolynomialDecay(
                settings["initial_sparsity"], sparsity, first, last, frequency=frequency
            )

        def next_step():
            # TF-MOT expects the number of the next update, which will use the masks. It chooses m:n
            # masks if that number is 1.
            return step.value + 1 - (first - 1 if m_by_n else 0)

        self._engines = []
        for (variable, inputs), mask in zip(self.kernels, self.masks, strict=True):
            threshold = _variable_like(variable, "threshold", tf.zeros(()))
            self._engines.append(
                _matrix_engine(tfmot.pruning_impl.Pruning, inputs)(
                    next_step, [(variable.value, mask.value, threshold.value)], schedule, block,
                    "AVG", m_by_n or None,
                )
            )  # fmt: skip

    def update(self) -> None:
        """Updates the masks if an update is scheduled, and applies the masks."""
        for engine in self._engines:
            engine.conditional_mask_update()
            engine.weight_mask_op()


class SparsityPreserver(_Masked):
    """Compressor that keeps the zeros that the kernels have at the start."""

    def __init__(self, model: keras.Model):
        super().__init__(model, prunable(model))

    def begin(self) -> None:
        """Sets the masks to 0 at the zeros of the kernels."""
        for variable, mask in self._masked:
            mask.assign(tf.cast(variable.value != 0, mask.dtype))

    update = _Masked.restore


def _variable_like(variable, name: str, value) -> keras.Variable:
    return keras.Variable(
        value, dtype=variable.dtype, trainable=False, aggregation="mean",
        name=f"{name}_of_{variable.path.replace('/', '_')}",
    )  # fmt: skip


def prunable(model: keras.Model) -> list[tuple]:
    """Returns `(variable, inputs)` of every trainable kernel that can be pruned, at any depth.

    `inputs` are the axes of the kernel that are summed over; all other axes are outputs.
    """
    kernels, ids = [], set()

    def add(variable, *inputs):
        if id(variable) not in ids and variable.trainable:
            ids.add(id(variable))
            kernels.append((variable, inputs))

    for layer in keras_internals.all_layers(model):
        if isinstance(layer, layers.EinsumDense):
            input_axes, _, rest = layer.equation.partition(",")
            kernel_axes = enumerate(rest.partition("->")[0])
            add(layer.kernel, *(axis for axis, letter in kernel_axes if letter in input_axes))
        elif isinstance(layer, layers.Dense):
            add(layer.kernel, 0)
        elif isinstance(layer, (layers.Conv1D, layers.Conv2D, layers.Conv3D)):
            add(layer.kernel, *range(layer.kernel.ndim - 1))
        elif isinstance(layer, _TRANSPOSED):  # output channels come before input channels
            add(layer.kernel, *range(layer.kernel.ndim - 2), layer.kernel.ndim - 1)
        elif isinstance(layer, (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)):
            add(layer.kernel, 0)
            add(layer.recurrent_kernel, 0)
        elif isinstance(layer, layers.Embedding):
            add(layer.embeddings, 0)
            if not getattr(layer, "tie_weights", True):
                add(layer.reverse_embeddings, 0)
    return kernels


def _selected(model: keras.Model, pattern: str) -> list[tuple]:
    kernels = prunable(model)
    if not kernels:
        raise UsageError(
            "compress.prune supports trainable kernels of Dense, EinsumDense, convolutions and "
            f"recurrent cells, and embeddings. The model {model.name!r} has no such kernel."
        )
    paths = select_paths("compress.prune.pattern", pattern, [v.path for v, _ in kernels])
    return [(variable, inputs) for variable, inputs in kernels if variable.path in paths]


def _matrix_engine(engine, inputs: tuple[int, ...]):
    """Returns a subclass of TF-MOT's engine that treats a kernel of any rank as a matrix.

    Args:
      engine: `Pruning` of TF-MOT.
      inputs: axes of the kernel that become the rows of the matrix (inputs, outputs).
    """

    class MatrixEngine(engine):
        def _validate_block(self):
            pass  # TF-MOT rejects blocks for kernels that are not matrices

        def _maybe_update_block_mask(self, weights):
            axes = [*inputs, *(axis for axis in range(weights.shape.rank) if axis not in inputs)]
            transposed_weights = tf.transpose(tf.convert_to_tensor(weights), axes)
            height = math.prod(transposed_weights.shape[: len(inputs)])
            matrix = tf.reshape(
                transposed_weights, (height, transposed_weights.shape.num_elements() // height)
            )
            blocks = self._block_size != [1, 1]
            choose = self._block_mask if blocks else super()._maybe_update_block_mask
            threshold, mask = choose(matrix)
            inverse = [axes.index(axis) for axis in range(len(axes))]
            return threshold, tf.transpose(tf.reshape(mask, transposed_weights.shape), inverse)

        def _block_mask(self, matrix):
            """Replaces TF-MOT's method, which confuses rows and columns of blocks."""
            utils, (tall, wide) = engines().pruning_impl.pruning_utils, self._block_size
            pooled_weights = utils.factorized_pool(
                tf.abs(matrix), window_shape=self._block_size, strides=self._block_size,
                pooling_type=self._block_pooling_type, padding="SAME",
            )  # fmt: skip
            height, width = matrix.shape
            pooled_weights = tf.reshape(pooled_weights, (-(-height // tall), -(-width // wide)))
            threshold, mask = self._update_mask(pooled_weights)
            mask = tf.repeat(tf.repeat(mask, tall, 0), wide, 1)
            return threshold, mask[:height, :width]

    return MatrixEngine


def sparsities(model: keras.Model) -> dict[str, float]:
    """Returns path -> share of zeros of every kernel that can be pruned."""
    return {variable.path: float((variable.numpy() == 0).mean()) for variable, _ in prunable(model)}
