"""Distillation: a student learns from the outputs of a trained teacher and from the labels.

    (1 - alpha) * the task's own loss
    + alpha * T^2 * KL(teacher || student), both softened by the temperature T
    + hidden * mean squared difference of hidden states
    + attention * KL(teacher || student) of the attention distributions

Second line: Hinton et al. 2015 (arXiv:1503.02531); T^2 makes the size of the gradient independent
of T. Third line: Jiao et al. 2020 (TinyBERT, arXiv:1909.10351), with a trained projection if the
widths differ. Fourth line: Wang et al. 2020 (MiniLM, arXiv:2002.10957). Each line is a loss term of
the task: a sum over the counted elements, their number per batch, and a coefficient.

For translation, the teacher's translations can replace the references (Kim and Rush 2016,
Sequence-level knowledge distillation, arXiv:1606.07947): `with_teacher_sentences`.
"""

from collections.abc import Mapping

import keras
import tensorflow as tf
from keras import layers, ops

from trainers.compression import teacher_files
from trainers.compression.technique import Technique
from trainers.config.base import section
from trainers.config.compress import check_distillation
from trainers.run.workdir import read_config
from zoo.errors import UsageError
from zoo.layers.transformer import TransformerBlock
from zoo.models.adapter import Adapter
from zoo.models.float32 import in_float32
from zoo.saved.model import load_model
from zoo.special_tokens import PADDING
from zoo.tasks.base import Forward, Frozen, Player, Task


class Distill(Technique):
    """`compress.distill`: the model also learns from a teacher."""

    def resolve(self, config, workdir, dataset):
        settings = section(config, "compress.distill")
        if settings.teacher and settings.sentences and dataset is not None:
            return teacher_files.with_teacher_sentences(dataset, settings, config)
        return dataset

    def wrap_task(self, task, model, config, dataset):
        settings = section(config, "compress.distill").to_dict()
        if not settings["teacher"]:
            return task
        check_distillation(settings)
        saved = read_config(settings["teacher"])
        teacher = load_model(settings["teacher"])
        if config.trainer.precision == "float32":
            teacher = in_float32(teacher)
        _check_pair(saved, teacher, model, task, config, dataset)
        return Distillation(task, model, teacher, settings)


def _check_pair(saved, teacher, student, task, config, dataset) -> None:
    learned = saved["config"]["task"]["name"]
    if learned != config.task.name:
        raise UsageError(
            f"Teacher and student have one task. Received: a teacher of {learned!r} for a student "
            f"of {config.task.name!r}."
        )
    if len(task.players(student)) > 1:
        raise UsageError(f"The task {learned!r} has several players: there is no one to teach.")
    if config.task.get("chunk"):
        raise UsageError(
            "Distillation takes the logits of all positions at once: set task.chunk=0. Received: "
            f"task.chunk={config.task.chunk}."
        )
    if dataset is not None:
        teacher_files.check_data(saved, dataset, config.compress.distill.teacher)
    theirs, ours = (
        {key: x.shape[-1] for key, x in _heads(model.output).items()}
        for model in (teacher, student)
    )
    if theirs != ours:
        raise UsageError(
            "Teacher and student give the same outputs, of one vocabulary or the same classes. "
            f"Received: sizes {list(theirs.values())} of the teacher, {list(ours.values())} of the "
            "student."
        )
    try:
        if dataset is not None:
            task.check(teacher, dataset)
    except UsageError as error:
        raise UsageError(f"The teacher does not fit the student's data: {error}") from None


# Attributes and methods that `Distillation` copies from the student's task.
_SAME = (
    "statistics", "monitor", "monitor_mode", "keeps_best", "unit", "generates", "complete",
    "check_arguments", "check", "remarks", "served", "warning", "predictions", "whole_split",
    "synthetic",
)  # fmt: skip


