"""Keras callbacks by name, for `trainer.callbacks`. A callback's model is the `TrainStep`.

Checkpoints do not store the state of callbacks: a resumed run starts with new callbacks.
"""

from zoo.errors import UsageError, check_name
from zoo.lazy import keras


def _tensorboard(config, workdir):
    try:
        import tensorboard  # noqa: F401 (Keras would fail later and with an unclear message)
    except ImportError:
        raise UsageError(
            "The callback 'tensorboard' requires TensorBoard: pip install 'keras-zoo[tensorboard]'."
        ) from None
    return keras.callbacks.TensorBoard(
        str(workdir / "tensorboard"), write_graph=False, update_freq="epoch"
    )


_callbacks = {"tensorboard": _tensorboard}


def register_callback(name: str, make) -> None:
    """Registers a callback.

    Args:
      name: the name for `trainer.callbacks`.
      make: `make(config, workdir) -> keras.callbacks.Callback`; `workdir / "name"` is a path.

    Raises:
      UsageError: if the name is already registered.
    """
    if name in _callbacks:
        raise UsageError(f"A callback of this name is already registered. Received: {name!r}.")
    _callbacks[name] = make


def check_callbacks(names) -> None:
    """Raises `UsageError` for an unknown name."""
    for name in names:
        check_name("callback", name, _callbacks)


def make_callbacks(config, workdir) -> list["keras.callbacks.Callback"]:
    """Returns the callbacks in `trainer.callbacks`; raises `UsageError` for an unknown name."""
    check_callbacks(config.trainer.callbacks)
    return [_callbacks[name](config, workdir) for name in config.trainer.callbacks]
