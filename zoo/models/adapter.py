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
from zoo.layers.attention import MaskBias
from zoo.layers.low_rank import LowRankDense, LowRankEmbedding, LowRankReversibleEmbedding
from zoo.layers.positions import LearnedPositions
from zoo.layers.transformer import TransformerBlock
from zoo.models.seq2seq import Positions

_KINDS = {
    "input": layers.InputLayer,
    "embedding": (layers.Embedding, LowRankEmbedding),
    "positions": (LearnedPositions, Positions),
    "block": TransformerBlock,
    "lstm": layers.LSTM,
    "norm": (layers.LayerNormalization, layers.RMSNormalization, layers.Identity),
    "dense": (layers.Dense, LowRankDense),
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
      family: "decoder" for gpt and llama, "recurrent" for lstm, "encoder_decoder" for seq2seq;
        `zoo.generation` decodes these. "" for all other models.
    """

    def __init__(self, model):
        self.model = model
        single = keras_internals.is_graph(model) and len(model.outputs) == 1
        self.steps = path(model.outputs[0]) if single else []
        self.family, words = "", _words(self.steps)
        if re.fullmatch("input embedding (lstm )+dense", words) and self.probabilities:
            self.family = "recurrent"
        elif re.fullmatch(f"{_STACK} embedding( linear)?", words) and self._ties():
            taken = self.taken()
            if all(len(x) == 2 and _masks(x[1], causal=True) for x in taken):
                self.family = "decoder"
            elif all(len(x) == 4 and x[2] is taken[0][2] for x in taken):
                memory = re.fullmatch(_STACK, _words(path(taken[0][2])))
                masked = all(_masks(x[1], True) and _masks(x[3], False, 2) for x in taken)
                self.family = "encoder_decoder" if memory and masked else ""

    @property
    def probabilities(self) -> bool:
        """Whether the model returns probabilities, not logits."""
        last = self.model.layers[-1]
        softmax = getattr(last, "activation", None) is keras.activations.softmax
        return softmax or isinstance(last, layers.Softmax)

    @property
    def stacks(self) -> dict[tuple[str, str], list]:
        """Transformer blocks and LSTMs in order, by class name and name of the input layer."""
        found = {}
        for layer in self.model.layers if keras_internals.is_graph(self.model) else ():
            if isinstance(layer, (TransformerBlock, layers.LSTM)):
                source = path(layer.output)[0][0].name
                found.setdefault((type(layer).__name__, source), []).append(layer)
        return found

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
        plain = (keras.activations.linear, keras.activations.softmax)
        dense = isinstance(layer, _KINDS["dense"]) and layer.activation in plain
        capped = getattr(layer, "logit_soft_cap", None) is not None
        if not dense and (capped or not _reverses(layer, inputs)):
            raise UsageError(
                "A chunked loss needs a model that ends with a Dense layer or a "
                f"ReversibleEmbedding in reverse: set task.chunk=0. Received: {self.model.name!r}."
            )
        trunk = keras.Model(self.model.input, inputs[0], name=f"{self.model.name}_trunk")
        return trunk, functools.partial(_projection, layer)

    def all(self, kind: str) -> list:
        """Returns the layers of a kind, a key of `_KINDS`, on the path."""
        return [layer for layer, _ in self.steps if isinstance(layer, _KINDS[kind])]

    def taken(self) -> list[list]:
        """Returns the inputs of each transformer block on the path."""
        return [inputs for layer, inputs in self.steps if isinstance(layer, TransformerBlock)]

    def _ties(self) -> bool:
        """Returns whether the second embedding on the path is the first one in reverse."""
        first, last = (step for step in self.steps if isinstance(step[0], _KINDS["embedding"]))
        return first[0] is last[0] and _reverses(*last)


def path(tensor) -> list[tuple]:
    """Returns `(layer, its inputs)` of the layers on the path of first inputs to a tensor."""
    found = []
    while True:
        found.append(keras_internals.origin(tensor))
        if not found[-1][1]:
            return found[::-1]
        tensor = found[-1][1][0]


def _projection(layer):
    if not isinstance(layer, _REVERSIBLE):
        return ops.transpose(layer.kernel), layer.bias
    if layer.tie_weights:
        return ops.convert_to_tensor(layer.embeddings), None
    return ops.transpose(layer.reverse_embeddings), None


def _words(steps) -> str:
    """Returns the kinds of the layers on a path, separated by spaces."""
    found = [
        next((kind for kind, classes in _KINDS.items() if isinstance(layer, classes)), "other")
        for layer, _ in steps
    ]
    if steps and _is_linear(steps[-1][0]):
        found[-1] = "linear"
    return " ".join(filter(None, found))


def _is_linear(layer) -> bool:
    """Returns whether a layer is a linear activation, which changes at most the dtype."""
    return isinstance(layer, layers.Activation) and layer.activation is keras.activations.linear


def _reverses(layer, inputs) -> bool:
    """Returns whether a layer is a reversible embedding, called on vectors and not on tokens."""
    return isinstance(layer, _REVERSIBLE) and keras.backend.is_float_dtype(inputs[0].dtype)


def _masks(bias, causal: bool, inputs: int = 1) -> bool:
    """Returns whether a bias comes from a `MaskBias` with these settings and number of inputs."""
    mask, segments = keras_internals.origin(bias)
    return isinstance(mask, MaskBias) and mask.causal == causal and len(segments) == inputs
