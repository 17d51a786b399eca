"""Incremental decoding: forward passes of a few positions, with earlier positions in a cache.

    steps = decoding(model)
    cache = steps.start(batch=2, length=64)
    logits, cache = steps.step(prompts, cache, 0)             # (2, n) prompt tokens
    logits, cache = steps.step(next_tokens, cache, n)         # (2, 1) next token of each

A cache is a pytree of tensors. The first axis of each tensor is the batch or a multiple of it, with
adjacent rows for one sequence; so `reorder` can repeat and reorder the sequences of any cache. The
models are the reference: `step` returns the same logits as a forward pass of the whole sequence.
"""

import keras
from keras import ops, tree

from zoo import keras_internals
from zoo.errors import UsageError
from zoo.keras_internals import input_path
from zoo.layers.attention_forms.plain import mask_bias
from zoo.layers.transformer import TransformerBlock
from zoo.layers.xla import write_rows
from zoo.models.adapter import DENSE, Adapter


def decoding(model: keras.Model, sinks: int | None = None):
    """Returns the decoding object of a model.

    Args:
      model: a decoder or an LSTM.
      sinks: number of attention sinks if texts may exceed the cache, see
        `zoo.layers.attention_forms.sinks`; None if they may not.

    Raises:
      UsageError: if the model cannot generate text, or not beyond its cache.
    """
    parts = Adapter(model)
    if parts.family not in _FAMILIES:
        raise UsageError(
            "Text generation requires a decoder such as gpt or llama, or an LSTM. Received: "
            f"{model.name!r}."
        )
    steps = _FAMILIES[parts.family](parts)
    if sinks is not None:
        if not (isinstance(steps, TransformerDecoding) and steps.supports_sinks()):
            raise UsageError(
                "Attention sinks require a decoder with rotary positions, such as llama, and "
                "with attention of the forms plain, chunked and window alone. Received: "
                f"{model.name!r}."
            )
        steps.sinks = sinks
    return steps


def can_generate(model: keras.Model) -> bool:
    """Returns whether `decoding` supports a model."""
    return Adapter(model).family in _FAMILIES


def reorder(cache, rows, batch: int, memory: bool = True):
    """Returns a cache with the sequences `rows` of another cache.

    Args:
      cache: cache of `batch` sequences.
      rows: (N,) integers below `batch`; repetitions are allowed.
      batch: number of sequences in `cache`.
      memory: whether to reorder entries named `memory_...` too. These entries depend only on the
        source of a sequence. Pass False if rows are replaced by rows of the same source only.
    """
    rows = ops.convert_to_tensor(rows)

    def reorder_entry(path, x):
        if not memory and str(path[-1]).startswith("memory_"):
            return x
        parts = x.shape[0] // batch
        index = rows if parts == 1 else rows[:, None] * parts + ops.arange(parts, dtype=rows.dtype)
        return ops.take(x, ops.reshape(index, (-1,)), axis=0)

    pairs = tree.flatten_with_path(cache)
    return tree.pack_sequence_as(cache, [reorder_entry(path, x) for path, x in pairs])


class TransformerDecoding:
    """Decoding of `zoo.models.gpt.decoder` and `zoo.models.reformer`.

    Attributes:
      sequence_length: maximum number of positions; None for no limit.
      vocabulary_size: number of tokens.
      sinks: number of attention sinks; None if texts may not exceed the cache.
    """

    sinks = None

    def __init__(self, parts: Adapter):
        self.embedding, self.blocks = (
            parts.layers_of_kind("embedding")[0],
            parts.layers_of_kind("block"),
        )
        (self.final_norm,) = parts.layers_of_kind("norm")
        # The layer that computes the logits.
        self.head = next(iter(parts.layers_of_kind("dense")), self.embedding)
        self.positions = next(iter(parts.layers_of_kind("positions")), None)
        self.sequence_length = getattr(self.positions, "sequence_length", None)
        self.vocabulary_size = parts.model.output_shape[-1]

    def supports_sinks(self) -> bool:
        """Returns whether texts may exceed the cache, see `zoo.layers.attention_forms.sinks`."""
        return all(
            isinstance(block, TransformerBlock)
            and block.attention.rotary_base
            and block.attention.form.takes_sinks
            for block in self.blocks
        )

    def start(self, batch: int, length: int):
        """Returns an empty cache for `batch` sequences of at most `length` positions.

        With attention sinks, `length` is the number of positions in the cache.
        """
        return [block.start_cache(batch, length) for block in self.blocks]

    def weights(self):
        """Returns the kernel (C, V) of the output projection for `step`, prepared once.

        A transposed copy of the embeddings (V, C): with one sequence, nearly all time goes into
        reading weights, and XLA on a CPU reads the copy 1.5 times as fast. None if the layer does
        more than a matrix product, or is no embedding.
        """
        if not _is_matrix_product(self.head):
            return None
        return ops.transpose(ops.cast(self.embedding.embeddings, self.embedding.compute_dtype))

    def step(self, tokens, cache, first, weights=None, memory_bias=None):
        """Computes the n positions from `first` on.

        Args:
          tokens: (B, n) int32, n >= 1; `first + n` must not exceed the length of the cache. With
            attention sinks, this holds only for n > 1, and then `first` must be 0.
          cache: result of `start`, or the cache returned by the previous call.
          first: integer scalar, position of the first of the tokens.
          weights: result of `weights`, or None.
          memory_bias: bias of the attention to the encoder's output; None without an encoder.

        Returns:
          `(logits, cache)`: logits (B, n, vocabulary_size) float32 of the token after each
          position, and the updated cache.
        """
        x = self.embedding(tokens)
        if self.positions is not None:
            x = self.positions(x, first=first)
        sinks = {} if self.sinks is None else {"sinks": self.sinks}
        new_cache = []
        for block, block_cache in zip(self.blocks, cache, strict=True):
            x, new_block_cache = block.decode(x, block_cache, first, memory_bias, **sinks)
            new_cache.append(new_block_cache)
        x = self.final_norm(x)
        if weights is not None:
            return ops.cast(ops.matmul(x, weights), "float32"), new_cache
        return project(self.head, x), new_cache


