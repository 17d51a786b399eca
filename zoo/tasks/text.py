"""Base class, checks and synthetic text of the tasks on text."""

import math

import numpy as np

from zoo import registry
from zoo.data.text.special_tokens import FIRST_WORD, PADDING, SpecialIds
from zoo.data.text.tokenizers import ONLY_CLM, PUBLISHED
from zoo.errors import UsageError
from zoo.lazy import ops
from zoo.models.inputs import sequence_length
from zoo.tasks.base import Task


class TextTask(Task):
    """Base class of the tasks on text.

    Attributes:
      tokenizer: tokenizer of the dataset, or None.
      positions: the recipe's `model.sequence_length`, or None.
      targets: number of tokens of a stored row that are targets but not inputs.
      nll: name of the metric with the mean cross-entropy per token.
      takes_published: whether the task supports tokenizers of published models, which may lack
        special tokens, or have other ids for them.
    """

    targets = 0
    takes_published = False
    nll = "loss"

    def complete(self, arguments, dataset):
        """Replaces a vocabulary size of 0 by that of the tokenizer."""
        if dataset.tokenizer is None or arguments.get("vocabulary_size", 1):
            return arguments
        return {**arguments, "vocabulary_size": dataset.tokenizer.vocabulary_size}

    def bind(self, model, dataset=None, arguments=None):
        """Reads the tokenizer and the number of positions."""
        self.tokenizer = None if dataset is None else dataset.tokenizer
        self._check_tokenizer(self.tokenizer)
        self.positions = (arguments or {}).get("sequence_length")
        return self

    def check_arguments(self, arguments, dataset) -> None:
        """Checks vocabulary size and sequence length against the data."""
        self._check_tokenizer(dataset.tokenizer)
        self.check_sizes(
            arguments.get("vocabulary_size"), dataset, arguments.get("sequence_length")
        )

    def _check_tokenizer(self, tokenizer) -> None:
        if getattr(tokenizer, "kind", None) == PUBLISHED and not self.takes_published:
            raise UsageError(ONLY_CLM)

    def check_sizes(self, vocabulary: int | None, dataset, *limits: int | None) -> None:
        """Raises `UsageError` if the data exceed the vocabulary or a limit of positions."""
        check_vocabulary(vocabulary, dataset)
        limit = min((n for n in limits if n), default=None)
        for split, arrays in dataset.splits.items():
            check_array(dataset, split, "tokens")
            length = arrays["tokens"].shape[1] - self.targets
            if limit and length > limit:
                raise UsageError(
                    f"Sequences must not exceed the model's {limit} positions. Received: sequences "
                    f"of {length} tokens. Decrease data.sequence_length or increase "
                    "model.sequence_length."
                )

    def derived_metrics(self, metrics):
        """Returns the perplexity, exp of the mean cross-entropy per token."""
        return {"perplexity": math.exp(min(metrics[self.nll], 700.0))}

    def synthetic(self, model, examples, seed):
        """Returns rows from `counting_tokens`, each with two documents and padding."""
        generator = np.random.default_rng(seed)
        shape = examples, (sequence_length(model) or 32) + self.targets
        tokens = counting_tokens(generator, model.outputs[0].shape[-1], shape)
        segments = two_documents(generator, shape)
        tokens = np.where(segments > 0, tokens, PADDING)
        return {"tokens": tokens.astype("int32"), "segments": segments.astype("uint8")}


