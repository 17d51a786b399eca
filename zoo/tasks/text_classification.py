"""Classification and regression of texts and of pairs of texts.

Sentiment, topics and natural language inference are the same task with other data. Stored examples
are "tokens" (T,) integers, <start> A <sep> or <start> A <sep> B <sep>, 0 for padding; "types" (T,)
integers, 0 in the first text and 1 in the second; and the target: "label" () integer for one of
several classes, "labels" (K,) of 0 and 1 for any number of labels, or "target" () for a number.
Axes: B batch, T positions, K classes or labels.
"""

import numpy as np

from zoo import registry
from zoo.data.balance import class_weights as weights_of
from zoo.data.classes import check_classes
from zoo.data.text.labeled.labels import ARRAYS
from zoo.data.text.special_tokens import FIRST_WORD, PADDING, SEPARATOR, START
from zoo.errors import UsageError
from zoo.lazy import ops
from zoo.models.inputs import sequence_length
from zoo.tasks import text
from zoo.tasks.base import Forward


class TextClassification(text.TextTask):
    """Mean loss per text, with the metrics of the kind of output.

    The model is any encoder or decoder of the zoo, of which the trunk gets a new head, or a model
    that computes (B, K) itself, such as `linear_text`.

    Args:
      output: "class" for one of several classes (softmax); "labels" for any number of labels
        (sigmoids); "number" for regression (squared error).
      num_classes: K; 0 for the number of classes of the data.
      pooling: how the head pools the positions, see `zoo.models.heads.PoolTokens`.
      dropout: dropout rate before the last layer of the head.
      class_weights: whether each class has the same total weight in the training loss.
      trim: batches are cut after their longest text, rounded up to a multiple of this number, which
        changes no result; 0 keeps all batches at the same length, as a TPU requires.
      group_by_length: whether the texts of a training batch have similar lengths, so that `trim`
        cuts more; see `zoo.data.pipeline.group_by_length`. Without effect if `trim` is 0.
    """

    unit = "texts"

    def __init__(
        self,
        output: str = "class",
        num_classes: int = 0,
        pooling: str = "mean",
        dropout: float = 0.1,
        class_weights: bool = False,
        trim: int = 16,
        group_by_length: bool = False,
    ):
        if output not in ARRAYS:
            raise UsageError(
                f"task.output must be one of {', '.join(ARRAYS)}. Received: {output!r}."
            )
        if class_weights and output != "class":
            raise UsageError(
                f"task.class_weights requires task.output=class. Received: task.output={output}."
            )
        self.output, self.num_classes = output, num_classes
        self.group_by_length = group_by_length
        self.pooling, self.dropout, self.trim = pooling, dropout, trim
        self.class_weights, self.weights_of_classes = class_weights, None
        if output == "class":
            self.monitor, self.monitor_mode = "val_accuracy", "max"
        self.statistics = () if output == "number" else ("accuracy",)

    def complete(self, arguments, dataset):
        """Completes the vocabulary size, and `num_classes` of models with their own head."""
        arguments = super().complete(arguments, dataset)
        if arguments.get("num_classes", 1) == 0:
            arguments = {**arguments, "num_classes": self._count(dataset)}
        return arguments

    def _count(self, dataset) -> int:
        if self.output == "number":
            return 1
        count = self.num_classes or (len(dataset.class_names) if dataset is not None else 0)
        if count < 1:
            raise UsageError(
                "task.num_classes must be positive without data. Received: 0; set task.num_classes."
            )
        return count

    def with_head(self, model, dataset=None):
        """Puts a head on the trunk of a model that does not compute (B, K) itself."""
        if len(getattr(model.output, "shape", ())) == 2:
            return model
        add_head = registry.resolve("zoo.models.heads:add_head")
        return add_head(model, self._count(dataset), pooling=self.pooling, dropout=self.dropout)

    def bind(self, model, dataset=None, arguments=None):
        """Reads the tokenizer, the number of positions and the frequency of the classes."""
        super().bind(model, dataset, arguments)
        if self.class_weights and dataset is not None and "train" in dataset.splits:
            labels = np.asarray(dataset.splits["train"]["label"])
            self.weights_of_classes = weights_of(labels, model.output_shape[-1])
        return self

    def check(self, model, dataset) -> None:
        """Checks the head, the targets and the sequence length against the data."""
        count, expected = model.output_shape[-1], self._count(dataset)
        if len(model.output_shape) != 2 or count != expected:
            raise UsageError(
                f"The model must have {expected} outputs per text. Received: {model.name!r} with "
                f"the output shape {model.output_shape}; set task.num_classes or "
                "model.num_classes."
            )
        for split, arrays in dataset.splits.items():
            for key in ("types", ARRAYS[self.output]):
                text.check_array(dataset, split, key)
            if self.output == "class" and np.max(arrays["label"]) >= count:
                raise UsageError(
                    f"Labels must be less than the number of classes, {count}. Received: dataset "
                    f"{dataset.name!r}, split {split!r} with label {np.max(arrays['label'])}."
                )
        self.check_sizes(None, dataset, sequence_length(model), self.positions)

    def data_warnings(self, dataset):
        """Returns warnings about absent or dominant classes of validation and test split."""
        splits = ("validation", "test") if self.output == "class" else ()
        warnings = [
            check_classes(dataset, split)
            for split in splits
            if {"train", split} <= dataset.splits.keys()
        ]
        return [warning for warning in warnings if warning]

    def lengths(self, arrays):
        """Returns the number of tokens of each text, or None if batches are not grouped."""
        if not self.group_by_length or not self.trim:
            return None
        return np.count_nonzero(np.asarray(arrays["tokens"]) != PADDING, axis=1)

    def prepare(self, batch, uniform, training):
        """Cuts the batch after its longest text, and weights the classes in training."""
        import tensorflow as tf

        target = ARRAYS[self.output]
        tokens, types = (tf.cast(batch[key], tf.int32) for key in ("tokens", "types"))
        if self.trim:
            longest = tf.reduce_max(tf.math.count_nonzero(tokens, axis=1, dtype=tf.int32))
            length = tf.minimum(-(-longest // self.trim) * self.trim, tokens.shape[1])
            tokens, types = tokens[:, :length], types[:, :length]
        counts = batch["weight"]
        if training and self.weights_of_classes is not None:
            counts *= tf.gather(tf.constant(self.weights_of_classes), batch[target])
        return {
            "tokens": tokens,
            "types": types,
            "segments": tf.cast(tokens != PADDING, tf.int32),
            target: batch[target],
            "counts": counts,
            "weight": batch["weight"],
        }

    def term_counts(self, batch):
        """Returns the number of texts, weighted by class in training with `class_weights`."""
        return {"loss": ops.sum(batch["counts"])}

    def forward(self, model, batch, training):
        """Returns the summed loss and the accuracy; the outputs are logits (B, K)."""
        inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
        logits = model(inputs, training=training)
        target, weight = batch[ARRAYS[self.output]], batch["weight"]
        if self.output == "class":
            losses = ops.sparse_categorical_crossentropy(target, logits, from_logits=True)
            correct = ops.equal(ops.argmax(logits, -1), ops.cast(target, "int32"))
        elif self.output == "labels":
            target = ops.cast(target, "float32")
            losses = ops.mean(ops.binary_crossentropy(target, logits, from_logits=True), -1)
            correct = ops.all(ops.equal(logits > 0, target > 0), -1)
        else:
            losses = ops.square(logits[:, 0] - ops.cast(target, "float32"))
        statistics = {}
        if self.statistics:
            correct = ops.cast(correct, "float32")
            statistics["accuracy"] = ops.sum(correct * weight), ops.sum(weight)
        return Forward({"loss": ops.sum(losses * batch["counts"])}, statistics, logits)

    def derived_metrics(self, metrics):
        """Returns no further metrics."""
        return {}

    def predictions(self, outputs, batch):
        """Returns the probabilities and the label of each text; nothing for other outputs."""
        if self.output != "class":
            return {}
        return {"probabilities": ops.softmax(outputs, -1), "labels": batch["label"]}

    def evaluate_split(self, model, dataset, split):
        """Computes the metrics of labels and numbers that are not means over texts.

        Returns:
          `(metrics, [])`: for "labels" the F1 of all decisions ("micro_f1") and the mean F1 of the
          labels ("macro_f1"); for "number" Pearson's and Spearman's correlation.
        """
        if self.output == "class":
            return {}, []
        arrays = dataset.splits[split]
        logits = registry.resolve("zoo.generation.text_logits:text_logits")(model, arrays)
        target = np.asarray(arrays[ARRAYS[self.output]])
        if self.output == "number":
            from scipy import stats

            if min(np.ptp(logits[:, 0]), np.ptp(target)) == 0:  # not defined for a constant
                return {}, []
            return {
                "pearson": float(stats.pearsonr(logits[:, 0], target)[0]),
                "spearman": float(stats.spearmanr(logits[:, 0], target)[0]),
            }, []
        predicted, target = logits > 0, target > 0
        true = (predicted & target).sum(0)
        wrong = (predicted != target).sum(0)
        f1 = 2 * true / np.maximum(2 * true + wrong, 1)
        micro = 2 * true.sum() / max(2 * true.sum() + wrong.sum(), 1)
        return {"micro_f1": float(micro), "macro_f1": float(f1.mean())}, []

    def synthetic(self, model, examples, seed):
        """Returns pairs of texts in which every second word tells the class."""
        generator = np.random.default_rng(seed)
        length, count = min(sequence_length(model) or 32, 32), model.output_shape[-1]
        label = generator.integers(0, max(count, 2), examples)
        tokens = generator.integers(0, max(count, 2), (examples, length))
        tokens[:, ::2] = label[:, None]
        places, ends = np.arange(length), generator.integers(length // 2, length, (examples, 1))
        tokens = np.where(places < ends, FIRST_WORD + tokens, PADDING)
        tokens = np.where((places == length // 4) | (places == ends), SEPARATOR, tokens)
        tokens[:, 0] = START
        types = (places > length // 4) & (places <= ends)
        target = {
            "class": label.astype("int32"),
            "labels": np.eye(max(count, 2), dtype="uint8")[label][:, :count],
            "number": label.astype("float32"),
        }[self.output]
        return {
            "tokens": tokens.astype("int32"), "types": types.astype("uint8"),
            ARRAYS[self.output]: target,
        }  # fmt: skip
