"""Access to the parts of a model by layer class and graph, never by layer name.

Chunked losses, decoding, distillation and calibration need parts of a model. An `Adapter` finds the
same parts in every copy of a model, whether the copy is loaded by plain Keras, cloned, pruned,
rebuilt with low-rank layers or quantized.
"""

import functools
import re

import keras
from keras import layers, ops

from zoo import keras_internals
from zoo.errors import UsageError
from zoo.keras_internals import input_path
from zoo.layers.attention import MaskBias
from zoo.layers.experts.block import ExpertBlock
from zoo.layers.low_rank import LowRankDense, LowRankEmbedding, LowRankReversibleEmbedding
from zoo.layers.positions import AxialPositions, LearnedPositions
from zoo.layers.reversible import ReversibleStack
from zoo.layers.transformer import TransformerBlock
from zoo.models.axial import Shift
from zoo.models.looped import LoopedBlocks
from zoo.models.seq2seq import Positions

DENSE = (layers.Dense, LowRankDense)
_KINDS = {
    "input": layers.InputLayer,
    "embedding": (layers.Embedding, LowRankEmbedding),
    "positions": (LearnedPositions, AxialPositions, Positions),
    "block": (TransformerBlock, ReversibleStack, LoopedBlocks),
    "lstm": layers.LSTM,
    "norm": (layers.LayerNormalization, layers.RMSNormalization, layers.Identity),
    "dense": DENSE,
    "add": layers.Add,
    "shift": Shift,
    "": layers.Dropout,  # active in training only
}
_REVERSIBLE = (layers.ReversibleEmbedding, LowRankReversibleEmbedding)
_STACK = "input embedding (positions )?(block )+norm"


class Adapter:
    """Parts of a model.

    Args:
      model: Keras model, or a substitute such as a LiteRT file.

    Attributes:
      steps: `(layer, inputs of the layer)` on the path from the first input to the only output;
        empty unless the model is a graph with one output.
      family: "decoder" for gpt, llama, moe, looped and reformer, "recurrent" for lstm, "axial" for
        axial, "encoder_decoder" for seq2seq; `zoo.generation` decodes these. "" for all others.
    """

    def __init__(self, model):
        self.model = model
        has_one_output = keras_internals.is_graph(model) and len(model.outputs) == 1
        self.steps = input_path(model.outputs[0]) if has_one_output else []
        self.family, kinds = "", _layer_kinds(self.steps)
        if re.fullmatch("input embedding (lstm )+dense", kinds) and self.probabilities:
            self.family = "recurrent"
        elif re.fullmatch("input embedding positions add (block )+norm dense linear", kinds):
            outer = _layer_kinds(self.outer_steps())
            is_axial = re.fullmatch("input embedding shift positions (block )+shift", outer)
            self.family = "axial" if is_axial and self._has_logits() else ""
        elif re.fullmatch(f"{_STACK} (embedding|dense)( linear)?", kinds) and self._has_logits():
            inputs = self.block_inputs()
            causal = all(map(_is_causal, self.layers_of_kind("block"), inputs))
            blocks = self.layers_of_kind("block")
            if causal and all(map(_reads_itself_only, blocks, inputs)):
                self.family = "decoder"
            elif causal and all(len(x) == 4 and x[2] is inputs[0][2] for x in inputs):
                memory = re.fullmatch(_STACK, _layer_kinds(input_path(inputs[0][2])))
                has_memory_biases = all(_is_mask_bias(x[3], False, 2) for x in inputs)
                self.family = "encoder_decoder" if memory and has_memory_biases else ""

    @property
    def probabilities(self) -> bool:
        """Whether the model returns probabilities, not logits."""
        last = self.model.layers[-1]
        softmax = getattr(last, "activation", None) is keras.activations.softmax
        return softmax or isinstance(last, layers.Softmax)

    @property
    def stacks(self) -> dict[tuple[str, str], list]:
        """Transformer blocks and LSTMs in order, by class name and name of the input layer."""
        stacks = {}
        for layer in self.model.layers if keras_internals.is_graph(self.model) else ():
            if isinstance(layer, (TransformerBlock, layers.LSTM)):
                source = input_path(keras.tree.flatten(layer.output)[0])[0][0].name
                stacks.setdefault((type(layer).__name__, source), []).append(layer)
        return stacks

    @property
    def can_split(self) -> bool:
        """Whether `split` can read the last kernel: not from a file or a quantized model."""
        return isinstance(self.model, keras.Model) and not any(
            getattr(layer, "quantization_mode", None) for layer in self.model.layers
        )

    def split(self):
        """Splits the model before its projection onto the vocabulary; weights are shared.

        Returns:
          `(trunk, head)`: a model from the same inputs to the projection's input (B, T, C), and a
          function without arguments that returns the kernel (V, C) and the bias (V,) or None.

        Raises:
          UsageError: if the model does not end with such a projection.
        """
        steps = self.steps[:-1] if _is_linear(self.model.layers[-1]) else self.steps
        layer, inputs = steps[-1] if steps else (None, [])
        allowed_activations = (keras.activations.linear, keras.activations.softmax)
        is_dense = isinstance(layer, _KINDS["dense"]) and layer.activation in allowed_activations
        has_soft_cap = getattr(layer, "logit_soft_cap", None) is not None
        if not is_dense and (has_soft_cap or not _is_reverse_embedding(layer, inputs)):
            raise UsageError(
                "A chunked loss requires a model that ends with a Dense layer or a reversed "
                f"ReversibleEmbedding. Received: {self.model.name!r}; set task.chunk=0."
            )
        trunk = keras.Model(self.model.input, inputs[0], name=f"{self.model.name}_trunk")
        return trunk, functools.partial(_kernel_and_bias, layer)

    def layers_of_kind(self, kind: str) -> list:
        """Returns the layers of a kind, a key of `_KINDS`, on the path."""
        return [layer for layer, _ in self.steps if isinstance(layer, _KINDS[kind])]

    def block_inputs(self) -> list[list]:
        """Returns the inputs of each block on the path."""
        return [inputs for layer, inputs in self.steps if isinstance(layer, _KINDS["block"])]

    def outer_steps(self) -> list[tuple]:
        """Returns the steps of the outer part of an axial model, see `zoo.models.axial`."""
        inputs = next(inputs for layer, inputs in self.steps if isinstance(layer, _KINDS["add"]))
        return input_path(inputs[1])

    def _has_logits(self) -> bool:
        """Returns whether the path ends with a linear layer, or the first embedding in reverse."""
        if dense := self.layers_of_kind("dense"):
            return dense[-1].activation is keras.activations.linear
        first, last = (step for step in self.steps if isinstance(step[0], _KINDS["embedding"]))
        return first[0] is last[0] and _is_reverse_embedding(*last)