def documents(batch, cross_documents: bool, tokenizer=None):
    """Returns stored tokens and the document number of each token; runs inside tf.data.

    Args:
      batch: "tokens" (B, T) integers, -1 or segment 0 for padding, and optionally "segments" of
        the same shape. Without "segments", a document begins at each <start>, or after each end
        token if the tokenizer has no <start>.
      cross_documents: whether to treat all documents of a row as one.
      tokenizer: tokenizer of the tokens; None for the special tokens of the zoo.

    Returns:
      `(tokens, segments)`, both (B, T) int32, segment 0 for padding.
    """
    import tensorflow as tf

    tokens = tf.cast(batch["tokens"], tf.int32)
    if "segments" in batch:
        segments = tf.cast(batch["segments"], tf.int32)
    else:
        ids = SpecialIds() if tokenizer is None else tokenizer.special
        if ids.start is not None:
            begins = tf.cast(tokens == ids.start, tf.int32)
        else:
            begins = tf.cast(tokens == (-1 if ids.end is None else ids.end), tf.int32)
            begins = tf.pad(begins[:, :-1], ((0, 0), (1, 0)))
        segments = 1 + tf.cumsum(begins, axis=1)
        segments = tf.where(tokens < 0, 0, segments)
    if cross_documents:
        segments = tf.minimum(segments, 1)
    return tf.maximum(tokens, 0), segments


def check_vocabulary(size: int | None, dataset) -> None:
    """Raises `UsageError` if the vocabulary is smaller than the tokenizer's; None is any size."""
    tokenizer = dataset.tokenizer
    if tokenizer is not None and size is not None and tokenizer.vocabulary_size > size:
        raise UsageError(
            f"The tokenizer of dataset {dataset.name!r} has {tokenizer.vocabulary_size} tokens, "
            f"but the model supports {size}; set model.vocabulary_size=0 to use the tokenizer's "
            "size."
        )


def check_inputs(model, supported: set[str]) -> None:
    """Raises `UsageError` if a model has other inputs, or an output of other than three axes."""
    inputs = {tensor.name for tensor in model.inputs}
    shape = getattr(model.output, "shape", ())
    if not inputs <= supported or len(shape) != 3:
        raise UsageError(
            f"The task supports models with the inputs {' and '.join(sorted(supported))} and one "
            f"output, the logits of each position. Received: {model.name!r} with the inputs "
            f"{' and '.join(sorted(inputs))} and the output shape {shape or '(several outputs)'}."
        )


def adapter(model):
    """Returns a `zoo.models.adapter.Adapter`; resolved by name because the module loads Keras."""
    return registry.resolve("zoo.models.adapter:Adapter")(model)


def check_array(dataset, split: str, key: str) -> None:
    """Raises `UsageError` if a split lacks an array."""
    if key not in dataset.splits[split]:
        raise UsageError(
            f"The task requires the array {key!r}. Received: dataset {dataset.name!r}, split "
            f"{split!r} with the arrays {', '.join(dataset.splits[split])}."
        )


def counting_tokens(generator, vocabulary: int, shape, first=None):
    """Returns synthetic text that a few updates can learn: counting modulo 7 or less, with noise.

    Args:
      generator: NumPy random generator.
      vocabulary: V; the count uses the first words after the special tokens.
      shape: (N, T).
      first: offsets of the count, (N, 1) or (N, T) integers; by default drawn for each row.

    Returns:
      Tokens (N, T) int64; 5% of them are random words.
    """
    period = min(vocabulary - FIRST_WORD, 7)
    first = generator.integers(0, period, (shape[0], 1)) if first is None else first
    tokens = FIRST_WORD + (first + np.arange(shape[1])) % period
    noise = generator.random(shape) < 0.05
    return np.where(noise, generator.integers(FIRST_WORD, vocabulary, shape), tokens)


def two_documents(generator, shape):
    """Returns segments (N, T): two documents of random lengths, then padding."""
    examples, length = shape
    ends = generator.integers(length // 2, length + 1, (examples, 1))
    cuts = generator.integers(1, length // 2, (examples, 1))
    places = np.arange(length)
    return np.where(places < ends, 1 + (places >= cuts), 0)


def looped_layer(model):
    """Returns the `zoo.models.looped.LoopedBlocks` of a model, or None."""
    return registry.resolve("zoo.models.looped:looped_layer")(model)


def saved_loops(layer, counts):
    """Returns (sum, weight) of the share of loops that halting saved in the last forward pass.

    Args:
      layer: a `zoo.models.looped.LoopedBlocks` that halts.
      counts: (B, T) float32, weights of the positions.
    """
    saved = 1 - layer.used_loops / layer.loops
    return ops.sum(saved * counts), ops.sum(counts)
