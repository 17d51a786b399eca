"""Structured pruning: whole units are taken out, and the model is built smaller.

A unit matters by the L2 norm of the weights that make it and those that read it, after Li et al.
2017 (Pruning Filters for Efficient ConvNets, arXiv:1608.08710), who sum the absolute weights that
make it. The same share of each layer's units goes. `trainers.compression.units` says what units
are; how many each layer keeps stands in the recipe from the run's beginning on.

Units without weights change nothing by going, except in front of layer normalisation, whose mean is
then of those that stay.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers

from trainers.compression import rebuild
from trainers.compression.decomposition import CONVOLUTIONS
from trainers.compression.units import Units, units
from trainers.config.base import section
from trainers.config.compress import check_source, check_structured, parse_widths
from trainers.run.workdir import read_config
from zoo.errors import UsageError, compiled
from zoo.layers.transformer import TransformerBlock
from zoo.models.sources import open_source


def decide(model: keras.Model, sparsity: float, pattern: str) -> dict[str, int]:
    """Returns path -> how many units stay, of the layers that lose some.

    Args:
      model: built.
      sparsity: share of units that goes, rounded to whole ones.
      pattern: regular expression of the paths; "" for all.

    Raises:
      UsageError: where no unit can go, or a layer would lose all of them.
    """
    found, whole = units(model)
    for path in [path for path, its in found.items() if not its.layer.trainable]:
        del found[path]
        whole[path] = "it is frozen, and would not learn to do with fewer"
    chosen = _matching(found, pattern)
    if not chosen:
        reasons = _matching(whole, pattern)
        if not reasons:
            raise UsageError(
                f"compress.structured.pattern matches nothing. Received: {pattern!r}; there are "
                f"{', '.join([*found, *whole][:5]) or 'no layers that it knows'}."
            )
        listed = "; ".join(f"{path}: {reason}" for path, reason in [*reasons.items()][:3])
        out = ", or choose others by compress.structured.pattern" if pattern else ""
        raise UsageError(f"No unit can be taken out. {listed}. Use prune or low_rank{out}.")
    left = {path: its.count - round(sparsity * its.count) for path, its in chosen.items()}
    for path, count in left.items():
        if not count:
            raise UsageError(
                f"{path} would lose all of its {found[path].count} units: lower "
                "compress.structured.sparsity, or leave it out by compress.structured.pattern. "
                f"Received: {sparsity}."
            )
    fewer = {path: count for path, count in left.items() if count < found[path].count}
    if not fewer:
        raise UsageError(
            f"No layer has so many units that one would go: raise compress.structured.sparsity. "
            f"Received: {sparsity}."
        )
    return fewer


def _matching(paths: Mapping, pattern: str) -> dict:
    matches = compiled("compress.structured.pattern", pattern).search
    return {path: value for path, value in paths.items() if matches(path)}


def resolve_from_weights(config, workdir: Path) -> None:
    """Writes into a recipe how many units stay of each layer of the model it starts from.

    Args:
      config: a recipe; changed in place.
      workdir: where a run that was begun before has it.
    """
    settings = section(config, "compress.structured")
    check_structured(settings)
    if not (settings.widths or settings.sparsity or settings.keep):
        return
    begun = (workdir / "config.json").exists()
    before = _saved(workdir if begun else config.init_from)
    left = parse_widths(settings.widths)
    if not (left or begun or settings.keep):
        check_source(section(config, "compress"), config.init_from)
        left = decide(open_source(config.init_from), settings.sparsity, settings.pattern)
    widths = tuple(f"{path}={count}" for path, count in {**before, **left}.items())
    config.compress.structured.widths = widths


def _saved(source: str | Path) -> dict[str, int]:
    """The widths of a work directory's recipe; none of other sources."""
    if not source or not (Path(source) / "config.json").exists():
        return {}
    return parse_widths(section(read_config(source)["config"], "compress.structured").widths)


# --- the model ----------------------------------------------------------------------------------


def rebuilt(model: keras.Model, widths: Sequence[str]) -> keras.Model:
    """Returns the model anew, with so many units in the layers of those paths.

    Raises:
      UsageError: for a path that the model lacks, or of which no units can go, or so many.
    """
    wanted = parse_widths(widths)
    found, whole = units(model)
    for path, count in wanted.items():
        if path in whole:
            raise UsageError(f"{path} keeps all its units: {whole[path]}.")
        if path not in found or count > found[path].count:
            has = f"{path} has {found[path].count}" if path in found else "the model lacks it"
            raise UsageError(
                f"compress.structured.widths says {path}={count}, but {has}; there are "
                f"{', '.join([*found][:5])}."
            )

    def change(layer, config):
        if layer.path in wanted:
            config[_argument(layer)] = wanted[layer.path]
        if isinstance(layer, TransformerBlock):
            config["widths"] = {**config["widths"], **rebuild.below(layer, wanted)}

    return rebuild.rebuilt(model, change)


def _argument(layer: layers.Layer) -> str:
    if type(layer) in CONVOLUTIONS:
        return "filters"
    return "output_dim" if isinstance(layer, layers.Embedding) else "units"


def start_values(widths: Sequence[str], other: keras.Model) -> dict[str, np.ndarray]:
    """Returns path of a variable -> value: another model's, without the units that matter least.

    Args:
      widths: of the section `compress.structured`.
      other: a model of the same paths, with as many units or more.
    """
    found = units(other)[0] if widths else {}
    kept = {
        path: _most(found[path], count)
        for path, count in parse_widths(widths).items()
        if path in found and count < found[path].count
    }
    values = {}
    for path, staying in kept.items():
        for cut in found[path].cuts:
            value = values.get(cut.variable.path, cut.variable.numpy())
            # In the order in which they were: the smaller layer is laid out like the larger.
            places = np.sort(cut.places[staying], axis=None)
            values[cut.variable.path] = np.take(value, places, axis=cut.axis)
    return values


def _most(its: Units, count: int) -> np.ndarray:
    """The numbers of so many units with the largest norms; of equals those that come first."""
    return np.sort(np.argsort(-its.norms(), kind="stable")[:count])