def _kernel_and_bias(layer):
    if not isinstance(layer, _REVERSIBLE):
        return ops.transpose(layer.kernel), layer.bias
    if layer.tie_weights:
        return ops.convert_to_tensor(layer.embeddings), None
    return ops.transpose(layer.reverse_embeddings), None


def _layer_kinds(steps) -> str:
    """Returns the kinds of the layers on a path, separated by spaces."""
    kinds = [
        next((kind for kind, classes in _KINDS.items() if isinstance(layer, classes)), "other")
        for layer, _ in steps
    ]
    if steps and _is_linear(steps[-1][0]):
        kinds[-1] = "linear"
    return " ".join(filter(None, kinds))


def _is_linear(layer) -> bool:
    """Returns whether a layer is a linear activation, which changes at most the dtype."""
    return isinstance(layer, layers.Activation) and layer.activation is keras.activations.linear


def _is_reverse_embedding(layer, inputs) -> bool:
    """Returns whether a layer is a reversible embedding, called on vectors and not on tokens."""
    return isinstance(layer, _REVERSIBLE) and keras.backend.is_float_dtype(inputs[0].dtype)


def _is_causal(block: TransformerBlock | ReversibleStack | LoopedBlocks, inputs: list) -> bool:
    """Returns whether a block with these inputs masks later positions, and no other ones."""
    if len(inputs) < 2:
        return False
    if isinstance(block, ReversibleStack):
        return keras.backend.is_int_dtype(inputs[1].dtype)
    if isinstance(block, LoopedBlocks):
        return all(_is_causal(x, inputs) for x in block.blocks)
    if block.attention.form.takes_bias:
        return _is_mask_bias(inputs[1], causal=True)
    return block.attention.causal and keras.backend.is_int_dtype(inputs[1].dtype)


def _reads_itself_only(block, inputs: list) -> bool:
    """Returns whether a block has no memory; a block of experts has the segments as an input."""
    return len(inputs) == (3 if isinstance(block, ExpertBlock) else 2)


def _is_mask_bias(bias, causal: bool, inputs: int = 1) -> bool:
    """Returns whether a bias comes from a `MaskBias` with these settings and number of inputs."""
    mask, segments = keras_internals.origin(bias)
    return isinstance(mask, MaskBias) and mask.causal == causal and len(segments) == inputs
