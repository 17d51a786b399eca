"""Encoders: what an index stores of each entry, and how a search asks for it.

| method | entry | key |
|---|---|---|
| states | a token | state before it, at the input of the decoder's last projection |
| pooled | a passage of a document | mean of the states of its tokens |
| bm25 | a passage of a document | its tokens, for BM25 (Robertson and Zaragoza 2009) |

Axes: N rows, T positions, C width of the states.
"""

import hashlib

import numpy as np
import tensorflow as tf

from zoo.data.text.special_tokens import PADDING
from zoo.errors import UsageError
from zoo.models.adapter import Adapter
from zoo.models.heads import text_trunk
from zoo.retrieval.documents import Documents
from zoo.retrieval.rows import Rows

BATCH = 16  # rows per forward pass


def weights_digest(model) -> str:
    """Returns the hex sha256 of the names, types and values of a model's weights."""
    digest = hashlib.sha256()
    for variable in model.weights:
        value = np.asarray(variable)
        digest.update(f"{variable.path} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).reshape(-1))
    return digest.hexdigest()


class Decoder:
    """A decoder in two parts: trunk and projection onto the vocabulary.

    Args:
      model: a decoder of text, or an LSTM.
      task: `zoo.tasks.clm` task that the model was trained on, bound to the model.

    Raises:
      UsageError: if the model is not such a model.
    """

    def __init__(self, model, task):
        parts = Adapter(model)
        if parts.family not in ("decoder", "recurrent", "axial") or not parts.can_split:
            raise UsageError(
                "The next tokens of neighbors require a decoder of text or an LSTM that is not "
                f"quantized. Received: {model.name!r}."
            )
        self.task, (self.trunk, self._head) = task, parts.split()
        self.dim = self.trunk.output.shape[-1]
        self.states = tf.function(self._states, autograph=False, reduce_retracing=True)
        self.logits = tf.function(self._logits, autograph=False, reduce_retracing=True)

    def _states(self, inputs):
        inputs = {tensor.name: inputs[tensor.name] for tensor in self.trunk.inputs}
        return tf.cast(self.trunk(inputs, training=False), tf.float32)

    def _logits(self, states):
        kernel, bias = self._head()
        logits = tf.matmul(states, tf.cast(kernel, tf.float32), transpose_b=True)
        return logits if bias is None else logits + tf.cast(bias, tf.float32)

    def targets(self, tokens: np.ndarray) -> dict:
        """Returns the states and targets of all positions that count.

        Args:
          tokens: (N, T + 1) integers from `Rows.take`.

        Returns:
          "states" (M, C) float32, "targets" (M,) int32, "bytes" (M,) float32 and "places", the
          (row, column) of each target in `tokens`, of the M targets of all rows.
        """
        pieces = []
        for first in range(0, len(tokens), BATCH):
            rows = tokens[first : first + BATCH]
            missing = BATCH - len(rows)  # each shape needs a trace
            rows = np.pad(rows, ((0, missing), (0, 0)), constant_values=-1)
            batch = self.task.prepare(
                {"tokens": tf.constant(rows), "weight": tf.ones(BATCH)}, None, False
            )
            row, column = np.nonzero(batch["counts"].numpy() > 0)
            pieces.append(
                (
                    self.states(batch).numpy()[row, column],
                    batch["targets"].numpy()[row, column],
                    batch["bytes"].numpy()[row, column],
                    np.stack([row + first, column + 1], 1),
                )
            )
        names = "states", "targets", "bytes", "places"
        return {k: np.concatenate(v) for k, v in zip(names, zip(*pieces, strict=True), strict=True)}


class TokenStates:
    """Entries of the method "states": each target of the rows, and the state before it.

    Args:
      decoder: the encoder.
      documents: documents of a part.
      length: number of positions of a row.
      packing: packing of the rows.
    """

    def __init__(self, decoder: Decoder, documents: Documents, length: int, packing: str):
        self.decoder, self.rows = decoder, Rows(documents, length, packing)
        self.entries_per_step = length  # at most
        self.dim = decoder.dim

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, first: int, last: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns the keys (M, C) of steps `first` to `last`, and document, position and value."""
        tokens, documents, positions = self.rows.take(first, last)
        batch = self.decoder.targets(tokens)
        row, column = batch["places"].T
        entries = {
            "document": documents[row, column].astype(np.uint32),
            "position": positions[row, column].astype(np.uint32),
            "value": batch["targets"].astype(np.uint32),
        }
        return batch["states"], entries


class Passages:
    """Entries of the methods "pooled" and "bm25": pieces of documents of equal length.

    Args:
      documents: documents of a part.
      length: number of tokens of a passage; the last one of a document may be shorter.
      pool: function from tokens (N, length) to keys (N, C), such as a `MeanStates`; None for BM25,
        whose keys are the tokens themselves.
    """

    entries_per_step = 1

    def __init__(self, documents: Documents, length: int, pool=None):
        self.documents, self.length, self.pool = documents, length, pool
        self.dim = pool.dim if pool else length
        self._firsts = np.concatenate([[0], np.cumsum(-(-documents.lengths // length))])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def encode(self, first: int, last: int):
        """Returns keys and entries as `TokenStates.encode`, without values."""
        steps = np.arange(first, min(last, len(self)))
        documents = np.searchsorted(self._firsts, steps, "right") - 1
        positions = (steps - self._firsts[documents]) * self.length
        tokens = np.full((len(steps), self.length), PADDING, np.int64)
        for row, document, position in zip(tokens, documents, positions, strict=True):
            piece = self.documents.piece(document, position, position + self.length)
            row[: len(piece)] = piece
        keys = self.pool(tokens) if self.pool else tokens
        entries = {"document": documents.astype(np.uint32), "position": positions.astype(np.uint32)}
        return keys, entries


class MeanStates:
    """Mean of the states of an encoder's or decoder's positions.

    Args:
      model: a model that `zoo.models.heads.text_trunk` supports.
    """

    def __init__(self, model):
        self.trunk = text_trunk(model)
        self.dim = self.trunk.output.shape[-1]
        self._run = tf.function(self._mean, autograph=False, reduce_retracing=True)

    def _mean(self, tokens):
        segments = tf.cast(tokens != PADDING, tf.int32)
        inputs = {"tokens": tokens, "segments": segments, "types": tf.zeros_like(tokens)}
        inputs = {tensor.name: inputs[tensor.name] for tensor in self.trunk.inputs}
        states = tf.cast(self.trunk(inputs, training=False), tf.float32)
        weights = tf.cast(segments, tf.float32)[..., None]
        total = tf.reduce_sum(states * weights, 1)
        return total / tf.maximum(tf.reduce_sum(weights, 1), 1.0)

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the means (N, C) float32 of tokens (N, T), PADDING after the end of a text."""
        means = [np.empty((0, self.dim), np.float32)]
        for first in range(0, len(tokens), BATCH):
            rows = tokens[first : first + BATCH].astype(np.int32)
            padded = np.pad(rows, ((0, BATCH - len(rows)), (0, 0)), constant_values=PADDING)
            means.append(self._run(tf.constant(padded)).numpy()[: len(rows)])
        return np.concatenate(means)
