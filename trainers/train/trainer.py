"""The trainer: builds the parts of a recipe, runs the training loop and writes a work directory.

The project has its own loop because `fit` cannot resume inside an epoch or run under several of
the strategies (docs/keras3.md). The loop uses Keras' callbacks, metrics, optimizers and progress
bar unchanged. `Trainer.train` shows the order of a run from top to bottom.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainers.compression import techniques
from trainers.config.recipe import as_dict, check
from trainers.config.trainer import check_batch, check_examples
from trainers.config.user_code import user_files
from trainers.distributed import tpu
from trainers.distributed.cluster import Cluster, code_fingerprint, read_cluster
from trainers.distributed.group import LocalGroup, WorkerGroup
from trainers.distributed.preemption import Stop
from trainers.distributed.strategy import distribute, make_strategy, prepare_devices
from trainers.evaluation.evaluate import (
    Evaluator,
    Result,
    read_evaluation,
    weights_name,
    write_evaluation,
)
from trainers.input.features import features_of
from trainers.optimization.precision import slow_bfloat16
from trainers.optimization.schedules import total_steps
from trainers.report.page import write_report
from trainers.run.events import Events
from trainers.run.goodput import Goodput
from trainers.run.saver import Saver
from trainers.run.state import RunState
from trainers.run.workdir import NoDirectory, WorkDirectory, read_config, save_model
from trainers.train import loop
from trainers.train.build import build_step, update_function
from trainers.train.callbacks import make_callbacks
from trainers.train.hooks.base import Hooks
from trainers.train.hooks.checkpoints import Checkpoints, Rollback
from trainers.train.hooks.keras_callbacks import KerasCallbacks
from trainers.train.hooks.log_windows import LogWindows
from trainers.train.hooks.periods import Periods
from trainers.train.hooks.progress import Progress
from trainers.train.hooks.samples import sample_writer
from trainers.train.hooks.stops import Stops
from trainers.train.hooks.validation import Validation
from trainers.train.init_from import initialize
from trainers.train.padding import check_padding
from trainers.train.source_model import complete
from trainers.train.statistics import Statistics, statistics_batches
from zoo import registry
from zoo.data import pipeline
from zoo.data.balance import balanced
from zoo.data.hold_out import evaluation_split, with_hold_out
from zoo.errors import UsageError
from zoo.tasks.base import FrozenPart

_LOG = logging.getLogger(__name__)

_CHECKPOINT_TIMEOUT = 25.0  # seconds for an unfinished checkpoint after a worker was lost


class Trainer:
    """One run of one recipe in one work directory.

    Args:
      config: resolved configuration, see `trainers.config.recipe.resolve`.
      workdir: output folder; an unfinished run in it is resumed.
      source: name of the recipe, for the report.
      dataset: `zoo.data.Dataset` that replaces the one of `data.source`.
      callbacks: Keras callbacks in addition to those of the recipe.
      read_test: whether the final evaluation may use the test split; if not, it uses the
        validation split.
      cluster: cluster of strategy multi_worker; None reads TF_CONFIG.
      tpu_name: TPU of strategy tpu, see `trainers.distributed.tpu.tpu_strategy`.

    All workers run the same program. Only the first worker, the chief, uses the work directory and
    runs the callbacks of the recipe. `self.group` sends the chief's decisions to the other workers.
    After `train`, `step.net` is the trained model. With `trainer.ema`, `step.net` has the raw
    weights, and model.keras in the work directory their moving average. `result` names the split
    and the weights of the returned metrics.
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
        self.config = config = complete(config)
        self.source = source
        self.cluster, self.group = None, LocalGroup()
        self.checkpoints: Checkpoints | None = None
        if config.trainer.strategy == "multi_worker":
            self.cluster = cluster or read_cluster()
            self.group = WorkerGroup(self.cluster, last=self._wait_for_checkpoint)
            check_batch(config, len(self.cluster.workers))
        self.workdir = (WorkDirectory if self.group.chief else NoDirectory)(workdir)
        self.dataset = dataset
        self.callbacks = list(callbacks)
        self.tpu_name = tpu_name
        self.read_test = read_test
        self.state = RunState()
        self.events = Events(self.workdir, self.state, self.group.chief)
        name = self.cluster.name(self.group.index) if self.cluster else ""
        self.stop = Stop(config.trainer.preemption_notice, name)
        self.result: Result | None = None

    # --- the run, in order ----------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Trains to the end of the run; resumes an unfinished run.

        Returns:
          The metrics of the test split; without one, or with `read_test` off, of the validation
          split; without either, the training means of the last log window.

        Raises:
          UsageError: if recipe, data, model and work directory do not match.
          RunError: if the loss is not finite, or a file cannot be read or written.
          Terminated: after SIGTERM or a preemption notice, when everything is saved.
        """
        self.group.connect()
        with self.group.together():
            values = self.group.share(dataclasses.astuple(self._train()))
        self.result = Result(*values)
        return self.result.metrics

    def _train(self) -> Result:
        self.workdir.open()
        try:
            self._build()
            # Before anything is written, so that a wrong init_from leaves no work directory.
            files = self.checkpoints.files()
            # Checkpoints of a model with adapters do not contain its frozen weights.
            needs_source = not files or self.step.lora is not None
            if self.config.init_from and needs_source and self.group.chief:
                tokenizer = self.dataset.tokenizer
                message = initialize(self.step.net, self.config.init_from, tokenizer, self.config)
                _LOG.info(message)
            for compressor in self.step.compressors:
                compressor.begin()
            if files and self.group.chief and (self.workdir / "config.json").exists():
                self._check_mixed_rows()
            self.workdir.write_config(
                as_dict(self.config), self.source, self.dataset, self.replicas
            )
            if self.dataset.tokenizer is not None and self.group.chief:
                self.dataset.tokenizer.save(self.workdir / "tokenizer.json")
            files = self.checkpoints.files()  # `write_config` may download others
            self.checkpoints.restore(files, fresh=not self.config.init_from)
            if self.group.share(self._is_finished()):
                _LOG.info(f"{self.workdir.path} is already finished")
                return read_evaluation(self.workdir, self.evaluated_split) or self._training_means()
            devices = [device.name for device in tf.config.list_logical_devices()]
            self.workdir.write_environment(devices)
            if self.group.chief:
                self.checkpoints.saver = Saver(
                    self.workdir / "checkpoints", self.step, self.config.trainer.keep,
                    self.workdir.push,
                )  # fmt: skip
            goodput = self._start_log(files)
            if message := slow_bfloat16(self.config.trainer.precision, devices):
                self.events("warning", message)
            self._cache_frozen_features()
            with self.stop.listening():
                loop.run(
                    self.step,
                    lambda iterator, count: self._run(iterator, tf.constant(count)),
                    self._batches,
                    self._hooks(goodput),
                )
                self.checkpoints.wait()  # before SIGTERM can end the process again
            return self._finish()
        finally:
            try:
                if self.checkpoints:
                    self.checkpoints.close()
            finally:
                self.workdir.close()

    def _build(self) -> None:
        config, trainer = self.config, self.config.trainer
        prepare_devices(trainer.replicas, trainer.deterministic)
        devices = ",".join(device.device_type for device in tf.config.list_physical_devices())
        self.group.check_same("number and kind of devices", devices)
        self.group.check_same(
            "list of workers", ",".join(self.cluster.workers) if self.cluster else ""
        )
        self.group.check_same(
            "code and versions", code_fingerprint(user_files) if self.cluster else ""
        )
        self.group.check_same("recipe", json.dumps(as_dict(config), sort_keys=True))
        self.strategy = make_strategy(
            trainer.strategy, trainer.replicas, self.cluster, self.tpu_name
        )
        self.replicas = self.strategy.num_replicas_in_sync
        check_batch(config, self.replicas)
        if self.dataset is None:
            self.dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
        self.group.check_same("data", self.dataset.fingerprint)
        self.dataset = techniques.resolve(config, self.workdir.path, self.dataset)
        self.dataset, self.hold_out_note = with_hold_out(self.dataset, config.data.validation_size)
        if config.data.balanced:
            self.dataset = balanced(self.dataset)
        self.arrays = self.dataset.splits["train"]
        self.evaluated_split = evaluation_split(self.dataset.splits, self.read_test)
        tpu.check(config, self.strategy, self.arrays)
        self.examples = len(next(iter(self.arrays.values())))
        check_examples(self.arrays, trainer.global_batch_size)
        steps_per_epoch = pipeline.steps_per_epoch(self.examples, trainer.global_batch_size)
        total = total_steps(trainer, self.examples)

        self.step, self.task = build_step(config, self.strategy, total, self.dataset)
        self.task.check(self.step.net, self.dataset)
        self.warnings = self.task.data_warnings(self.dataset)
        self.held_out = self.dataset.splits.get("validation")
        self.writer = sample_writer(self.step, self.dataset, config, self.workdir.path)
        self.periods = Periods(
            total, steps_per_epoch, trainer.steps_per_execution, trainer.log_every,
            trainer.evaluate_every, trainer.checkpoint_every,
            evaluates=self.held_out is not None or self.writer is not None,
        )  # fmt: skip
        recipe_callbacks = make_callbacks(config, self.workdir) if self.group.chief else []
        self.all_callbacks = [*self.callbacks, *recipe_callbacks]
        if any(getattr(callback, "restore_best_weights", False) for callback in self.all_callbacks):
            raise UsageError(
                "Callbacks must not set restore_best_weights: checkpoints and moving averages "
                "would not match the restored weights. The run saves the best model as "
                "best/model.keras."
            )
        rows_per_pass = trainer.micro_batch_size or trainer.global_batch_size // self.replicas
        check_padding(self.step, self.task, self.arrays, rows_per_pass)
        self.windows = LogWindows(self.step.means)
        self.checkpoints = Checkpoints(
            self.state, self.step, self.windows, self.group, self.workdir
        )
        self._run = update_function(self.step, self.strategy)

    def _check_mixed_rows(self) -> None:
        """Raises `UsageError` if layers that mix rows would see another number of rows."""
        self.workdir.check_recipe(as_dict(self.config))
        trainer, saved_config = self.config.trainer, read_config(self.workdir.path)
        saved_trainer = saved_config["config"]["trainer"]
        replicas = saved_config.get("replicas") or saved_trainer["replicas"] or self.replicas
        size, micro_batch_size = trainer.global_batch_size, trainer.micro_batch_size
        saved_rows = saved_trainer["micro_batch_size"] or size // replicas
        rows = micro_batch_size or size // self.replicas
        if (saved_rows, replicas) == (rows, self.replicas):
            return
        mixed_rows = self.step.mixed_rows(
            pipeline.training_batches(
                self.arrays, self.step.task.prepare, batch_size=rows, replicas=1, seed=0,
                first_step=0, last_step=1,
            ).element_spec
        )  # fmt: skip
        has_other_rows = saved_rows != rows, saved_rows * replicas != rows * self.replicas
        if mixed_rows.read and has_other_rows[0] or mixed_rows.synchronized and has_other_rows[1]:
            raise UsageError(
                "A resumed run must not change micro-batches or replicas if layers mix rows, as "
                "batch normalization does. Received: "
                f"trainer.micro_batch_size={micro_batch_size} on {self.replicas} replicas; "
                f"{self.workdir.path} was created with "
                f"trainer.micro_batch_size={saved_trainer['micro_batch_size']} on {replicas} "
                "replicas. Restore the setting, or use a new work directory."
            )

    def _cache_frozen_features(self) -> None:
        """Replaces images by features if a part of the model is frozen."""
        self.frozen = self.step.task.frozen_part(self.step.net)
        if self.frozen.reason:
            self.events("feature cache", self.frozen.reason)
        self.arrays = self._features("train", self.arrays, self.frozen)
        self.arrays = self.step.task.add_training_arrays(self.arrays)
        self.step.statistics = Statistics(
            self.step,
            lambda: statistics_batches(
                self.arrays, self.step.task.prepare, self.config.trainer, self.replicas
            ),
        )
        held_out = self.held_out and self._features("validation", self.held_out)
        self.validation = held_out and self._evaluator(held_out)

    def _features(self, part: str, arrays, frozen: FrozenPart | None = None):
        """Returns `arrays` with features of the frozen part; by default of unchanged images."""
        frozen = frozen or dataclasses.replace(self.frozen, views=0)
        if frozen.model is None:
            return arrays
        features, message = features_of(
            frozen, self.task, arrays, self.config.task.to_dict(), self.config.trainer.seed
        )
        self.events("feature cache", f"{part} {message}")
        return features

    def _evaluator(self, arrays) -> Evaluator:
        trainer = self.config.trainer
        rows = trainer.micro_batch_size or trainer.global_batch_size // self.replicas
        return Evaluator(self.step.net, self.task, arrays, rows * self.replicas, self.strategy)

    def _start_log(self, files: list) -> Goodput:
        start_time = self.workdir.start_metrics(self.state.done, self.state.lines)
        self.events.read()
        if self.hold_out_note:
            self.events("hold-out", self.hold_out_note)
        if self.step.lora:
            self.events("lora", self.step.lora.description)
        for warning in self.warnings:
            self.events("warning", warning)
        if files:
            self.events("resumed", f"from {files[-1][1].name}")
        elif self.config.trainer.max_rollbacks:
            self.checkpoints.save()  # for the first rollback
        return Goodput(self.state, start_time)

    def _batches(self):
        """Returns an iterator over the batches from the current update to the last."""
        skipped_batches = self.state.skipped_batches
        batches = functools.partial(
            pipeline.training_batches,
            self.arrays,
            self.step.task.prepare,
            batch_size=self.config.trainer.global_batch_size,
            replicas=self.replicas,
            seed=self.config.trainer.seed,
            first_step=self.state.done + skipped_batches,
            last_step=self.periods.total + skipped_batches,
            lengths=self.step.task.lengths(self.arrays),
            curriculum=self.config.trainer.curriculum,
        )
        return iter(distribute(self.strategy, lambda shares: batches(local_replicas=shares)))

    def _hooks(self, goodput: Goodput) -> Hooks:
        """Returns the hooks that the loop calls between updates."""
        state, periods, step, windows = self.state, self.periods, self.step, self.windows
        workdir, events, trainer = self.workdir, self.events, self.config.trainer
        chief = self.group.chief
        progress = Progress(
            state, periods, step, windows, goodput, workdir, events,
            examples=self.examples, batch_size=trainer.global_batch_size, chief=chief,
        )  # fmt: skip
        rollback = Rollback(
            trainer.max_rollbacks, state, periods, step, windows, self.checkpoints, goodput,
            workdir, events,
        )  # fmt: skip
        return Hooks(
            state,
            periods,
            progress=progress,
            validation=Validation(
                state, periods, step, self.task, self.config, windows, workdir, events, progress,
                evaluator=self.validation, writer=self.writer, chief=chief,
            ),
            checkpoints=self.checkpoints,
            rollback=rollback,
            stops=Stops(self.stop, step, self.group, rollback, events),
            callbacks=KerasCallbacks(
                self.all_callbacks, state, periods, step, windows, self.group,
                progress_bar=progress.interactive,
            ),
        )  # fmt: skip

    def _is_finished(self) -> bool:
        """Returns whether the run ended and wrote all files; only the chief's result counts."""
        has_ended = self.state.done == self.periods.total or self.state.stopped
        files = ("model.keras", "report.html")
        return (
            has_ended
            and all((self.workdir / name).exists() for name in files)
            and (
                not self.evaluated_split
                or read_evaluation(self.workdir, self.evaluated_split) is not None
            )
        )

    def _training_means(self) -> Result:
        return Result("training", "current", self.state.done, self.windows.logs)

    def _finish(self) -> Result:
        """Saves the model, evaluates it on the split `evaluated_split`, and writes the report."""
        chief, result = self.group.chief, self._training_means()
        if chief:  # the report is written last, because it marks a finished run
            (self.workdir / "report.html").unlink(missing_ok=True)
        with self.step.averaged():
            if chief:
                with self.step.merged():
                    save_model(self.step.net, self.workdir / "model.keras")
            if self.evaluated_split:
                result = self._evaluate_final()
            if chief and self.evaluated_split == "test" and "validation" in self.dataset.splits:
                validation_metrics, _ = self.task.evaluate_split(
                    self.step.net, self.dataset, "validation"
                )
                if validation_metrics:
                    self.workdir.log(
                        step=self.state.done,
                        **{f"val_{k}": v for k, v in validation_metrics.items()},
                    )
        self.events("finished", f"{self.state.seconds:.1f} s of training")
        if chief:
            write_report(self.workdir.path)
        return result

    def _evaluate_final(self) -> Result:
        """Evaluates the final weights on the split `evaluated_split`."""
        evaluator = self.validation
        if self.evaluated_split == "test":
            evaluator = self._evaluator(self._features("test", self.dataset.splits["test"]))
        metrics, predictions = evaluator()
        weights = weights_name("final", self.config)
        if not self.group.chief:
            return Result(self.evaluated_split, weights, self.state.done, metrics)
        split_metrics, samples = self.task.evaluate_split(
            self.step.net, self.dataset, self.evaluated_split
        )
        result = Result(
            self.evaluated_split, weights, self.state.done, {**metrics, **split_metrics}
        )
        write_evaluation(
            self.workdir, result, "final", predictions, self.dataset, samples, self.step.net
        )
        return result

    def _wait_for_checkpoint(self) -> None:
        """Gives an unfinished checkpoint some time before the process ends."""
        if self.checkpoints and self.checkpoints.saver:
            self.checkpoints.saver.wait_at_most(_CHECKPOINT_TIMEOUT)
