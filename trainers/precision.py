"""Precision policies by name."""

import contextlib

import keras

from zoo.errors import UsageError, near_names

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@contextlib.contextmanager
def precision(name: str):
    """Builds models under a dtype policy, and puts the former policy back.

    Raises:
      UsageError: for an unknown name.
    """
    if name not in PRECISIONS:
        raise UsageError(
            f"No precision is named {name!r}.{near_names(name, PRECISIONS)} "
            f"Known: {', '.join(PRECISIONS)}."
        )
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(former)
