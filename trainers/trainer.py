"""THE trainer: builds what a recipe names, runs the loop, and leaves a work directory.

The loop is ours because `fit` cannot resume inside an epoch, nor run under several of the
strategies (docs/keras3.md). Keras' callbacks, metrics, optimizers and progress bar run in it
unchanged. Read `Trainer.train` from top to bottom for the order of things.
"""

import dataclasses
import functools
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainers import checkpoint, compress, tpu
from trainers.build import build_step, split_training, update_function
from trainers.callbacks import make_callbacks
from trainers.cluster import Cluster, code_fingerprint, read_cluster
from trainers.evaluate import Evaluator, read_evaluation, write_evaluation
from trainers.goodput import Goodput
from trainers.input_workers import InputWorkers
from trainers.link import Alone, Link
from trainers.optimizers import inner
from trainers.precision import slow_bfloat16
from trainers.preemption import Stop
from trainers.recipe import as_dict, check, check_batch, check_examples
from trainers.samples import sample_writer
from trainers.saver import Saver
from trainers.strategy import distribute, make_strategy, prepare_devices
from trainers.workdir import NoDirectory, WorkDirectory, save_model
from zoo import registry
from zoo.data import pipeline
from zoo.data.disk import write_json
from zoo.errors import RunError
from zoo.tasks.base import Frozen


class Terminated(Exception):
    """Something asked to stop, and the message says what; the run is saved and can go on."""

    ends_all = True  # on all workers, at the same step


