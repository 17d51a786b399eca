"""Longformer (Beltagy, Peters, Cohan 2020, arXiv:2004.05150): an encoder of long documents.

A RoBERTa whose positions attend to a window around them. A few global tokens attend to all
positions of their document, with projections of their own, and all these positions attend to them.
Axes: B batch, T positions, M positions to predict, V vocabulary, P max_global.
"""

import keras
from keras import layers, ops

from zoo.data.text.special_tokens import SEPARATOR, START
from zoo.models import bert
from zoo.models.gpt import derive_sizes

GLOBAL_TOKENS = ("", "start", "question")


def build(
    vocabulary_size: int = 50_265,
    sequence_length: int = 4096,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.1,
    attention: str = "window:256",
    global_tokens: str = "start",
    max_global: int = 16,
    start_token: int = START,
    separator_token: int = SEPARATOR,
    epsilon: float = 1e-5,
    name: str = "longformer",
) -> keras.Model:
    """Builds a Longformer with its head for pretraining.

    Args:
      vocabulary_size: number of tokens, V.
      sequence_length: largest number of positions.
      num_layers: number of blocks; 0 for `depth`.
      hidden_dim: width; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings, attention and residuals.
      attention: form of attention: "window:W" for W positions to each side, "window:W:E" for W
        positions E apart; see `zoo.layers.attention`. A list separated by commas is repeated over
        the blocks.
      global_tokens: which tokens are global: "start": each <start>, as for classification;
        "question": all tokens of a document up to its first <sep>, as for question answering; "":
        none.
      max_global: largest number of global tokens per row, P; later ones are ordinary tokens. The
        cost grows with P. 0 for a model without the projections of global tokens.
      start_token: id of <start>.
      separator_token: id of <sep>.
      epsilon: epsilon of the normalization layers.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments", "masked"} to {"mlm"}, as that of
      `zoo.models.bert.build` without `next_sentence`.

    Raises:
      ValueError: if an argument is wrong, or a model with `max_global` has another form of
        attention than a window.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    if global_tokens and max_global < 1:
        raise ValueError(
            f"max_global must be positive with global_tokens={global_tokens!r}. Received: "
            f"{max_global}."
        )
    mask = None
    if max_global:
        mask = GlobalTokens(
            global_tokens, max_global, start_token, separator_token, name="global_tokens"
        )
    return bert.encoder(
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
        **sizes,
        intermediate_dim=intermediate_dim or 4 * sizes["hidden_dim"],
        dropout=dropout,
        attention=attention,
        epsilon=epsilon,
        name=name,
        global_tokens=mask,
        max_global=max_global,
    )


@keras.saving.register_keras_serializable("zoo")
class GlobalTokens(layers.Layer):
    """Layer that decides which tokens are global; see `build` for the arguments."""

    def __init__(
        self,
        global_tokens="start",
        max_global=16,
        start_token=START,
        separator_token=SEPARATOR,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if global_tokens not in GLOBAL_TOKENS:
            raise ValueError(
                f"global_tokens must be one of {', '.join(map(repr, GLOBAL_TOKENS))}. Received: "
                f"{global_tokens!r}."
            )
        self.settings = {
            "global_tokens": global_tokens, "max_global": max_global, "start_token": start_token,
            "separator_token": separator_token,
        }  # fmt: skip

    def call(self, tokens, segments):
        """Returns the mask of global tokens.

        Args:
          tokens: (B, T) integers.
          segments: (B, T) integers, the document of each position, 0 for padding; a document is a
            run of equal numbers.

        Returns:
          (B, T) booleans, at most P true ones per row.
        """
        kind, max_global, start, separator = self.settings.values()
        if kind == "start":
            is_global = ops.equal(tokens, start)
        elif kind == "question":
            is_global = _up_to_first(ops.equal(tokens, separator), segments)
        else:
            return ops.zeros_like(tokens, "bool")
        is_global = ops.logical_and(is_global, ops.not_equal(segments, 0))
        counts = ops.cumsum(ops.cast(is_global, "int32"), axis=1)
        return ops.logical_and(is_global, counts <= max_global)

    def compute_output_spec(self, tokens, segments):
        return keras.KerasTensor(tokens.shape, "bool")

    def get_config(self):
        return {**super().get_config(), **self.settings}


def _up_to_first(is_separator, segments):
    """Returns whether positions (B, T) come before the first separator of their document or are it.

    In a document without a separator, no position does.
    """
    batch, length = ops.shape(segments)
    is_separator = ops.cast(is_separator, "int32")
    before = ops.cumsum(is_separator, axis=1) - is_separator  # separators before each position
    is_first = ops.cast(ops.not_equal(segments[:, 1:], segments[:, :-1]), "int32")
    is_first = ops.pad(is_first, ((0, 0), (1, 0)), constant_values=1)
    # Each document has a slot in a row of T numbers.
    documents = ops.cumsum(is_first, axis=1) - 1
    documents = documents + ops.arange(batch, dtype="int32")[:, None] * length

    def sum_of_document(values):
        flat = ops.reshape(documents, (batch * length,))
        sums = ops.scatter(flat[:, None], ops.reshape(values, (batch * length,)), (batch * length,))
        return ops.reshape(ops.take(sums, flat), (batch, length))

    before_document = sum_of_document(before * is_first)
    return ops.logical_and(ops.equal(before, before_document), sum_of_document(is_separator) > 0)
