"""Structured pruning: removes whole units and builds a smaller model.

The importance of a unit is the L2 norm of the weights that compute the unit and of the weights that
read it. It follows Li et al. 2017 (Pruning Filters for Efficient ConvNets, arXiv:1608.08710), who
sum the absolute values of the weights that compute the unit. Each layer loses the same share of its
units, which `trainers.compression.units` defines. The recipe stores the number of remaining units
per layer; the model is small from the start of the run.

Removing units with weights of 0 does not change the outputs, except before layer normalization,
which then takes the mean over the remaining units.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from trainers.compression.rebuild import rebuild
from trainers.compression.technique import Technique, select_paths
from trainers.compression.units import Units, units
from trainers.config.base import section
from trainers.config.compress import check_source, check_structured, parse_widths
from trainers.run.workdir import read_config
from zoo.errors import UsageError
from zoo.layers.low_rank import below
from zoo.layers.transformer import TransformerBlock
from zoo.models.sources import open_source


class StructuredPruning(Technique):
    """`compress.structured`: the numbers of units are decided once and stored as `widths`."""

    def resolve(self, config, workdir, dataset):
        settings = section(config, "compress.structured")
        check_structured(settings)
        if not (settings.widths or settings.sparsity or settings.keep):
            return dataset
        is_resumed = (workdir / "config.json").exists()
        widths = _saved_widths(workdir if is_resumed else config.init_from)
        if settings.widths:
            widths |= parse_widths(settings.widths)
        elif not (is_resumed or settings.keep):
            check_source(section(config, "compress"), config.init_from)
            widths |= decide(open_source(config.init_from), settings.sparsity, settings.pattern)
        config.compress.structured.widths = tuple(f"{path}={n}" for path, n in widths.items())
        return dataset

    def change_model(self, model, settings):
        widths = settings.structured.widths
        return build_smaller(model, widths) if widths else model

    def initial_values(self, model, source, settings):
        return initial_values(settings.structured.widths, source)


def decide(model: keras.Model, sparsity: float, pattern: str) -> dict[str, int]:
    """Returns path -> number of units to keep, for each layer that loses units.

    Args:
      model: a built model.
      sparsity: share of units to remove, rounded to whole units.
      pattern: regular expression for the paths of layers; "" for all.

    Raises:
      UsageError: if no unit can be removed, or a layer would lose all of its units.
    """
    removable, reasons = units(model)
    for path in [path for path, each in removable.items() if not each.layer.trainable]:
        del removable[path]
        reasons[path] = "the layer is frozen, so it cannot adapt to fewer units"
    paths = select_paths("compress.structured.pattern", pattern, [*removable, *reasons])
    selected_units = {path: removable[path] for path in paths if path in removable}
    if not selected_units:
        details = "; ".join(f"{path}: {reasons[path]}" for path in paths[:3])
        out = ", or choose other layers by compress.structured.pattern" if pattern else ""
        raise UsageError(f"No unit can be removed. {details}. Use prune or low_rank{out}.")
    remaining = {
        path: each.count - round(sparsity * each.count) for path, each in selected_units.items()
    }
    for path, count in remaining.items():
        if not count:
            raise UsageError(
                "compress.structured.sparsity must leave at least one unit of each layer. "
                f"Received: {sparsity}, which removes all {selected_units[path].count} units of "
                f"{path}. Lower the sparsity, or exclude the layer by compress.structured.pattern."
            )
    new_counts = {
        path: count for path, count in remaining.items() if count < selected_units[path].count
    }
    if not new_counts:
        raise UsageError(
            "compress.structured.sparsity must remove at least one unit of a layer. "
            f"Received: {sparsity}."
        )
    return new_counts


def _saved_widths(source: str | Path) -> dict[str, int]:
    """Returns the widths in a work directory's recipe; {} for any other source."""
    if not source or not (Path(source) / "config.json").exists():
        return {}
    return parse_widths(section(read_config(source)["config"], "compress.structured").widths)


def build_smaller(model: keras.Model, widths: Sequence[str]) -> keras.Model:
    """Returns the model with fresh weights and the given numbers of units.

    Args:
      model: a built model.
      widths: PATH=UNITS per layer to change.

    Raises:
      UsageError: if the model has no such layer, or the layer cannot have that number of units.
    """
    new_widths = parse_widths(widths)
    removable, reasons = units(model)
    for path, count in new_widths.items():
        if path in reasons:
            raise UsageError(f"No unit of {path} can be removed: {reasons[path]}.")
        num_units = removable[path].count if path in removable else 0
        if count > num_units:
            raise UsageError(
                f"compress.structured.widths must not exceed the {num_units} units of {path}. "
                f"Received: {path}={count}; layers with units are {', '.join([*removable][:5])}."
            )

    def change(layer, config):
        if layer.path in new_widths:
            units_key = next(k for k in ("filters", "units", "output_dim") if k in config)
            config[units_key] = new_widths[layer.path]
        if isinstance(layer, TransformerBlock):
            config["widths"] = {**config["widths"], **below(new_widths, layer.path)}

    return rebuild(model, change)


def initial_values(widths: Sequence[str], source: keras.Model) -> dict[str, np.ndarray]:
    """Returns variable path -> value of the source without the least important units.

    Args:
      widths: PATH=UNITS per layer, with the number of units that remain.
      source: model with the same layer paths and at least as many units.
    """
    removable = units(source)[0] if widths else {}
    values = {}
    for path, count in parse_widths(widths).items():
        if path not in removable or count >= removable[path].count:
            continue
        remaining = _most_important(removable[path], count)
        for cut in removable[path].cuts:
            value = values.get(cut.variable.path, cut.variable.numpy())
            # Sorted, so that the smaller layer has the same layout as the larger one.
            indices = np.sort(cut.indices[remaining], axis=None)
            values[cut.variable.path] = np.take(value, indices, axis=cut.axis)
    return values


def _most_important(layer_units: Units, count: int) -> np.ndarray:
    """Returns the sorted indices of the units with the largest norms; ties go to the first."""
    return np.sort(np.argsort(-layer_units.norms(), kind="stable")[:count])
