"""LoRA (Hu et al. 2021, arXiv:2106.09685): adapters on the kernels of a frozen model.

`attach` changes a built model in place: layers keep their names, weights and files. Each chosen
kernel W gets an update alpha / rank * A B, which is trained; all other weights are frozen, except
those that `lora.train` names. A file is saved inside `Lora.merged`, where the model has plain
layers with the kernels W + alpha / rank * A B. The kernels are added up for the file alone and
restored afterwards, so no kernel gets its update twice.

Checkpoints leave out the frozen weights. A resumed run takes them again from init_from, or from the
builder and the random seed, and compares their hash.
"""

import contextlib
import functools
import hashlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from trainers.compression.technique import Compressor, select_paths
from trainers.lora.quantized import QuantizedKernel
from trainers.lora.updates import ADAPTABLE, RECURRENT, kernels_of, make_updates, unsupported
from trainers.optimization.muon import output_layers
from zoo import keras_internals
from zoo.errors import UsageError, compile_pattern
from zoo.layers.reversible import ReversibleStack
from zoo.layers.transformer import TransformerBlock

_BASE = "lora_base"  # name of the sublayer with a quantized kernel
_BLOCKS = (TransformerBlock, ReversibleStack, *RECURRENT)


class Lora(Compressor):
    """The adapters of a model. Create it inside the strategy's scope, before the optimizer.

    Args:
      model: built model, changed in place.
      settings: the section `lora`, with a rank of at least 1.

    Attributes:
      adapted: the layers with adapters.
      frozen: the weights that no update changes, in the order of the model.
      parameters: number of parameters of the model without its adapters.

    Raises:
      UsageError: if a pattern matches nothing, or a chosen layer does not support adapters.
    """

    def __init__(self, model: keras.Model, settings: Mapping):
        super().__init__(model)
        self._base = settings["base"]
        self.parameters = model.count_params()
        trained_variables = _selected_variables(model, settings["train"])
        trained = {id(v) for v in trained_variables}
        self.adapted = _selected_layers(model, settings, trained)
        self._plain_flags = _flags(model)
        for layer in self.adapted:
            trained |= {id(v) for v in _attach(layer, settings)}
        was_trainable = {id(v) for v, flag in self._plain_flags if isinstance(v, keras.Variable)
                         and flag}  # fmt: skip
        _freeze(model, trained)
        self._flags = _flags(model)
        # A layer that trains may update other state too, such as moving statistics.
        fixed = {id(v) for x in keras_internals.all_layers(model) if not x.trainable
                 for v in x.weights}  # fmt: skip
        fixed |= was_trainable - trained
        self.frozen = [v for v in model.weights if id(v) in fixed]

    @property
    def description(self) -> str:
        """The number of adapters and the share of parameters that the run trains."""
        count = sum(int(np.prod(v.shape)) for v in self.model.trainable_weights)
        updates = [update for layer in self.adapted for update in updates_of(layer)]
        base = "" if self._base == "float" else f" on {self._base} kernels"
        return (
            f"{len(updates)} adapters of rank {updates[0].rank}{base}; {count:,} trainable, "
            f"{self.parameters:,} in the model: {count / self.parameters:.2%}"
        )

    def begin(self) -> None:
        """Quantizes the kernels below the adapters, for a `base` of integers."""
        if self._base == "float":
            return
        released = set()
        for layer in self.adapted:
            getattr(layer, _BASE).set_kernel(layer.kernel.numpy())
            released.add(id(layer.kernel))
            keras_internals.release_kernel(layer)
        # References to the float kernels would keep their memory.
        self.frozen = [v for v in self.frozen if id(v) not in released]
        self._plain_flags, self._flags = (
            [(x, flag) for x, flag in flags if id(x) not in released]
            for flags in (self._plain_flags, self._flags)
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the frozen weights, after `begin`."""
        sha256 = hashlib.sha256()
        for variable in self.frozen:
            value = np.ascontiguousarray(variable.numpy())
            sha256.update(f"{value.shape} {value.dtype}".encode())
            sha256.update(value.reshape(-1).view(np.uint8))
        return sha256.hexdigest()

    @contextlib.contextmanager
    def merged(self):
        """Returns a context in which the model has plain layers with the updates in their kernels.

        All values are restored to the bit at the end.
        """
        calls, parts, raw_values = [], [], []
        for layer in self.adapted:
            calls.append((layer, layer.call))
            # By the class: trainer.remat may have replaced the call, too.
            layer.call = type(layer).call.__get__(layer)
            products = {name: getattr(layer, name).product() for name in _update_names(layer)}
            if self._base == "float":
                for name, kernel in kernels_of(layer).items():
                    raw_values.append((kernel, kernel.numpy()))
                    kernel.assign(raw_values[-1][1] + products[name].numpy())
            else:
                value = getattr(layer, _BASE).dequantize() + products["lora_update"]
                with tf.device("CPU"):
                    keras_internals.set_kernel(layer, value.numpy())
            for name in (*_update_names(layer), _BASE):
                if hasattr(layer, name):
                    parts.append((layer, name, keras_internals.remove_layer(layer, name)))
        _set_flags(self._plain_flags)
        try:
            yield
        finally:
            for layer, name, part in parts:
                keras_internals.add_layer(layer, name, part)
            for kernel, value in raw_values:
                kernel.assign(value)
            for layer, call in calls:
                layer.call = call
                if self._base != "float":
                    keras_internals.release_kernel(layer)
            _set_flags(self._flags)


def attach(model: keras.Model, settings: Mapping) -> Lora | None:
    """Adds adapters to a built model if the section `lora` has a rank; see `Lora`."""
    return Lora(model, settings) if settings["rank"] else None


def updates_of(layer) -> list:
    """Returns the updates of an adapted layer."""
    return [getattr(layer, name) for name in _update_names(layer)]


def _update_names(layer) -> tuple[str, ...]:
    recurrent = ("lora_recurrent_update",) if isinstance(layer, RECURRENT) else ()
    return ("lora_update", *recurrent)


# --- choice of layers -----------------------------------------------------------------------------


def _selected_variables(model, pattern: str) -> list:
    """Returns the variables that train without an adapter."""
    if not pattern:
        return []
    variables = model.trainable_weights
    select_paths("lora.train", pattern, [v.path for v in variables])
    return [v for v in variables if compile_pattern("lora.train", pattern).search(v.path)]


def _selected_layers(model, settings: Mapping, trained: set[int]) -> list:
    """Returns the layers that get adapters: those of the pattern, or of the blocks of the model.

    By default these are all supported layers inside transformer blocks and recurrent layers. A
    model without both adapts all supported layers but those that compute its outputs.
    """
    inside = keras_internals.all_layers(model)
    supported = [x for x in inside if isinstance(x, ADAPTABLE)]
    graph_outputs = output_layers(model) if keras_internals.is_graph(model) else []
    blocks = [x for x in inside if isinstance(x, _BLOCKS)]
    outputs = {id(x) for x in graph_outputs if not isinstance(x, _BLOCKS)}
    if pattern := settings["pattern"]:
        select_paths("lora.pattern", pattern, [x.path for x in supported])
        matches = compile_pattern("lora.pattern", pattern).search
        selected = [x for x in supported if matches(x.path)]
    else:
        in_blocks = {id(x) for block in blocks for x in keras_internals.all_layers(block)}
        selected = [
            x for x in supported if (id(x) in in_blocks if blocks else id(x) not in outputs)
        ]
    selected = [x for x in selected if not {id(v) for v in x.trainable_weights} & trained]
    if not selected:
        raise UsageError(
            f"No layer of model {model.name!r} can have an adapter. Supported: Dense, EinsumDense, "
            "convolutions and recurrent layers that lora.train does not name, and that compute no "
            "output of the model."
        )
    for layer in selected:
        reason = unsupported(layer)
        if id(layer) in outputs:
            reason = "it computes an output of the model; lora.train trains it as a whole"
        elif isinstance(layer, RECURRENT) and settings["dropout"]:
            reason = "lora.dropout does not support recurrent layers"
        elif settings["base"] != "float" and type(layer) is not layers.Dense:
            reason = f"lora.base={settings['base']} supports Dense layers only"
        if reason:
            raise UsageError(
                f"lora does not support {layer.path}: {reason}. Exclude the layer by lora.pattern."
            )
        smallest = min(min(_matrix(layer, kernel)) for kernel in kernels_of(layer).values())
        if settings["rank"] >= smallest:
            raise UsageError(
                f"lora.rank must be below the smaller side of each kernel, {smallest} for "
                f"{layer.path}. Received: {settings['rank']}. Lower it, or exclude the layer by "
                "lora.pattern."
            )
    return selected


def _matrix(layer, kernel) -> tuple[int, int]:
    """Returns the number of inputs and of outputs of a kernel."""
    if not isinstance(layer, layers.EinsumDense):
        return int(np.prod(kernel.shape[:-1])), kernel.shape[-1]
    return make_updates(layer, 1, 1.0, 0.0)["lora_update"].sizes


# --- changes of a model ---------------------------------------------------------------------------


def _attach(layer, settings: Mapping) -> list:
    """Adds the adapters to a layer; returns their trainable variables."""
    scale = settings["alpha"] / settings["rank"]
    updates = make_updates(layer, settings["rank"], scale, settings["dropout"])
    base = None
    if settings["base"] != "float":
        base = QuantizedKernel(
            layer.kernel.shape, settings["base"], name=_BASE, dtype=layer.dtype_policy
        )
    parts = {**updates, **({_BASE: base} if base else {})}
    with contextlib.ExitStack() as scopes:  # the paths of variables start with that of the layer
        for name in layer.path.split("/"):
            scopes.enter_context(keras.name_scope(name))
        for part in parts.values():
            part.build(None)
    if isinstance(layer, RECURRENT):
        layer.call = _SummedKernels(layer, updates)
    else:
        layer.call = _AddedOutput(layer, updates["lora_update"], base)
    for name, part in parts.items():
        keras_internals.add_layer(layer, name, part)
    return [v for update in updates.values() for v in (update.a, update.b)]


class _AddedOutput:
    """Replaces the call of a layer: adds the update before the activation."""

    def __init__(self, layer, update, base):
        self._layer, self._update, self._base = layer, update, base
        self._original_call = layer.call

    def __call__(self, inputs, *args, **kwargs):
        layer, activation = self._layer, self._layer.activation
        update = self._update(inputs)
        if self._base is not None:
            x = self._base(inputs)
            x = x if layer.bias is None else x + layer.bias
            return _activate(activation, x + update)
        layer.activation = lambda x: _activate(activation, x + update)
        try:
            return self._original_call(inputs, *args, **kwargs)
        finally:
            layer.activation = activation


def _activate(activation, x):
    return x if activation is None else activation(x)


class _SummedKernels:
    """Replaces the call of a recurrent layer: adds the updates to its kernels."""

    def __init__(self, layer, updates: Mapping):
        self._layer, self._updates = layer, updates
        self._original_call = layer.call

    def __call__(self, *args, **kwargs):
        with keras_internals.without_autocast():
            values = [
                (kernel, kernel.value + self._updates[name].product())
                for name, kernel in kernels_of(self._layer).items()
            ]
        return keras_internals.call_with_values(
            values, self._layer.variables, lambda: self._original_call(*args, **kwargs)
        )


def _freeze(model, trained: set[int]) -> None:
    """Freezes every weight that is not in `trained`, and every layer without such a weight.

    Frozen layers run in inference mode, so batch normalization keeps its statistics.
    """
    for layer in keras_internals.all_layers(model):
        if layer is not model and not any(id(v) in trained for v in layer.weights):
            layer.trainable = False
    for variable in model.weights:
        if id(variable) not in trained:
            variable.trainable = False


def _flags(model) -> list[tuple]:
    """Returns pairs of each layer, then each weight, and whether it is trainable."""
    return [(x, bool(x.trainable)) for x in (*keras_internals.all_layers(model), *model.weights)]


def _set_flags(flags: list[tuple]) -> None:
    for x, flag in flags:  # outer layers first, because a layer sets the flags inside it
        x.trainable = flag