class Seq2SeqDecoding(TransformerDecoding):
    """Decoding of `zoo.models.seq2seq`, with one sentence per row."""

    def __init__(self, parts: Adapter):
        super().__init__(parts)
        _, _, memory, bias = parts.block_inputs()[0]
        source = input_path(memory)[0][0].output
        self.encoder = keras.Model(source, memory)
        # From source tokens to segment ids: the number of the sentence at each position.
        _, numbers = keras_internals.origin(bias)[1]
        self.source_segments = keras.Model(source, numbers)

    def start(self, batch: int, length: int, source=None):
        """Runs the encoder once and returns a cache for `length` target positions.

        Args:
          batch: number of sequences B.
          length: number of target positions.
          source: (B, S) int32, 0 for padding. Only the first sentence of a row is used.
        """
        memory = self.encoder(source, training=False)
        first = ops.ones((batch, 1), "int32")
        return {
            "blocks": [block.start_cache(batch, length, memory) for block in self.blocks],
            "memory_bias": mask_bias(first, self.source_segments(source)),
        }

    def step(self, tokens, cache, first):
        """Computes the target positions from `first` on; see `TransformerDecoding.step`."""
        bias = cache["memory_bias"]
        logits, blocks = super().step(tokens, cache["blocks"], first, memory_bias=bias)
        return logits, {"blocks": blocks, "memory_bias": bias}


def _is_matrix_product(embedding: keras.layers.Layer) -> bool:
    return (
        isinstance(embedding, keras.layers.ReversibleEmbedding)
        and embedding.tie_weights
        and embedding.reverse_dtype in (None, embedding.compute_dtype)
        and embedding.logit_soft_cap is None
        and embedding.quantization_mode is None
        and "call" not in vars(embedding)  # the instance does not replace `call`
    )


def project(head: keras.layers.Layer, x):
    """Returns logits (B, n, V) float32 of x (B, n, C), by a dense layer or a reversible embedding.

    Computes `embedding(x, reverse=True)` without the layer's transposed copy of all embeddings.
    """
    if isinstance(head, DENSE):
        return ops.cast(head(x), "float32")
    if not _is_matrix_product(head):
        return ops.cast(head(x, reverse=True), "float32")
    batch, length, width = ops.shape(x)
    table = ops.cast(head.embeddings, x.dtype)
    logits = ops.matmul(table, ops.transpose(ops.reshape(x, (batch * length, width))))
    logits = ops.reshape(ops.transpose(logits), (batch, length, table.shape[0]))
    return ops.cast(logits, "float32")


