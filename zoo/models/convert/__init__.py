"""Conversion of published checkpoints from and to other libraries."""

from zoo.models.convert.published import (
    from_keras_hub,
    from_transformers,
    to_keras_hub,
    to_transformers,
)

__all__ = ["from_keras_hub", "from_transformers", "to_keras_hub", "to_transformers"]