class Distillation(Task):
    """A task with further loss terms, by which a student learns the outputs of a teacher.

    It must be created inside the strategy's scope.

    Args:
      task: task of the student, bound to the student.
      student: built model to train.
      teacher: built model, which runs in inference mode and is not changed.
      settings: the section `compress.distill`.

    Attributes:
      terms: name -> coefficient: the terms of the task ("loss" is renamed to "labels"), and "soft"
        ("soft_nsp" for a second head), "hidden" and "attention" if their coefficient is above 0.
      variables: variables of the projections, which are trained and saved in checkpoints.
    """

    def __init__(self, task: Task, student: keras.Model, teacher: keras.Model, settings: Mapping):
        self.task, self.settings = task, settings
        for name in _SAME:
            setattr(self, name, getattr(task, name))
        alpha, self.temperature = settings["alpha"], settings["temperature"]
        self.own = {"labels" if name == "loss" else name: name for name in task.terms}
        # The first term remains even if alpha is 1, because throughput is computed from its count.
        self.terms = {name: (1 - alpha) * task.terms[own] for name, own in self.own.items()}
        self.heads = {}
        if alpha:
            self.heads = {"soft" if i == 0 else f"soft_{key}": key
                          for i, key in enumerate(_heads(student.output))}  # fmt: skip
            self.terms |= dict.fromkeys(self.heads, alpha * self.temperature**2)
        self.terms |= {key: settings[key] for key in ("hidden", "attention") if settings[key]}
        matched = settings["hidden"] or settings["attention"]
        self.pairs = _pairs(student, teacher, settings) if matched else []
        mine, theirs = ([pair[i] for pair in self.pairs] for i in range(2))
        self.student, self.teacher = Tapped(student, mine), Tapped(teacher, theirs)
        self.projections = {}
        for one, other, _ in self.pairs if settings["hidden"] else ():
            widths = [layer.output.shape[-1] for layer in (one, other)]
            if widths[0] != widths[1]:
                dense = layers.Dense(
                    widths[1], use_bias=False, dtype="float32", name=f"projection_{one.name}"
                )
                dense.build((None, None, widths[0]))
                self.projections[one.name] = dense
        self.variables = [v for dense in self.projections.values() for v in dense.variables]

    def players(self, model) -> tuple[Player, ...]:
        """Returns a single player: the student with the projections."""
        return (Player("", _Learner(model, self.variables), self.terms, self.forward),)

    def prepare(self, batch, uniform, training):
        """Returns the task's batch with the row weights, and the teacher's outputs if stored."""
        stored = {"teacher": batch["teacher"]} if "teacher" in batch else {}
        prepared = self.task.prepare(batch, uniform, training)
        return {"weight": batch["weight"], **prepared, **stored}

    def term_counts(self, batch):
        """Returns the counts of the task, and the number of positions or rows per added term."""
        own = self.task.term_counts(batch)
        found = {name: own[key] for name, key in self.own.items()}
        for term, head in self.heads.items():
            found[term] = ops.sum(_counts(batch, head))
        if self.pairs:
            total = sum(ops.sum(_positions(batch, side)) for *_, side in self.pairs)
            found |= {key: total for key in ("hidden", "attention") if key in self.terms}
        return found

    def forward(self, model, batch, training):
        """Runs both models and returns the loss terms that the docstring of this file defines."""
        result = self.task.forward(self.student, batch, training)
        sums = {name: result.sums[key] for name, key in self.own.items()}
        said = None
        if self.pairs or (self.heads and "teacher" not in batch):
            said = self.task.forward(self.teacher, batch, training=False).outputs
        for term, head in self.heads.items():
            student = self.student.logits(result.outputs, head)
            teacher = batch["teacher"] if said is None else self.teacher.logits(said, head)
            lost = divergence(teacher, student, self.temperature)
            sums[term] = ops.sum(lost * _counts(batch, head))
        for term, compare in (("hidden", self._hidden), ("attention", self._attention)):
            if term in self.terms:
                sums[term] = sum(
                    ops.sum(compare(one, other) * _positions(batch, side))
                    for one, other, side in self.pairs
                )
        return Forward(sums, result.statistics, result.outputs)

    def _hidden(self, one, other):
        """Returns the mean squared difference of two blocks' outputs at each position, (B, T)."""
        student = ops.cast(self.student.noted[one.name]["output"], "float32")
        if one.name in self.projections:
            student = self.projections[one.name](student)
        teacher = ops.cast(self.teacher.noted[other.name]["output"], "float32")
        return ops.mean(ops.square(student - ops.stop_gradient(teacher)), -1)

    def _attention(self, one, other):
        """Returns KL(teacher || student) of two blocks' attention distributions, (B, T).

        Heads are compared one by one, or by the mean over all heads if their numbers differ.
        """
        student, teacher = (
            ops.log_softmax(
                block.attention_scores(*tapped.noted[block.name]["inputs"][:2]), axis=-1
            )
            for block, tapped in ((one, self.student), (other, self.teacher))
        )
        if student.shape[1] != teacher.shape[1]:
            student, teacher = (
                ops.log(ops.maximum(ops.mean(ops.exp(x), 1, keepdims=True), 1e-37))
                for x in (student, teacher)
            )
        return ops.mean(divergence(teacher, student), 1)

    def frozen(self, model) -> Frozen:
        """Returns no frozen part: the teacher needs the inputs of the student's frozen part."""
        if self.task.frozen(model).model is None:
            return Frozen()
        return Frozen(remark="off: the teacher sees the pictures themselves")

    def stored(self, arrays):
        """Returns the training split; with `cache`, it has the teacher's logits per example."""
        if not (self.settings["cache"] and self.heads):
            return arrays
        return teacher_files.with_outputs(arrays, self.task, self.teacher, self.settings["teacher"])

    def derived(self, metrics):
        """Returns the metrics that the task derives from its own loss terms."""
        own = {key: metrics[name] for name, key in self.own.items()}
        loss = sum(c * own[key] for key, c in self.task.terms.items())
        return self.task.derived({**metrics, **own, "loss": loss})

    def bind(self, model, dataset=None, arguments=None):
        """Binds the student's task to a model and its data."""
        self.task.bind(model, dataset, arguments)
        return self


