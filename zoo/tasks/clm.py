"""Causal language modelling: each token from those before it in its document.

Stored examples: "tokens" (sequence_length + 1,) integers, -1 or segment 0 for padding, and
optionally "segments" of the same shape: the document of each token. Where there are none, a
document begins at each <start>. Models take {"tokens"} or {"tokens", "segments"}, both (B, T)
int32, and give logits or probabilities (B, T, V).
"""

import math

import numpy as np

from zoo.errors import UsageError
from zoo.layers.cross_entropy import linear_cross_entropy
from zoo.lazy import ops
from zoo.models.head import has_head, split_head
from zoo.models.inputs import input_names, sequence_length
from zoo.tasks.base import Forward, OncePerModel
from zoo.tasks.text import (
    TextTask,
    check_inputs,
    check_length,
    check_vocabulary,
    counting,
    documents,
    two_documents,
)


class CausalLanguageModeling(TextTask):
    """Cross-entropy of the next token, by tokens; perplexity and bits per byte.

    Bits per byte compare models with different tokenizers: the loss in bits over the UTF-8 bytes
    that the targets stand for. That holds for tokenizers that keep all of the text; <unk> stands
    for no bytes, and white space that a tokenizer drops is never paid for.

    Args:
      chunk: positions whose logits exist at once; 0 for all of them.
      cross_documents: whether attention and loss go on from one document to the next. (The state
        of an LSTM always does.)
    """

    statistics = ("accuracy", "bits_per_byte")
    unit = "tokens"
    generates = "text"

    def __init__(self, chunk: int = 0, cross_documents: bool = False):
        if chunk < 0:
            raise UsageError(f"task.chunk is 0 (off) or positive. Received: {chunk}.")
        self.chunk, self.cross_documents = chunk, cross_documents
        self.split_head = OncePerModel(split_head)

    def check_arguments(self, arguments, dataset) -> None:
        """Compares the vocabularies and the sequence lengths."""
        check_vocabulary(arguments.get("vocabulary_size"), dataset)
        check_length([arguments.get("sequence_length")], dataset, 1)

    def check(self, model, dataset) -> None:
        """Compares the vocabularies and the sequence lengths."""
        check_inputs(model, {"tokens", "segments"})
        check_vocabulary(model.output_shape[-1], dataset)
        check_length([sequence_length(model), self.positions], dataset, 1)

    def prepare(self, batch, uniform, training):
        """Inputs, targets, which of them count, and how many bytes they stand for."""
        import tensorflow as tf

        tokens, segments = documents(batch, self.cross_documents)
        targets = tokens[:, 1:]
        counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        counts = tf.cast(counts, tf.float32) * batch["weight"][:, None]
        # Without a tokenizer (synthetic data) a token counts as a byte.
        size = None if self.tokenizer is None else self.tokenizer.token_bytes
        sizes = 1.0 if size is None else tf.gather(tf.constant(size, tf.float32), targets)
        return {
            "tokens": tokens[:, :-1],
            "segments": segments[:, :-1],
            "targets": targets,
            "counts": counts,
            "bytes": counts * sizes,
        }

    def term_counts(self, batch):
        """One a target that counts."""
        return {"loss": ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns summed cross-entropy, accuracy and bits per byte."""
        inputs = {name: batch[name] for name in input_names(model)}
        counts = batch["counts"]
        if self.chunk and has_head(model):
            trunk, head = self.split_head(model)
            hidden = trunk(inputs, training=training)
            kernel, bias = head()
            loss, losses, right = linear_cross_entropy(
                ops.reshape(hidden, (-1, hidden.shape[-1])), kernel, bias,
                ops.reshape(batch["targets"], (-1,)), ops.reshape(counts, (-1,)),
                self.chunk, gradients=training,
            )  # fmt: skip
            losses, right = (ops.reshape(x, counts.shape) for x in (losses, right))
            outputs = None
        else:
            outputs = model(inputs, training=training)
            losses = ops.sparse_categorical_crossentropy(
                batch["targets"], outputs, from_logits=gives_logits(model)
            )
            right = ops.cast(
                ops.equal(ops.argmax(outputs, -1), ops.cast(batch["targets"], "int32")), "float32"
            )
            loss = ops.sum(losses * counts)
        total = ops.sum(losses * counts)
        return Forward(
            sums={"loss": loss},
            statistics={
                "accuracy": (ops.sum(right * counts), ops.sum(counts)),
                "bits_per_byte": (total / math.log(2), ops.sum(batch["bytes"])),
            },
            outputs=outputs,
        )

    def derived(self, metrics):
        """The perplexity: e to the loss."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}

    def synthetic(self, model, examples, seed):
        """Counting modulo a small number, under noise: learnable in a few steps."""
        generator = np.random.default_rng(seed)
        shape = examples, (sequence_length(model) or 32) + 1
        # Rows hold unequal numbers of targets, in two documents and padding.
        tokens = counting(generator, model.output_shape[-1], shape)
        segments = two_documents(generator, shape)
        tokens = np.where(segments > 0, tokens, 0)
        return {"tokens": tokens.astype("uint16"), "segments": segments.astype("uint16")}


def gives_logits(model) -> bool:
    """Whether a model's last layer gives logits; probabilities otherwise."""
    return model.layers[-1].name != "probabilities"
