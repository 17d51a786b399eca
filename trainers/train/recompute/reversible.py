"""Reversible residual layers: only the outputs of a stack are stored, whatever the depth.

Gomez et al. 2017, The Reversible Residual Network, arXiv:1707.04585, section 3; with attention and
feed-forward in Kitaev et al. 2020, Reformer, arXiv:2001.04451, section 3. A stack of pairs (f, g)
computes, for each pair,

    first = first + f(second)
    second = second + g(first)

The backward pass computes the inputs of a pair from its outputs by subtraction, and each layer's
activations again from these inputs. The random seeds and moving statistics of the forward pass are
restored for this, as in remat.py.
"""

import keras
import tensorflow as tf

from trainers.train.recompute.replay import Arguments, read, run, state_of
from zoo import keras_internals
from zoo.errors import UsageError


def apply_reversible(stack: keras.layers.Layer) -> None:
    """Makes a built stack of reversible pairs recompute its activations in the backward pass.

    Results differ from those without recomputation by rounding only. Both halves should be float32:
    in bfloat16 the subtraction returns rounded inputs, and the error grows with the depth.

    Args:
      stack: layer with an attribute `pairs`, a list of pairs (f, g) of layers. Its method
        `run_pairs(first, second, *args, **kwargs)` must compute `first + f(second, *args,
        **kwargs)` and `second + g(first)` for each pair, and return both halves. f and g keep the
        shape. They take `training` from the call of the stack. The method `run_pairs` is replaced.

    Raises:
      UsageError: if the layer has no pairs; in a call, if f or g adds a loss.
    """
    pairs = getattr(stack, "pairs", None)
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UsageError(
            f"A reversible stack must have a list `pairs` of two layers each. Received: "
            f"{stack.name!r} with pairs={pairs}."
        )
    parts = [part for pair in pairs for part in pair]  # in the order of the forward pass
    states = [state_of(part) for part in parts]

    def run_pairs(first, second, *args, **kwargs):
        arguments = Arguments(args, kwargs)
        call_context = keras_internals.capture_call_context()
        variables = {id(v): v for state in states for v in state}
        values = {id(v): value for v, value in read(list(variables.values()))}
        before = {}  # state at the start of each part
        changed = {}

        def run_part(index, x, floats):
            """Returns the output of a part in the dtype of x, and the changes of its state."""
            part = parts[index]
            inner_args, inner_kwargs = ((), {}) if index % 2 else arguments.with_tensors(floats)

            def call_part():
                with call_context():
                    return part(x, *inner_args, **inner_kwargs)

            owner = (
                "A reversible stack does not support layers that call add_loss. Received: "
                f"{part.name!r} in {stack.name!r}"
            )
            out, changes = run(call_part, before[index], [x], owner)
            return tf.cast(out, x.dtype), {id(v): end for v, end in changes}

        def forward(index, x, floats):
            before[index] = [(v, values[id(v)]) for v in states[index]]
            out, new = run_part(index, x, floats)
            values.update(new)
            changed.update(new)
            return out

        @tf.custom_gradient
        def chain(first, second, *floats):
            for index in range(0, len(parts), 2):
                first = first + forward(index, second, floats)
                second = second + forward(index + 1, first, floats)
            outputs = tf.identity(first), tf.identity(second)

            def gradient(slope_first, slope_second, variables=None):
                first, second = outputs
                sources = [*floats, *(variables or [])]
                slopes = [None] * len(sources)

                def backward(index, x, slope):
                    """Returns a part's output and its input's slope; adds those of the sources."""
                    # Wait for the part behind, or TensorFlow would run several parts at once.
                    with tf.control_dependencies([slope]):
                        x = tf.identity(x)
                    with tf.GradientTape() as tape:
                        tape.watch([x, *floats])
                        out, _ = run_part(index, x, floats)
                    slope_x, *new = tape.gradient(out, [x, *sources], slope)
                    slopes[:] = map(_add, slopes, new)
                    return out, slope_x

                for index in range(len(parts) - 2, -1, -2):
                    out, slope = backward(index + 1, first, slope_second)
                    second, slope_first = second - out, _add(slope_first, slope)
                    out, slope = backward(index, second, slope_first)
                    first, slope_second = first - out, _add(slope_second, slope)
                of_inputs = slope_first, slope_second, *slopes[: len(floats)]
                return of_inputs if variables is None else (of_inputs, slopes[len(floats) :])

            return outputs, gradient

        first, second = chain(first, second, *arguments.tensors)
        for key, value in changed.items():
            variables[key].assign(value)
        return first, second

    stack.run_pairs = run_pairs


def _add(total, new):
    """Returns the sum of two gradients, each of which may be None or list rows of an embedding."""
    if total is None or new is None:
        return new if total is None else total
    return tf.convert_to_tensor(total) + tf.convert_to_tensor(new)
