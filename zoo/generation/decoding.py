"""How a model computes a few positions at a time, with what came before kept in a cache.

    steps = decoding(model)
    cache = steps.start(batch=2, length=64)
    logits, cache = steps.step(prompts, cache, 0)             # (2, n) tokens: the prompts
    logits, cache = steps.step(next_tokens, cache, n)         # (2, 1) tokens: one more of each

A cache is a pytree of tensors. The first axis of each is the batch or a multiple of it, with the
parts of one sequence side by side; so sequences can be repeated and reordered without knowing what
a cache holds (`reorder`). The models themselves are the reference: `step` gives, position for
position, what they give for whole sequences.
"""

import keras
from keras import ops, tree

from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.attention import MASKED, mask_bias
from zoo.models.adapter import Adapter, path


def decoding(model: keras.Model):
    """Returns what decodes a model.

    Raises:
      UsageError: for a model that generates no text.
    """
    parts = Adapter(model)
    if parts.family not in _FAMILIES:
        raise UsageError(
            f"The model {model.name!r} generates no text: that takes a decoder such as gpt or "
            "llama, or an LSTM."
        )
    return _FAMILIES[parts.family](parts)


def generates(model: keras.Model) -> bool:
    """Whether `decoding` knows a model."""
    return Adapter(model).family in _FAMILIES


def reorder(cache, rows, batch: int, memory: bool = True):
    """Returns a cache of the sequences `rows` of another.

    Args:
      cache: of `batch` sequences.
      rows: (N,) integers below `batch`; one may stand several times.
      batch: how many sequences the cache holds.
      memory: whether entries named `memory_...` are reordered too. They hold what a sequence is
        made from, and so are equal already where sequences change places with others of the same
        origin only.
    """
    rows = ops.convert_to_tensor(rows)

    def taken(path, x):
        if not memory and str(path[-1]).startswith("memory_"):
            return x
        parts = x.shape[0] // batch
        index = rows if parts == 1 else rows[:, None] * parts + ops.arange(parts, dtype=rows.dtype)
        return ops.take(x, ops.reshape(index, (-1,)), axis=0)

    pairs = tree.flatten_with_path(cache)
    return tree.pack_sequence_as(cache, [taken(path, x) for path, x in pairs])


class TransformerDecoding:
    """Decoding of `zoo.models.gpt.decoder`: gpt and llama.

    Attributes:
      sequence_length: the largest number of positions; None where any number will do.
      vocabulary_size: number of tokens.
    """

    def __init__(self, parts: Adapter):
        self.embedding, self.blocks = parts.all("embedding")[0], parts.all("block")
        (self.final_norm,) = parts.all("norm")
        self.positions = next(iter(parts.all("positions")), None)
        self.sequence_length = getattr(self.positions, "sequence_length", None)
        self.vocabulary_size = parts.model.output_shape[-1]

    def start(self, batch: int, length: int):
        """Returns an empty cache for `batch` sequences of at most `length` positions."""
        return [block.start_cache(batch, length) for block in self.blocks]

    def weights(self):
        """Returns what `step` can be given so as not to make it anew: the projection's kernel.

        (C, V), a copy of the embeddings: with one sequence nearly all time goes into reading
        weights, and XLA on a CPU reads these 1.5 times as fast as the embeddings (V, C). None
        where the layer does more than a product.
        """
        if not _plain(self.embedding):
            return None
        return ops.transpose(ops.cast(self.embedding.embeddings, self.embedding.compute_dtype))

    def step(self, tokens, cache, first, weights=None, memory_bias=None):
        """Computes positions `first` and on.

        Args:
          tokens: (B, n) int32, n of 1 or more; `first + n` is at most the cache's length.
          cache: of `start`, or as the last call returned it.
          first: integer scalar.
          weights: of `weights`, or None.
          memory_bias: of the attention to a memory.

        Returns:
          `(logits, cache)`: logits (B, n, vocabulary_size) float32 of the token after each.
        """
        x = self.embedding(tokens)
        if self.positions is not None:
            x = self.positions(x, first=first)
        places = first + ops.arange(ops.shape(tokens)[1], dtype="int32")
        sources = ops.arange(cache[0]["key"].shape[1], dtype="int32")
        bias = ops.where(sources[None, :] <= places[:, None], 0.0, MASKED)[None, None]
        kept = []
        for block, before in zip(self.blocks, cache, strict=True):
            x, after = block.decode(x, before, first, bias, memory_bias)
            kept.append(after)
        x = self.final_norm(x)
        if weights is not None:
            return ops.cast(ops.matmul(x, weights), "float32"), kept
        return project(self.embedding, x), kept


