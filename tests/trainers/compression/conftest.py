"""Fixtures with trained runs for the tests of all techniques."""

import dataclasses
import json
from pathlib import Path

import keras
import pytest

import zoo
from tests import toys
from tests.trainers.compression.small_cnn import recipe


@pytest.fixture(scope="session")
def digits(devices, tmp_path_factory):
    """Path of a work directory: a small CNN after a few updates. Tests must not change it."""
    from trainers.train.trainer import Trainer

    folder = tmp_path_factory.mktemp("digits") / "run"
    Trainer(recipe(), folder, dataset=toys.image_data(side=20)).train()
    return str(folder)


@dataclasses.dataclass
class Chain:
    """The result of `zoo compress A+B`.

    Attributes:
      words: words of the command.
      out: work directory of B.
      stage: work directory of A.
      first, last: models of A and B.
      summary: compression.json.
    """

    words: tuple
    out: Path
    stage: Path
    first: keras.Model
    last: keras.Model
    summary: dict


@pytest.fixture
def chain(trained, tmp_path, zoo_command):
    """Returns `chain("A+B", "KEY=VALUE", ...) -> Chain` of the digit classifier."""

    def compress(methods, *overrides):
        out = tmp_path / "small"
        stage = out / "stages" / f"1-{methods.partition('+')[0]}"
        words = "compress", methods, trained[0], f"--out={out}", "--config.trainer.steps=25"
        words += tuple(f"--config.{override}" for override in overrides)
        answer = zoo_command(*words)
        assert answer.status == 0, answer.err
        summary = json.loads((out / "compression.json").read_text())
        return Chain(words, out, stage, zoo.load(stage), zoo.load(out), summary)

    return compress
