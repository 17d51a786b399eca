"""Learning-rate schedules by name. They count optimizer updates, never micro-batches.

The tables of names and arguments load no Keras, so that recipes can be read without it.
"""

from trainers.config.choices import SCHEDULES, check_schedule
from zoo.errors import UsageError


def make_schedule(name: str, peak: float, steps: int, **arguments):
    """Returns a schedule.

    Updates have the indices u = 0 ... steps - 1. In the first `warmup_steps` the rate rises
    linearly, peak * (u + 1) / warmup_steps, so that it reaches the peak at u = warmup_steps - 1.
    In the last D updates it falls from the peak to final = final_fraction * peak, which the last
    update (u = steps - 1) has exactly:

        t = (u - (steps - 1 - D)) / D, clipped to [0, 1]
        cosine:       final + (peak - final) * (1 + cos(pi * t)) / 2
        linear, wsd:  final + (peak - final) * (1 - t)

    D is `decay_steps` for `wsd`; `cosine` and `linear` fall in all updates after the one that has
    the peak. `constant` does not fall.

    Args:
      name: a name of `SCHEDULES`.
      peak: largest learning rate.
      steps: updates of the whole run.
      **arguments: those of `SCHEDULES[name]`.

    Returns:
      A `keras.optimizers.schedules.LearningRateSchedule`; for `constant` without warm-up the peak
      itself, which Keras' callbacks can change.

    Raises:
      UsageError: for an unknown name, or phases longer than the run.
    """
    import math

    import keras
    from keras import ops

    check_schedule(name)
    arguments = {**SCHEDULES[name], **arguments}
    warmup = arguments["warmup_steps"]
    decay = arguments.get("decay_steps", steps - max(warmup, 1))
    if warmup < 0 or decay < 0 or warmup + decay > steps:
        raise UsageError(
            f"The phases of a schedule fit into the run. Received: schedule.warmup_steps={warmup}"
            f"{f', schedule.decay_steps={decay}' if 'decay_steps' in arguments else ''} "
            f"and {steps} steps; lower the phases or raise trainer.steps."
        )
    final = arguments.get("final_fraction", 1.0)
    if not 0 <= final < float("inf"):
        raise UsageError(f"schedule.final_fraction is 0 or positive. Received: {final}.")
    if name == "constant" and not warmup:
        return peak

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = ops.cast(step, "float32")
            rise = ops.minimum((step + 1) / max(warmup, 1), 1.0)
            if name == "constant" or not decay:
                return peak * rise
            done = ops.clip((step - (steps - 1 - decay)) / decay, 0.0, 1.0)
            if name == "cosine":
                share = 0.5 * (1 + ops.cos(math.pi * done))
            else:
                share = 1 - done
            return peak * rise * (final + (1 - final) * share)

        def get_config(self):
            return {"name": name, "peak": peak, "steps": steps, **arguments}

    return Schedule()
