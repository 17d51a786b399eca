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
from zoo.data.text.special_tokens import PADDING
from zoo.errors import UsageError
from zoo.layers.attention import Features, Lsh
from zoo.layers.experts.block import ExpertBlock
from zoo.layers.transformer import TransformerBlock
from zoo.models.adapter import Adapter
from zoo.models.float32 import in_float32
from zoo.saved.model import load_model
from zoo.tasks.base import Forward, FrozenPart, ModelPart, Task


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
        saved_config = read_config(settings["teacher"])
        teacher = load_model(settings["teacher"])
        if config.trainer.precision == "float32":
            teacher = in_float32(teacher)
        _check_pair(saved_config, teacher, model, task, config, dataset)
        return Distillation(task, model, teacher, settings)


def _check_pair(saved_config, teacher, student, task, config, dataset) -> None:
    teacher_task = saved_config["config"]["task"]["name"]
    if teacher_task != config.task.name:
        raise UsageError(
            f"Teacher and student must have the same task. Received: task {teacher_task!r} of the "
            f"teacher, task {config.task.name!r} of the student."
        )
    if len(task.model_parts(student)) > 1:
        raise UsageError(
            "compress.distill does not support tasks of several networks. Received: "
            f"{teacher_task!r}."
        )
    if config.task.get("chunk"):
        raise UsageError(
            "compress.distill computes all logits at once: set task.chunk=0. Received: "
            f"task.chunk={config.task.chunk}."
        )
    if dataset is not None:
        teacher_files.check_data(saved_config, dataset, config.compress.distill.teacher)
    teacher_sizes, student_sizes = (
        {key: x.shape[-1] for key, x in _heads(model.output).items()}
        for model in (teacher, student)
    )
    if teacher_sizes != student_sizes:
        raise UsageError(
            "Teacher and student must have outputs of the same vocabulary or the same classes. "
            f"Received: sizes {list(teacher_sizes.values())} of the teacher, "
            f"{list(student_sizes.values())} of the student."
        )
    try:
        if dataset is not None:
            task.check(teacher, dataset)
    except UsageError as error:
        raise UsageError(f"The teacher does not support the student's data: {error}") from None


