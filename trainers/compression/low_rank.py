"""Replaces kernels by products of smaller kernels, by SVD or Tucker decomposition.

A matrix (dense layers, embeddings) becomes two matrices, by its largest singular values. The kernel
of a convolution becomes three kernels, by Tucker decomposition of its two channel axes (Kim et al.
2016, Compression of Deep Convolutional Neural Networks, arXiv:1511.06530), computed by tensorly.
The energy of a rank is the share of the kernel's squared sum that the product keeps. A kernel that
no rank makes smaller stays unchanged.

The ranks are decided once, from the weights of the model that is compressed, and stored in the
recipe. The model is built with layers of `zoo.layers.low_rank`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
from keras import layers

from trainers.compression.decomposition import CONVOLUTIONS, Kernel, kernel_of, largest_ranks
from trainers.compression.rebuild import rebuild
from trainers.compression.technique import Technique, select_paths
from trainers.config.base import section
from trainers.config.compress import RANKS_BY, check_low_rank, check_source, parse_ranks
from trainers.distributed.strategy import make_strategy
from trainers.evaluation.evaluate import Evaluator
from trainers.run.workdir import read_config
from zoo import keras_internals, registry
from zoo.data.hold_out import hold_out
from zoo.errors import UsageError
from zoo.layers.low_rank import (
    LowRank,
    LowRankConv,
    LowRankDense,
    LowRankEinsumDense,
    LowRankEmbedding,
    LowRankReversibleEmbedding,
    below,
    split_equation,
)
from zoo.models.sources import open_source

# Energies that `_by_loss` tries in this order.
_ENERGIES = (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_CONVOLUTION = (
    "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "activation",
    "use_bias",
)  # fmt: skip
# Layer -> low-rank layer that replaces it, and the arguments that both have.
_PRODUCTS = {
    layers.Dense: (LowRankDense, ("units", "activation", "use_bias")),
    layers.EinsumDense: (
        LowRankEinsumDense, ("equation", "output_shape", "activation", "bias_axes"),
    ),
    layers.Embedding: (LowRankEmbedding, ("input_dim", "output_dim")),
    layers.ReversibleEmbedding: (
        LowRankReversibleEmbedding, ("input_dim", "output_dim", "reverse_dtype"),
    ),
    **dict.fromkeys(CONVOLUTIONS, (LowRankConv, _CONVOLUTION)),
}  # fmt: skip


class LowRankKernels(Technique):
    """`compress.low_rank`: the ranks are decided once and stored as `ranks`."""

    def resolve(self, config, workdir, dataset):
        settings = section(config, "compress.low_rank")
        check_low_rank(settings)
        if settings.ranks or not (settings.keep or any(settings[key] for key in RANKS_BY)):
            return dataset
        is_resumed = (workdir / "config.json").exists()
        if not is_resumed:
            check_source(section(config, "compress"), config.init_from)
        if is_resumed or settings.keep:
            saved_config = read_config(workdir if is_resumed else config.init_from)["config"]
            ranks = section(saved_config, "compress.low_rank").ranks
        else:
            model = open_source(config.init_from)
            measure = _loss_function(model, config, dataset) if settings.sensitivity else None
            ranks = format_ranks(decide(model, settings, measure))
        config.compress.low_rank.ranks = tuple(ranks)
        return dataset

    def change_model(self, model, settings):
        ranks = settings.low_rank.ranks
        return factorize(model, ranks) if ranks else model

    def initial_values(self, model, source, settings):
        return initial_values(model, source)


def format_ranks(ranks: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Formats ranks as PATH=RANK or PATH=INxOUT, which `parse_ranks` reads."""
    return tuple(f"{path}={'x'.join(map(str, numbers))}" for path, numbers in ranks.items())


def _loss_function(model, config, dataset, examples: int = 1024) -> Callable[[], float]:
    """Returns a function that measures the loss on validation or training examples."""
    task = registry.build_task(**config.task.to_dict())
    task.bind(model, dataset, config.model.to_dict())
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
                "compress.low_rank.sensitivity requires examples with targets. Received: "
                f"{len(next(iter(arrays.values())))} examples without targets."
            )
        return metrics["loss"]

    return loss


# --- layers -------------------------------------------------------------------------------------


def factorable(model: keras.Model) -> tuple[dict[str, layers.Layer], dict[str, layers.Layer]]:
    """Returns two dicts, path -> layer: the reachable and the unreachable layers with kernels.

    A layer is reachable if only models and layers with an attribute `ranks`, such as the zoo's
    transformer blocks, contain it. A layer that is a product already can get other ranks.
    """
    reachable, unreachable = {}, {}

    def visit(layer, is_reachable):
        for child in keras_internals.child_layers(layer):
            if type(child) in _PRODUCTS or isinstance(child, LowRank):
                (reachable if is_reachable else unreachable)[child.path] = child
            else:
                inside = isinstance(child, keras.Model) or hasattr(child, "ranks")
                visit(child, is_reachable and inside)

    visit(model, True)
    return reachable, unreachable


