"""Outputs of a teacher for the training split, computed once and stored on the disk.

The name of each folder is a hash of all inputs of its content, as in `trainers.input.features`.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from trainers.run.workdir import read_config
from zoo import registry
from zoo.data.pipeline import evaluation_batches
from zoo.data.text.parallel import packed_rows
from zoo.data.windows import Windows
from zoo.errors import RunError, UsageError
from zoo.generation.translate import Translator
from zoo.progress import progress
from zoo.saved.workdir import model_path, read_tokenizer
from zoo.storage.disk import file_digest, json_digest, read_json, write_json
from zoo.storage.locks import one_at_a_time
from zoo.storage.paths import cache_dir
from zoo.storage.records import RecordWriter, open_records

_LOG = logging.getLogger(__name__)

_BATCH = 32
_HASH_ROWS = 4096  # number of rows that are hashed at once


def with_outputs(arrays: Mapping, task, teacher, workdir: str) -> dict:
    """Returns a split with "teacher": float16 logits (N, ..., V), shifted to a maximum of 0.

    Args:
      arrays: name -> array of the training split.
      task: task of the student, which prepares the examples.
      teacher: a `trainers.compression.distill.RecordingModel` model.
      workdir: work directory of the teacher.

    Raises:
      UsageError: if examples differ between epochs, so stored outputs would be wrong.
    """
    if reason := _explain_changes(arrays, task):
        raise UsageError(
            f"compress.distill.cache requires examples that are equal in every epoch: {reason}."
        )
    digest = hashlib.sha256(_digest(workdir).encode())
    task_settings = {
        k: v for k, v in vars(task).items() if isinstance(v, (bool, int, float, str, tuple))
    }
    dtypes = [layer.compute_dtype for layer in teacher.layers]
    digest.update(json.dumps([keras.__version__, tf.__version__, task_settings, dtypes]).encode())
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, array.shape, np.dtype(array.dtype).str)).encode())
        for start in range(0, len(array), _HASH_ROWS):
            digest.update(np.ascontiguousarray(array[start : start + _HASH_ROWS]).tobytes())
    folder = cache_dir() / "teachers" / digest.hexdigest()
    with one_at_a_time(folder):
        if not folder.exists():
            count = len(next(iter(arrays.values())))
            _LOG.info(f"computing the outputs of the teacher for {count:,} examples")
            _write(folder, arrays, task, teacher)
        return {**arrays, "teacher": open_records(folder).arrays["teacher"]}


def _explain_changes(arrays: Mapping, task) -> str:
    """Returns the reason why examples differ between epochs; "" if they do not differ."""
    if any(isinstance(array, Windows) for array in arrays.values()):
        return "each epoch cuts a token stream into other windows; set data.packing=best_fit"
    requests = []

    def uniform(count):
        requests.append(count)
        return tf.fill((1, count), 0.5)

    batch = {key: tf.constant(np.asarray(array[:1])) for key, array in arrays.items()}
    task.prepare({**batch, "weight": tf.ones(1)}, uniform, True)
    return "the task changes them at random in each epoch" if requests else ""


def _write(folder, arrays: Mapping, task, teacher) -> None:
    count = len(next(iter(arrays.values())))

    @tf.function(autograph=False)
    def run(batch):
        outputs = task.forward(teacher, batch, training=False).outputs
        logits = teacher.logits(outputs, "outputs")
        return tf.cast(logits - tf.reduce_max(logits, -1, keepdims=True), tf.float16)

    batches = evaluation_batches(
        arrays, task.prepare, batch_size=min(_BATCH, count), replicas=1, training=True
    )
    shape, num_written = run(next(iter(batches))).shape[1:], 0
    with RecordWriter(folder, {"teacher": (shape, "float16")}) as writer:
        steps = -(-count // _BATCH)
        for batch in progress(batches, title="teacher", unit="batches", total=steps):
            rows = run(batch).numpy()[: count - num_written]  # the last batch is padded
            writer.append(teacher=rows)
            num_written += len(rows)


def with_teacher_sentences(dataset, settings: Mapping, config):
    """Returns a dataset with the teacher's translations as training targets.

    Args:
      dataset: a `zoo.data.text.parallel.ParallelDataset`.
      settings: the section `compress.distill`; `sentences` is the beam width of the teacher.
      config: config of the student's run.

    Raises:
      UsageError: if there are no sentences to translate, validation examples would be held out of
        the training split, or every translation is empty.
    """
    pairs = getattr(dataset, "pairs", {}).get("train")
    if pairs is None:
        raise UsageError(
            "compress.distill.sentences requires sentence pairs and the task seq2seq. Received: "
            f"dataset {dataset.name!r} and task {config.task.name!r}."
        )
    if config.data.validation_size:
        raise UsageError(
            "compress.distill.sentences requires data.validation_size=0, because examples held out "
            "of the teacher's translations would measure the teacher. Received: "
            f"{config.data.validation_size}. Use a dataset with a validation split."
        )
    workdir, beams = settings["teacher"], settings["sentences"]
    saved_config = read_config(workdir)
    check_data(saved_config, dataset, workdir)
    sources = [source for source, _ in pairs()]
    penalty = registry.build_task(**config.task.to_dict()).length_penalty
    digest = json_digest([_digest(workdir), beams, penalty, sources])
    path = cache_dir() / "teachers" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path):
        if not path.exists():
            _LOG.info(f"translating {len(sources):,} sentences with the teacher")
            translator = Translator(registry.load(workdir), read_tokenizer(workdir, saved_config))
            write_json(path, translator(sources, beams=beams, length_penalty=penalty))
        targets = read_json(path)
    if not isinstance(targets, list) or list(map(type, targets)) != [str] * len(sources):
        raise RunError(f"{path} is damaged. Delete the file, and the next run writes it again.")
    translated_pairs = [pair for pair in zip(sources, targets, strict=True) if pair[1]]
    if not translated_pairs:
        raise UsageError(f"Every translation of the teacher is empty. Received: {workdir}.")
    data = config.data
    rows = packed_rows(
        iter(translated_pairs),
        "train",
        dataset.tokenizer,
        data.sequence_length,
        data.packing == "best_fit",
    )
    return dataclasses.replace(
        dataset, splits={**dataset.splits, "train": rows},
        fingerprint=hashlib.sha256((dataset.fingerprint + digest).encode()).hexdigest(),
    )  # fmt: skip


def check_data(saved_config: Mapping, dataset, workdir: str) -> None:
    """Raises `UsageError` if a teacher was trained with another tokenizer or other classes.

    Args:
      saved_config: content of the teacher's config.json.
      dataset: dataset of the student.
      workdir: work directory of the teacher.
    """
    tokenizer = dataset.tokenizer and dataset.tokenizer.fingerprint
    if saved_config["tokenizer"] != tokenizer:
        raise UsageError(
            "Teacher and student must use the same tokenizer. Received: "
            f"{str(saved_config['tokenizer'])[:12]} of the teacher, {str(tokenizer)[:12]} of the "
            f"data. Set data.tokenizer={workdir}."
        )
    if saved_config["class_names"] != list(dataset.class_names):
        raise UsageError(
            f"Teacher and student must have the same classes. Received: "
            f"{', '.join(saved_config['class_names'])} of the teacher, "
            f"{', '.join(dataset.class_names)} of the data."
        )


def _digest(workdir: str) -> str:
    return file_digest(model_path(workdir))