class Trainer:
    """One run of one recipe in one work directory.

    Args:
      config: a resolved recipe, see `trainers.recipe.resolve`.
      workdir: where everything is written; run again to resume.
      source: name of the recipe, for the report.
      dataset: a `zoo.data.Dataset` in place of the one that `data.source` names.
      callbacks: Keras callbacks besides those that the recipe names.
      read_test: whether to evaluate on the test split at the end.
      cluster: of strategy multi_worker; None reads TF_CONFIG.
      tpu_name: of strategy tpu, see `trainers.tpu.tpu_strategy`.

    With several workers each runs the same program. The first, the chief, alone touches the work
    directory and runs the recipe's callbacks; what it decides, the others hear from `self.link`.
    After `train`, `step.net` is the trained model.
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
            self.link = Link(self.cluster)
            check_batch(config, len(self.cluster.workers))
        self.workdir = (WorkDirectory if self.link.chief else NoDirectory)(workdir)
        self.dataset = dataset
        self.callbacks = list(callbacks)
        self.tpu_name = tpu_name
        self.read_test = read_test
        # What a checkpoint holds besides variables.
        self.counters = {
            "skipped_batches": 0, "rollbacks": 0, "best": None, "seconds": 0.0, "stopped": False,
            "useful": 0.0,
        }  # fmt: skip
        name = self.cluster.name(self.link.index) if self.cluster else ""
        self.stop = Stop(config.trainer.preemption_notice, name)
        self.input = InputWorkers(config.trainer.input_workers)
        self._said: set[str] = set()

    # --- the run, in order ----------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Trains, or goes on training, to the end.

        Returns:
          The metrics of the test split, where the data set has one; else the last training logs.

        Raises:
          UsageError: where recipe, data, model and work directory do not fit together.
          RunError: where the loss is not finite, or a file cannot be read or written.
          Terminated: after SIGTERM or a preemption notice, once everything is saved.
        """
        self.link.connect()
        with self.link.together():
            return self._train()

    def _train(self) -> dict[str, float]:
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
            self.workdir.write_config(as_dict(self.config), self.source, self.dataset)
            if self.dataset.tokenizer is not None and self.link.chief:
                self.dataset.tokenizer.save(self.workdir / "tokenizer.json")
            self._restore(found)
            if self.link.share(self._is_finished()):
                print(f"{self.workdir.path} is finished already", file=sys.stderr)
                return self.link.share(read_evaluation(self.workdir, "test"))
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
            with self.stop.listening(), self.input:
                logs = self._loop()
            return self.link.share(self._finish()) or logs
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
        self.link.same("code and versions", code_fingerprint() if self.cluster else "")
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
        self.arrays, held_out = split_training(self.dataset, config.data.validation_size)
        tpu.check(config, self.strategy, self.arrays)
        self.examples = len(next(iter(self.arrays.values())))
        check_examples(self.examples, trainer.global_batch_size)
        self.steps_per_epoch = pipeline.steps_per_epoch(self.examples, trainer.global_batch_size)
        self.total_steps = trainer.steps or trainer.epochs * self.steps_per_epoch

        self.step, self.task = build_step(config, self.strategy, self.total_steps, self.dataset)
        self.task.check(self.step.net, self.dataset)
        self.held_out = held_out or self.dataset.splits.get("validation")
        self.writer = sample_writer(self.step, self.dataset, config, self.workdir.path)
        self.evaluates = self.held_out is not None or self.writer is not None
        named = make_callbacks(config, self.workdir) if self.link.chief else []
        self.all_callbacks = [*self.callbacks, *named]
        self._run = update_function(self.step, self.strategy)

    def _run_frozen_once(self) -> None:
        """Puts features in place of pictures where a part of the model learns nothing."""
        self.frozen = self.step.task.frozen(self.step.net)
        if self.frozen.remark:
            self._event("feature cache", self.frozen.remark)
        self.arrays = self._features("train", self.arrays, self.frozen)
        self.arrays = self.step.task.stored(self.arrays)
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
        self.done = int(self.step.step.numpy())

    def _start_log(self, found: list) -> None:
        self.goodput = Goodput(self.counters, self.workdir.start_metrics(self.done))
        if found:
            self._event("resumed", f"from {found[-1][1].name}")
        elif self.config.trainer.max_rollbacks:
            self._save()  # the first place to go back to

    def _is_finished(self) -> bool:
        """Whether all is there that `_finish` writes; as the chief sees it."""
        ended = self.done == self.total_steps or self.counters["stopped"]
        files = ("model.keras", "report.html")
        evaluates = self.read_test and "test" in self.dataset.splits
        return (
            ended
            and all((self.workdir / name).exists() for name in files)
            and (not evaluates or bool(read_evaluation(self.workdir, "test")))
        )

    def _loop(self) -> dict[str, float]:
        trainer = self.config.trainer
        self._started = time.perf_counter() - self.counters["seconds"]
        interactive = sys.stdout.isatty() and self.link.chief
        callbacks = keras.callbacks.CallbackList(
            self.all_callbacks,
            add_history=True,
            add_progbar=interactive,
            model=self.step,
            verbose=1,
            epochs=-(-self.total_steps // self.steps_per_epoch),
            steps=self.steps_per_epoch,
        )
        callbacks.on_train_begin()
        self.step.stop_training = self.counters["stopped"]
        iterator, logs, totals = None, {}, {}
        in_epoch = False
        window_start, window_steps = time.perf_counter(), 0
        while self.done < self.total_steps and not self.step.stop_training:
            epoch, place = divmod(self.done, self.steps_per_epoch)
            if not in_epoch:
                callbacks.on_epoch_begin(epoch)
                in_epoch, totals = True, {}
            iterator = iterator or self._batches()
            count = min(trainer.steps_per_execution, self._next_stop() - self.done)
            callbacks.on_train_batch_begin(place)
            with self.goodput.update():
                self._run(iterator, tf.constant(count))
            self.done += count
            window_steps += count

            epoch_ends = self.done % self.steps_per_epoch == 0
            last = self.done == self.total_steps
            logs_now = self._at(trainer.log_every) or epoch_ends or last
            evaluates = self.evaluates and (self._at(trainer.evaluate_every) or last)
            saves = self._at(trainer.checkpoint_every) or last
            if (logs_now or evaluates or saves) and self._lost_its_way():
                self.step.means.take()
                iterator, in_epoch = None, False
                window_start, window_steps = time.perf_counter(), 0
                continue
            if logs_now:
                with self.goodput.wait():
                    taken = self.step.means.take()
                now = time.perf_counter()
                for name, (total, weight) in taken.items():
                    before = totals.get(name, (0.0, 0.0))
                    totals[name] = before[0] + total, before[1] + weight
                logs = self.step.means.logs(taken)
                self._warn(logs)
                counted = taken[next(iter(self.step.task.terms))][1]
                self._log(logs, window_steps, counted, now - window_start, interactive)
                window_start, window_steps = now, 0
            callbacks.on_train_batch_end(place + count - 1, logs)

            evaluated = {}
            pause = time.perf_counter()
            if evaluates:
                evaluated = self._evaluate()
            self.stop.warn(self._event if self.link.chief else None)
            # Looked at once, for it may come at any moment; all workers stop at the same step.
            terminated, self.step.stop_training = self.link.any(
                self.stop.asked.is_set(), bool(self.step.stop_training)
            )
            if terminated and not self._is_finite():
                raise self._not_finite()
            if saves or terminated:
                self._save()
            window_start += time.perf_counter() - pause  # not part of the throughput
            if epoch_ends or last:
                callbacks.on_epoch_end(epoch, {**self.step.means.logs(totals), **evaluated})
                in_epoch = False
                (self.step.stop_training,) = self.link.any(bool(self.step.stop_training))
            if terminated:
                raise self._terminated()
        if self.step.stop_training and not self.counters["stopped"]:
            if not self._is_finite():
                raise self._not_finite()
            self.counters["stopped"] = True  # the same command does not train on
            self._event("stopped", "by a callback")
            self._save()
        callbacks.on_train_end(logs)
        return logs

    def _finish(self) -> dict[str, float]:
        """Writes the bare model, reads the test split for the first time, writes the report."""
        from trainers.report import write_report

        metrics, chief = {}, self.link.chief
        with self.step.averaged():
            if chief:
                save_model(self.step.net, self.workdir / "model.keras")
            if chief and "validation" in self.dataset.splits:
                found, _ = self.task.whole_split(self.step.net, self.dataset, "validation")
                if found:
                    self.workdir.log(step=self.done, **{f"val_{k}": v for k, v in found.items()})
            if self.read_test and "test" in self.dataset.splits:
                evaluator = self._evaluator(self._features("test", self.dataset.splits["test"]))
                metrics, predictions = evaluator()
                if chief:
                    whole, samples = self.task.whole_split(self.step.net, self.dataset, "test")
                    metrics |= whole
                    write_evaluation(
                        self.workdir, "test", "final", self.done, metrics, predictions,
                        self.dataset, samples, self.step.net,
                    )  # fmt: skip
        self._event("finished", f"{self.counters['seconds']:.1f} s of training")
        if chief:
            write_report(self.workdir.path)
        return metrics

    # --- pieces of the loop ---------------------------------------------------------------------

    def _batches(self):
        """An iterator over the batches from here to the end of the run."""
        skipped = self.counters["skipped_batches"]
        batches = functools.partial(
            self.input.batches,
            self.arrays,
            self.step.task.prepare,
            batch_size=self.config.trainer.global_batch_size,
            replicas=self.replicas,
            seed=self.config.trainer.seed,
            first_step=self.done + skipped,
            last_step=self.total_steps + skipped,
        )
        return iter(distribute(self.strategy, lambda shares: batches(shares=shares)))

    def _at(self, every: int) -> bool:
        """Whether something happens now that happens every so many updates (0: every epoch)."""
        return self.done % (every or self.steps_per_epoch) == 0

    def _next_stop(self) -> int:
        """The next update after which Python has something to do."""
        trainer = self.config.trainer
        periods = [self.steps_per_epoch, trainer.log_every, trainer.checkpoint_every]
        periods += [trainer.evaluate_every] if self.evaluates else []
        stops = [(self.done // period + 1) * period for period in periods if period]
        return min(*stops, self.total_steps)

    def _log(self, logs, steps: int, counted: float, seconds: float, interactive: bool) -> None:
        """Writes a line about the last `steps` updates, which counted so many of the unit."""
        self.counters["seconds"] = time.perf_counter() - self._started
        rates = {
            f"learning_rate_{player.name}".rstrip("_"): float(inner(own).learning_rate.numpy())
            for player, own in zip(self.step.players, self.step.optimizers, strict=True)
        }
        values = {**logs, **rates}
        values["samples_per_second"] = steps * self.config.trainer.global_batch_size / seconds
        if self.task.unit != "samples":
            values[f"{self.task.unit}_per_second"] = counted / seconds
        if any(own is not inner(own) for own in self.step.optimizers):  # loss scaling
            values["skipped_steps"] = sum(
                self.done - int(inner(own).iterations.numpy()) for own in self.step.optimizers
            )
        self.workdir.log(
            step=self.done,
            epoch=round(self.done / self.steps_per_epoch, 4),
            **{k: float(f"{v:.6g}") for k, v in values.items()},
            seconds=round(self.counters["seconds"], 3),
            goodput=round(self.goodput.share(), 4),
        )
        if self.link.chief and not interactive:
            shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
            print(f"step {self.done}/{self.total_steps}  {shown}", flush=True)

    def _evaluate(self) -> dict[str, float]:
        """Validates the averaged weights and keeps the best model so far; keeps a sample."""
        with self.step.averaged():
            logs = self._validate() if self.validation else {}
            sample = self.writer() if self.writer and self.link.chief else {}
        if logs:
            epoch = round(self.done / self.steps_per_epoch, 4)
            self.workdir.log(step=self.done, epoch=epoch, **logs)
        if sample:
            self.workdir.log(step=self.done, event="sample", **sample)
        return logs

    def _validate(self) -> dict[str, float]:
        metrics, _ = self.validation()
        logs = {f"val_{name}": value for name, value in metrics.items()}
        value, best = logs[self.task.monitor], self.counters["best"]
        sign = 1 if self.task.monitor_mode == "max" else -1
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            self.counters["best"] = value
            if self.link.chief:
                save_model(self.step.net, self.workdir / "best" / "model.keras")
                write_json(self.workdir / "best" / "metrics.json", {"step": self.done, **logs})
        return logs

    def _save(self) -> None:
        if self.link.count > 1:
            self.link.same(f"weights after update {self.done}", checkpoint.digest(self.step))
        if self.link.chief:
            self.saver.save(self.counters)

    def _is_finite(self) -> bool:
        with self.goodput.wait():  # for the device
            return int(self.step.first_bad.numpy()) < 0

    def _lost_its_way(self) -> bool:
        """Whether the loss is not finite and the run went back to a checkpoint.

        Raises:
          RunError: where it may not go back (again).
        """
        if self._is_finite():
            return False
        if self.counters["rollbacks"] >= self.config.trainer.max_rollbacks:
            raise self._not_finite()
        bad = int(self.step.first_bad.numpy())
        step, path = self._checkpoints()[-1]
        # The best model stays on the disk, and its value with it.
        kept = {"rollbacks": self.counters["rollbacks"] + 1, "best": self.counters["best"]}
        if self.link.chief:
            self.counters.update(checkpoint.restore(path, self.step))
        self._take_over()
        self.counters.update(kept)
        # Batches step+1 .. bad+1 led here: the run goes on behind them.
        self.counters["skipped_batches"] += bad + 1 - step
        self.step.first_bad.assign(-1)
        self.done = step
        self._save()  # so that a kill does not forget what was left out
        self.workdir.start_metrics(step)
        self._event("rolled back", f"loss not finite at step {bad + 1}; back to {path.name}")
        return True

    def _warn(self, logs) -> None:
        """Says once a run what the task finds worth saying."""
        said = self.task.warning(logs)
        if said and said not in self._said:
            self._said.add(said)
            self._event("warning", said)

    def _not_finite(self) -> RunError:
        bad = int(self.step.first_bad.numpy())
        found = self._checkpoints()
        good = f"The last good checkpoint is {found[-1][1]}" if found else "No checkpoint yet"
        return RunError(
            f"The loss or its gradient is not finite since step {bad + 1}. {good}. What helps: a "
            "lower optimizer.learning_rate, optimizer.clip_norm=1, or trainer.max_rollbacks to go "
            "back and leave the bad batches out."
        )

    def _event(self, event: str, detail: str) -> None:
        if not self.link.chief:
            return
        self.workdir.log(step=self.done, event=event, detail=detail)
        print(f"{event} at step {self.done}: {detail}", file=sys.stderr, flush=True)

    def _terminated(self) -> Terminated:
        notices = [notice for notice in self.link.each(self.stop.notice) if notice]
        for notice in notices:
            self._event("preemption notice", notice)
        return Terminated("a preemption notice" if notices else "SIGTERM")
