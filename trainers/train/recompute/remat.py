"""Gradient checkpointing of chosen blocks with correct gradients under dropout.

A recomputed block stores only its inputs; the backward pass computes its activations again
(Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174). With plain
`keras.remat` the second forward pass draws other dropout masks than the first, and the gradients
are silently wrong. Here the block's state (random seeds, moving statistics) is saved before the
first forward pass and restored for the second; state updates of the second are dropped.

A stack of reversible pairs stores only its outputs instead; see `reversible.py`.
"""

import keras

from trainers.train.recompute.replay import Arguments, read, run, state_of
from trainers.train.recompute.reversible import apply_reversible
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

    def call(*args, **kwargs):
        # recompute_grad differentiates with respect to its positional arguments, and adds to
        # them to order the computation.
        arguments, before, changes = Arguments(args, kwargs), read(state_of(layer)), []
        call_context = keras_internals.capture_call_context()

        def block(*tensors):
            inner_args, inner_kwargs = arguments.with_tensors(tensors)

            def call_layer():
                # Inner layers take `training` from the outer layer's call, which has ended before
                # the second forward pass.
                with call_context():
                    return plain_call(*inner_args, **inner_kwargs)

            owner = (
                "trainer.remat does not support layers that call add_loss. "
                f"Received: {layer.name!r}"
            )
            outputs, new = run(call_layer, before, tensors, owner)
            if not changes:  # the first forward pass
                changes.extend(new)
            return outputs

        outputs = keras.remat(block)(*arguments.tensors)
        for variable, value in changes:
            variable.assign(value)
        return outputs

    layer.call = call
