"""Checks that two models compute the same function from equal weights.

Weights that match in name and shape can belong to different computations, such as rotary instead of
learned positions, another number of heads or another activation. The comparison covers the classes
and settings of layers at every depth, and the inputs of each layer. It ignores layer sizes, because
weight shapes show them, everything that is active in training only, and the rounds and chunks of
attention by hashing, which trade time for a better approximation of attention to all pairs.
"""

import hashlib
import json
import re
from collections.abc import Iterator

import keras
from keras import layers

from zoo import keras_internals
from zoo.layers.low_rank import LowRank

# Settings that concern initialization, training or storage of a layer.
_TRAINING_ONLY = re.compile(
    r"name|dtype|trainable|autocast|seed|rate|(recurrent_)?dropout|noise_shape|momentum|synchronized"
    r"|initializer_range|output_range|capacity_factor|reverse_dtype|unroll|use_cudnn|lora_.*|quantization_.*"
    r"|(.*_)?(initializer|regularizer|constraint)"
)
# Settings that are visible in weight shapes.
_SIZES = frozenset(
    {
        "units", "filters", "input_dim", "output_dim", "hidden_dim", "intermediate_dim", "widths",
        "rank", "ranks", "sequence_length", "output_shape", "batch_shape",
    }
)  # fmt: skip
# Layers that return their input outside training, or resize images to the network's input size.
_TRANSPARENT = re.compile(r".*Dropout.*|Gaussian.*|ActivityRegularization|Resizing|StochasticDepth")
_ADDED_BY_COMPRESSION = re.compile(r"(^|/)[^/]*(_ranges|centroids|lora_[a-z_]+)/")
# Settings that are chosen for each task: which tokens attend globally, and the number of loops.
_PER_TASK = frozenset(
    {
        "global_tokens", "max_global", "start_token", "separator_token", "loops", "loop_range",
        "loop_draw", "backprop_loops",
    }
)  # fmt: skip
# Rounds and chunks in a form of attention: a model may be evaluated with more rounds than it was
# trained with (Kitaev et al. 2020, arXiv:2001.04451, table 2), and decoding attends to all pairs.
_LSH_SIZES = re.compile(r"\blsh:\d+(:\d+)?")
_MAX_LENGTH = 2000  # number of characters above which an input's description becomes a hash
_MAX_SHOWN = 100  # number of characters of a description in messages


def differences(source: keras.Model, model: keras.Model, ends: bool = True) -> list[str]:
    """Returns the differences between two models, one phrase each; empty if there are none.

    Args:
      source: model with the weights.
      model: model that receives the weights.
      ends: whether to compare the outputs, too.
    """
    source_settings, model_settings = _settings(source), _settings(model)
    groups = {}
    for path in [p for p in model_settings if p in source_settings]:
        (source_class, source_values), (model_class, model_values) = (
            source_settings[path],
            model_settings[path],
        )
        if source_class != model_class and "LowRank" not in source_class + model_class:
            groups.setdefault(("class", source_class, model_class), []).append(path)
            continue
        for key in sorted(source_values.keys() & model_values.keys()):
            if source_values[key] != model_values[key]:
                groups.setdefault((key, source_values[key], model_values[key]), []).append(path)
    phrases = []
    for (key, source_value, model_value), paths in sorted(
        groups.items(), key=lambda item: len(item[1][0])
    ):
        more = f" and {len(paths) - 1} more layers" if len(paths) > 1 else ""
        phrases.append(
            f"{key} of {paths[0]}{more} is {source_value} in the source and {model_value} in the "
            "model"
        )
    if phrases or not all(map(keras_internals.is_graph, (source, model))):
        return phrases
    source_value, model_value = _inputs(source), _inputs(model)
    for name in model_value:
        if (
            name in source_value
            and source_value[name] != model_value[name]
            and (ends or name != "outputs")
        ):
            shown = [
                x if len(x) < _MAX_SHOWN else f"{x[:_MAX_SHOWN]}..."
                for x in (source_value[name], model_value[name])
            ]
            phrases.append(
                f"{name}: connected to {shown[0]} in the source and {shown[1]} in the model"
            )
    return phrases


def contains(source: keras.Model, model: keras.Model) -> bool:
    """Returns whether some tensor in the graph of `source` equals the output of `model`."""
    outputs = _inputs(model)["outputs"]
    return any(outputs in description for description in _inputs(source).values())


