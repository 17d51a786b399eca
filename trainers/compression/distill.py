"""Distillation: a student learns what a trained teacher says, beside what the data say.

    (1 - alpha) * the task's own loss
    + alpha * T^2 * KL(teacher || student), both softened by the temperature T
    + hidden * mean squared difference of hidden states
    + attention * KL(teacher || student) of where each position looks

Hinton et al. 2015 (arXiv:1503.02531) for the second line, of which T^2 keeps the gradient's size;
Jiao et al. 2020 (TinyBERT, arXiv:1909.10351) for the third, with a learned projection where widths
differ; Wang et al. 2020 (MiniLM, arXiv:2002.10957) for the fourth. Each is a loss term like any
other: a sum over what counts, a weight known from the batch, a coefficient.

For translation the teacher's own translations can stand in for the references (Kim and Rush 2016,
Sequence-level knowledge distillation, arXiv:1606.07947): `with_teacher_sentences`.
"""

import functools
import re
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


class Distillation:
    """A task, and besides it what a teacher says; all that is not here is the task's.

    Made inside the strategy's scope.

    Args:
      task: what a batch means.
      student: a built model.
      teacher: a built model; it computes as in inference and stays as it is.
      settings: the section `compress.distill`.

    Attributes:
      terms: the task's own ("loss" is called "labels"), "soft" (of a second head "soft_nsp"),
        "hidden" and "attention", those whose coefficient is above 0.
      variables: of the projections, which are trained and kept in checkpoints.
    """

    def __init__(self, task: Task, student: keras.Model, teacher: keras.Model, settings: Mapping):
        self.task, self.settings = task, settings
        alpha, self.temperature = settings["alpha"], settings["temperature"]
        self.own = {"labels" if name == "loss" else name: name for name in task.terms}
        # The first stays at alpha=1: throughput is counted by its weight.
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
        for one, other in self.pairs if settings["hidden"] else ():
            widths = [layer.output.shape[-1] for layer in (one, other)]
            if widths[0] != widths[1]:
                dense = layers.Dense(
                    widths[1], use_bias=False, dtype="float32", name=f"projection_{one.name}"
                )
                dense.build((None, None, widths[0]))
                self.projections[one.name] = dense
        self.variables = [v for dense in self.projections.values() for v in dense.variables]
        self.prepare = functools.partial(_prepare, task)

    def __getattr__(self, name):
        return getattr(self.task, name)

    # --- what the train step asks of a task -----------------------------------------------------

    def players(self, model) -> tuple[Player, ...]:
        """One: the student with the projections."""
        return (Player("", _Learner(model, self.variables), self.terms, self.forward),)

    def term_counts(self, batch):
        """Those of the task; of a position each, or a row, for what the teacher says."""
        own = self.task.term_counts(batch)
        found = {name: own[key] for name, key in self.own.items()}
        for term, head in self.heads.items():
            found[term] = ops.sum(_counts(batch, head))
        if self.pairs:
            total = sum(ops.sum(_positions(batch, one.name)) for one, _ in self.pairs)
            found |= {key: total for key in ("hidden", "attention") if key in self.terms}
        return found

    def forward(self, model, batch, training):
        """Runs both models; see the top of this file for the terms."""
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
        for term, compare in (("hidden", self._hidden), ("attention", _attention)):
            if term in self.terms:
                sums[term] = sum(
                    ops.sum(compare(*self._noted(pair), *pair) * _positions(batch, pair[0].name))
                    for pair in self.pairs
                )
        return Forward(sums, result.statistics, result.outputs)

    def _noted(self, pair):
        return self.student.noted[pair[0].name], self.teacher.noted[pair[1].name]

    def _hidden(self, mine, theirs, layer, _):
        """The mean squared difference of each position (B, T)."""
        student = ops.cast(mine["output"], "float32")
        if layer.name in self.projections:
            student = self.projections[layer.name](student)
        gap = student - ops.stop_gradient(ops.cast(theirs["output"], "float32"))
        return ops.mean(ops.square(gap), -1)

    # --- what the trainer asks of a task --------------------------------------------------------

    def frozen(self, model) -> Frozen:
        """None: the teacher sees what a frozen part of the student would be spared."""
        if self.task.frozen(model).model is None:
            return Frozen()
        return Frozen(remark="off: the teacher sees the pictures themselves")

    def stored(self, arrays):
        """The training split, with what the teacher says of each example where that is kept."""
        if not (self.settings["cache"] and self.heads):
            return arrays
        return teacher_files.with_outputs(arrays, self.task, self.teacher, self.settings["teacher"])

    def derived(self, metrics):
        """What the task derives, from its own part of the loss."""
        own = {key: metrics[name] for name, key in self.own.items()}
        loss = sum(c * own[key] for key, c in self.task.terms.items())
        return self.task.derived({**metrics, **own, "loss": loss})


