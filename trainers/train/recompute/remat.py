"""Gradient checkpointing of chosen blocks with correct gradients under dropout.

A recomputed block stores only its inputs; the backward pass computes its activations again
(Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174). With plain
`keras.remat` the second forward pass draws other dropout masks than the first, and the gradients
are silently wrong. Here the block's state (random seeds, moving statistics) is saved before the
first forward pass and restored for the second; state updates of the second are dropped.

A stack of reversible pairs stores only its outputs instead; see `trainers.train.reversible`.
"""

import keras
import tensorflow as tf

from trainers.train.reversible import apply_reversible
from zoo import keras_internals
from zoo.errors import UsageError, compile_pattern


def apply_remat(model: keras.Model, pattern: str) -> list[str]:
    """Makes matching layers recompute their activations in the backward pass.

    A matching stack with `pairs`, such as `zoo.layers.reversible.ReversibleStack`, computes them
    from its outputs; see `apply_reversible`.

    Args:
      model: built model; its (nested) layers are changed in place.
      pattern: regular expression that must match the whole name of a layer.

    Returns:
      The names of the outermost layers that match.

    Raises:
      UsageError: if the pattern is invalid or matches no layer.
    """
    matches = compile_pattern("trainer.remat", pattern).fullmatch
    matching_layers, names = [], []

    def visit(layer):
        for child in keras_internals.child_layers(layer):
            names.append(child.name)
            if matches(child.name):
                matching_layers.append(child)
            else:
                visit(child)

    visit(model)
    if not matching_layers:
        raise UsageError(
            f"trainer.remat must match the name of a layer. Received: {pattern!r}. Layers: "
            f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
        )
    for layer in matching_layers:
        if hasattr(layer, "pairs"):
            apply_reversible(layer)
        else:
            _recompute(layer)
    return [layer.name for layer in matching_layers]


def _recompute(layer: keras.layers.Layer) -> None:
    plain_call = layer.call
    trainable_ids = {id(v) for v in layer.trainable_variables}
    state = [v for v in layer.variables if id(v) not in trainable_ids]

    def call(*args, **kwargs):
        leaves = keras.tree.flatten((args, kwargs))
        # recompute_grad differentiates with respect to its positional arguments, and adds to
        # them to order the computation. So floating tensors are arguments, all others captured.
        positions = [
            i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf) and leaf.dtype.is_floating
        ]
        with keras_internals.without_autocast():  # bfloat16 would round the state
            before = [(v, tf.identity(v.value)) for v in state]
        changed = {}
        call_context = keras_internals.capture_call_context()

        def block(*tensors):
            filled_leaves = list(leaves)
            for position, tensor in zip(positions, tensors, strict=True):
                filled_leaves[position] = tensor
            inner_args, inner_kwargs = keras.tree.pack_sequence_as((args, kwargs), filled_leaves)
            scope = keras.StatelessScope(collect_losses=True)
            # Without the dependency, TensorFlow would merge the dropout masks of both passes and
            # store them in between.
            with tf.control_dependencies(tensors):
                update_values = [(v, tf.identity(value)) for v, value in before]
            for update in update_values:
                scope.add_update(update)  # `state_mapping=` would cast to the compute dtype
            start = [scope.get_current_value(v) for v in state]
            # Inner layers take `training` from the outer layer's call, which has ended before the
            # second forward pass.
            with scope, call_context():
                outputs = plain_call(*inner_args, **inner_kwargs)
            if scope.losses:  # only outputs get a gradient
                raise UsageError(
                    "trainer.remat does not support layers that call add_loss. Received: "
                    f"{layer.name!r}."
                )
            if not changed:  # the first forward pass
                for variable, value in zip(state, start, strict=True):
                    if (now := scope.get_current_value(variable)) is not value:
                        changed[id(variable)] = variable, now
            return outputs

        outputs = keras.remat(block)(*(leaves[i] for i in positions))
        for variable, value in changed.values():
            variable.assign(value)
        return outputs

    layer.call = call
