"""Images as rows of tokens."""

import numpy as np
import pytest
from PIL import Image

from trainers.config.base import base
from zoo import registry
from zoo.data import sources
from zoo.errors import UsageError

pytestmark = pytest.mark.usefixtures("cache")


def load(**changes):
    data = {**base().data.to_dict(), "tokenizer": "pixels", **changes}
    return registry.load_data(data, {"name": "clm"})


def test_a_row_is_0_and_the_values_of_an_image():
    dataset, images = load(source="digits", sequence_length=784), sources.load("digits")
    assert (dataset.tokenizer, set(dataset.splits)) == (None, {"train", "test"})
    for split, arrays in dataset.splits.items():
        tokens = arrays["tokens"]
        assert tokens.dtype == np.uint8
        assert not tokens[:, 0].any()
        np.testing.assert_array_equal(
            tokens[:, 1:].reshape(-1, 28, 28, 1), images.splits[split]["image"]
        )
        assert (arrays["segments"] == 1).all()
    assert dataset.fingerprint != images.fingerprint


def test_channels_of_a_pixel_are_neighbors(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype("uint8")
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    tokens = load(source=f"folder:{tmp_path}", image_size=(4, 5)).splits["train"]["tokens"]
    np.testing.assert_array_equal(tokens[0, 1:].reshape(4, 15)[:, 3:6], pixels[:, 1])


def test_wrong_sources_and_lengths_are_refused(tmp_path):
    with pytest.raises(UsageError, match="requires data.image_size, because each value"):
        load(source=f"folder:{tmp_path}")
    with pytest.raises(UsageError, match="sequence_length must be 784.*or 0. Received: 783"):
        load(source="digits", sequence_length=783)
    np.savez(tmp_path / "x.npz", train_x=np.zeros((3, 4)))
    with pytest.raises(UsageError, match="pixels requires images. Received: .*arrays x"):
        load(source=f"npz:{tmp_path / 'x.npz'}")