# Attributes and methods that `Distillation` copies from the student's task.
_COPIED_ATTRIBUTES = (
    "statistics", "monitor", "monitor_mode", "keeps_best", "unit", "sample_kind", "complete",
    "check_arguments", "check", "data_warnings", "serving_model", "warning", "predictions",
    "evaluate_split", "synthetic", "with_head", "lengths", "end_update",
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
        for name in _COPIED_ATTRIBUTES:
            setattr(self, name, getattr(task, name))
        alpha, self.temperature = settings["alpha"], settings["temperature"]
        self.task_terms = {"labels" if name == "loss" else name: name for name in task.terms}
        # The first term remains even if alpha is 1, because throughput is computed from its count.
        self.terms = {name: (1 - alpha) * task.terms[own] for name, own in self.task_terms.items()}
        self.heads = {}
        if alpha:
            self.heads = {"soft" if i == 0 else f"soft_{key}": key
                          for i, key in enumerate(_heads(student.output))}  # fmt: skip
            self.terms |= dict.fromkeys(self.heads, alpha * self.temperature**2)
        self.terms |= {key: settings[key] for key in ("hidden", "attention") if settings[key]}
        compares_blocks = settings["hidden"] or settings["attention"]
        self.pairs = _pairs(student, teacher, settings) if compares_blocks else []
        student_blocks, teacher_blocks = ([pair[i] for pair in self.pairs] for i in range(2))
        self.student, self.teacher = (
            RecordingModel(student, student_blocks),
            RecordingModel(teacher, teacher_blocks),
        )
        self.projections = {}
        for student_block, teacher_block, _ in self.pairs if settings["hidden"] else ():
            widths = [layer.output.shape[-1] for layer in (student_block, teacher_block)]
            if widths[0] != widths[1]:
                dense = layers.Dense(
                    widths[1],
                    use_bias=False,
                    dtype="float32",
                    name=f"projection_{student_block.name}",
                )
                dense.build((None, None, widths[0]))
                self.projections[student_block.name] = dense
        self.variables = [v for dense in self.projections.values() for v in dense.variables]

    def model_parts(self, model) -> tuple[ModelPart, ...]:
        """Returns a single part: the student with the projections."""
        return (ModelPart("", _TrainableStudent(model, self.variables), self.terms, self.forward),)

    def prepare(self, batch, uniform, training):
        """Returns the task's batch with the row weights, and the teacher's outputs if stored."""
        stored_logits = {"teacher": batch["teacher"]} if "teacher" in batch else {}
        prepared_batch = self.task.prepare(batch, uniform, training)
        return {"weight": batch["weight"], **prepared_batch, **stored_logits}

    def term_counts(self, batch):
        """Returns the counts of the task, and the number of positions or rows per added term."""
        task_counts = self.task.term_counts(batch)
        counts = {name: task_counts[key] for name, key in self.task_terms.items()}
        for term, head in self.heads.items():
            counts[term] = ops.sum(_counts(batch, head))
        if self.pairs:
            total = sum(ops.sum(_positions(batch, side)) for *_, side in self.pairs)
            counts |= {key: total for key in ("hidden", "attention") if key in self.terms}
        return counts

    def forward(self, model, batch, training):
        """Runs both models and returns the loss terms that the docstring of this file defines."""
        result = self.task.forward(self.student, batch, training)
        sums = {name: result.sums[key] for name, key in self.task_terms.items()}
        teacher_outputs = None
        if self.pairs or (self.heads and "teacher" not in batch):
            teacher_outputs = self.task.forward(self.teacher, batch, training=False).outputs
        for term, head in self.heads.items():
            student = self.student.logits(result.outputs, head)
            teacher = (
                batch["teacher"]
                if teacher_outputs is None
                else self.teacher.logits(teacher_outputs, head)
            )
            divergences = divergence(teacher, student, self.temperature)
            sums[term] = ops.sum(divergences * _counts(batch, head))
        for term, compare in (("hidden", self._hidden), ("attention", self._attention)):
            if term in self.terms:
                sums[term] = sum(
                    ops.sum(compare(student_block, teacher_block) * _positions(batch, side))
                    for student_block, teacher_block, side in self.pairs
                )
        return Forward(sums, result.statistics, result.outputs, result.totals)

    def _hidden(self, student_block, teacher_block):
        """Returns the mean squared difference of two blocks' outputs at each position, (B, T)."""
        student = ops.cast(self.student.recorded_tensors[student_block.name]["output"], "float32")
        if student_block.name in self.projections:
            student = self.projections[student_block.name](student)
        teacher = ops.cast(self.teacher.recorded_tensors[teacher_block.name]["output"], "float32")
        return ops.mean(ops.square(student - ops.stop_gradient(teacher)), -1)

    def _attention(self, student_block, teacher_block):
        """Returns KL(teacher || student) of two blocks' attention distributions, (B, T).

        Heads are compared one by one, or by the mean over all heads if their numbers differ.
        """
        student, teacher = (
            ops.log_softmax(
                _scores(block, recorder.recorded_tensors[block.name]["inputs"]),
                axis=-1,
            )
            for block, recorder in ((student_block, self.student), (teacher_block, self.teacher))
        )
        if student.shape[1] != teacher.shape[1]:
            student, teacher = (
                ops.log(ops.maximum(ops.mean(ops.exp(x), 1, keepdims=True), 1e-37))
                for x in (student, teacher)
            )
        return ops.mean(divergence(teacher, student), 1)

    def frozen_part(self, model) -> FrozenPart:
        """Returns no frozen part: the teacher needs the inputs of the student's frozen part."""
        if self.task.frozen_part(model).model is None:
            return FrozenPart()
        return FrozenPart(reason="off: the teacher sees the images themselves")

    def add_training_arrays(self, arrays):
        """Returns the training split; with `cache`, it has the teacher's logits per example."""
        if not (self.settings["cache"] and self.heads):
            return arrays
        return teacher_files.with_outputs(arrays, self.task, self.teacher, self.settings["teacher"])

    def derived_metrics(self, metrics):
        """Returns the metrics that the task derives from its own loss terms."""
        task_metrics = {key: metrics[name] for name, key in self.task_terms.items()}
        loss = sum(c * task_metrics[key] for key, c in self.task.terms.items())
        return self.task.derived_metrics({**metrics, **task_metrics, "loss": loss})

    def bind(self, model, dataset=None, arguments=None):
        """Binds the student's task to a model and its data."""
        self.task.bind(model, dataset, arguments)
        return self


class _TrainableStudent:
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


class RecordingModel:
    """A model that records the inputs and outputs of some layers in each call.

    Args:
      model: a Functional model.
      recorded_layers: layers of `model` to record.

    Attributes:
      recorded_tensors: layer name -> {"inputs": tensors, "output": tensor} of the last call.
    """

    def __init__(self, model: keras.Model, recorded_layers):
        self.model, self.recorded_tensors = model, {}
        inside = {
            layer.name: {"inputs": keras.tree.flatten(layer.input), "output": layer.output}
            for layer in recorded_layers
        }
        self._run = model
        if inside:
            self._run = keras.Model(model.input, {"outputs": model.output, "inside": inside})
        self._probabilities = Adapter(model).probabilities

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, inputs, training=None):
        outputs = self._run(inputs, training=training)
        if self._run is self.model:
            return outputs
        self.recorded_tensors = outputs["inside"]
        return outputs["outputs"]

    def logits(self, outputs, head: str):
        """Returns the logits (..., V) float32 of one output head, up to a constant."""
        values = ops.cast(_heads(outputs)[head], "float32")
        # Logarithms of probabilities are logits. The lower bound keeps the logarithm finite.
        return ops.log(ops.maximum(values, 1e-37)) if self._probabilities else values


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
    teacher_logs, student_logs = (
        ops.log_softmax(x / temperature, axis=-1) for x in (teacher, student)
    )
    return ops.sum(ops.exp(teacher_logs) * (teacher_logs - student_logs), -1)


