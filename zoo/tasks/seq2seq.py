"""Sequence to sequence: a target sentence from a source sentence, with teacher forcing.

Stored examples: "source" (S,) and "target" (T,) integers, 0 for padding. Both hold one or more
sentences, each with <end> at its end; the n-th target sentence translates the n-th source sentence.
Models take {"source", "target"}, both int32, and return logits (B, T, V). The "target" input is
shifted one position to the right and begins with <start>.
"""

import functools
import math

import numpy as np

from zoo import registry
from zoo.data.text.special_tokens import END, FIRST_WORD, PADDING, START
from zoo.errors import UsageError, check_name
from zoo.generation.scores.summaries import scores as summary_scores
from zoo.generation.scores.translations import scores as translation_scores
from zoo.layers.cross_entropy import linear_cross_entropy
from zoo.layers.gather import pick
from zoo.lazy import ops
from zoo.tasks.base import Forward
from zoo.tasks.text import TextTask, adapter, check_array, check_inputs, check_vocabulary

SCORES = ("translation", "summary")


class SequenceToSequence(TextTask):
    """Mean cross-entropy per target token; BLEU and chrF, or ROUGE, of a whole split.

    Label smoothing (Vaswani et al. 2017, section 5.4) spreads the share `label_smoothing` of the
    target distribution evenly over the vocabulary, in training alone. The metric "nll" and the
    perplexity always use the labels without smoothing.

    Args:
      label_smoothing: share in [0, 1); 0 for no smoothing.
      chunk: number of positions per chunk of logits in memory; 0 for all positions.
      beams: beam width for the translation of whole splits; 1 for greedy search, 0 for no
        translation.
      length_penalty: length penalty of the beam search, see `zoo.generation.beam_search`.
      scores: "translation" for BLEU and chrF of whole splits, "summary" for ROUGE.
    """

    nll = "nll"
    statistics = ("nll", "accuracy")
    unit = "tokens"

    def __init__(
        self,
        label_smoothing: float = 0.1,
        chunk: int = 0,
        beams: int = 4,
        length_penalty: float = 0.6,
        scores: str = "translation",
    ):
        check_name("task.scores", scores, SCORES)
        if not 0 <= label_smoothing < 1:
            raise UsageError(
                "task.label_smoothing must be at least 0 and less than 1. Received: "
                f"{label_smoothing}."
            )
        if chunk < 0 or beams < 0:
            raise UsageError(
                "task.chunk and task.beams must be 0 (off) or positive. "
                f"Received: task.chunk={chunk}, task.beams={beams}."
            )
        if not 0 <= length_penalty < math.inf:
            raise UsageError(
                f"task.length_penalty must be finite and at least 0. Received: {length_penalty}."
            )
        self.label_smoothing, self.chunk = label_smoothing, chunk
        self.beams, self.length_penalty, self.scores = beams, length_penalty, scores
        self.split = functools.lru_cache(1)(lambda model: adapter(model).split())
        self.translator = functools.lru_cache(1)(
            lambda *parts: registry.resolve("zoo.generation.translate:Translator")(*parts)
        )

    def check_arguments(self, arguments, dataset) -> None:
        """Checks the vocabulary size and that all arrays are present."""
        check_vocabulary(arguments.get("vocabulary_size"), dataset)
        for split in dataset.splits:
            for key in ("source", "target"):
                check_array(dataset, split, key)

    def check(self, model, dataset) -> None:
        """Checks inputs, vocabulary size and that all arrays are present."""
        check_inputs(model, {"source", "target"})
        self.check_arguments({"vocabulary_size": model.output_shape[-1]}, dataset)

    def prepare(self, batch, uniform, training):
        """Returns inputs, labels and their loss weights "counts", (B, S) or (B, T)."""
        import tensorflow as tf

        source, labels = (tf.cast(batch[key], tf.int32) for key in ("source", "target"))
        previous = tf.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=END)
        target = tf.where(previous == END, START, previous)
        counts = tf.cast(labels != PADDING, tf.float32) * batch["weight"][:, None]
        return {
            "source": source,
            "target": tf.where(labels == PADDING, PADDING, target),
            "labels": labels,
            "counts": counts,
        }

    def term_counts(self, batch):
        """Returns the number of target tokens."""
        return {"loss": ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns the summed loss, the cross-entropy without smoothing and the accuracy."""
        inputs = {"source": batch["source"], "target": batch["target"]}
        labels, counts = batch["labels"], batch["counts"]
        smoothing = self.label_smoothing if training else 0.0
        if self.chunk and adapter(model).can_split:
            outputs = None
            result = self._chunked_loss(model, inputs, labels, counts, smoothing, training)
            loss, losses, correct, gap = result
        else:
            outputs = model(inputs, training=training)
            losses = ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True)
            loss = ops.sum(losses * counts)
            correct = ops.cast(ops.equal(ops.argmax(outputs, -1), labels), "float32")
            gap = 0.0
            if smoothing:
                rows = ops.reshape(outputs, (-1, outputs.shape[-1]))
                at_label = ops.reshape(pick(rows, ops.reshape(labels, (-1,))), ops.shape(labels))
                gap = at_label - ops.mean(outputs, -1)
        if smoothing:
            # Smoothed cross-entropy, log Z - (1 - e) z_y - e mean(z), is the plain cross-entropy
            # log Z - z_y plus e times the gap z_y - mean(z).
            loss = loss + smoothing * ops.sum(gap * counts)
        total = ops.sum(counts)
        return Forward(
            sums={"loss": loss},
            statistics={
                "nll": (ops.sum(losses * counts), total),
                "accuracy": (ops.sum(correct * counts), total),
            },
            outputs=outputs,
        )

    def _chunked_loss(self, model, inputs, labels, counts, smoothing, training):
        """Returns the loss as a scalar, and losses, correct and gap (B, T), in chunks of logits."""
        trunk, head = self.split(model)
        hidden = trunk(inputs, training=training)
        kernel, bias = head()
        hidden = ops.reshape(hidden, (-1, hidden.shape[-1]))
        flat = ops.reshape(labels, (-1,))
        loss, losses, correct = linear_cross_entropy(
            hidden, ops.cast(kernel, hidden.dtype), bias, flat, ops.reshape(counts, (-1,)),
            self.chunk, gradients=training,
        )  # fmt: skip
        gap = ops.zeros(flat.shape)
        if smoothing:
            # A difference of logits is the product with the difference of their kernel rows.
            rows = ops.take(kernel, flat, axis=0) - ops.mean(kernel, axis=0)
            gap = ops.sum(ops.cast(hidden, "float32") * ops.cast(rows, "float32"), -1)
            if bias is not None:
                gap = gap + ops.take(bias, flat) - ops.mean(bias)
        return loss, *(ops.reshape(x, labels.shape) for x in (losses, correct, gap))

    def evaluate_split(self, model, dataset, split):
        """Returns the scores against the reference text, and every sentence with its output."""
        pairs = getattr(dataset, "pairs", {}).get(split)
        if pairs is None or not self.beams:
            return {}, []
        translate = self.translator(model, dataset.tokenizer)
        sources, references = zip(*pairs(), strict=True)
        translations = translate(sources, beams=self.beams, length_penalty=self.length_penalty)
        samples = [
            {"source": source, "prediction": prediction, "reference": reference}
            for source, prediction, reference in zip(sources, translations, references, strict=True)
        ]
        if self.scores == "summary":
            return summary_scores(translations, references), samples
        language = dataset.languages[-1] if dataset.languages else ""
        return translation_scores(translations, references, language), samples

    def synthetic(self, model, examples, seed):
        """Returns sentences that count modulo a small number; the targets are one step ahead."""
        generator = np.random.default_rng(seed)
        period, length = min(model.output_shape[-1] - FIRST_WORD, 7), 64
        arrays = {key: np.zeros((examples, length), "uint16") for key in ("source", "target")}
        for row in range(examples):
            # Two sentences of unequal lengths, and padding.
            start = 0
            for words in generator.integers(4, length // 2, 2):
                tokens = generator.integers(period) + np.arange(words)
                for ahead, key in enumerate(arrays):
                    place = arrays[key][row, start : start + words]
                    place[:] = FIRST_WORD + (tokens + ahead) % period
                    place[-1] = END
                start += words
        return arrays
