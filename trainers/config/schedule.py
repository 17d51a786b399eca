"""The section `schedule`: schedules, their arguments and rules. Does not import Keras."""

from zoo.errors import UsageError, check_minimums, check_name, require

# name -> arguments and their defaults. The peak is optimizer.learning_rate.
SCHEDULES: dict[str, dict] = {
    "constant": {"warmup_steps": 0},
    "cosine": {"warmup_steps": 0, "final_fraction": 0.0},
    "linear": {"warmup_steps": 0, "final_fraction": 0.0},
    # Falls geometrically to final_fraction, or rises to it if it is larger than 1.
    "exponential": {"warmup_steps": 0, "final_fraction": 0.01},
    # Warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4: a decay over 10 %
    # of the run suffices). decay_steps=0 decays over a tenth of the run.
    "wsd": {"warmup_steps": 0, "decay_steps": 0, "final_fraction": 0.0},
}


def check(name: str, **arguments) -> None:
    """Checks a schedule and its arguments; raises `UsageError`."""
    check_name("schedule", name, SCHEDULES)
    check_minimums("schedule", arguments)
    if name == "exponential":
        final = arguments.get("final_fraction", 1.0)
        require(final > 0, "schedule.final_fraction", "positive with exponential", final)


def check_phases(name: str, steps: int, **arguments) -> None:
    """Checks a schedule for a run of `steps` updates; raises `UsageError`."""
    check(name, **arguments)
    warmup, decay = arguments["warmup_steps"], 0
    phases = f"schedule.warmup_steps={warmup}"
    if name == "wsd":
        decay = decay_updates(steps, arguments["decay_steps"])
        phases += f", schedule.decay_steps={decay}"
    if warmup + decay > steps:
        raise UsageError(
            f"Warm-up and decay must not be longer than the run. Received: {phases} for {steps} "
            "steps; lower them or raise trainer.steps."
        )


def decay_updates(steps: int, decay_steps: int) -> int:
    """Returns the number of updates over which `wsd` decays in a run of `steps` updates."""
    return decay_steps or max(1, steps // 10)
