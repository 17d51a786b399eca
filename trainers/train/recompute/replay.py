"""A layer's call that can be repeated with the same random seeds and moving statistics."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from zoo import keras_internals
from zoo.errors import UsageError


class Arguments:
    """Arguments of a call, in which floating tensors can be replaced.

    A function with a gradient of its own must take these tensors as arguments of its own, because
    tensors that it captures get no gradient.

    Attributes:
      tensors: the floating tensors.
    """

    def __init__(self, args, kwargs):
        self._structure = (args, kwargs)
        self._leaves = keras.tree.flatten(self._structure)
        self._positions = [
            i
            for i, leaf in enumerate(self._leaves)
            if tf.is_tensor(leaf) and leaf.dtype.is_floating
        ]
        self.tensors = [self._leaves[i] for i in self._positions]

    def with_tensors(self, tensors: Sequence) -> tuple[tuple, dict]:
        """Returns `(args, kwargs)` with other floating tensors."""
        leaves = list(self._leaves)
        for position, tensor in zip(self._positions, tensors, strict=True):
            leaves[position] = tensor
        return keras.tree.pack_sequence_as(self._structure, leaves)


def state_of(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of a layer that a call may change, and its frozen weights."""
    trainable_ids = {id(v) for v in layer.trainable_variables}
    return [v for v in layer.variables if id(v) not in trainable_ids]


def read(state: list[keras.Variable]) -> list[tuple]:
    """Returns pairs `(variable, value)`, in the dtype of the variable."""
    with keras_internals.without_autocast():  # bfloat16 would round the state
        return [(v, tf.identity(v.value)) for v in state]


def run(function: Callable, state: list[tuple], after: Sequence, owner: str):
    """Calls a function while variables have given values, and assigns no variable.

    Args:
      function: called without arguments.
      state: pairs `(variable, value)`.
      after: tensors to wait for.
      owner: subject of the error message, such as "trainer.remat does not support layers that call
        add_loss. Received: 'dense'".

    Returns:
      `(outputs, changes)`: of the function; pairs `(variable, new value)` of the variables that the
      function assigned.

    Raises:
      UsageError: if the function adds a loss, because only outputs get a gradient.
    """
    scope = keras.StatelessScope(collect_losses=True)
    # Without the dependency, TensorFlow would merge the dropout masks of both passes and store them
    # in between.
    with tf.control_dependencies(after):
        start = [(v, tf.identity(value)) for v, value in state]
    for pair in start:
        scope.add_update(pair)  # `state_mapping=` would cast to the compute dtype
    with scope:
        outputs = function()
    if scope.losses:
        raise UsageError(f"{owner}.")
    ends = [(v, value, scope.get_current_value(v)) for v, value in start]
    return outputs, [(v, end) for v, value, end in ends if end is not value]
