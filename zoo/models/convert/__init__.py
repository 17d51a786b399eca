"""Published checkpoints in and out, one file per format."""

from zoo.models.convert.published import (
    from_keras_hub,
    from_transformers,
    to_keras_hub,
    to_transformers,
)

__all__ = ["from_keras_hub", "from_transformers", "to_keras_hub", "to_transformers"]