class _Learner:
    """The variables that the optimizer updates: the student's and those of the projections."""

    def __init__(self, model: keras.Model, variables):
        self.model, self.variables = model, variables

    @property
    def trainable_variables(self):
        return [*self.model.trainable_variables, *self.variables]

    @property
    def non_trainable_variables(self):
        return self.model.non_trainable_variables

    @property
    def losses(self):
        return self.model.losses


class Tapped:
    """A model that records the inputs and outputs of some layers in each call.

    Args:
      model: a Functional model.
      taken: layers of `model` to record.

    Attributes:
      noted: layer name -> {"inputs": tensors, "output": tensor} of the last call.
    """

    def __init__(self, model: keras.Model, taken):
        self.model, self.noted = model, {}
        inside = {
            layer.name: {"inputs": keras.tree.flatten(layer.input), "output": layer.output}
            for layer in taken
        }
        self._run = model
        if inside:
            self._run = keras.Model(model.input, {"outputs": model.output, "inside": inside})
        self._probabilities = Adapter(model).probabilities

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, inputs, training=None):
        found = self._run(inputs, training=training)
        if self._run is self.model:
            return found
        self.noted = found["inside"]
        return found["outputs"]

    def logits(self, outputs, head: str):
        """Returns the logits (..., V) float32 of one output head, up to a constant."""
        found = ops.cast(_heads(outputs)[head], "float32")
        # Logarithms of probabilities are logits. The lower bound keeps the logarithm finite.
        return ops.log(ops.maximum(found, 1e-37)) if self._probabilities else found


def divergence(teacher, student, temperature: float = 1.0):
    """Returns KL(teacher || student) over the last axis.

    Args:
      teacher: (..., V) logits, without gradients.
      student: (..., V) logits.
      temperature: divisor of both logits.

    Returns:
      Divergence (...) float32.
    """
    teacher = ops.stop_gradient(ops.cast(teacher, "float32"))
    theirs, ours = (ops.log_softmax(x / temperature, axis=-1) for x in (teacher, student))
    return ops.sum(ops.exp(theirs) * (theirs - ours), -1)


def _heads(outputs) -> dict:
    return outputs if isinstance(outputs, dict) else {"outputs": outputs}


def _counts(batch, head: str):
    """Returns the weight of each element of a head's output: per target token, or per row."""
    return batch["weight"] if head == "nsp" or "counts" not in batch else batch["counts"]


def _positions(batch, side: str):
    """Returns the weights (B, T) of input positions: 0 for padding, else the weight of the row."""
    real = batch["segments"] > 0 if "segments" in batch else batch[side] != PADDING
    return tf.cast(real, tf.float32) * batch["weight"][:, None]


def _pairs(student: keras.Model, teacher: keras.Model, settings) -> list[tuple]:
    """Returns the pairs of blocks to compare, evenly spread over the teacher's stacks.

    The last blocks form a pair (Sanh et al. 2019, DistilBERT; Jiao et al. 2020, section 3.2).

    Returns:
      `(block of the student, block of the teacher, name of the model input of both)` per pair.
    """
    mine, theirs = (
        {
            key: stack
            for key, stack in Adapter(model).stacks.items()
            if isinstance(stack[0], TransformerBlock) or not settings["attention"]
        }
        for model in (student, teacher)
    )
    if not mine or set(mine) != set(theirs):
        needed = "attention" if settings["attention"] else "hidden"
        listed = [", ".join(f"{kind} of {side}" for kind, side in x) for x in (theirs, mine)]
        raise UsageError(
            f"compress.distill.{needed} compares transformer blocks"
            f"{'' if settings['attention'] else ' or LSTMs'} of one kind. Received: "
            f"{listed[0] or 'none'} in the teacher, {listed[1] or 'none'} in the student."
        )
    pairs = []
    for key, stack in mine.items():
        for i, block in enumerate(stack, 1):
            place = max(1, round(i * len(theirs[key]) / len(stack)))
            pairs.append((block, theirs[key][place - 1], key[1]))
    return pairs
