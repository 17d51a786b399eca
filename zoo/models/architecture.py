"""Checks that two models compute the same function from equal weights.

Weights that match in name and shape can belong to different computations, such as rotary instead of
learned positions, another number of heads or another activation. The comparison covers the classes
and settings of layers at every depth, and the inputs of each layer. It ignores layer sizes, because
weight shapes show them, and everything that is active in training only.
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
    r"|initializer_range|output_range|reverse_dtype|unroll|use_cudnn|lora_.*|quantization_.*"
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
_PASSED_OVER = re.compile(r".*Dropout.*|Gaussian.*|ActivityRegularization|Resizing|StochasticDepth")
_ADDED_BY_COMPRESSION = re.compile(r"(^|/)[^/]*(_ranges|centroids)/")
_LONGEST = 2000  # number of characters above which an input's description becomes a hash
_SHOWN = 100  # number of characters of a description in messages


def differences(source: keras.Model, model: keras.Model, ends: bool = True) -> list[str]:
    """Returns the differences between two models, one phrase each; empty if there are none.

    Args:
      source: model with the weights.
      model: model that receives the weights.
      ends: whether to compare the outputs, too.
    """
    theirs, ours = _settings(source), _settings(model)
    found = {}
    for path in [p for p in ours if p in theirs]:
        (their_class, their_values), (our_class, our_values) = theirs[path], ours[path]
        if their_class != our_class and "LowRank" not in their_class + our_class:
            found.setdefault(("class", their_class, our_class), []).append(path)
            continue
        for key in sorted(their_values.keys() & our_values.keys()):
            if their_values[key] != our_values[key]:
                found.setdefault((key, their_values[key], our_values[key]), []).append(path)
    phrases = []
    for (key, there, here), paths in sorted(found.items(), key=lambda item: len(item[1][0])):
        more = f" and {len(paths) - 1} more layers" if len(paths) > 1 else ""
        phrases.append(f"{key} of {paths[0]}{more} is {there} there and {here} here")
    if phrases or not all(map(keras_internals.is_graph, (source, model))):
        return phrases
    there, here = _inputs(source), _inputs(model)
    for name in here:
        if name in there and there[name] != here[name] and (ends or name != "outputs"):
            seen = [x if len(x) < _SHOWN else f"{x[:_SHOWN]}..." for x in (there[name], here[name])]
            phrases.append(f"{name} takes {seen[0]} there and {seen[1]} here")
    return phrases


def contains(source: keras.Model, model: keras.Model) -> bool:
    """Returns whether some tensor in the graph of `source` equals the output of `model`."""
    outputs = _inputs(model)["outputs"]
    return any(outputs in described for described in _inputs(source).values())


def added_by_compression(path: str) -> bool:
    """Returns whether a variable holds ranges or centroids, which compression adds to a layer."""
    return bool(_ADDED_BY_COMPRESSION.search(path))


def _settings(model) -> dict[str, tuple[str, dict]]:
    """Returns `{path: (class, settings)}` of each layer with weights, at any depth."""
    every, found = keras_internals.all_layers(model), {}
    # The parts of low-rank layers follow from the ranks, so they are not compared.
    parts = {id(part) for layer in every if isinstance(layer, LowRank) for part in layer.parts}
    for layer in every:
        compared = not (layer is model or keras_internals.is_graph(layer) or id(layer) in parts)
        path = layer.path or layer.name
        if _own_weights(layer) and compared and not added_by_compression(f"{path}/"):
            found[_relative(path, model)] = (type(layer).__name__, dict(_values(layer)))
    return found


def _own_weights(layer) -> bool:
    return any(not added_by_compression(v.path) for v in getattr(layer, "weights", ()))


def _relative(path: str, model) -> str:
    """Returns a layer's path inside a model; the model may be a part of another model."""
    return re.sub(rf"^(.*/)?{re.escape(model.name)}/", "", path)


def _values(layer) -> Iterator[tuple[str, str]]:
    try:
        config = layer.get_config()
    except NotImplementedError:  # a custom layer that cannot be saved
        return
    for key, value in config.items():
        if key not in _SIZES and not _TRAINING_ONLY.fullmatch(key):
            yield key, json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value):
    """Returns a setting without its training-only parts, in wrapped layers too."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not _TRAINING_ONLY.fullmatch(str(k))}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _inputs(model) -> dict[str, str]:
    """Returns `{layer with weights: description of its inputs}` for a graph and its subgraphs.

    Layers without weights are described by class and settings, because Keras may have numbered
    their names. The key "outputs" describes the outputs of the model.
    """
    graph = {}
    for layer, _, before in keras_internals.connections(model):
        graph.setdefault(id(layer), (layer, []))[1].append(before)
    known, found = {}, {}

    def described(layer) -> str:
        if isinstance(layer, layers.InputLayer):
            return "the input"
        if _own_weights(layer):
            return layer.name
        if id(layer) not in known:
            calls = [", ".join(map(described, before)) for before in graph[id(layer)][1]]
            if _PASSED_OVER.fullmatch(type(layer).__name__):
                known[id(layer)] = " or ".join(calls)
            else:
                values = [f"{k}={v}" for k, v in sorted(_values(layer))]
                known[id(layer)] = f"{type(layer).__name__}({', '.join([*calls, *values])})"
            if len(known[id(layer)]) > _LONGEST:
                digest = hashlib.sha256(known[id(layer)].encode()).hexdigest()[:8]
                known[id(layer)] = f"{type(layer).__name__}(... {digest})"
        return known[id(layer)]

    for layer, calls in graph.values():
        if _own_weights(layer):
            found[layer.name] = " or ".join(", ".join(map(described, call)) for call in calls)
            if keras_internals.is_graph(layer):
                inside = _inputs(layer)
                inside[f"outputs of {layer.name}"] = inside.pop("outputs")
                found |= inside
    found["outputs"] = ", ".join(map(described, keras_internals.output_layers(model)))
    return found