def _selected(model: keras.Model, pattern: str) -> dict[str, layers.Layer]:
    reachable, unreachable = factorable(model)
    out = ", or exclude the layer by compress.low_rank.pattern"
    paths = select_paths("compress.low_rank.pattern", pattern, [*reachable, *unreachable])
    for path in paths:
        if path in unreachable:
            raise UsageError(
                f"compress.low_rank does not support {path}: the parent layer has no argument "
                f"`ranks`. Add one as in zoo.layers.transformer.TransformerBlock{out}."
            )
        if reason := _unsupported(reachable[path]):
            raise UsageError(f"compress.low_rank does not support {path}: {reason}{out}.")
    return {path: reachable[path] for path in paths}


def _unsupported(layer: layers.Layer) -> str:
    """Returns the reason why a layer cannot become a product; "" if it can."""
    if isinstance(layer, LowRank):
        return ""
    name = "embeddings" if isinstance(layer, layers.Embedding) else "kernel"
    for kind in ("regularizer", "constraint"):
        if getattr(layer, f"{name}_{kind}", None) is not None:
            return f"the {name} has a {kind}"
    if getattr(layer, "groups", 1) != 1:
        return "the convolution has groups"
    reversible = isinstance(layer, layers.ReversibleEmbedding)
    if reversible and not (layer.tie_weights and layer.logit_soft_cap is None):
        return "the weights are not tied, or the logits have a soft cap"
    if isinstance(layer, layers.EinsumDense):
        try:
            split_equation(layer.equation)
        except ValueError as error:
            return str(error).rstrip(".")
    return ""


# --- ranks --------------------------------------------------------------------------------------


def decide(
    model: keras.Model, settings: Mapping, measure: Callable[[], float] | None = None
) -> dict[str, tuple[int, ...]]:
    """Returns path -> ranks of the layers that become products.

    Args:
      model: model to compress; unchanged when the function returns.
      settings: the section `compress.low_rank`, with one of `RANKS_BY` above 0.
      measure: function that returns the loss of the model, for `sensitivity`.

    Raises:
      UsageError: if no kernel becomes smaller, or the budget cannot be met.
    """
    selected_layers = _selected(model, settings["pattern"])
    kernels = {path: Kernel.of(layer) for path, layer in selected_layers.items()}
    if settings["energy"]:
        ranks = _by_energy(kernels, settings["energy"])
    elif settings["budget"]:
        ranks = _by_budget(kernels, settings["budget"], model.count_params())
    else:
        ranks = _by_loss(kernels, selected_layers, settings["sensitivity"], measure)
    if not ranks:
        raise UsageError(
            "No kernel becomes smaller by factorization: lower compress.low_rank.energy, or set "
            "compress.low_rank.budget."
        )
    reachable = factorable(model)[0].values()
    return {x.path: x.ranks for x in reachable if isinstance(x, LowRank)} | ranks


def _by_energy(kernels: Mapping[str, Kernel], energy: float) -> dict[str, tuple[int, ...]]:
    ranks = {path: kernel.ranks(energy) for path, kernel in kernels.items()}
    return {path: r for path, r in ranks.items() if _is_smaller(kernels[path], r)}


def _is_smaller(kernel: Kernel, ranks: Sequence[int]) -> bool:
    return any(ranks) and kernel.size_at(ranks) < kernel.stored_size


