"""The loop of `trainers.train.trainer.Trainer`: updates, and what Python does between them."""

import collections
import functools
import math
import sys
import time

import keras
import tensorflow as tf

from trainers.distributed.strategy import distribute
from trainers.evaluation.evaluate import weights_name
from trainers.optimization.optimizers import inner
from trainers.run import checkpoint
from trainers.run.workdir import read_metrics, save_model
from zoo.data import pipeline
from zoo.errors import RunError, short
from zoo.formatting import duration, short_number
from zoo.keras_internals import last_learning_rate
from zoo.storage.disk import write_json


class Terminated(Exception):
    """Something asked to stop, and the message says what; the run is saved and can go on."""

    ends_all = True  # on all workers, at the same step


# Events that stand in metrics.jsonl once, whichever process of the run comes upon them.
ONCE = frozenset({"warning", "feature cache", "hold-out"})


def event_key(event: str, detail: str) -> tuple[str, str]:
    """Returns what two lines of one event have in common; a cache is filled, then read."""
    return event, detail.partition(" ")[0] if event == "feature cache" else detail


class Loop:
    """What a trainer does from its first update to its last; the trainer has made all it uses.

    `_loop` is the whole of it, everything below are its pieces, in the order of their use.
    """

    def _loop(self) -> dict[str, float]:
        trainer = self.config.trainer
        self._started = time.perf_counter() - self.counters["seconds"]
        self._pace = None
        self._interactive = sys.stdout.isatty() and self.link.chief
        callbacks = keras.callbacks.CallbackList(
            self.all_callbacks,
            add_history=True,
            add_progbar=self._interactive,
            model=self.step,
            verbose=1,
            epochs=-(-self.total_steps // self.steps_per_epoch),
            steps=self.steps_per_epoch,
        )
        callbacks.on_train_begin()
        self.step.stop_training = self.counters["stopped"]
        self._complete_step(callbacks)
        iterator = None
        while self.done < self.total_steps and not self.step.stop_training:
            epoch, place = divmod(self.done, self.steps_per_epoch)
            if not self.windows.in_epoch:
                callbacks.on_epoch_begin(epoch)
                self.windows.in_epoch = True
            start = time.perf_counter()
            iterator = iterator or self._batches()
            count = min(trainer.steps_per_execution, self._next_stop() - self.done)
            callbacks.on_train_batch_begin(place)
            with self.goodput.update():
                self._run(iterator, tf.constant(count))
            self.done += count
            self.windows.steps += count
            self._pace = self._pace or (self.done, time.perf_counter())

            last = self.done == self.total_steps
            logs_now, epoch_ends = self._ends_window(), self._ends_epoch()
            evaluates = self.evaluates and (self._at(trainer.evaluate_every) or last)
            saves = self._at(trainer.checkpoint_every) or last
            if (logs_now or epoch_ends or evaluates or saves) and self._lost_its_way():
                iterator = None
                if self.windows.in_epoch:  # perhaps an earlier one
                    callbacks.on_epoch_begin(self.done // self.steps_per_epoch)
                continue
            if logs_now or epoch_ends:
                with self.goodput.wait():
                    self.windows.collect()
            self.windows.seconds += time.perf_counter() - start
            if logs_now:
                self._log()
            callbacks.on_train_batch_end(place + count - 1, self.windows.logs)

            terminated = self._asked_to_stop()
            # Saved first: a stop or a kill does not wait for an evaluation, nor lose the updates
            # before it. A run that goes on from here makes up for it.
            self.counters["unevaluated"] = evaluates
            if saves or terminated:
                self._save()
            if evaluates and not terminated:
                self._evaluate()
                if terminated := self._asked_to_stop():
                    self._save()
            if terminated:
                raise self._terminated()
            if epoch_ends:
                self._end_epoch(callbacks)
        if self.step.stop_training and not self.counters["stopped"]:
            if not self._is_finite():
                raise self._not_finite()
            if self.windows.steps:
                self.windows.collect()
                self._log()
            self.counters["stopped"] = True  # the same command does not train on
            self._event("stopped", "by a callback")
            self._save()
        callbacks.on_train_end(self.windows.logs)
        return self.windows.logs

    def _complete_step(self, callbacks) -> None:
        """Does what the run had still to do after it wrote the checkpoint it resumes from."""
        if self.windows.in_epoch:
            callbacks.on_epoch_begin((self.done - 1) // self.steps_per_epoch)
        if self.counters["unevaluated"]:
            self._evaluate()
        if self.windows.in_epoch and self._ends_epoch():
            self._end_epoch(callbacks)

    def _end_epoch(self, callbacks) -> None:
        epoch = (self.done - 1) // self.steps_per_epoch
        callbacks.on_epoch_end(epoch, self.windows.end_epoch())
        (self.step.stop_training,) = self.link.any(bool(self.step.stop_training))
        self._take_over_rates()

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

    def _ends_epoch(self) -> bool:
        """Whether the update that was done last ends an epoch, or the run."""
        return self.done % self.steps_per_epoch == 0 or self.done == self.total_steps

    def _ends_window(self) -> bool:
        """Whether a log line follows the update that was done last.

        Windows are of `log_every` updates, whatever the length of an epoch. The run's last window
        takes up a remainder of less than half of that: a mean of few updates is mostly noise.
        """
        every, left = self.config.trainer.log_every, self.total_steps - self.done
        return not left or (self.done % every == 0 and 2 * left >= every)

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

    def _log(self) -> None:
        """Ends the log window: writes a line about its updates."""
        self.counters["seconds"] = time.perf_counter() - self._started
        steps, seconds = self.windows.steps, self.windows.seconds
        counted = self.windows.end_window()
        logs = self.windows.logs
        self._warn(logs)
        rates = {
            f"learning_rate_{player.name}".rstrip("_"): last_learning_rate(inner(own))
            for player, own in zip(self.step.players, self.step.optimizers, strict=True)
        }
        more = {}
        if any(own is not inner(own) for own in self.step.optimizers):  # loss scaling
            more["skipped_steps"] = sum(
                self.done - int(inner(own).iterations.numpy()) for own in self.step.optimizers
            )
        speeds = {"samples": self._examples(steps) / seconds}
        if self.task.unit != "samples":
            speeds[self.task.unit] = counted[next(iter(self.step.task.terms))] / seconds
        values = {**logs, **rates, **{f"{k}_per_second": v for k, v in speeds.items()}, **more}
        self.workdir.log(
            step=self.done,
            epoch=round(self.done / self.steps_per_epoch, 4),
            **{k: float(f"{v:.6g}") for k, v in values.items()},
            seconds=round(self.counters["seconds"], 3),
            goodput=round(self.goodput.share(), 4),
        )
        if not self._interactive:
            shown = [f"training: {_shown(logs)}", _shown({**rates, **more})]
            shown += [f"{short_number(v)} {k}/s" for k, v in speeds.items()]
            self._say("  ".join(shown))

    def _say(self, text: str) -> None:
        """Prints a line of progress with the time that is left."""
        if not self.link.chief:
            return
        left = self.total_steps - self.done
        line = f"step {self.done:,}/{self.total_steps:,}  {text}"
        if left and (pace := self._seconds_per_update()):
            line += f"  {duration(left * pace)} left"
        start = "\n" if self._interactive else ""  # below the progress bar
        print(f"{start}{line}", file=sys.stderr, flush=True)

    def _seconds_per_update(self) -> float | None:
        """Of this process since its first update, which traces: with evaluations and all else."""
        if self._pace is None or self.done <= self._pace[0]:
            return None
        done, since = self._pace
        return (time.perf_counter() - since) / (self.done - done)

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

    def _evaluate(self) -> None:
        """Validates the averaged weights and keeps the best model so far; keeps a sample."""
        with self.step.averaged():
            logs = self._validate() if self.validation else {}
            sample = self._sample() if self.writer and self.link.chief else {}
        if logs:
            epoch = round(self.done / self.steps_per_epoch, 4)
            self.workdir.log(step=self.done, epoch=epoch, **logs)
        if self.validation:
            weights = weights_name("current", self.config)
            plain = {name.removeprefix("val_"): value for name, value in logs.items()}
            self._say(f"validation ({weights} weights): {_shown(plain)}")
        if sample:
            self.workdir.log(step=self.done, event="sample", **sample)
        self.counters["unevaluated"] = False
        self.windows.evaluated = logs

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
        value, best = logs.get(self.task.monitor), self.counters["best"]
        if value is None:
            self._event(
                "warning",
                f"no target of the validation split counts in {self.task.monitor}, by which the "
                "best model is chosen: none is kept",
            )
            return logs
        sign = 1 if self.task.monitor_mode == "max" else -1
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            self.counters["best"] = value
            if self.link.chief:
                save_model(self.step.net, self.workdir / "best" / "model.keras")
                found = {
                    "step": self.done,
                    "split": "validation",
                    "weights": weights_name("best", self.config),
                }
                write_json(self.workdir / "best" / "metrics.json", {**found, **logs})
        return logs

    def _save(self) -> None:
        if self.link.count > 1:
            self.link.same(f"weights after update {self.done}", checkpoint.digest(self.step))
        self.counters["windows"] = self.windows.state()
        self.counters["lines"] = self.workdir.lines
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
        # Of this step all is done that comes after a checkpoint, in this process.
        self.counters["unevaluated"] = False
        self.windows.restore(self.counters["windows"])
        if self.windows.in_epoch and self._ends_epoch():
            self.windows.end_epoch()
        self.workdir.start_metrics(step)
        self._read_said()
        self._event("rolled back", f"loss not finite at step {bad + 1}; back to {path.name}")
        self._save()  # so that a kill does not forget what was left out
        return True

    def _warn(self, logs) -> None:
        """Logs what the task finds worth saying; what has no value is NaN to it."""
        if said := self.task.warning(collections.defaultdict(lambda: math.nan, logs)):
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

    def _read_said(self) -> None:
        """Takes from metrics.jsonl which events of `ONCE` it holds."""
        if self.link.chief:
            self._said = {
                event_key(line["event"], str(line.get("detail")))
                for line in read_metrics(self.workdir.path)
                if line.get("event") in ONCE
            }

    def _event(self, event: str, detail: str) -> None:
        if not self.link.chief:
            return
        key = event_key(event, detail)
        if key in self._said:
            return
        if event in ONCE:
            self._said.add(key)
        self.workdir.log(step=self.done, event=event, detail=detail)
        print(f"{event} at step {self.done}: {detail}", file=sys.stderr, flush=True)


def _shown(values) -> str:
    """Values in a line; "no value" where there are none."""
    found = "  ".join(f"{name} {short_number(value)}" for name, value in values.items())
    return found or "no value (no target counts)"
