"""The loop of `trainers.trainer.Trainer`: updates, and what Python does between them."""

import functools
import math
import sys
import time

import keras
import tensorflow as tf

from trainers import checkpoint
from trainers.keras_internals import last_learning_rate
from trainers.optimizers import inner
from trainers.strategy import distribute
from trainers.workdir import save_model
from zoo.data import pipeline
from zoo.data.disk import write_json
from zoo.errors import RunError, short


class Terminated(Exception):
    """Something asked to stop, and the message says what; the run is saved and can go on."""

    ends_all = True  # on all workers, at the same step


class Loop:
    """What a trainer does from its first update to its last; the trainer has made all it uses.

    `_loop` is the whole of it, everything below are its pieces, in the order of their use.
    """

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
        iterator, logs, totals, evaluated = None, {}, {}, {}
        in_epoch = False
        if self.counters["unevaluated"]:
            self._evaluate()
        window_start, window_steps = time.perf_counter(), 0
        while self.done < self.total_steps and not self.step.stop_training:
            epoch, place = divmod(self.done, self.steps_per_epoch)
            if not in_epoch:
                callbacks.on_epoch_begin(epoch)
                in_epoch, totals, evaluated = True, {}, {}
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

            pause = time.perf_counter()
            terminated = self._asked_to_stop()
            # Saved first: a stop or a kill does not wait for an evaluation, nor lose the updates
            # before it. A run that goes on from here makes up for it.
            self.counters["unevaluated"] = evaluates
            if saves or terminated:
                self._save()
            if evaluates and not terminated:
                evaluated = self._evaluate()
                if terminated := self._asked_to_stop():
                    self._save()
            window_start += time.perf_counter() - pause  # not part of the throughput
            if epoch_ends or last:
                callbacks.on_epoch_end(epoch, {**self.step.means.logs(totals), **evaluated})
                in_epoch = False
                (self.step.stop_training,) = self.link.any(bool(self.step.stop_training))
                self._take_over_rates()
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

    def _batches(self):
        """An iterator over the batches from here to the end of the run."""
        skipped = self.counters["skipped_batches"]
        batches = functools.partial(
            pipeline.training_batches,
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

    def _examples(self, steps: int) -> int:
        """How many examples the last `steps` updates saw: the last batch of an epoch is padded."""
        batch = self.config.trainer.global_batch_size
        done = self.done + self.counters["skipped_batches"]
        epochs = done // self.steps_per_epoch - (done - steps) // self.steps_per_epoch
        return steps * batch - epochs * (self.steps_per_epoch * batch - self.examples)

    def _log(self, logs, steps: int, counted: float, seconds: float, interactive: bool) -> None:
        """Writes a line about the last `steps` updates, which counted so many of the unit."""
        self.counters["seconds"] = time.perf_counter() - self._started
        rates = {
            f"learning_rate_{player.name}".rstrip("_"): last_learning_rate(inner(own))
            for player, own in zip(self.step.players, self.step.optimizers, strict=True)
        }
        values = {**logs, **rates}
        values["samples_per_second"] = self._examples(steps) / seconds
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

    def _asked_to_stop(self) -> bool:
        """Whether SIGTERM or a notice came; on all workers at the same step.

        Raises:
          RunError: where it did, and there is nothing good to save.
        """
        self.stop.warn(self._event if self.link.chief else None)
        terminated, self.step.stop_training = self.link.any(
            self.stop.asked.is_set(), bool(self.step.stop_training)
        )
        if terminated and not self._is_finite():
            raise self._not_finite()
        return terminated

    def _take_over_rates(self) -> None:
        """Gives all workers the learning rates that callbacks of the chief may have changed."""
        if self.link.count == 1:
            return
        optimizers = [inner(own) for own in self.step.optimizers]
        mine = [float(own.learning_rate.numpy()) for own in optimizers]
        for own, rate, before in zip(optimizers, self.link.share(mine), mine, strict=True):
            if rate != before:
                own.learning_rate = rate

    def _evaluate(self) -> dict[str, float]:
        """Validates the averaged weights and keeps the best model so far; keeps a sample."""
        with self.step.averaged():
            logs = self._validate() if self.validation else {}
            sample = self._sample() if self.writer and self.link.chief else {}
        if logs:
            epoch = round(self.done / self.steps_per_epoch, 4)
            self.workdir.log(step=self.done, epoch=epoch, **logs)
        if sample:
            self.workdir.log(step=self.done, event="sample", **sample)
        self.counters["unevaluated"] = False
        return logs

    def _sample(self) -> dict:
        try:
            return self.writer()
        except tf.errors.OpError as error:  # such as too little memory: the run has a better use
            said = short(error.message)
            self._event("warning", f"no samples are kept from here on: {said}")
            self.writer = None
            return {}

    def _validate(self) -> dict[str, float]:
        metrics, _ = self.validation()
        logs = {f"val_{name}": value for name, value in metrics.items()}
        if not self.task.keeps_best:
            return logs
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

    def _terminated(self) -> Terminated:
        notices = [notice for notice in self.link.each(self.stop.notice) if notice]
        for notice in notices:
            self._event("preemption notice", notice)
        return Terminated("a preemption notice" if notices else "SIGTERM")

    def _event(self, event: str, detail: str) -> None:
        if not self.link.chief:
            return
        self.workdir.log(step=self.done, event=event, detail=detail)
        print(f"{event} at step {self.done}: {detail}", file=sys.stderr, flush=True)
