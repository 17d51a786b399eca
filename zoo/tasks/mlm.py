"""Masked language modeling, and BERT's pretraining, which adds next-sentence prediction.

Both tasks predict tokens from the context on both sides (Devlin et al. 2018, section 3.1). Stored
examples of `mlm` are those of zoo.tasks.clm, with rows of `sequence_length` tokens. Those of `nsp`
are "tokens" (T,) integers, 0 for padding; "types" (T,) integers, 0 in the first sentence and 1 in
the second; and "label", 0 if the second sentence follows the first and 1 if not.

Each batch draws new positions to predict (dynamic masking, Liu et al. 2019, section 4.1), as a
function of (seed, step, index in the batch); in evaluation the positions are the same each time.
Axes: B batch, T positions, M positions to predict, V vocabulary.
"""

import math

import numpy as np

from zoo.data.text.special_tokens import FIRST_WORD, MASK, PADDING, SEPARATOR, START
from zoo.errors import UsageError
from zoo.lazy import ops
from zoo.models.inputs import sequence_length
from zoo.tasks import text
from zoo.tasks.base import Forward

# Shares of the predicted tokens that are replaced by a mask and by a uniformly drawn token; the
# others stay unchanged (Devlin et al. 2018, appendix A.1).
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1


class MaskedLanguageModeling(text.TextTask):
    """Mean cross-entropy, accuracy and perplexity per predicted token.

    Args:
      mask_share: share of a row's tokens to predict; special tokens are never predicted.
      whole_word: whether either all or none of the tokens of a word are predicted. Word boundaries
        come from the tokenizer; without a tokenizer each token is a word.
      cross_documents: whether attention crosses document boundaries within a row.
    """

    heads = frozenset({"mlm"})  # names of the model's outputs
    _hint = ", such as encoder_nano, or bert_mini with model.next_sentence=False"
    statistics = ("mlm_accuracy",)
    unit = "predictions"

    def __init__(
        self, mask_share: float = 0.15, whole_word: bool = False, cross_documents: bool = False
    ):
        if not 0 < mask_share <= 1:
            raise UsageError(f"task.mask_share must be in (0, 1]. Received: {mask_share}.")
        self.mask_share, self.whole_word = mask_share, whole_word
        self.cross_documents = cross_documents

    def bind(self, model, dataset=None, arguments=None):
        """Reads the tokenizer, its vocabulary size and the number of positions."""
        super().bind(model, dataset, arguments)
        # The model's vocabulary may be larger than the tokenizer's.
        tokenizer_size = self.tokenizer.vocabulary_size if self.tokenizer else 0
        self.vocabulary_size = tokenizer_size or (arguments or {}).get("vocabulary_size", 0)
        return self

    def check(self, model, dataset) -> None:
        """Checks heads, vocabulary size and sequence length against the data."""
        heads = set(model.output) if isinstance(model.output, dict) else set()
        if heads != self.heads:
            raise UsageError(
                "The task requires a model with the outputs "
                f"{' and '.join(sorted(self.heads))}{self._hint}. Received: {model.name!r} with "
                f"the named outputs: {' and '.join(sorted(heads)) or 'none'}."
            )
        vocabulary = model.output["mlm"].shape[-1]
        self.check_sizes(vocabulary, dataset, sequence_length(model), self.positions)

    def prepare(self, batch, uniform, training):
        """Draws positions to predict, and replaces tokens there by masks or random tokens."""
        tokens, segments = self._documents(batch)
        return {
            **self._mask_tokens(tokens, segments, uniform, batch["weight"]),
            "segments": segments,
        }

    def _documents(self, batch):
        return text.documents(batch, self.cross_documents)

    def _mask_tokens(self, tokens, segments, uniform, weight) -> dict:
        """Returns "tokens" (B, T) with masks; "masked", "targets" and "counts", all (B, M)."""
        import tensorflow as tf

        length = tokens.shape[1]
        slots = math.ceil(self.mask_share * length)
        numbers = uniform(length + 2 * slots)
        scores, replacements, random_tokens = tf.split(numbers, (length, slots, slots), axis=1)
        masked_positions, is_target = self._choose_positions(tokens, segments, scores, slots)
        targets = tf.gather(tokens, masked_positions, batch_dims=1)

        # Without a known vocabulary size, the largest token of the batch is the last one.
        size = self.vocabulary_size or tf.reduce_max(tokens) + 1
        words = tf.cast(tf.maximum(size - FIRST_WORD, 1), tf.float32)
        random_tokens = FIRST_WORD + tf.cast(random_tokens * words, tf.int32)
        random_tokens = tf.minimum(random_tokens, size - 1)  # the product may be rounded up
        new = tf.where(replacements < MASKED_SHARE + RANDOM_SHARE, random_tokens, targets)
        new = tf.where(replacements < MASKED_SHARE, MASK, new)
        new = tf.where(is_target, new, targets)
        rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(masked_positions))
        return {
            "tokens": tf.tensor_scatter_nd_update(
                tokens, tf.stack([rows, masked_positions], -1), new
            ),
            "masked": masked_positions,
            "targets": targets,
            "counts": tf.cast(is_target, tf.float32) * weight[:, None],
        }

    def _choose_positions(self, tokens, segments, scores, slots):
        """Selects the words with the lowest scores.

        Args:
          tokens: (B, T) int32.
          segments: (B, T) int32.
          scores: (B, T) float32 in [0, 1); column i is the score of the i-th word of a row.
          slots: M, at most T.

        Returns:
          `(positions, asked)`: (B, M) int32, all different in a row, and (B, M) bool, true for the
          positions to predict. Their number is `mask_share` of the row's tokens, rounded, and at
          least one; with `whole_word` fewer, if the last word has more tokens than are left.
        """
        import tensorflow as tf

        maskable = (segments > 0) & (tokens >= FIRST_WORD)
        total = tf.reduce_sum(tf.cast(maskable, tf.int32), axis=1, keepdims=True)
        target_count = tf.cast(tf.round(self.mask_share * tf.cast(total, tf.float32)), tf.int32)
        target_count = tf.clip_by_value(target_count, tf.minimum(total, 1), slots)

        starts_word = maskable
        if self.whole_word and self.tokenizer is not None:
            starts_word = tf.gather(tf.constant(self.tokenizer.starts_word), tokens)
            # No word continues after a special token or across documents.
            follows = maskable[:, :-1] & (segments[:, :-1] == segments[:, 1:])
            starts_word |= ~tf.pad(follows, ((0, 0), (1, 0)))
            starts_word &= maskable
        word = tf.cumsum(tf.cast(starts_word, tf.int32), axis=1) - 1  # word number in the row
        if self.whole_word:
            rows, length = tf.shape(tokens)[0], tokens.shape[1]
            word_ids = tf.range(rows)[:, None] * length + tf.maximum(word, 0)
            word_sizes = tf.math.unsorted_segment_sum(
                tf.cast(maskable, tf.int32), word_ids, rows * length
            )
            maskable &= tf.gather(word_sizes, word_ids) <= target_count
        scores = tf.gather(scores, tf.maximum(word, 0), batch_dims=1)
        scores = tf.where(maskable, scores, 2.0)
        word = tf.where(maskable, word, -1)
        # Among equal scores, top_k returns lower positions first, so a word's tokens stay together.
        _, order = tf.math.top_k(-scores, min(slots + 1, tokens.shape[1]))
        positions = order[:, :slots]
        words = tf.gather(word, order, batch_dims=1)
        usable = tf.gather(maskable, positions, batch_dims=1)
        # `next_word` is the word at the first position beyond the limit. If some of its tokens are
        # within the limit, none of them is predicted.
        next_word = tf.pad(words, ((0, 0), (0, 1)), constant_values=-1)
        next_word = tf.gather(next_word, target_count, batch_dims=1)
        is_target = (tf.range(slots) < target_count) & usable & (words[:, :slots] != next_word)
        return positions, is_target

    def term_counts(self, batch):
        """Returns the number of predicted tokens."""
        return {self.nll: ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns the summed cross-entropy and the accuracy of the predicted tokens."""
        inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
        outputs = model(inputs, training=training)
        loss, correct = _cross_entropy_and_correct(
            outputs["mlm"], batch["targets"], batch["counts"]
        )
        total = ops.sum(batch["counts"])
        return Forward({self.nll: loss}, {"mlm_accuracy": (correct, total)}, outputs)


class NextSentencePrediction(MaskedLanguageModeling):
    """BERT's pretraining: masked language modeling and next-sentence prediction.

    Args:
      mask_share: share of a row's tokens to predict; special tokens are never predicted.
      whole_word: whether either all or none of the tokens of a word are predicted.
    """

    nll = "mlm"
    terms = {"mlm": 1.0, "nsp": 1.0}
    heads = frozenset({"mlm", "nsp"})
    _hint = ", such as bert_mini with model.next_sentence=True"
    statistics = ("mlm_accuracy", "nsp_accuracy")

    def __init__(self, mask_share: float = 0.15, whole_word: bool = False):
        super().__init__(mask_share, whole_word)

    def check(self, model, dataset) -> None:
        """Checks heads, arrays, vocabulary size and sequence length against the data."""
        super().check(model, dataset)
        for split in dataset.splits:
            for key in ("types", "label"):
                text.check_array(dataset, split, key)

    def prepare(self, batch, uniform, training):
        """Draws positions to predict, and replaces tokens there by masks or random tokens."""
        import tensorflow as tf

        return {
            **super().prepare(batch, uniform, training),
            "types": tf.cast(batch["types"], tf.int32),
            "label": tf.cast(batch["label"], tf.int32),
            "weight": batch["weight"],
        }

    def _documents(self, batch):
        import tensorflow as tf

        tokens = tf.cast(batch["tokens"], tf.int32)
        # Both sentences are one segment, so that they attend to each other.
        return tokens, tf.cast(tokens != PADDING, tf.int32)

    def term_counts(self, batch):
        """Returns the number of predicted tokens and the number of sentence pairs."""
        return {**super().term_counts(batch), "nsp": ops.sum(batch["weight"])}

    def forward(self, model, batch, training):
        """Returns summed cross-entropies and accuracies of tokens and sentence pairs."""
        result = super().forward(model, batch, training)
        loss, correct = _cross_entropy_and_correct(
            result.outputs["nsp"], batch["label"], batch["weight"]
        )
        result.sums["nsp"] = loss
        result.statistics["nsp_accuracy"] = correct, ops.sum(batch["weight"])
        return result

    def synthetic(self, model, examples, seed):
        """Returns pairs of counting sentences; the second may continue the first."""
        generator = np.random.default_rng(seed)
        length = sequence_length(model) or 32
        vocabulary = model.output["mlm"].shape[-1]
        label = generator.integers(0, 2, examples)
        jump = label * generator.integers(1, 4, examples)
        first = generator.integers(0, 7, (examples, 1))
        ends = generator.integers(3 * length // 4, length + 1, (examples, 1))
        cuts = generator.integers(2, length // 2, (examples, 1))
        places = np.arange(length)
        second = places > cuts
        # The separator between the sentences uses no number of the count.
        tokens = text.counting_tokens(
            generator, vocabulary, (examples, length), first + second * (jump[:, None] - 1)
        )
        tokens = np.where(places == 0, START, tokens)
        tokens = np.where((places == cuts) | (places == ends - 1), SEPARATOR, tokens)
        tokens = np.where(places < ends, tokens, PADDING)
        return {
            "tokens": tokens.astype("int32"),
            "types": (second & (places < ends)).astype("uint8"),
            "label": label.astype("int32"),
        }


def _cross_entropy_and_correct(logits, targets, counts):
    """Returns the weighted sums of cross-entropies and of correct predictions."""
    losses = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
    correct = ops.equal(ops.cast(ops.argmax(logits, -1), "int32"), targets)
    return ops.sum(losses * counts), ops.sum(ops.cast(correct, "float32") * counts)
