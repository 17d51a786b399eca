"""Whether padding changes what a step computes from real rows: tried before a run trains.

Layers of Keras and of the zoo compute each row by itself or leave padding out (`zoo.rows`). A layer
or a task of one's own may compute a mean over all rows, padding included, and nothing in its output
shows that.
"""

import itertools
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from trainers import keras_internals
from zoo.data import pipeline
from zoo.errors import UsageError
from zoo.rows import use_row_weights

_ROWS = 8  # half of them padding
_TOLERANCE = 1e-4
_SHOWN = 3  # layers in a refusal


def check_padding(step, task, arrays: Mapping, rows: int) -> None:
    """Raises `UsageError` where padding changes a loss, a statistic or a new value of a variable.

    Each player's forward pass runs twice, with equal real rows and other padding. Nothing runs
    where all layers are Keras' or the zoo's and none of them works along the axis of the rows.

    Args:
      step: a `trainers.step.TrainStep`.
      task: the recipe's, with a `prepare`.
      arrays: the training split.
      rows: that one replica computes together; no check takes more of them.
    """
    unknown = [*_unknown(step.net), *([] if _is_known(task) else [task])]
    rows = min(rows, _ROWS, len(next(iter(arrays.values()))))
    if not unknown or rows < 2:
        return
    (batch,) = pipeline.training_batches(
        arrays, lambda batch, uniform, training: batch, batch_size=rows, replicas=1, seed=0,
        first_step=0, last_step=1,
    )  # fmt: skip
    batch["weight"] = tf.cast(tf.range(rows) < (rows + 1) // 2, tf.float32)
    other = tf.where(batch["weight"] > 0, tf.range(rows), 0)  # padding becomes copies of the first
    one, two = (
        _computed(step, {key: tf.gather(value, order) for key, value in batch.items()}
                  | {"weight": batch["weight"]})
        for order in (tf.range(rows), other)
    )  # fmt: skip
    for name, value in one.items():
        if np.allclose(value, two[name], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            continue
        kinds = dict.fromkeys(
            f"{type(x).__name__} {getattr(x, 'name', '')}".strip() for x in unknown
        )
        shown = f"{', '.join([*kinds][:_SHOWN])}{' ...' * (len(kinds) > _SHOWN)}"
        raise UsageError(
            f"Padding rows change {name}: what is computed from several rows leaves out those of "
            "weight 0 (a layer asks zoo.row_weights, a task multiplies by the batch's weight), or "
            f"works on other axes than the first. Received: {shown}."
        )


def _computed(step, raw) -> dict[str, np.ndarray]:
    """Returns what a forward pass of each player gives, by name."""
    salts = itertools.count()

    def uniform(count):
        return tf.random.stateless_uniform((raw["weight"].shape[0], count), (0, next(salts)))

    data = {"weight": raw["weight"], **step.task.prepare(raw, uniform, True)}
    seeds = step._seeds(0, 0)
    scope = keras.StatelessScope(step.seeded(seeds), collect_losses=True)
    unseeded = step.unseeded(seeds)
    rows = tf.reduce_sum(raw["weight"])
    found = {}
    with scope, unseeded, use_row_weights(data["weight"]), step._activity.of_real_rows(rows, 1.0):
        for player in step.players:
            result = player.forward(step.net, data, training=True)
            found |= {f"the loss {name!r}": value for name, value in result.sums.items()}
            found |= {f"the metric {name!r}": pair for name, pair in result.statistics.items()}
    if scope.losses:
        found["what layers add to the loss"] = scope.losses
    for variable in step.net.non_trainable_weights:
        if (value := scope.get_current_value(variable)) is not None:
            found[f"the variable {variable.path}"] = value
    return {name: np.asarray(value, "float64") for name, value in found.items()}


def _unknown(model) -> Iterator:
    """Yields layers and operations of which it is not known that they keep rows apart."""
    for layer in keras_internals.all_layers(model):
        if not _is_known(layer):
            yield layer
        if keras_internals.is_graph(layer):
            for operation, *_ in keras_internals.connections(layer):
                picks = type(operation).__name__ == "GetItem"  # it computes nothing
                if not (picks or isinstance(operation, keras.layers.Layer)):
                    yield operation


def _is_known(thing) -> bool:
    axes = getattr(thing, "axis", None)
    along_rows = 0 in (axes if isinstance(axes, list | tuple) else [axes])
    own = type(thing).__module__.partition(".")[0] not in ("keras", "zoo")
    return not (own or along_rows or isinstance(thing, keras.layers.Lambda))
