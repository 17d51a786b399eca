"""Causal language modeling: prediction of each token from the earlier tokens of its document.

Stored examples: "tokens" (sequence_length + 1,) integers, -1 or segment 0 for padding, and
optionally "segments" of the same shape: the document number of each token. Without "segments", a
document begins at each <start>. With "is_target", booleans of the same shape, other tokens count
neither in the loss nor in the metrics. Models take {"tokens"} or {"tokens", "segments"}, both
(B, T) int32, and return logits or probabilities (B, T, V).
"""

import functools
import math

from zoo.errors import UsageError
from zoo.layers.cross_entropy import linear_cross_entropy
from zoo.lazy import ops
from zoo.models.inputs import sequence_length
from zoo.tasks.base import Forward
from zoo.tasks.text import TextTask, adapter, check_inputs, documents, looped_layer, saved_loops


class CausalLanguageModeling(TextTask):
    """Mean cross-entropy per token, with accuracy, perplexity and bits per byte.

    Bits per byte are the loss in bits divided by the number of UTF-8 bytes of the targets. They
    are comparable across tokenizers, provided that the tokenizers keep the whole text: <unk> counts
    as 0 bytes, and white space that a tokenizer drops adds nothing to the loss. For images as rows
    of values (`zoo.data.pixels`), bits per byte are bits per dimension, because a value is a byte.

    Args:
      chunk: number of positions per chunk of logits in memory; 0 for all positions.
      cross_documents: whether attention and loss cross document boundaries. The state of an LSTM
        always does.
    """

    targets = 1
    statistics = ("accuracy", "bits_per_byte")
    unit = "tokens"
    sample_kind = "text"
    takes_published = True

    def __init__(self, chunk: int = 0, cross_documents: bool = False):
        if chunk < 0:
            raise UsageError(f"task.chunk must be 0 (off) or positive. Received: {chunk}.")
        self.chunk, self.cross_documents = chunk, cross_documents
        self.split = functools.lru_cache(1)(lambda model: adapter(model).split())

    def bind(self, model, dataset=None, arguments=None):
        """Reads the tokenizer, the number of positions, and the looped blocks if they halt."""
        self.looped = looped_layer(model)
        if self.looped is not None and self.looped.halt:
            self.statistics = ("accuracy", "bits_per_byte", "saved_loops")
        return super().bind(model, dataset, arguments)

    def check(self, model, dataset) -> None:
        """Checks inputs, vocabulary size and sequence length against the data."""
        check_inputs(model, {"tokens", "segments"})
        self.check_sizes(model.output_shape[-1], dataset, sequence_length(model), self.positions)

    def prepare(self, batch, uniform, training):
        """Returns inputs, targets, loss weights "counts" and "bytes" per target, all (B, T)."""
        import tensorflow as tf

        tokens, segments = documents(batch, self.cross_documents, self.tokenizer)
        targets = tokens[:, 1:]
        counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        if "is_target" in batch:
            counts &= tf.cast(batch["is_target"][:, 1:], tf.bool)
        counts = tf.cast(counts, tf.float32) * batch["weight"][:, None]
        # Without a tokenizer (synthetic data) each token counts as one byte.
        token_bytes = None if self.tokenizer is None else self.tokenizer.token_bytes
        target_bytes = (
            1.0 if token_bytes is None else tf.gather(tf.constant(token_bytes, tf.float32), targets)
        )
        return {
            "tokens": tokens[:, :-1],
            "segments": segments[:, :-1],
            "targets": targets,
            "counts": counts,
            "bytes": counts * target_bytes,
        }

    def term_counts(self, batch):
        """Returns the number of targets that count."""
        return {self.nll: ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns summed cross-entropy, accuracy and bits per byte."""
        inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
        graph, head = model, None
        if self.chunk and self.can_split(model):
            graph, head = self.split(model)
        return self.score(model, graph(inputs, training=training), head, batch, training)

    def can_split(self, model) -> bool:
        """Returns whether the loss can be computed in chunks."""
        return adapter(model).can_split

    def score(self, model, outputs, head, batch, training) -> Forward:
        """Returns the sums and statistics of one forward pass.

        Args:
          model: the model.
          outputs: its outputs (B, T, V), or with `head` the input (B, T, C) of its projection.
          head: see `zoo.models.adapter.Adapter.split`; None for outputs.
          batch: the prepared batch.
          training: whether the loss needs gradients.
        """
        counts = batch["counts"]
        if head is not None:
            kernel, bias = head()
            loss, losses, correct = linear_cross_entropy(
                ops.reshape(outputs, (-1, outputs.shape[-1])), kernel, bias,
                ops.reshape(batch["targets"], (-1,)), ops.reshape(counts, (-1,)),
                self.chunk, gradients=training,
            )  # fmt: skip
            losses, correct = (ops.reshape(x, counts.shape) for x in (losses, correct))
            outputs = None
        else:
            losses = ops.sparse_categorical_crossentropy(
                batch["targets"], outputs, from_logits=not adapter(model).probabilities
            )
            correct = ops.cast(
                ops.equal(ops.argmax(outputs, -1), ops.cast(batch["targets"], "int32")), "float32"
            )
            loss = ops.sum(losses * counts)
        total = ops.sum(losses * counts)
        statistics = {
            "accuracy": (ops.sum(correct * counts), ops.sum(counts)),
            "bits_per_byte": (total / math.log(2), ops.sum(batch["bytes"])),
        }
        if "saved_loops" in self.statistics:
            statistics["saved_loops"] = saved_loops(self.looped, counts)
        return Forward(sums={self.nll: loss}, statistics=statistics, outputs=outputs)