class Seq2SeqDecoding(TransformerDecoding):
    """Decoding of `zoo.models.seq2seq`, of one sentence a row."""

    def __init__(self, parts: Adapter):
        super().__init__(parts)
        _, _, memory, bias = parts.taken()[0]
        source = path(memory)[0][0].output
        self.encoder = keras.Model(source, memory)
        # From the source to the sentence that each of its positions belongs to.
        _, numbers = keras_internals.origin(bias)[1]
        self.source_segments = keras.Model(source, numbers)

    def start(self, batch: int, length: int, source=None):
        """Runs the encoder once, and returns a cache for `length` target positions.

        Args: source (B, S) int32, 0 for padding; of several sentences in a row the first counts.
        """
        memory = self.encoder(source, training=False)
        first = ops.ones((batch, 1), "int32")
        return {
            "blocks": [block.start_cache(batch, length, memory) for block in self.blocks],
            "memory_bias": mask_bias(first, self.source_segments(source)),
        }

    def step(self, tokens, cache, first):
        """Computes target positions `first` and on; see `TransformerDecoding.step`."""
        bias = cache["memory_bias"]
        logits, blocks = super().step(tokens, cache["blocks"], first, memory_bias=bias)
        return logits, {"blocks": blocks, "memory_bias": bias}


def _plain(embedding: keras.layers.ReversibleEmbedding) -> bool:
    return (
        isinstance(embedding, keras.layers.ReversibleEmbedding)
        and embedding.tie_weights
        and embedding.reverse_dtype in (None, embedding.compute_dtype)
        and embedding.logit_soft_cap is None
        and embedding.quantization_mode is None
        and "call" not in vars(embedding)  # it does what its class does
    )


def project(embedding: keras.layers.ReversibleEmbedding, x):
    """Returns logits (B, n, V) float32 of x (B, n, C).

    What the layer does in reverse, without the transposed copy that it makes of all embeddings.
    """
    if not _plain(embedding):
        return ops.cast(embedding(x, reverse=True), "float32")
    batch, length, width = ops.shape(x)
    table = ops.cast(embedding.embeddings, x.dtype)
    logits = ops.matmul(table, ops.transpose(ops.reshape(x, (batch * length, width))))
    logits = ops.reshape(ops.transpose(logits), (batch, length, table.shape[0]))
    return ops.cast(logits, "float32")


class RecurrentDecoding:
    """Decoding of `zoo.models.lstm`: the cache is the state of each LSTM.

    Attributes:
      sequence_length: None: any number of positions will do.
      vocabulary_size: number of tokens.
    """

    sequence_length = None

    def __init__(self, parts: Adapter):
        (self.embedding,), (self.head,) = parts.all("embedding"), parts.all("dense")
        self.lstms = parts.all("lstm")
        # The same cells, in layers that return their state.
        self.runners = [
            keras.layers.RNN(
                lstm.cell, return_sequences=True, return_state=True, dtype=lstm.dtype_policy
            )
            for lstm in self.lstms
        ]
        self.vocabulary_size = parts.model.output_shape[-1]

    def start(self, batch: int, length: int | None = None):
        """Returns the state before the first token; the length is of no matter."""
        return [
            {
                name: ops.zeros((batch, lstm.units), lstm.compute_dtype)
                for name in ("hidden", "carry")
            }
            for lstm in self.lstms
        ]

    def weights(self):
        """There is nothing to prepare."""

    def step(self, tokens, cache, first=0, weights=None):
        """See `TransformerDecoding.step`; logits are logarithms of probabilities."""
        x = self.embedding(tokens)
        kept = []
        for runner, before in zip(self.runners, cache, strict=True):
            state = [before["hidden"], before["carry"]]
            if tokens.shape[1] == 1:
                out, (hidden, carry) = runner.cell(x[:, 0], state)
                x = out[:, None]
            else:
                x, hidden, carry = runner(x, initial_state=state)
            kept.append({"hidden": hidden, "carry": carry})
        # So small a probability is that of no choice; its logarithm stays finite.
        return ops.log(ops.maximum(self.head(x), 1e-37)), kept


_FAMILIES = {"decoder": TransformerDecoding, "recurrent": RecurrentDecoding}