def _scores(block: TransformerBlock, inputs):
    """Returns the scores of self-attention; a memory and its bias follow the mask in the inputs."""
    return block.attention_scores(*inputs[: 2 if block.cross_attention is not None else 3])


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
    student_stacks, teacher_stacks = (
        {
            key: stack
            for key, stack in Adapter(model).stacks.items()
            if isinstance(stack[0], TransformerBlock) or not settings["attention"]
        }
        for model in (student, teacher)
    )
    if not student_stacks or set(student_stacks) != set(teacher_stacks):
        setting = "attention" if settings["attention"] else "hidden"
        kinds = [
            ", ".join(f"{kind} of {side}" for kind, side in x)
            for x in (teacher_stacks, student_stacks)
        ]
        raise UsageError(
            f"compress.distill.{setting} requires transformer blocks"
            f"{'' if settings['attention'] else ' or LSTMs'} of the same kind. Received: "
            f"{kinds[0] or 'none'} in the teacher, {kinds[1] or 'none'} in the student."
        )
    forms = {
        type(block.attention.form)
        for stack in (*student_stacks.values(), *teacher_stacks.values())
        for block in stack
        if isinstance(block, TransformerBlock)
    }
    if settings["attention"] and forms & {Lsh, Features}:
        raise UsageError(
            "compress.distill.attention requires the scores of all pairs of positions, which the "
            "forms lsh and features do not compute. Set compress.distill.attention=0."
        )
    if any(isinstance(stack[0], ExpertBlock) for stack in student_stacks.values()):
        raise UsageError(
            "compress.distill.hidden and compress.distill.attention do not support blocks of "
            "experts: set both to 0 and use compress.distill.alpha."
        )
    pairs = []
    for key, stack in student_stacks.items():
        for i, block in enumerate(stack, 1):
            index = max(1, round(i * len(teacher_stacks[key]) / len(stack)))
            pairs.append((block, teacher_stacks[key][index - 1], key[1]))
    return pairs