def added_by_compression(path: str) -> bool:
    """Returns whether a variable holds ranges, centroids or adapters, which training adds."""
    return bool(_ADDED_BY_COMPRESSION.search(path))


def is_adapter(path: str) -> bool:
    """Returns whether a variable belongs to an adapter of LoRA, which only training knows."""
    return bool(re.search(r"(^|/)lora_[a-z_]+/", path))


def _settings(model) -> dict[str, tuple[str, dict]]:
    """Returns `{path: (class, settings)}` of each layer with weights, at any depth."""
    all_layers, settings = keras_internals.all_layers(model), {}
    # The parts of low-rank layers follow from the ranks, so they are not compared.
    parts = {id(part) for layer in all_layers if isinstance(layer, LowRank) for part in layer.parts}
    for layer in all_layers:
        is_compared = not (layer is model or keras_internals.is_graph(layer) or id(layer) in parts)
        path = layer.path or layer.name
        if _has_own_weights(layer) and is_compared and not added_by_compression(f"{path}/"):
            settings[_relative_path(path, model)] = (
                type(layer).__name__,
                dict(_inference_settings(layer)),
            )
    return settings


def _has_own_weights(layer) -> bool:
    return any(not added_by_compression(v.path) for v in getattr(layer, "weights", ()))


def _relative_path(path: str, model) -> str:
    """Returns a layer's path inside a model; the model may be a part of another model."""
    return re.sub(rf"^(.*/)?{re.escape(model.name)}/", "", path)


def _inference_settings(layer) -> Iterator[tuple[str, str]]:
    try:
        config = layer.get_config()
    except NotImplementedError:  # a custom layer that cannot be saved
        return
    for key, value in config.items():
        if key not in _SIZES | _PER_TASK and not _TRAINING_ONLY.fullmatch(key):
            yield key, json.dumps(_without_training_settings(value), sort_keys=True, default=str)


def _without_training_settings(value):
    """Returns a setting without its training-only parts, in wrapped layers too."""
    if isinstance(value, str):
        return _LSH_SIZES.sub("lsh", value)
    if isinstance(value, dict):
        return {
            k: _without_training_settings(v)
            for k, v in value.items()
            if not _TRAINING_ONLY.fullmatch(str(k))
        }
    return (
        [_without_training_settings(v) for v in value] if isinstance(value, list | tuple) else value
    )


def _inputs(model) -> dict[str, str]:
    """Returns `{layer with weights: description of its inputs}` for a graph and its subgraphs.

    Layers without weights are described by class and settings, because Keras may have numbered
    their names. The key "outputs" describes the outputs of the model.
    """
    graph = {}
    for layer, _, input_layers in keras_internals.connections(model):
        graph.setdefault(id(layer), (layer, []))[1].append(input_layers)
    descriptions, inputs = {}, {}

    def describe(layer) -> str:
        if isinstance(layer, layers.InputLayer):
            return "the input"
        if _has_own_weights(layer):
            return layer.name
        if id(layer) not in descriptions:
            calls = [", ".join(map(describe, input_layers)) for input_layers in graph[id(layer)][1]]
            if _TRANSPARENT.fullmatch(type(layer).__name__):
                descriptions[id(layer)] = " or ".join(calls)
            else:
                values = [f"{k}={v}" for k, v in sorted(_inference_settings(layer))]
                descriptions[id(layer)] = f"{type(layer).__name__}({', '.join([*calls, *values])})"
            if len(descriptions[id(layer)]) > _MAX_LENGTH:
                digest = hashlib.sha256(descriptions[id(layer)].encode()).hexdigest()[:8]
                descriptions[id(layer)] = f"{type(layer).__name__}(... {digest})"
        return descriptions[id(layer)]

    for layer, calls in graph.values():
        if _has_own_weights(layer):
            inputs[layer.name] = " or ".join(", ".join(map(describe, call)) for call in calls)
            if keras_internals.is_graph(layer):
                inner = _inputs(layer)
                inner[f"outputs of {layer.name}"] = inner.pop("outputs")
                inputs |= inner
    inputs["outputs"] = ", ".join(map(describe, keras_internals.output_layers(model)))
    return inputs