def _by_budget(kernels: Mapping[str, Kernel], budget: float, parameters: int) -> dict:
    """Finds the largest energy, equal for all kernels, at which the model meets the budget."""

    def size(ranks):
        num_saved = sum(kernels[p].stored_size - kernels[p].size_at(r) for p, r in ranks.items())
        return (parameters - num_saved) / parameters

    low, high = -1.0, 1.0
    if (smallest_share := size(_by_energy(kernels, low))) > budget:
        raise UsageError(
            f"compress.low_rank.budget must be at least {smallest_share:.3f}, the share of "
            f"parameters that remain if every matching kernel has rank 1. Received: {budget}."
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if size(_by_energy(kernels, middle)) <= budget else (low, middle)
    return _by_energy(kernels, low)


def _by_loss(kernels, selected_layers, tolerance: float, measure) -> dict[str, tuple[int, ...]]:
    """Finds the lowest ranks per kernel that, used alone, raise the loss by `tolerance` at most."""
    limit = (1 + tolerance) * measure()
    accepted_ranks = {}
    for path, kernel in kernels.items():
        for energy in _ENERGIES:
            ranks = kernel.ranks(energy)
            if not _is_smaller(kernel, ranks):
                continue
            with _lower_ranks(selected_layers[path], kernel, ranks):
                loss = measure()
            if not loss <= limit:
                break
            accepted_ranks[path] = ranks
    return accepted_ranks


@contextlib.contextmanager
def _lower_ranks(layer, kernel: Kernel, ranks):
    """Replaces the kernel of a layer by a product of lower ranks inside the context."""
    variables, values = [layer], [kernel.product(ranks)]
    if isinstance(layer, LowRank):
        variables, values = layer.parts, Kernel(values[0], kernel.input_axes).factors(layer.ranks)
    variables = [kernel_of(part) for part in variables]
    original_values = [variable.numpy() for variable in variables]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    try:
        yield
    finally:
        for variable, value in zip(variables, original_values, strict=True):
            variable.assign(value)


# --- the model ----------------------------------------------------------------------------------


def factorize(model: keras.Model, ranks: Sequence[str]) -> keras.Model:
    """Returns the model with fresh weights and products in place of some kernels.

    Args:
      model: a built model.
      ranks: PATH=RANK or PATH=INxOUT per layer to change.

    Raises:
      UsageError: if the model has no such layer, or its kernel cannot have these ranks.
    """
    new_ranks = parse_ranks(ranks)
    reachable, _ = factorable(model)
    for path in new_ranks:
        if path not in reachable:
            raise UsageError(
                f"compress.low_rank.ranks must contain layers of the model. Received: {path!r}. "
                f"Some supported layers: {', '.join([*reachable][:5])}."
            )
        _check_ranks(path, reachable[path], new_ranks[path])
    if not keras_internals.is_graph(model):
        raise UsageError(
            "compress.low_rank supports Functional and Sequential models. Received: "
            f"{model.name!r}, a {type(model).__name__}."
        )

    def change(layer, config):
        if layer.path in new_ranks:
            return product_layer(layer, new_ranks[layer.path])
        if inside := below(new_ranks, layer.path):
            config["ranks"] = {path: numbers[0] for path, numbers in inside.items()}
        return None

    return rebuild(model, change)


def _check_ranks(path: str, layer: layers.Layer, ranks: Sequence[int]) -> None:
    max_ranks = largest_ranks(layer)
    is_valid = len(ranks) == len(max_ranks) and all(
        r <= m for r, m in zip(ranks, max_ranks, strict=True)
    )
    if is_valid and (any(ranks) if len(max_ranks) == 2 else all(ranks)):
        return
    rank = "INxOUT (0: channels are not mixed)" if len(max_ranks) == 2 else "one rank"
    raise UsageError(
        f"{path} requires {rank} of at most {'x'.join(map(str, max_ranks))}. Received: "
        f"compress.low_rank.ranks with {path}={'x'.join(map(str, ranks))}."
    )


def product_layer(layer: layers.Layer, ranks: Sequence[int]) -> LowRank:
    """Returns a new layer with the arguments of `layer` and a kernel of these ranks."""
    layer_class, keys = _PRODUCTS[type(layer)]
    config = layer.get_config()
    arguments = {key: config[key] for key in ("name", "trainable", "dtype", *keys)}
    if type(layer) in CONVOLUTIONS:
        return layer_class(dimensions=CONVOLUTIONS[type(layer)], ranks=ranks, **arguments)
    return layer_class(rank=ranks[0], **arguments)


def initial_values(model: keras.Model, source: keras.Model) -> dict[str, np.ndarray]:
    """Returns variable path -> value: the kernels of `source`, factored for `model`.

    Args:
      model: a built model.
      source: model with the same layer paths; its kernels may be products of other ranks.
    """
    reachable, unreachable = factorable(source)
    sources, values = {**unreachable, **reachable}, {}
    for layer in products(model):
        source_layer = sources.get(layer.path)
        if source_layer is None or getattr(source_layer, "ranks", None) == layer.ranks:
            continue  # factors of equal ranks have equal paths
        kernel = Kernel.of(source_layer)
        if kernel.value.shape != tuple(layer.kernel.shape):
            continue
        for part, value in zip(layer.parts, kernel.factors(layer.ranks), strict=True):
            values[kernel_of(part).path] = value
        if layer.bias is not None and source_layer.bias is not None:
            values[layer.bias.path] = source_layer.bias.numpy()
    return values


def products(model: keras.Model) -> list[LowRank]:
    """Returns the layers of a model, at any depth, with a product as kernel."""
    return [x for x in keras_internals.all_layers(model) if isinstance(x, LowRank)]


def refuse_tied_products(model: keras.Model) -> None:
    """Raises `UsageError` if a tied embedding, which also computes the logits, is a product."""
    if any(isinstance(layer, LowRankReversibleEmbedding) for layer in products(model)):
        raise UsageError(
            "qat and cluster do not support a tied embedding that low_rank factorized: exclude the "
            "embedding, for example by compress.low_rank.pattern=block_."
        )