class RecurrentDecoding:
    """Decoding of `zoo.models.lstm`: the cache is the state of each LSTM.

    Attributes:
      sequence_length: None, since the number of positions has no limit.
      vocabulary_size: number of tokens.
    """

    sequence_length = None

    def __init__(self, parts: Adapter):
        (self.embedding,), (self.head,) = (
            parts.layers_of_kind("embedding"),
            parts.layers_of_kind("dense"),
        )
        self.lstms = parts.layers_of_kind("lstm")
        # Layers with the same cells that also return their state.
        self.rnns = [
            keras.layers.RNN(
                lstm.cell, return_sequences=True, return_state=True, dtype=lstm.dtype_policy
            )
            for lstm in self.lstms
        ]
        self.vocabulary_size = parts.model.output_shape[-1]

    def start(self, batch: int, length: int | None = None):
        """Returns the state before the first token; `length` has no effect."""
        return [
            {
                name: ops.zeros((batch, lstm.units), lstm.compute_dtype)
                for name in ("hidden", "carry")
            }
            for lstm in self.lstms
        ]

    def weights(self):
        """Returns None: a recurrent model has nothing to prepare."""

    def step(self, tokens, cache, first=0, weights=None):
        """Computes positions as `TransformerDecoding.step`; logits are log-probabilities."""
        x = self.embedding(tokens)
        new_cache = []
        for rnn, layer_cache in zip(self.rnns, cache, strict=True):
            state = [layer_cache["hidden"], layer_cache["carry"]]
            if tokens.shape[1] == 1:
                out, (hidden, carry) = rnn.cell(x[:, 0], state)
                x = out[:, None]
            else:
                x, hidden, carry = rnn(x, initial_state=state)
            new_cache.append({"hidden": hidden, "carry": carry})
        # The logarithm stays finite, and a token this improbable is never chosen.
        return ops.log(ops.maximum(self.head(x), 1e-37)), new_cache


class AxialDecoding:
    """Decoding of `zoo.models.axial`, one position after the other.

    Outer blocks see whole rows, so a row passes them when its last token is known. The cache has
    the embeddings of the last C tokens, the outputs of the outer blocks for the row above, and the
    keys and values of the blocks with causal attention.

    Attributes:
      sequence_length: maximum number of positions.
      vocabulary_size: number of tokens.
    """

    def __init__(self, parts: Adapter):
        (self.embedding,), (self.positions,), (self.final_norm,), (self.head,) = (
            parts.layers_of_kind(kind) for kind in ("embedding", "positions", "norm", "dense")
        )
        self.inner_blocks = parts.layers_of_kind("block")
        outer_layers = [layer for layer, _ in parts.outer_steps()]
        self.outer_blocks = [x for x in outer_layers if isinstance(x, TransformerBlock)]
        self.columns = outer_layers[-1].steps
        self.sequence_length = self.positions.sequence_length
        self.vocabulary_size = parts.model.output_shape[-1]

    def start(self, batch: int, length: int):
        """Returns an empty cache for `batch` sequences of at most `length` positions."""
        columns, width = self.columns, sum(self.positions.widths)
        row = ops.zeros((batch, columns, width), self.embedding.compute_dtype)
        length = -(-length // columns) * columns
        return {
            "row": row,
            "above": row,
            "outer": [
                block.start_cache(batch, length)
                for block in self.outer_blocks
                if block.attention.causal
            ],
            "inner": [block.start_cache(batch, length) for block in self.inner_blocks],
        }

    def weights(self):
        """Returns None: nothing is prepared."""

    def step(self, tokens, cache, first, weights=None):
        """Computes positions as `TransformerDecoding.step`."""
        batch, count = ops.shape(tokens)
        first = ops.convert_to_tensor(first, "int32")
        if isinstance(count, int) and count == 1:
            x, cache = self._step_one(tokens, cache, first)
        else:

            def body(i, x, cache):
                token = ops.slice(tokens, (0, i), (batch, 1))
                new, cache = self._step_one(token, cache, first + i)
                return i + 1, write_rows(x, new, i), cache

            x = ops.zeros((batch, count, cache["row"].shape[-1]), cache["row"].dtype)
            start = (ops.convert_to_tensor(0, "int32"), x, cache)
            _, x, cache = ops.while_loop(lambda i, *_: i < count, body, start)
        return project(self.head, self.final_norm(x)), cache

    def _step_one(self, token, cache, first):
        """Returns the output (B, 1, C) of the inner blocks at one position, and the cache."""
        x, column = self.embedding(token), first % self.columns
        row = write_rows(cache["row"], x, (first - 1) % self.columns)

        def next_row():
            """Runs the row before the position through the outer blocks."""
            start = first - self.columns
            above, old, new = self.positions(row, first=start), iter(cache["outer"]), []
            for block in self.outer_blocks:
                if block.attention.causal:
                    above, block_cache = block.decode(above, next(old), start)
                    new.append(block_cache)
                else:
                    above = block(above)
            return above, new

        above, outer = ops.cond(
            ops.logical_and(ops.equal(column, 0), first > 0),
            next_row,
            lambda: (cache["above"], cache["outer"]),
        )
        x = self.positions(x, first=first)
        x = x + ops.slice(above, (0, column, 0), (ops.shape(x)[0], 1, above.shape[-1]))
        inner = []
        for block, block_cache in zip(self.inner_blocks, cache["inner"], strict=True):
            x, new_block_cache = block.decode(x, block_cache, first)
            inner.append(new_block_cache)
        return x, {"row": row, "above": above, "outer": outer, "inner": inner}


_FAMILIES = {
    "decoder": TransformerDecoding, "recurrent": RecurrentDecoding, "axial": AxialDecoding,
}  # fmt: skip
