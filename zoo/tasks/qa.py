"""Extractive question answering: the answer is a span of a context (SQuAD 1.1 and 2.0).

A model predicts the first and the last token of the answer among the tokens of the context.
Position 0, <start>, means that the context does not answer the question (Devlin et al. 2018,
sections 4.2 and 4.3). Stored examples are windows of `zoo.data.text.questions.dataset`.
Axes: B batch, T positions.
"""

import numpy as np

from zoo import registry
from zoo.data.text.questions.windows import MAX_QUESTION, STRIDE
from zoo.data.text.special_tokens import FIRST_WORD, PADDING, SEPARATOR, START
from zoo.errors import UsageError
from zoo.generation.scores.answers import best_threshold, question_scores, scores
from zoo.lazy import ops
from zoo.models.inputs import sequence_length
from zoo.tasks.base import Forward
from zoo.tasks.text import TextTask, check_array

_FORBIDDEN = -1e9  # logit of positions that cannot be an answer
_MAX_SAMPLES = 200
_INPUTS = {"tokens", "segments", "types"}


class QuestionAnswering(TextTask):
    """Mean cross-entropy of the first and the last token of an answer; exact match and F1.

    The metrics "window_exact" and "window_f1" compare the tokens of the best span of a window with
    those of the first reference answer. If all training questions have an answer, they do so in
    windows with the answer alone; otherwise "no answer" counts as a span. A whole split is
    evaluated by the text of the answers.

    Args:
      stride: number of context tokens between the starts of two windows of a long context.
      max_question: largest number of tokens of a question; the rest is cut off.
      max_answer: largest number of tokens of an answer.
      dropout: dropout rate before the last layer.
    """

    statistics = ("window_exact", "window_f1")
    monitor = "val_window_f1"
    monitor_mode = "max"
    unit = "windows"
    may_have_no_answer = True

    def __init__(
        self,
        stride: int = STRIDE,
        max_question: int = MAX_QUESTION,
        max_answer: int = 30,
        dropout: float = 0.0,
    ):
        if max_answer < 1:
            raise UsageError(f"task.max_answer must be positive. Received: {max_answer}.")
        if not 0 <= dropout < 1:
            raise UsageError(f"task.dropout must be in [0, 1). Received: {dropout}.")
        # The loader of the data checks stride and max_question.
        self.stride, self.max_question = stride, max_question
        self.max_answer, self.dropout = max_answer, dropout

    def with_head(self, model, dataset=None):
        """Returns the trunk of an encoder with logits of the first and the last token."""
        add_head = registry.resolve("zoo.models.answer_head:add_answer_head")
        return add_head(model, dropout=self.dropout)

    def bind(self, model, dataset=None, arguments=None):
        """Reads whether a training question has no answer."""
        super().bind(model, dataset, arguments)
        if questions := getattr(dataset, "questions", {}).get("train"):
            self.may_have_no_answer = not all(question.answers for question in questions)
        return self

    def check(self, model, dataset) -> None:
        """Checks inputs, outputs, arrays and the sequence length."""
        inputs = {tensor.name for tensor in model.inputs}
        shape = getattr(model.output, "shape", ())
        if not inputs <= _INPUTS or len(shape) != 3 or shape[-1] != 2:
            raise UsageError(
                "The task requires a model with the inputs tokens, segments and types and two "
                f"logits per position. Received: {model.name!r} with the inputs "
                f"{' and '.join(sorted(inputs))} and the output shape {shape}."
            )
        for split in dataset.splits:
            for key in ("types", "context", "first", "start", "end", "example"):
                check_array(dataset, split, key)
        self.check_sizes(None, dataset, sequence_length(model), self.positions)

    def prepare(self, batch, uniform, training):
        """Returns inputs (B, T), targets (B,) and the positions (B, T) that may be targets."""
        import tensorflow as tf

        tokens, types = (tf.cast(batch[key], tf.int32) for key in ("tokens", "types"))
        is_first = tf.range(tokens.shape[1]) == 0
        return {
            "tokens": tokens,
            "segments": tf.cast(tokens != PADDING, tf.int32),
            "types": types,
            "allowed": tf.logical_or(batch["context"] > 0, is_first),
            "start": batch["start"],
            "end": batch["end"],
            "counts": batch["weight"],
        }

    def term_counts(self, batch):
        """Returns the number of windows."""
        return {"loss": ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns the summed loss and the metrics of the best span of each window."""
        inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
        logits = model(inputs, training=training)
        masked = ops.where(batch["allowed"][:, :, None], logits, _FORBIDDEN)
        starts, ends = masked[:, :, 0], masked[:, :, 1]
        start, end, counts = batch["start"], batch["end"], batch["counts"]
        losses = [
            ops.sparse_categorical_crossentropy(target, scores, from_logits=True)
            for target, scores in ((start, starts), (end, ends))
        ]
        first, last = best_pair(starts, ends, self.max_answer, self.may_have_no_answer)
        common = ops.minimum(last, end) - ops.maximum(first, start) + 1
        total = (last - first + 1) + (end - start + 1)
        window_f1 = 2 * ops.cast(ops.maximum(common, 0), "float32") / ops.cast(total, "float32")
        exact = ops.logical_and(ops.equal(first, start), ops.equal(last, end))
        scored = counts if self.may_have_no_answer else counts * ops.cast(start > 0, "float32")
        weight = ops.sum(scored)
        return Forward(
            sums={"loss": ops.sum((losses[0] + losses[1]) / 2 * counts)},
            statistics={
                "window_exact": (ops.sum(ops.cast(exact, "float32") * scored), weight),
                "window_f1": (ops.sum(window_f1 * scored), weight),
            },
            outputs=logits,
        )

    def derived_metrics(self, metrics):
        """Returns no further metrics."""
        return {}

    def evaluate_split(self, model, dataset, split):
        """Returns exact match and F1 of the text of the answers, and samples.

        If questions of the split have no answer, "no answer" is predicted where its score exceeds
        that of the best answer by more than a threshold: the one with the best F1 on the validation
        split if that has such questions, else 0.

        Samples have the question as "source", "prediction", "reference", "context", and the
        characters "predicted_span" and "reference_span" of the context, None for no answer; "f1" is
        that of the most similar reference, 0 to 100.
        """
        questions = getattr(dataset, "questions", {}).get(split)
        if questions is None:
            return {}, []
        answers = self._answers(model, dataset, split)
        references = [[text for text, _ in question.answers] for question in questions]
        version_2 = not all(references)
        threshold, tuned_on = np.inf, ""
        if version_2:
            threshold, tuned_on = self._threshold(model, dataset, split, answers)
        predictions = [x.text(threshold) for x in answers]
        metrics = scores(predictions, references)
        if version_2:
            metrics["null_threshold"] = threshold
            metrics["scoring"] += f", null threshold {tuned_on}"
        step = -(-len(questions) // _MAX_SAMPLES)
        samples = [
            _sample(*row, version_2)
            for row in list(zip(questions, answers, predictions, strict=True))[::step]
        ]  # fmt: skip
        return metrics, samples

    def _answers(self, model, dataset, split) -> list:
        question_answers = registry.resolve("zoo.generation.answers:question_answers")
        return list(
            question_answers(
                model, dataset.splits[split], dataset.questions[split], dataset.tokenizer,
                self.max_answer, 1,
            )
        )  # fmt: skip

    def _threshold(self, model, dataset, split, answers) -> tuple[float, str]:
        """Returns the threshold of "no answer", and how it was chosen."""
        questions = dataset.questions.get("validation", ())
        if all(question.answers for question in questions):
            return 0.0, "0"
        if split != "validation":
            answers = self._answers(model, dataset, "validation")
        tables = ([], [])
        for question, answer in zip(questions, answers, strict=True):
            references = [text for text, _ in question.answers]
            for table, text in zip(tables, (answer.spans[0].text, ""), strict=True):
                table.append(question_scores(text, references, version_2=True)[1])
        differences = [answer.null_score - answer.spans[0].score for answer in answers]
        # JSON has no infinity: below the lowest difference, no question is answered.
        threshold = max(best_threshold(differences, *tables), min(differences) - 1)
        return threshold, "of the best F1 on the validation split"

    def synthetic(self, model, examples, seed):
        """Returns windows whose answer is the token after the one that the question names."""
        generator = np.random.default_rng(seed)
        length = sequence_length(model) or 32
        words = next(layer.input_dim for layer in model.layers if hasattr(layer, "input_dim"))
        # Even words are keys, odd words are values.
        pairs = (length - 4) // 2
        keys = np.tile(np.arange(FIRST_WORD, words - 1, 2), -(-pairs // ((words - 6) // 2)))
        tokens = np.zeros((examples, length), np.int32)
        arrays = {key: np.zeros((examples, length), np.uint8) for key in ("types", "context")}
        target = np.zeros(examples, np.int32)
        for row in range(examples):
            context = np.empty(2 * pairs, np.int64)
            context[::2] = generator.permutation(keys)[:pairs]
            context[1::2] = 1 + generator.permutation(keys)[:pairs]
            asked = int(generator.integers(pairs))
            tokens[row, : 4 + len(context)] = [
                START, context[2 * asked], SEPARATOR, *context, SEPARATOR
            ]  # fmt: skip
            target[row] = 3 + 2 * asked + 1
        arrays["types"][:, 3 : 4 + 2 * pairs] = 1
        arrays["context"][:, 3 : 3 + 2 * pairs] = 1
        return {
            "tokens": tokens, **arrays, "first": np.zeros(examples, np.int32), "start": target,
            "end": target.copy(), "example": np.arange(examples, dtype=np.int32),
        }  # fmt: skip


def best_pair(starts, ends, max_answer: int, may_have_no_answer: bool):
    """Returns the positions of the best span of each row, 0 and 0 for no answer.

    Args:
      starts: (B, T) logits of the first position.
      ends: (B, T) logits of the last position.
      max_answer: largest number of positions of a span.
      may_have_no_answer: whether the span may be "no answer".

    Returns:
      `(first, last)`, both (B,) int32.
    """
    length = starts.shape[1]
    first, last = np.mgrid[:length, :length]
    is_span = (first > 0) & (last >= first) & (last - first < max_answer)
    is_span[0, 0] = may_have_no_answer
    pairs = ops.where(is_span, starts[:, :, None] + ends[:, None, :], 4 * _FORBIDDEN)
    best = ops.argmax(ops.reshape(pairs, (-1, length * length)), axis=-1)
    best = ops.cast(best, "int32")
    return best // length, best % length


def _sample(question, answers, prediction: str, version_2: bool) -> dict:
    best = answers.spans[0]
    references = [text for text, _ in question.answers]
    _, f1 = question_scores(prediction, references, version_2=version_2)
    reference, start = question.answers[0] if question.answers else ("", 0)
    return {
        "source": question.question,
        "prediction": prediction,
        "reference": reference,
        "context": question.context,
        "predicted_span": [best.start, best.end] if prediction else None,
        "reference_span": [start, start + len(reference)] if question.answers else None,
        "f1": 100 * f1,
    }