def _prepare(task: Task, batch, uniform, training) -> dict:
    """What the task makes of it; which rows count; and what the teacher said of each."""
    kept = {"teacher": batch["teacher"]} if "teacher" in batch else {}
    return {"weight": batch["weight"], **task.prepare(batch, uniform, training), **kept}


class _Learner:
    """What the optimizer moves: a student and the projections of its hidden states."""

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
    """A model that, when it is called, notes what goes into some layers and what comes out.

    Args:
      model: a Functional model.
      taken: layers of it.

    Attributes:
      noted: name -> {"inputs": tensors, "output": tensor} of the last call.
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
        self._softmax = getattr(model.layers[-1], "activation", None) is keras.activations.softmax

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, inputs, training=None):
        found = self._run(inputs, training=training)
        if self._run is self.model:
            return found
        self.noted = found["inside"]
        return found["outputs"]

    def logits(self, outputs, head: str):
        """Logits (..., V) float32 of a head of the outputs, up to a constant."""
        found = ops.cast(_heads(outputs)[head], "float32")
        # Logarithms of probabilities are logits; this small one stays finite.
        return ops.log(ops.maximum(found, 1e-37)) if self._softmax else found


def divergence(teacher, student, temperature: float = 1.0):
    """Returns KL(teacher || student) over the last axis.

    Args:
      teacher: (..., V) logits, without gradients.
      student: (..., V) logits.
      temperature: by which both are divided.

    Returns:
      (...) float32.
    """
    teacher = ops.stop_gradient(ops.cast(teacher, "float32"))
    theirs, ours = (ops.log_softmax(x / temperature, axis=-1) for x in (teacher, student))
    return ops.sum(ops.exp(theirs) * (theirs - ours), -1)


def _attention(mine, theirs, layer, other):
    """How far apart the distributions lie over which each position looks, (B, T).

    Head by head; of the mean of all heads where their numbers differ.
    """
    student, teacher = (
        ops.log_softmax(block.attention_scores(*noted["inputs"][:2]), axis=-1)
        for block, noted in ((layer, mine), (other, theirs))
    )
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (
            ops.log(ops.maximum(ops.mean(ops.exp(x), 1, keepdims=True), 1e-37))
            for x in (student, teacher)
        )
    return ops.mean(divergence(teacher, student), 1)


def _heads(outputs) -> dict:
    return outputs if isinstance(outputs, dict) else {"outputs": outputs}


def _counts(batch, head: str):
    """How much each element of a head's output counts: words asked for, or rows."""
    return batch["weight"] if head == "nsp" or "counts" not in batch else batch["counts"]


def _positions(batch, layer: str):
    """Which positions (B, T) of a layer count: all that are no padding."""
    side = {"encoder": "source", "decoder": "target"}.get(layer.rpartition("_")[0])
    real = batch["segments"] > 0 if side is None else batch[side] != PADDING
    return tf.cast(real, tf.float32) * batch["weight"][:, None]


def _pairs(student: keras.Model, teacher: keras.Model, settings) -> list[tuple]:
    """Layers of the student with those of the teacher that they take after, evenly spread.

    The last goes with the last (Sanh et al. 2019, DistilBERT; Jiao et al. 2020, section 3.2).
    """
    kinds = (TransformerBlock,) if settings["attention"] else (TransformerBlock, layers.LSTM)

    def stacks(model):
        found = {}
        for layer in model.layers:
            name = re.fullmatch(r"(.+)_\d+", layer.name)
            if isinstance(layer, kinds) and name:
                found.setdefault(name[1], []).append(layer)
        return found

    mine, theirs = stacks(student), stacks(teacher)
    if not mine or set(mine) != set(theirs):
        needed = "attention" if settings["attention"] else "hidden"
        raise UsageError(
            f"compress.distill.{needed} compares transformer blocks"
            f"{'' if settings['attention'] else ' or LSTMs'} of one kind. Received: "
            f"{', '.join(theirs) or 'none'} in the teacher, {', '.join(mine) or 'none'} in the "
            "student."
        )
    pairs = []
    for name, stack in mine.items():
        count = len(theirs[name])
        places = [max(1, round((i + 1) * count / len(stack))) for i in range(len(stack))]
        pairs += [(one, theirs[name][j - 1]) for one, j in zip(stack, places, strict=True)]
    return pairs
