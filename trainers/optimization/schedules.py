"""Makes learning-rate schedules by name. Steps are optimizer updates, not micro-batches.

`trainers.config.schedule` has their arguments and defaults. Importing this module does not import
Keras, because `total_steps` runs before TensorFlow is started.
"""

from trainers.config.schedule import SCHEDULES, check_phases, decay_updates
from zoo.data.rows import steps_per_epoch
from zoo.errors import check_name


def total_steps(trainer, examples: int) -> int:
    """Returns the number of updates of a whole run.

    Args:
      trainer: the section `trainer` of the configuration.
      examples: number of training examples.
    """
    return trainer.steps or trainer.epochs * steps_per_epoch(examples, trainer.global_batch_size)


def make_schedule(name: str, peak: float, steps: int, **arguments):
    """Returns a learning-rate schedule.

    Updates have the indices u = 0 ... steps - 1. In the first `warmup_steps` updates the rate rises
    linearly, peak * (u + 1) / warmup_steps, and reaches the peak at u = warmup_steps - 1. In the
    last D updates it falls from the peak to final = final_fraction * peak, which it reaches exactly
    at the last update (u = steps - 1):

        t = (u - (steps - 1 - D)) / D, clipped to [0, 1]
        cosine:       final + (peak - final) * (1 + cos(pi * t)) / 2
        linear, wsd:  final + (peak - final) * (1 - t)
        exponential:  peak * final_fraction ** t

    For `wsd`, D is `decay_steps`, by default a tenth of the run and at least 1. `cosine`, `linear`
    and `exponential` change in all updates after the warm-up; `constant` does not change.

    Args:
      name: a key of `SCHEDULES`.
      peak: largest learning rate.
      steps: number of updates of the whole run.
      **arguments: see `SCHEDULES[name]`.

    Returns:
      A `keras.optimizers.schedules.LearningRateSchedule`. For `constant` without warm-up it is the
      number `peak`, which Keras' callbacks can change.

    Raises:
      UsageError: for an unknown name, or phases longer than the run.
    """
    import math

    import keras
    from keras import ops

    check_name("schedule", name, SCHEDULES)
    arguments = {**SCHEDULES[name], **arguments}
    check_phases(name, steps, **arguments)
    warmup = arguments["warmup_steps"]
    if name == "wsd":
        decay = decay_updates(steps, arguments["decay_steps"])
    else:
        decay = steps - max(warmup, 1)
    final = arguments.get("final_fraction", 1.0)
    if name == "constant" and not warmup:
        return peak

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = ops.cast(step, "float32")
            rise = ops.minimum((step + 1) / max(warmup, 1), 1.0)
            if name == "constant" or not decay:
                return peak * rise
            progress = ops.clip((step - (steps - 1 - decay)) / decay, 0.0, 1.0)
            if name == "exponential":
                return peak * rise * ops.exp(math.log(final) * progress)
            if name == "cosine":
                share = 0.5 * (1 + ops.cos(math.pi * progress))
            else:
                share = 1 - progress
            return peak * rise * (final + (1 - final) * share)

        def get_config(self):
            return {"name": name, "peak": peak, "steps": steps, **arguments}

    return Schedule()
