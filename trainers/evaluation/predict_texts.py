"""Predicts the labels of texts that are not part of a dataset."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from trainers.run.workdir import read_config
from zoo import registry
from zoo.data.text.labeled.dataset import TEXT_COLUMNS, encode_texts
from zoo.data.text.labeled.unlabeled import UnlabeledTexts
from zoo.data.text.special_tokens import PADDING
from zoo.errors import RunError, UsageError, short
from zoo.models.inputs import sequence_length
from zoo.saved.workdir import model_path, read_tokenizer
from zoo.start import start_tensorflow

_BATCH = 64
_CHUNK_ROWS, _CHUNK_CHARACTERS = 1024, 1 << 22  # that are read and predicted at a time


class TextPredictor:
    """Predicts the labels of texts with the model of a work directory.

    Args:
      workdir: work directory of a run with the task `text_classification`.
      columns: names of the text columns of the files; by default those of the training data.
      checkpoint: "final" or "best".

    Attributes:
      columns: names of the text columns, one or two.
      fields: names of the predicted values: "label" and "probability" for one of several classes;
        "labels" and "probabilities", lists, for any number of labels; "value" for a number.

    Raises:
      UsageError: if there is no model, or the number of columns does not match the model.
    """

    def __init__(self, workdir: str, columns: Sequence[str] = (), checkpoint: str = "final"):
        self._workdir, self._checkpoint = workdir, checkpoint
        self._config = read_config(workdir)
        model_path(workdir, checkpoint)  # reports a missing file before TensorFlow is loaded
        self._task = registry.build_task(**self._config["config"]["task"])
        self.fields = {
            "class": ("label", "probability"),
            "labels": ("labels", "probabilities"),
            "number": ("value",),
        }[self._task.output]
        trained_columns = _trained_columns(workdir, self._config)
        self.columns = tuple(columns) or trained_columns
        if not self.columns:
            raise UsageError(f"{workdir} does not store its text columns: set --columns.")
        if trained_columns and len(self.columns) != len(trained_columns):
            raise UsageError(
                f"The model requires {len(trained_columns)} text column(s), such as "
                f"{', '.join(trained_columns)}. Received: {', '.join(self.columns)}."
            )
        if not len(set(self.columns)) == len(self.columns) <= 2:
            raise UsageError(
                f"--columns must be one or two columns. Received: {', '.join(self.columns)}."
            )
        self._model = None

    def __call__(
        self, sources: Iterable[str], refuse: Callable[[RunError], None]
    ) -> Iterator[tuple[tuple[str, ...], tuple]]:
        """Returns an iterator over the texts and the predicted values of each row, in order.

        The files are read and predicted in chunks, so memory is bounded.

        Args:
          sources: files, see `UnlabeledTexts`.
          refuse: function that gets the error of each row and each file that cannot be read.

        Raises:
          UsageError: if the name or the columns of a file are wrong, before any row is read.
        """
        return self._predicted(read_rows(sources, self.columns, refuse))

    def _predicted(self, rows: Iterator) -> Iterator[tuple]:
        for chunk in chunks(rows):
            if self._model is None:
                self._load()
            yield from zip(chunk, self._values(self._logits(chunk)), strict=True)

    def _load(self) -> None:
        start_tensorflow()
        import tensorflow as tf

        config = self._config["config"]
        self._tokenizer = read_tokenizer(self._workdir, self._config)
        model = self._model = registry.load(self._workdir, self._checkpoint)
        limits = config["data"]["sequence_length"], config["model"].get("sequence_length")
        self._length = min(n for n in (*limits, sequence_length(model)) if n)
        names = [tensor.name for tensor in model.inputs]
        shape = (None, None if self._task.trim else self._length)
        self._run = tf.function(
            lambda batch: model(batch, training=False),
            input_signature=[{name: tf.TensorSpec(shape, tf.int32, name) for name in names}],
            autograph=False,
        )
        self._inputs = names

    def _logits(self, chunk: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Returns the outputs (N, K) of the model for N rows."""
        arrays = encode_texts(self._tokenizer, chunk, self._length)
        tokens, types = (arrays[key].astype(np.int32) for key in ("tokens", "types"))
        sizes = np.count_nonzero(tokens != PADDING, axis=1)
        order, parts = np.argsort(-sizes, kind="stable"), []
        for start in range(0, len(chunk), _BATCH):
            rows, trim = order[start : start + _BATCH], self._task.trim
            # As in training, a batch is cut after its longest text.
            end = -(-int(sizes[rows[0]]) // trim) * trim if trim else self._length
            batch = {"tokens": tokens[rows, :end], "types": types[rows, :end]}
            batch["segments"] = np.int32(batch["tokens"] != PADDING)
            parts.append(self._run({name: batch[name] for name in self._inputs}).numpy())
        logits = np.concatenate(parts)
        return logits[np.argsort(order)]

    def _values(self, logits: np.ndarray) -> Iterator[tuple]:
        """Yields the values of `fields` of each row."""
        from scipy import special

        if self._task.output == "number":
            yield from ((float(value),) for value in logits[:, 0])
            return
        names = list(self._config["class_names"])
        names += map(str, range(len(names), logits.shape[-1]))
        if self._task.output == "class":
            for row in special.softmax(logits, -1):
                yield names[int(row.argmax())], float(row.max())
        else:
            for row in special.expit(logits):
                chosen = np.flatnonzero(row > 0.5)
                yield [names[i] for i in chosen], [float(row[i]) for i in chosen]


def _trained_columns(workdir: str, saved_config: dict) -> tuple[str, ...]:
    """Returns the text columns of the training data; () for data of a Python program."""
    facts = saved_config["facts"].get("Data")
    columns = facts.get(TEXT_COLUMNS, []) if isinstance(facts, dict) else []
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise RunError(
            f"{workdir}/config.json is damaged: {TEXT_COLUMNS!r} is {short(repr(columns))}."
        )
    return tuple(columns)


def read_rows(
    sources: Iterable[str], columns: Sequence[str], refuse: Callable[[RunError], None]
) -> Iterator[tuple[str, ...]]:
    """Returns an iterator over the rows of several files; see `UnlabeledTexts`.

    Args:
      sources: files.
      columns: names of the text columns.
      refuse: function that gets the error of each row and each file that cannot be read.

    Raises:
      UsageError: if the name or the columns of a file are wrong, before any row is read.
    """
    files = []
    for source in sources:
        try:
            files.append(UnlabeledTexts(source, columns, refuse))
        except RunError as error:
            refuse(error)
    return itertools.chain.from_iterable(_readable(file, refuse) for file in files)


def _readable(file: UnlabeledTexts, refuse) -> Iterator[tuple[str, ...]]:
    """Yields the rows of a file up to the first place where it cannot be read further."""
    try:
        yield from file
    except RunError as error:
        refuse(error)


def chunks(rows: Iterator[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Yields lists of rows with a bounded number of characters."""
    chunk, characters = [], 0
    for row in rows:
        chunk.append(row)
        characters += sum(map(len, row))
        if len(chunk) == _CHUNK_ROWS or characters > _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
