"""Hooks of a run for compression techniques. Does not import TensorFlow."""

from collections.abc import Collection

from zoo.errors import UsageError, compile_pattern


class Technique:
    """Base class of the techniques that make a model smaller while it trains.

    The methods of this class do not change the run. A technique overrides the methods that it
    needs, and acts only if `settings`, the section `compress` with all its keys, enables it.
    """

    def resolve(self, config, workdir, dataset):
        """Writes sizes computed from weights into the config; returns `dataset` or another one."""
        return dataset

    def change_model(self, model, settings):
        """Returns the built model, changed in place or replaced. No optimizer exists yet."""
        return model

    def wrap_task(self, task, model, config, dataset):
        """Returns the task to train; `dataset` may be None."""
        return task

    def compressor(self, step, settings, total_steps):
        """Returns a `Compressor` for a `TrainStep` of a run of `total_steps` updates, or None."""

    def initial_values(self, model, source, settings):
        """Returns variable path -> array if the value differs from that path's in `source`."""
        return {}


class Compressor:
    """Base class of objects that change the weights of a built model between updates.

    Attributes:
      variables: variables to save in checkpoints in addition to the weights of the model.
    """

    variables = ()

    def __init__(self, model):
        self.model = model

    def begin(self) -> None:
        """Runs once, after the model got the initial weights of the run."""

    def update(self) -> None:
        """Runs in each replica after each update of the optimizer."""

    def restore(self) -> None:
        """Runs after other weights, such as averages, were assigned to the model."""


def select_paths(key: str, pattern: str, paths: Collection[str]) -> list[str]:
    """Returns the paths that match the pattern of `key`; raises `UsageError` if none does."""
    selected_paths = [*filter(compile_pattern(key, pattern).search, paths)]
    if not selected_paths:
        raise UsageError(
            f"{key} matches nothing. Received: {pattern!r}. Some supported paths: "
            f"{', '.join([*paths][:5]) or 'none'}."
        )
    return selected_paths
