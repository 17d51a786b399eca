"""Images that a language model samples value by value."""

import numpy as np
import pytest

from zoo.data.pixels import image_shape
from zoo.errors import UsageError
from zoo.generation import pixels
from zoo.models import axial

SHAPE = (3, 2, 3)


def test_every_value_is_sampled(monkeypatch):
    """Image b depends only on seed + b; a model that is sure of a value draws it everywhere."""
    model = axial.build(
        sequence_length=18, columns=6, num_outer_layers=2, num_inner_layers=1, hidden_dim=8,
        num_heads=1,
    )  # fmt: skip
    monkeypatch.setattr(pixels, "_SAMPLED", 2)
    # Compilation would take longer than the loops.
    monkeypatch.setattr("zoo.generation.generate.compiles", lambda: False)
    images = pixels.sample_images(model, SHAPE, 3, seed=5)
    assert (images.shape, images.dtype) == ((3, *SHAPE), np.uint8)
    assert len({tuple(x.flat) for x in images}) == 3
    np.testing.assert_array_equal(pixels.sample_images(model, SHAPE, 1, seed=7)[0], images[2])
    model.get_layer("projection").bias.assign(100.0 * (np.arange(256) == 200))
    assert (pixels.sample_images(model, SHAPE, 1, seed=0) == 200).all()


def test_shapes_of_images():
    assert image_shape(784, ()) == (28, 28, 1)
    assert image_shape(3072, ()) == (32, 32, 3)
    assert image_shape(18, (3, 2)) == SHAPE
    with pytest.raises(UsageError, match="square.*Received: 18 values"):
        image_shape(18, ())
