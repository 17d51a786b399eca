"""The places of a run where a compression technique takes effect. Loads no TensorFlow."""

from collections.abc import Collection

from zoo.errors import UsageError, compiled


class Technique:
    """Base class of the techniques that make a model smaller while it trains.

    Each method leaves the run as it is. A technique overrides those that it needs, and acts only if
    `settings`, the section `compress` with all its keys, asks for it.
    """

    def resolve(self, config, workdir, dataset):
        """Writes sizes that follow from weights into the recipe. Returns the data, maybe others."""
        return dataset

    def change_model(self, model, settings):
        """Returns the built model, maybe changed in place or replaced. No optimizer exists yet."""
        return model

    def wrap_task(self, task, model, config, dataset):
        """Returns the task to train; `dataset` may be None."""
        return task

    def compressor(self, step, settings, total_steps):
        """Returns a `Compressor` for a `TrainStep` of a run of `total_steps` updates, or None."""

    def initial_values(self, model, source, settings):
        """Returns variable path -> array: values other than those of the same path in `source`."""
        return {}


class Compressor:
    """Base class of what changes the weights of a built model between updates.

    Attributes:
      variables: variables for checkpoints, besides the weights of the model.
    """

    variables = ()

    def __init__(self, model):
        self.model = model

    def begin(self) -> None:
        """Runs once, as soon as the model holds the weights that the run starts from."""

    def update(self) -> None:
        """Runs in each replica after each update of the optimizer."""

    def restore(self) -> None:
        """Runs after weights were put into the model from outside, such as averages."""


def matching(key: str, pattern: str, paths: Collection[str]) -> list[str]:
    """Returns the paths that match the pattern of `key`; raises `UsageError` if none does."""
    selected = [*filter(compiled(key, pattern).search, paths)]
    if not selected:
        raise UsageError(
            f"{key} matches nothing. Received: {pattern!r}; there are "
            f"{', '.join([*paths][:5]) or 'no layers of supported kinds'}."
        )
    return selected
