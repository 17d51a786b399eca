"""Causal language modeling with neighbors of each chunk, for `zoo.models.retro`.

Stored examples are those of `zoo.tasks.clm`, and "neighbors" (chunks, neighbors, 2 * chunk_size)
integers: passages similar to each chunk of the inputs, 0 for padding. `zoo.retrieval.neighbor_rows`
finds them, never in the text's own document.
"""

import numpy as np

from zoo.data.text.special_tokens import PADDING
from zoo.errors import UsageError
from zoo.models.inputs import sequence_length
from zoo.tasks.clm import CausalLanguageModeling
from zoo.tasks.text import check_inputs, counting_tokens, two_documents

_SYNTHETIC_LENGTH = 32  # if the recipe sets no length


class RetrievalLanguageModeling(CausalLanguageModeling):
    """Mean cross-entropy per token, as `zoo.tasks.clm`.

    Args:
      chunk: number of positions per chunk of logits in memory; 0 for all positions.
      cross_documents: whether attention and loss cross document boundaries.
      index: folder of an index of the method "bm25"; "" for an index of the training split, in the
        cache.
      neighbors: number of neighbors of a chunk.
      chunk_size: number of tokens of a chunk.
    """

    positions = None

    def __init__(
        self,
        chunk: int = 0,
        cross_documents: bool = False,
        index: str = "",
        neighbors: int = 2,
        chunk_size: int = 64,
    ):
        super().__init__(chunk, cross_documents)
        for key, value, least in (("neighbors", neighbors, 1), ("chunk_size", chunk_size, 2)):
            if value < least:
                raise UsageError(f"task.{key} must be at least {least}. Received: {value}.")
        self.index, self.neighbors, self.chunk_size = index, neighbors, chunk_size

    def check_arguments(self, arguments, dataset):
        """Checks neighbors and chunk size of the model against those of the task, too."""
        super().check_arguments(arguments, dataset)
        for key, value in (("neighbors", self.neighbors), ("chunk_size", self.chunk_size)):
            if arguments.get("neighbors") and arguments.get(key) not in (None, value):
                raise UsageError(
                    f"model.{key} must equal task.{key}={value}, or model.neighbors must be 0 for "
                    f"the decoder without neighbors. Received: model.{key}={arguments[key]}."
                )

    def check(self, model, dataset):
        """Checks inputs, vocabulary size, lengths and neighbors against the data."""
        check_inputs(model, {"tokens", "segments", "neighbors"})
        self.check_sizes(model.output_shape[-1], dataset, sequence_length(model), self.positions)
        for split, arrays in dataset.splits.items():
            expected = (arrays["tokens"].shape[1] - 1) // self.chunk_size
            expected = (expected, self.neighbors, 2 * self.chunk_size)
            received = arrays["neighbors"].shape[1:] if "neighbors" in arrays else "no neighbors"
            if received != expected:
                raise UsageError(
                    f"The split {split!r} must have neighbors of the shape {expected} per row. "
                    f"Received: {received}."
                )

    def prepare(self, batch, uniform, training):
        """Returns the tensors of `zoo.tasks.clm` and "neighbors" int32."""
        import tensorflow as tf

        prepared = super().prepare(batch, uniform, training)
        return {**prepared, "neighbors": tf.cast(batch["neighbors"], tf.int32)}

    def synthetic(self, model, examples, seed):
        """Returns rows of whole chunks, with two documents and padding, and random neighbors."""
        generator = np.random.default_rng(seed)
        vocabulary, size = model.outputs[0].shape[-1], self.chunk_size
        chunks = max(1, (self.positions or _SYNTHETIC_LENGTH) // size)
        shape = examples, chunks * size + 1
        segments = two_documents(generator, shape)
        tokens = np.where(segments > 0, counting_tokens(generator, vocabulary, shape), PADDING)
        shape = examples * chunks * self.neighbors, 2 * size
        neighbors = counting_tokens(generator, vocabulary, shape)
        neighbors[generator.random(len(neighbors)) < 0.1] = PADDING
        return {
            "tokens": tokens.astype("int32"),
            "segments": segments.astype("uint8"),
            "neighbors": neighbors.reshape(examples, chunks, self.neighbors, -1).astype("int32"),
        }
