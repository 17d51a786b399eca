"""THE trainer: builds what a recipe names, runs the loop, and leaves a work directory.

The loop is ours because `fit` cannot resume inside an epoch, nor run under several of the
strategies (docs/keras3.md). Keras' callbacks, metrics, optimizers and progress bar run in it
unchanged. Read `Trainer.train` from top to bottom for the order of things.
"""

import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainers import checkpoint, compress, tpu
from trainers.build import build_step, update_function
from trainers.callbacks import make_callbacks
from trainers.cluster import Cluster, code_fingerprint, read_cluster
from trainers.evaluate import (
    Evaluator,
    Result,
    read_evaluation,
    weights_name,
    write_evaluation,
)
from trainers.goodput import Goodput
from trainers.link import Alone, Link
from trainers.log_windows import LogWindows
from trainers.loop import Loop
from trainers.padding import check_padding
from trainers.precision import slow_bfloat16
from trainers.preemption import Stop
from trainers.recipe import as_dict, check, check_batch, check_examples, user_files
from trainers.samples import sample_writer
from trainers.saver import Saver
from trainers.schedules import total_steps
from trainers.statistics import Statistics, statistics_batches
from trainers.strategy import make_strategy, prepare_devices
from trainers.workdir import NoDirectory, WorkDirectory, read_config, save_model
from zoo import registry
from zoo.data import pipeline
from zoo.data.hold_out import judged_split, with_hold_out
from zoo.errors import RunError, UsageError
from zoo.tasks.base import Frozen

_LAST_CHECKPOINT = 25.0  # seconds to write it before the process ends because another was lost


