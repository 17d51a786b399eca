"""Checks before training that padding rows do not change losses, metrics or state.

Layers of Keras and of the zoo compute each row on its own or leave padding out (`zoo.rows`). A
user's layer or task may compute a mean over all rows, padding included, and its output does not
show this.
"""

import itertools
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from zoo import keras_internals
from zoo.data import pipeline
from zoo.errors import UsageError
from zoo.rows import use_row_weights

_ROWS = 8  # half of them padding
_TOLERANCE = 1e-4
_SHOWN = 3  # maximum number of layers in an error message


def check_padding(step, task, arrays: Mapping, rows: int) -> None:
    """Raises `UsageError` if padding changes a loss, a statistic or a new value of a variable.

    The forward pass of each model part runs twice, with the same real rows and different padding
    rows. The check is skipped if all layers belong to Keras or the zoo and none works along the
    batch axis.

    Args:
      step: a `trainers.train.step.TrainStep`.
      task: the recipe's task.
      arrays: the training split.
      rows: number of rows per forward pass on one replica; the check uses at most this many.
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
    # In the second order, padding rows are copies of the first row.
    padding_order = tf.where(batch["weight"] > 0, tf.range(rows), 0)
    first_results, second_results = (
        _forward_results(step, {key: tf.gather(value, order) for key, value in batch.items()}
                  | {"weight": batch["weight"]})
        for order in (tf.range(rows), padding_order)
    )  # fmt: skip
    for name, value in first_results.items():
        if np.allclose(
            value, second_results[name], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        ):
            continue
        kinds = dict.fromkeys(
            f"{type(x).__name__} {getattr(x, 'name', '')}".strip() for x in unknown
        )
        shown_kinds = f"{', '.join([*kinds][:_SHOWN])}{' ...' * (len(kinds) > _SHOWN)}"
        raise UsageError(
            f"Padding rows change {name}. Computations over several rows must leave out rows of "
            'weight 0 (in a layer by zoo.row_weights, in a task by the batch\'s "weight"). '
            f"Received: {shown_kinds}."
        )


def _forward_results(step, raw) -> dict[str, np.ndarray]:
    """Returns losses, metrics and new values of variables of each model part's forward pass."""
    salts = itertools.count()

    def uniform(count):
        return tf.random.stateless_uniform((raw["weight"].shape[0], count), (0, next(salts)))

    data = {"weight": raw["weight"], **step.task.prepare(raw, uniform, True)}
    seeds = step._seeds(0, 0)
    scope = keras.StatelessScope(step.seeded(seeds), collect_losses=True)
    unseeded = step.unseeded(seeds)
    rows = tf.reduce_sum(raw["weight"])
    results = {}
    with scope, unseeded, use_row_weights(data["weight"]), step._activity.of_real_rows(rows, 1.0):
        for part in step.model_parts:
            result = part.forward(step.net, data, training=True)
            results |= {f"the loss {name!r}": value for name, value in result.sums.items()}
            results |= {f"the metric {name!r}": pair for name, pair in result.statistics.items()}
    if scope.losses:
        results["the losses that layers add"] = scope.losses
    for variable in step.net.non_trainable_weights:
        if (value := scope.get_current_value(variable)) is not None:
            results[f"the variable {variable.path}"] = value
    return {name: np.asarray(value, "float64") for name, value in results.items()}


def _unknown(model) -> Iterator:
    """Yields layers and operations that may mix rows."""
    for layer in keras_internals.all_layers(model):
        if not _is_known(layer):
            yield layer
        if keras_internals.is_graph(layer):
            for operation, *_ in keras_internals.connections(layer):
                only_selects = type(operation).__name__ == "GetItem"
                if not (only_selects or isinstance(operation, keras.layers.Layer)):
                    yield operation


def _is_known(operation) -> bool:
    axes = getattr(operation, "axis", None)
    along_rows = 0 in (axes if isinstance(axes, list | tuple) else [axes])
    is_user_code = type(operation).__module__.partition(".")[0] not in ("keras", "zoo")
    return not (is_user_code or along_rows or isinstance(operation, keras.layers.Lambda))
