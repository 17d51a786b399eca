"""Questions whose answers take a known number of steps: loss and accuracy by depth.

Stored examples are rows of `zoo.data.text.synthetic.reasoning`: "tokens", "answers" (the token to
predict at a position), "depths" and "questions" (number of the question), all (T,). The model reads
no answer, because answers are no inputs; written-out steps are both. A question counts as answered
if its answer and all steps before it are predicted, which is when greedy decoding writes them.
Models are those of `zoo.tasks.clm`.
"""

import numpy as np

from zoo.errors import UsageError
from zoo.lazy import ops, tf
from zoo.models.inputs import sequence_length
from zoo.tasks.base import Forward
from zoo.tasks.text import TextTask, adapter, check_inputs, looped_layer, saved_loops

# The test split has depths up to this factor beyond training; `zoo.data.text.synthetic.reasoning`.
DEEPER = 2
# Numbers of loops of the table in the report, as factors of the number of loops at use.
LOOP_FACTORS = (0.25, 0.5, 1, 2, 4)
TABLE_ROWS = 128  # number of rows of a split that the table is measured on
_BATCH = 32


class ByDepth(TextTask):
    """Mean cross-entropy per predicted token, and the accuracy of questions by depth.

    Args:
      depth: largest depth in training. The test split has twice the depth.
    """

    unit = "predicted tokens"
    monitor, monitor_mode = "val_accuracy", "max"

    def __init__(self, depth: int = 4):
        if depth < 1:
            raise UsageError(f"task.depth must be positive. Received: {depth}.")
        self.depth = depth
        self.depths = range(1, DEEPER * depth + 1)
        self.looped = None

    @property
    def statistics(self):
        names = ["accuracy", *(f"accuracy_{depth}" for depth in self.depths)]
        return (*names, "saved_loops") if self.looped and self.looped.halt else tuple(names)

    def bind(self, model, dataset=None, arguments=None):
        """Reads the tokenizer, the number of positions and the looped blocks, if any."""
        self.looped = looped_layer(model)
        return super().bind(model, dataset, arguments)

    def check(self, model, dataset) -> None:
        """Checks inputs, vocabulary size and sequence length against the data."""
        check_inputs(model, {"tokens", "segments"})
        self.check_sizes(model.output_shape[-1], dataset, sequence_length(model), self.positions)

    def prepare(self, batch, uniform, training):
        """Returns inputs, targets, their weights "counts", depths and questions, all (B, T).

        With "progress" (B,), the share of the curriculum that is done, questions of a larger share
        of the depth do not count, and looped blocks run from L to 2 L loops for questions of up to
        L steps, so that the number of loops grows with the depth.
        """
        tokens, answers, depths = (
            tf.cast(batch[name], tf.int32) for name in ("tokens", "answers", "depths")
        )
        counts = tf.cast(answers >= 0, tf.float32) * batch["weight"][:, None]
        levels = {}
        if "progress" in batch:
            levels["levels"] = tf.cast(tf.math.ceil(self.depth * batch["progress"]), tf.int32)
            counts *= tf.cast(depths <= levels["levels"][:, None], tf.float32)
        return {
            **levels,
            "tokens": tf.maximum(tokens, 0),
            "segments": tf.cast(tokens >= 0, tf.int32),
            "targets": tf.maximum(answers, 0),
            "counts": counts,
            "depths": depths,
            "questions": tf.cast(batch["questions"], tf.int32),
        }

    def term_counts(self, batch):
        """Returns the number of predicted tokens that count."""
        return {"loss": ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns summed cross-entropy, and the accuracy of all questions and of each depth."""
        inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
        counts, questions = batch["counts"], batch["questions"]
        if training and self.looped:
            level = batch["levels"][0] if "levels" in batch else None
            self.looped.limits = None if level is None else (level, 2 * level)
        outputs = model(inputs, training=training)
        losses = ops.sparse_categorical_crossentropy(
            batch["targets"], outputs, from_logits=not adapter(model).probabilities
        )
        wrong = ops.cast(ops.not_equal(ops.argmax(outputs, -1), batch["targets"]), "float32")
        same = ops.cast(ops.equal(questions[:, :, None], questions[:, None, :]), "float32")
        errors = ops.einsum("bts,bs->bt", same, wrong * counts)  # errors of the question
        answered = ops.cast(ops.equal(errors, 0), "float32")
        following = ops.pad(questions[:, 1:], [[0, 0], [0, 1]])
        # The last position of each question stands for it.
        asked = counts * ops.cast(ops.not_equal(questions, following), "float32")
        statistics = {"accuracy": (ops.sum(answered * asked), ops.sum(asked))}
        for depth in self.depths:
            weights = asked * ops.cast(ops.equal(batch["depths"], depth), "float32")
            statistics[f"accuracy_{depth}"] = (ops.sum(answered * weights), ops.sum(weights))
        if "saved_loops" in self.statistics:
            statistics["saved_loops"] = saved_loops(self.looped, counts)
        return Forward({"loss": ops.sum(losses * counts)}, statistics, outputs)

    def evaluate_split(self, model, dataset, split):
        """Returns a table for the report: the accuracy by depth, a row per number of loops."""
        if self.looped is None or self.looped.halt:
            return {}, []
        arrays = {k: x[: min(len(x), TABLE_ROWS)] for k, x in dataset.splits[split].items()}
        loops, table = self.looped.loops, []
        try:
            for number in sorted({max(1, round(factor * loops)) for factor in LOOP_FACTORS}):
                self.looped.loops = number
                accuracies = self.accuracy_by_depth(model, arrays)
                cells = {f"depth {d}": f"{x:.1%}" for d, x in accuracies.items()}
                table.append({"loops": str(number), **cells})
        finally:
            self.looped.loops = loops
        return {}, table

    def accuracy_by_depth(self, model, arrays) -> dict[int, float]:
        """Returns depth -> share of answered questions, for the depths of the examples.

        Args:
          model: bound model.
          arrays: stored examples, array name -> (N, ...).
        """
        totals = {depth: np.zeros(2) for depth in self.depths}

        def count(batch):
            statistics = self.forward(model, batch, training=False).statistics
            return [statistics[f"accuracy_{depth}"] for depth in self.depths]

        count = tf.function(count, autograph=False)
        examples = len(arrays["tokens"])
        for start in range(0, examples, _BATCH):
            rows = np.arange(start, start + _BATCH)  # the last batch repeats the last example
            batch = {k: tf.constant(x[np.minimum(rows, examples - 1)]) for k, x in arrays.items()}
            batch["weight"] = tf.constant(rows < examples, tf.float32)
            pairs = count(self.prepare(batch, None, False))
            for depth, pair in zip(self.depths, pairs, strict=True):
                totals[depth] += [float(x) for x in pair]
        return {depth: float(a / b) for depth, (a, b) in totals.items() if b}

    def synthetic(self, model, examples, seed):
        """Returns rows in which each token asks for itself."""
        tokens = super().synthetic(model, examples, seed)["tokens"]
        places, known = np.arange(tokens.shape[1]), tokens >= 0
        return {
            "tokens": tokens,
            "answers": tokens,
            "depths": np.where(known, 1 + places % self.depth, 0).astype("int16"),
            "questions": np.where(known, 1 + places, 0).astype("int16"),
        }
