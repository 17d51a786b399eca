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
_READ = 4096  # number of rows that are hashed at once


def with_outputs(arrays: Mapping, task, teacher, workdir: str) -> dict:
    """Returns a split with "teacher": float16 logits (N, ..., V), shifted to a maximum of 0.

    Args:
      arrays: name -> array of the training split.
      task: task of the student, which prepares the examples.
      teacher: a `trainers.compression.distill.Tapped` model.
      workdir: work directory of the teacher.

    Raises:
      UsageError: if examples differ between epochs, so that stored outputs would not fit.
    """
    if reason := _changes(arrays, task):
        raise UsageError(
            f"compress.distill.cache keeps what the teacher says of fixed examples; {reason}."
        )
    digest = hashlib.sha256(_digest(workdir).encode())
    plain = {k: v for k, v in vars(task).items() if isinstance(v, (bool, int, float, str, tuple))}
    kinds = [layer.compute_dtype for layer in teacher.layers]
    digest.update(json.dumps([keras.__version__, tf.__version__, plain, kinds]).encode())
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, array.shape, np.dtype(array.dtype).str)).encode())
        for start in range(0, len(array), _READ):
            digest.update(np.ascontiguousarray(array[start : start + _READ]).tobytes())
    folder = cache_dir() / "teachers" / digest.hexdigest()
    with one_at_a_time(folder):
        if not folder.exists():
            count = len(next(iter(arrays.values())))
            _LOG.info(f"the teacher reads {count:,} examples")
            _write(folder, arrays, task, teacher)
        return {**arrays, "teacher": open_records(folder).arrays["teacher"]}


def _changes(arrays: Mapping, task) -> str:
    """Returns the reason why examples differ between epochs; "" if they do not differ."""
    if any(isinstance(array, Windows) for array in arrays.values()):
        return "windows over a stream are cut elsewhere in each epoch (data.packing=best_fit)"
    asked = []

    def uniform(count):
        asked.append(count)
        return tf.fill((1, count), 0.5)

    batch = {key: tf.constant(np.asarray(array[:1])) for key, array in arrays.items()}
    task.prepare({**batch, "weight": tf.ones(1)}, uniform, True)
    return "here they are changed at random in each epoch" if asked else ""


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
    shape, written = run(next(iter(batches))).shape[1:], 0
    with RecordWriter(folder, {"teacher": (shape, "float16")}) as writer:
        steps = -(-count // _BATCH)
        for batch in progress(batches, title="teacher", unit="batches", total=steps):
            rows = run(batch).numpy()[: count - written]  # the last batch is padded
            writer.append(teacher=rows)
            written += len(rows)


def with_teacher_sentences(dataset, settings: Mapping, config):
    """Returns a data set with the teacher's translations as training targets.

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
            "compress.distill.sentences takes pairs of sentences, of the task seq2seq. Received: "
            f"{dataset.name!r} for the task {config.task.name!r}."
        )
    if config.data.validation_size:
        raise UsageError(
            "compress.distill.sentences takes a corpus with a validation split: what is held "
            f"out of the teacher's sentences measures the teacher. Received: data.validation_size="
            f"{config.data.validation_size}."
        )
    workdir, beams = settings["teacher"], settings["sentences"]
    saved = read_config(workdir)
    check_data(saved, dataset, workdir)
    sources = [source for source, _ in pairs()]
    penalty = registry.build_task(**config.task.to_dict()).length_penalty
    digest = json_digest([_digest(workdir), beams, penalty, sources])
    path = cache_dir() / "teachers" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path):
        if not path.exists():
            _LOG.info(f"the teacher translates {len(sources):,} sentences")
            translator = Translator(registry.load(workdir), read_tokenizer(workdir, saved))
            write_json(path, translator(sources, beams=beams, length_penalty=penalty))
        targets = read_json(path)
    if not isinstance(targets, list) or list(map(type, targets)) != [str] * len(sources):
        raise RunError(f"{path} is damaged: delete it, and it is made again.")
    kept = [pair for pair in zip(sources, targets, strict=True) if pair[1]]
    if not kept:
        raise UsageError(f"The teacher translates every sentence to nothing: {workdir}.")
    data = config.data
    rows = packed_rows(
        iter(kept), "train", dataset.tokenizer, data.sequence_length, data.packing == "best_fit"
    )
    return dataclasses.replace(
        dataset, splits={**dataset.splits, "train": rows},
        fingerprint=hashlib.sha256((dataset.fingerprint + digest).encode()).hexdigest(),
    )  # fmt: skip


def check_data(saved: Mapping, dataset, workdir: str) -> None:
    """Raises `UsageError` if a teacher was trained with another tokenizer or other classes.

    Args:
      saved: content of the teacher's config.json.
      dataset: data set of the student.
      workdir: work directory of the teacher.
    """
    tokenizer = dataset.tokenizer and dataset.tokenizer.fingerprint
    if saved["tokenizer"] != tokenizer:
        raise UsageError(
            "Teacher and student read with one tokenizer. Received: a teacher with "
            f"{str(saved['tokenizer'])[:12]}, data with {str(tokenizer)[:12]}; set "
            f"data.tokenizer={workdir}."
        )
    if saved["class_names"] != list(dataset.class_names):
        raise UsageError(
            f"Teacher and student know the same classes. Received: a teacher of "
            f"{', '.join(saved['class_names'])} for data of {', '.join(dataset.class_names)}."
        )


def _digest(workdir: str) -> str:
    return file_digest(model_path(workdir))