class Trainer(Loop):
    """One run of one recipe in one work directory.

    Args:
      config: a resolved recipe, see `trainers.recipe.resolve`.
      workdir: where everything is written; run again to resume.
      source: name of the recipe, for the report.
      dataset: a `zoo.data.Dataset` in place of the one that `data.source` names.
      callbacks: Keras callbacks besides those that the recipe names.
      read_test: whether the model may be judged by the test split at the end; by the validation
        split otherwise.
      cluster: of strategy multi_worker; None reads TF_CONFIG.
      tpu_name: of strategy tpu, see `trainers.tpu.tpu_strategy`.

    With several workers each runs the same program. The first, the chief, alone touches the work
    directory and runs the recipe's callbacks; what it decides, the others hear from `self.link`.
    After `train`, `step.net` is the trained model; with `trainer.ema` it has the weights that would
    train on, and model.keras in the work directory their average. `result` says what the returned
    metrics were measured on.
    """

    def __init__(
        self,
        config,
        workdir: str | Path,
        *,
        source: str = "",
        dataset=None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        read_test: bool = True,
        cluster: Cluster | None = None,
        tpu_name: str = "local",
    ):
        check(config)
        self.config = config
        self.source = source
        self.cluster, self.link, self.saver = None, Alone(), None
        if config.trainer.strategy == "multi_worker":
            self.cluster = cluster or read_cluster()
            self.link = Link(self.cluster, last=self._wait_for_checkpoint)
            check_batch(config, len(self.cluster.workers))
        self.workdir = (WorkDirectory if self.link.chief else NoDirectory)(workdir)
        self.dataset = dataset
        self.callbacks = list(callbacks)
        self.tpu_name = tpu_name
        self.read_test = read_test
        # What a checkpoint holds besides variables.
        self.counters = {
            "skipped_batches": 0, "rollbacks": 0, "best": None, "seconds": 0.0, "stopped": False,
            "useful": 0.0, "unevaluated": False, "windows": None, "lines": 0,
        }  # fmt: skip
        name = self.cluster.name(self.link.index) if self.cluster else ""
        self.stop = Stop(config.trainer.preemption_notice, name)
        self._said: set[tuple[str, str]] = set()
        self.result: Result | None = None

    # --- the run, in order ----------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Trains, or goes on training, to the end.

        Returns:
          The metrics of the test split; where there is none (or `read_test` is off) of the
          validation split; where there is none either, the training means of the last log window.

        Raises:
          UsageError: where recipe, data, model and work directory do not fit together.
          RunError: where the loss is not finite, or a file cannot be read or written.
          Terminated: after SIGTERM or a preemption notice, once everything is saved.
        """
        self.link.connect()
        with self.link.together():
            found = self.link.share(dataclasses.astuple(self._train()))
        self.result = Result(*found)
        return self.result.metrics

    def _train(self) -> Result:
        self.workdir.open()
        try:
            self._build()
            # Checked before anything is written: a wrong init_from leaves no work directory.
            found = self._checkpoints()
            if self.config.init_from and not found and self.link.chief:
                from trainers.init_from import initialize

                tokenizer = self.dataset.tokenizer
                widths = self.config.compress.structured.widths
                said = initialize(self.step.net, self.config.init_from, tokenizer, widths)
                print(said, file=sys.stderr)
            for compressor in self.step.compressors:
                compressor.begin()
            if found and self.link.chief and (self.workdir / "config.json").exists():
                self._check_rows_together()
            self.workdir.write_config(
                as_dict(self.config), self.source, self.dataset, self.replicas
            )
            if self.dataset.tokenizer is not None and self.link.chief:
                self.dataset.tokenizer.save(self.workdir / "tokenizer.json")
            self._restore(found := self._checkpoints())  # what there is now: see `write_config`
            if self.link.share(self._is_finished()):
                print(f"{self.workdir.path} is finished already", file=sys.stderr)
                return read_evaluation(self.workdir, self.judged) or self._training_means()
            devices = [device.name for device in tf.config.list_logical_devices()]
            self.workdir.write_environment(devices)
            if self.link.chief:
                self.saver = Saver(
                    self.workdir / "checkpoints", self.step, self.config.trainer.keep,
                    self.workdir.push,
                )  # fmt: skip
            self._start_log(found)
            if said := slow_bfloat16(self.config.trainer.precision, devices):
                self._event("warning", said)
            self._run_frozen_once()
            with self.stop.listening():
                self._loop()
                if self.saver:
                    self.saver.wait()  # a SIGTERM while it finishes loses nothing
            return self._finish()
        finally:
            try:
                if self.saver:
                    self.saver.close()
            finally:
                self.workdir.close()

    def _build(self) -> None:
        config, trainer = self.config, self.config.trainer
        prepare_devices(trainer.replicas, trainer.deterministic)
        devices = ",".join(device.device_type for device in tf.config.list_physical_devices())
        self.link.same("number and kind of devices", devices)
        self.link.same("list of workers", ",".join(self.cluster.workers) if self.cluster else "")
        self.link.same("code and versions", code_fingerprint(user_files) if self.cluster else "")
        self.link.same("recipe", json.dumps(as_dict(config), sort_keys=True))
        self.strategy = make_strategy(
            trainer.strategy, trainer.replicas, self.cluster, self.tpu_name
        )
        self.replicas = self.strategy.num_replicas_in_sync
        check_batch(config, self.replicas)
        if self.dataset is None:
            self.dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
        self.link.same("data", self.dataset.fingerprint)
        self.dataset = compress.settle(config, self.workdir.path, self.dataset)
        self.dataset, self.hold_out_note = with_hold_out(self.dataset, config.data.validation_size)
        self.arrays = self.dataset.splits["train"]
        self.judged = judged_split(self.dataset.splits, self.read_test)
        tpu.check(config, self.strategy, self.arrays)
        self.examples = len(next(iter(self.arrays.values())))
        check_examples(self.arrays, trainer.global_batch_size)
        self.steps_per_epoch = pipeline.steps_per_epoch(self.examples, trainer.global_batch_size)
        self.total_steps = total_steps(trainer, self.examples)

        self.step, self.task = build_step(config, self.strategy, self.total_steps, self.dataset)
        self.task.check(self.step.net, self.dataset)
        self.remarks = self.task.remarks(self.dataset)
        self.held_out = self.dataset.splits.get("validation")
        self.writer = sample_writer(self.step, self.dataset, config, self.workdir.path)
        self.evaluates = self.held_out is not None or self.writer is not None
        named = make_callbacks(config, self.workdir) if self.link.chief else []
        self.all_callbacks = [*self.callbacks, *named]
        if any(getattr(callback, "restore_best_weights", False) for callback in self.all_callbacks):
            raise UsageError(
                "restore_best_weights would leave checkpoints and moving averages of other weights "
                "than the model's: leave it off; the best model is kept as best/model.keras."
            )
        together = trainer.micro_batch_size or trainer.global_batch_size // self.replicas
        check_padding(self.step, self.task, self.arrays, together)
        self.windows = LogWindows(self.step.means)
        self._run = update_function(self.step, self.strategy)

    def _check_rows_together(self) -> None:
        """Raises `UsageError` where layers that mix rows would see other numbers of them."""
        self.workdir.check_recipe(as_dict(self.config))
        trainer, saved = self.config.trainer, read_config(self.workdir.path)
        before = saved["config"]["trainer"]
        replicas = saved.get("replicas") or before["replicas"] or self.replicas
        size, here = trainer.global_batch_size, trainer.micro_batch_size
        was = before["micro_batch_size"] or size // replicas
        now = here or size // self.replicas
        if (was, replicas) == (now, self.replicas):
            return
        mixed = self.step.mixed_rows(
            pipeline.training_batches(
                self.arrays, self.step.task.prepare, batch_size=now, replicas=1, seed=0,
                first_step=0, last_step=1,
            ).element_spec
        )  # fmt: skip
        changed = was != now, was * replicas != now * self.replicas
        if mixed.read and changed[0] or mixed.synchronized and changed[1]:
            raise UsageError(
                "Layers of this model mix the rows that are computed together (batch "
                "normalization does), so micro-batches and replicas stay as they were. Received: "
                f"trainer.micro_batch_size={here} on {self.replicas} replicas for "
                f"{self.workdir.path}, which was made with "
                f"trainer.micro_batch_size={before['micro_batch_size']} on {replicas}. Take a new "
                "folder, or the setting as it was."
            )

    def _run_frozen_once(self) -> None:
        """Puts features in place of pictures where a part of the model learns nothing."""
        self.frozen = self.step.task.frozen(self.step.net)
        if self.frozen.remark:
            self._event("feature cache", self.frozen.remark)
        self.arrays = self._features("train", self.arrays, self.frozen)
        self.arrays = self.step.task.stored(self.arrays)
        self.step.statistics = Statistics(
            self.step,
            lambda: statistics_batches(
                self.arrays, self.step.task.prepare, self.config.trainer, self.replicas
            ),
        )
        held_out = self.held_out and self._features("validation", self.held_out)
        self.validation = held_out and self._evaluator(held_out)

    def _features(self, part: str, arrays, frozen: Frozen | None = None):
        """`arrays` with the features of the frozen part; of unchanged pictures by default."""
        frozen = frozen or dataclasses.replace(self.frozen, views=0)
        if frozen.model is None:
            return arrays
        from trainers.features import features_of

        found, where = features_of(
            frozen, self.task, arrays, self.config.task.to_dict(), self.config.trainer.seed
        )
        self._event("feature cache", f"{part} {where}")
        return found

    def _evaluator(self, arrays) -> Evaluator:
        trainer = self.config.trainer
        share = trainer.micro_batch_size or trainer.global_batch_size // self.replicas
        return Evaluator(self.step.net, self.task, arrays, share * self.replicas, self.strategy)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        """Those in the work directory, as the chief sees it."""
        if self.saver:
            self.saver.wait()
        found = checkpoint.list_checkpoints(self.workdir / "checkpoints")
        shared = self.link.share([(step, str(path)) for step, path in found])
        return [(step, Path(path)) for step, path in shared]

    def _take_over(self) -> None:
        """Puts the chief's state into all workers."""
        if self.link.count == 1:
            return
        file = io.BytesIO()
        if self.link.chief:
            checkpoint.write(file, checkpoint.Snapshot(self.step, self.counters))
        state = self.link.share(file.getvalue())
        if not self.link.chief:
            self.counters.update(checkpoint.restore(state, self.step))

    def _restore(self, found: list) -> None:
        """Goes to the last checkpoint, where there is one."""
        if found and self.link.chief:
            try:
                self.counters.update(checkpoint.restore(found[-1][1], self.step))
            except RunError as error:
                older = f"step {found[-2][0]}" if len(found) > 1 else "the beginning"
                raise RunError(f"{error} Delete it to go on from {older}.") from None
        if found or self.config.init_from:
            self._take_over()
        if self.counters["windows"]:
            self.windows.restore(self.counters["windows"])
        self.done = int(self.step.step.numpy())

    def _start_log(self, found: list) -> None:
        began = self.workdir.start_metrics(self.done, self.counters["lines"])
        self.goodput = Goodput(self.counters, began)
        self._read_said()
        if self.hold_out_note:
            self._event("hold-out", self.hold_out_note)
        for remark in self.remarks:
            self._event("warning", remark)
        if found:
            self._event("resumed", f"from {found[-1][1].name}")
        elif self.config.trainer.max_rollbacks:
            self._save()  # the first place to go back to

    def _is_finished(self) -> bool:
        """Whether all is there that `_finish` writes; as the chief sees it."""
        ended = self.done == self.total_steps or self.counters["stopped"]
        files = ("model.keras", "report.html")
        return (
            ended
            and all((self.workdir / name).exists() for name in files)
            and (not self.judged or read_evaluation(self.workdir, self.judged) is not None)
        )

    def _training_means(self) -> Result:
        return Result("training", "current", self.done, self.windows.logs)

    def _finish(self) -> Result:
        """Writes the bare model, judges it by a split that it has not seen, writes the report."""
        from trainers.report import write_report

        chief, result = self.link.chief, self._training_means()
        if chief:  # it is the last to be written, and tells that all is there
            (self.workdir / "report.html").unlink(missing_ok=True)
        with self.step.averaged():
            if chief:
                save_model(self.step.net, self.workdir / "model.keras")
            if self.judged:
                result = self._judge()
            if chief and self.judged == "test" and "validation" in self.dataset.splits:
                found, _ = self.task.whole_split(self.step.net, self.dataset, "validation")
                if found:
                    self.workdir.log(step=self.done, **{f"val_{k}": v for k, v in found.items()})
        self._event("finished", f"{self.counters['seconds']:.1f} s of training")
        if chief:
            write_report(self.workdir.path)
        return result

    def _judge(self) -> Result:
        """Measures the final weights on the split `judged`."""
        evaluator = self.validation
        if self.judged == "test":
            evaluator = self._evaluator(self._features("test", self.dataset.splits["test"]))
        metrics, predictions = evaluator()
        weights = weights_name("final", self.config)
        if not self.link.chief:
            return Result(self.judged, weights, self.done, metrics)
        whole, samples = self.task.whole_split(self.step.net, self.dataset, self.judged)
        result = Result(self.judged, weights, self.done, {**metrics, **whole})
        write_evaluation(
            self.workdir, result, "final", predictions, self.dataset, samples, self.step.net
        )
        return result

    def _wait_for_checkpoint(self) -> None:
        """What is being written gets some time when the process is to end at once."""
        if self.saver:
            self.saver.wait_at_most(_LAST_CHECKPOINT)
