"""Short trials of pretraining: what an encoder learns per processor second.

    python -m benchmarks.pretraining_trials NAME [--recipe=encoder_wiki] [--seconds=240]
        [--seed=0] [KEY=VALUE ...] [--write]

Trains a recipe with other values (`model.neighbors=0`), for as many updates as fit in the given
processor seconds (user and system, all threads), with the whole schedule in this time. The cost of
an update is measured first. A row of results/pretraining_trials.csv has the accuracy on masked
words of the validation split, which `zoo train` measures on 15 % masked tokens.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

PROBE = 30  # updates that measure the cost of an update
MASKED = 0.15  # share of masked tokens in the evaluation


def resolved(recipe, overrides, steps: int):
    """Returns the recipe with a number of updates and without evaluations and checkpoints."""
    from trainers.config.recipe import resolve

    every = {"steps_per_execution": 10, "log_every": 100, "evaluate_every": 10**9}
    settings = [
        *((f"trainer.{key}", str(value)) for key, value in every.items()),
        ("trainer.checkpoint_every", str(10**9)), ("trainer.steps", str(steps)),
        ("schedule.warmup_steps", str(min(100, steps // 3))), *overrides,
    ]  # fmt: skip
    return resolve(recipe, settings)


def train(config, dataset, folder: Path):
    """Trains; returns the trainer and the processor seconds of all updates after the first."""
    import keras

    from trainers.train.trainer import Trainer

    class Clock(keras.callbacks.Callback):
        started = ended = None

        def on_train_batch_end(self, batch, logs=None):
            self.ended = sum(os.times()[:2])
            self.started = self.started or self.ended

    clock = Clock()
    trainer = Trainer(config, folder, dataset=dataset, callbacks=[clock], read_test=False)
    metrics = trainer.train()
    return trainer, metrics, clock.ended - clock.started


def masked_accuracy(trainer, batch_size: int = 64) -> float:
    """Returns the share of masked tokens of the validation split that are predicted correctly."""
    import tensorflow as tf

    from trainers.evaluation.evaluate import Evaluator
    from zoo import registry

    task = registry.build_task("mlm", mask_share=MASKED)
    model = trainer.step.net
    task.bind(model, trainer.dataset, trainer.config.model.to_dict())
    evaluator = Evaluator(
        model, task, trainer.dataset.splits["validation"], batch_size, tf.distribute.get_strategy()
    )
    metrics, _ = evaluator()
    return metrics["mlm_accuracy"]


def main():
    """Runs one trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--recipe", default="encoder_wiki")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("values", nargs="*")
    arguments = parser.parse_intermixed_args()
    from zoo import registry

    overrides = [tuple(value.split("=", 1)) for value in arguments.values]
    overrides.append(("trainer.seed", str(arguments.seed)))
    probe = resolved(arguments.recipe, overrides, PROBE)
    dataset = registry.load_data(probe.data.to_dict(), probe.task.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        _, _, seconds = train(probe, dataset, Path(folder) / "probe")
        cost = seconds / (PROBE - 10)
        steps = max(PROBE, round(arguments.seconds / cost / 10) * 10)
        config = resolved(arguments.recipe, overrides, steps)
        trainer, metrics, seconds = train(config, dataset, Path(folder) / "run")
    row = {
        "trial": arguments.name, "values": " ".join(arguments.values), "seed": arguments.seed,
        "updates": steps, "tokens": steps * trainer.config.trainer.global_batch_size
        * trainer.config.data.sequence_length, "processor_seconds": round(seconds, 1),
        "parameters": trainer.step.net.count_params(),
        "mlm_accuracy_at_15_percent": round(float(masked_accuracy(trainer)), 4),
        "loss": round(float(metrics["loss"]), 4),
    }  # fmt: skip
    print(row, file=sys.stderr)
    if arguments.write:
        from benchmarks.results_file import append

        append("pretraining_trials", [row])


if __name__ == "__main__":
    main()
