"""Kernels as products of smaller ones: singular values and Tucker's decomposition.

A matrix (dense layers, embeddings) becomes two, by its largest singular values; a convolution's
kernel three, by Tucker's decomposition of its two axes of channels (Kim et al. 2016, Compression of
Deep Convolutional Neural Networks, arXiv:1511.06530), which tensorly computes. What a rank keeps is
measured by energy: the share of the kernel's squared sum. A kernel that no rank makes smaller stays
as it is.

Which kernel has which rank is decided once, from the weights of the model that is compressed, and
stands in the recipe from then on; the model is built with layers of `zoo.layers.low_rank`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import layers

from trainers.compression import rebuild
from trainers.compression.decomposition import CONVOLUTIONS, Kernel, largest_ranks
from trainers.config.base import section
from trainers.config.compress import RANKS_BY, check_low_rank, check_source, parse_ranks
from trainers.distributed.strategy import make_strategy
from trainers.evaluation.evaluate import Evaluator
from trainers.run.workdir import read_config
from zoo import keras_internals, registry
from zoo.data.hold_out import hold_out
from zoo.errors import UsageError, compiled
from zoo.layers.low_rank import (
    LowRank,
    LowRankConv,
    LowRankDense,
    LowRankEinsumDense,
    LowRankEmbedding,
    LowRankReversibleEmbedding,
    split_equation,
)
from zoo.models.sources import open_source

# What is tried, one after the other, where the loss is measured.
_LADDER = (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_KINDS = (
    layers.Dense, layers.EinsumDense, layers.Embedding, layers.ReversibleEmbedding, *CONVOLUTIONS,
)  # fmt: skip


# --- which layers -------------------------------------------------------------------------------


def factorable(model: keras.Model) -> tuple[dict[str, layers.Layer], dict[str, layers.Layer]]:
    """Returns path -> layer of those that can become products, and of those out of reach.

    Layers of a model are within reach, and those in layers that take `ranks`, such as the zoo's
    transformer blocks. Those that are products already are among the first.
    """
    found, beyond = {}, {}

    def visit(layer, reached):
        for child in keras_internals.child_layers(layer):
            if type(child) in _KINDS or isinstance(child, LowRank):
                (found if reached else beyond)[child.path] = child
            else:
                inside = isinstance(child, keras.Model) or hasattr(child, "ranks")
                visit(child, reached and inside)

    visit(model, True)
    return found, beyond


def _chosen(model: keras.Model, pattern: str) -> dict[str, layers.Layer]:
    matches = compiled("compress.low_rank.pattern", pattern).search
    found, beyond = factorable(model)
    out = ", or leave it out by compress.low_rank.pattern"
    for path in filter(matches, beyond):
        raise UsageError(
            f"{path} lies inside a layer that takes no ranks: give its class an argument `ranks` "
            f"as zoo.layers.transformer.TransformerBlock has{out}."
        )
    chosen = {path: layer for path, layer in found.items() if matches(path)}
    if not chosen:
        raise UsageError(
            f"compress.low_rank.pattern matches nothing. Received: {pattern!r}; there are "
            f"{', '.join([*found][:5]) or 'no layers that it knows'}."
        )
    for path, layer in chosen.items():
        if reason := _unfit(layer):
            raise UsageError(f"{path} cannot be a product: {reason}{out}.")
    return chosen


def _unfit(layer: layers.Layer) -> str:
    if isinstance(layer, LowRank):
        return ""
    embedding = isinstance(layer, layers.Embedding)
    name = "embeddings" if embedding else "kernel"
    for kind in ("regularizer", "constraint"):
        if getattr(layer, f"{name}_{kind}", None) is not None:
            return f"its {name} has a {kind}"
    if getattr(layer, "groups", 1) != 1:
        return "its convolution is in groups"
    reversible = isinstance(layer, layers.ReversibleEmbedding)
    if reversible and not (layer.tie_weights and layer.logit_soft_cap is None):
        return "its weights are not tied, or its logits have a soft cap"
    if isinstance(layer, layers.EinsumDense):
        try:
            split_equation(layer.equation)
        except ValueError as error:
            return str(error).rstrip(".")
    return ""


# --- which ranks --------------------------------------------------------------------------------


def decide(
    model: keras.Model, settings: Mapping, measure: Callable[[], float] | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns path -> ranks of the layers that become products.

    Args:
      model: the one that is compressed; unchanged in the end.
      settings: the section `compress.low_rank`, with one of `RANKS_BY` above 0.
      measure: the model's loss, for `sensitivity`.

    Raises:
      UsageError: where nothing becomes smaller, or not as small as was asked for.
    """
    chosen = _chosen(model, settings["pattern"])
    kernels = {path: Kernel.of(layer) for path, layer in chosen.items()}
    for path, layer in chosen.items():
        if isinstance(layer, LowRank):
            kernels[path].held = sum(math.prod(part_kernel(part).shape) for part in layer.parts)
    if settings["energy"]:
        ranks = _at(kernels, settings["energy"])
    elif settings["budget"]:
        ranks = _within(kernels, settings["budget"], model.count_params())
    else:
        ranks = _measured(kernels, chosen, settings["sensitivity"], measure)
    kept = {p: x.ranks for p, x in factorable(model)[0].items() if isinstance(x, LowRank)}
    if not ranks:
        raise UsageError(
            "No kernel becomes smaller as a product: lower compress.low_rank.energy, or give a "
            "budget."
        )
    return kept | ranks


def _at(kernels: Mapping[str, Kernel], energy: float) -> dict[str, tuple[int, ...]]:
    ranks = {path: kernel.ranks(energy) for path, kernel in kernels.items()}
    return {p: r for p, r in ranks.items() if any(r) and kernels[p].size_at(r) < kernels[p].held}


def _within(kernels: Mapping[str, Kernel], budget: float, parameters: int) -> dict:
    """The largest energy, one for all kernels, at which the model is small enough."""

    def size(ranks):
        saved = sum(kernels[p].held - kernels[p].size_at(r) for p, r in ranks.items())
        return (parameters - saved) / parameters

    low, high = -1.0, 1.0
    if (least := size(_at(kernels, low))) > budget:
        raise UsageError(
            f"With every chosen kernel of rank 1 there are {least:.3f} of the parameters left. "
            f"Received: compress.low_rank.budget={budget}."
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if size(_at(kernels, middle)) <= budget else (low, middle)
    return _at(kernels, low)


def _measured(kernels, chosen, tolerance: float, measure) -> dict[str, tuple[int, ...]]:
    """Each kernel's lowest ranks with which, all others whole, the loss grows by no more."""
    limit = (1 + tolerance) * measure()
    found = {}
    for path, kernel in kernels.items():
        for energy in _LADDER:
            ranks = kernel.ranks(energy)
            if not any(ranks) or kernel.size_at(ranks) >= kernel.held:
                continue
            with _replaced(chosen[path], kernel, ranks):
                loss = measure()
            if not loss <= limit:
                break
            found[path] = ranks
    return found


class _replaced:
    """While it lasts a layer computes with lower ranks; a product by what its parts hold."""

    def __init__(self, layer, kernel: Kernel, ranks):
        product = isinstance(layer, LowRank)
        whole = [layer.embeddings if isinstance(layer, layers.Embedding) else layer.kernel]
        self.variables = [part_kernel(part) for part in layer.parts] if product else whole
        self.before = [v.numpy() for v in self.variables]
        values = [kernel.product(ranks)]
        if product:
            values = Kernel(values[0], kernel.inputs).factors(layer.ranks)
        self.values = values

    def __enter__(self):
        for variable, value in zip(self.variables, self.values, strict=True):
            variable.assign(value)

    def __exit__(self, *_):
        for variable, value in zip(self.variables, self.before, strict=True):
            variable.assign(value)


def part_kernel(part: layers.Layer):
    """The kernel's or the embeddings' variable of a layer of Keras."""
    return part.embeddings if isinstance(part, layers.Embedding) else part.kernel


# --- the recipe ---------------------------------------------------------------------------------


def written(ranks: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The reverse of `parse_ranks`."""
    return tuple(f"{path}={'x'.join(map(str, numbers))}" for path, numbers in ranks.items())


def resolve_from_weights(config, workdir: Path, dataset) -> None:
    """Writes into a recipe the ranks that follow from the weights it starts from.

    Args:
      config: a recipe; changed in place.
      workdir: where a run that was begun before has them.
      dataset: on which `sensitivity` is measured: its validation split, or some of the training
        split.
    """
    low = section(config, "compress.low_rank")
    check_low_rank(low)
    asked = any(low[way] for way in RANKS_BY)
    if low.ranks or not (asked or low.keep):
        return
    begun = (workdir / "config.json").exists()
    if not begun:
        check_source(section(config, "compress"), config.init_from)
    if begun or low.keep:
        saved = read_config(workdir if begun else config.init_from)["config"]
        config.compress.low_rank.ranks = tuple(section(saved, "compress.low_rank").ranks)
        return
    model = open_source(config.init_from)
    measure = _measure(model, config, dataset) if low.sensitivity else None
    config.compress.low_rank.ranks = written(decide(model, low, measure))


def _measure(model, config, dataset, examples: int = 1024) -> Callable[[], float]:
    arguments = config.task.to_dict()
    task = registry.build_task(arguments.pop("name"), **arguments)
    task.complete(config.model.to_dict(), dataset)
    _, held_out = hold_out(dataset.splits["train"], config.data.validation_size)
    arrays = held_out or dataset.splits.get("validation") or dataset.splits["train"]
    arrays = {key: array[:examples] for key, array in arrays.items()}
    evaluate = Evaluator(
        model, task, arrays, min(config.trainer.global_batch_size, examples),
        make_strategy("one_device"),
    )  # fmt: skip

    def loss() -> float:
        metrics, _ = evaluate()
        if "loss" not in metrics:
            raise UsageError(
                "compress.low_rank.sensitivity needs examples with targets: the "
                f"{len(next(iter(arrays.values())))} examples that it measures have none."
            )
        return metrics["loss"]

    return loss


# --- the model ----------------------------------------------------------------------------------


def rebuilt(model: keras.Model, ranks: Sequence[str]) -> keras.Model:
    """Returns the model anew, with products in place of the kernels of those paths.

    Raises:
      UsageError: for a path that the model lacks, or ranks that its kernel cannot have.
    """
    wanted = parse_ranks(ranks)
    known, _ = factorable(model)
    for path in wanted:
        if path not in known:
            raise UsageError(
                f"compress.low_rank.ranks names a layer that the model lacks: {path!r}; there are "
                f"{', '.join([*known][:5])}."
            )
        _check_ranks(path, known[path], wanted[path])
    if not keras_internals.is_graph(model):
        raise UsageError(
            f"low_rank rebuilds models of one graph. Received: {model.name!r}, a "
            f"{type(model).__name__}."
        )

    def change(layer, config):
        if layer.path in wanted:
            return product_layer(layer, wanted[layer.path])
        if inside := rebuild.below(layer, wanted):
            config["ranks"] = {path: numbers[0] for path, numbers in inside.items()}
        return None

    return rebuild.rebuilt(model, change)


def _check_ranks(path: str, layer: layers.Layer, ranks: Sequence[int]) -> None:
    most = largest_ranks(layer)
    fits = len(ranks) == len(most) and all(r <= m for r, m in zip(ranks, most, strict=True))
    if fits and (any(ranks) if len(most) == 2 else all(ranks)):
        return
    rank = "INxOUT, 0 for channels that are not mixed," if len(most) == 2 else "one rank"
    raise UsageError(
        f"{path} takes {rank} of at most {'x'.join(map(str, most))}. Received: "
        f"compress.low_rank.ranks with {path}={'x'.join(map(str, ranks))}."
    )


def product_layer(layer: layers.Layer, ranks: Sequence[int]) -> LowRank:
    """Returns a fresh layer that does what `layer` does with a kernel of these ranks."""
    config = layer.get_config()
    same = {key: config[key] for key in ("name", "trainable", "dtype")}
    ending = {key: config[key] for key in ("activation", "use_bias") if key in config}
    if type(layer) in CONVOLUTIONS:
        keys = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate")
        return LowRankConv(
            CONVOLUTIONS[type(layer)], ranks=ranks, **{k: config[k] for k in keys}, **ending,
            **same,
        )  # fmt: skip
    if isinstance(layer, layers.EinsumDense):
        keys = ("equation", "output_shape", "activation", "bias_axes")
        return LowRankEinsumDense(rank=ranks[0], **{k: config[k] for k in keys}, **same)
    if isinstance(layer, layers.Dense):
        return LowRankDense(config["units"], ranks[0], **ending, **same)
    size = {key: config[key] for key in ("input_dim", "output_dim")}
    if isinstance(layer, layers.ReversibleEmbedding):
        return LowRankReversibleEmbedding(
            rank=ranks[0], reverse_dtype=config["reverse_dtype"], **size, **same
        )
    return LowRankEmbedding(rank=ranks[0], **size, **same)


def start_values(model: keras.Model, other: keras.Model) -> dict[str, np.ndarray]:
    """Returns path of a variable -> value: another model's kernels as factors of this one's.

    Args:
      model: a built model.
      other: one with the same paths, whole or of other ranks.
    """
    mine = {layer.path: layer for layer in products(model)}
    theirs = {**factorable(other)[1], **factorable(other)[0]}
    values = {}
    for path, layer in mine.items():
        source = theirs.get(path)
        if source is None or getattr(source, "ranks", None) == layer.ranks:
            continue  # equal ranks: each part is found by its own path
        kernel = Kernel.of(source)
        if kernel.value.shape != tuple(layer.kernel.shape):
            continue
        factors = kernel.factors(layer.ranks)
        for part, value in zip(layer.parts, factors, strict=True):
            values[part_kernel(part).path] = value
        if layer.bias is not None and source.bias is not None:
            values[layer.bias.path] = source.bias.numpy()
    return values


def products(model: keras.Model) -> list[LowRank]:
    """Returns the layers of a model, at any depth, whose kernels are products."""
    return [x for x in keras_internals.all_layers(model) if isinstance(x, LowRank)]
