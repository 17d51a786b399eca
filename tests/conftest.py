"""Shared by all tests: quiet TensorFlow, four logical CPU devices, offline, no user's caches."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("ZOO_TEST_GPU", "-1")

import pytest


@pytest.fixture(scope="session", autouse=True)
def devices():
    """Splits the CPU into four logical devices, before any test starts TensorFlow."""
    from trainers.strategy import prepare_devices

    prepare_devices(4)


@pytest.fixture
def run(devices, tmp_path):
    """Returns `run(config, dataset, **trainer_arguments) -> Trainer`, trained in a new folder."""
    from trainers.trainer import Trainer

    counter = iter(range(1000))

    def train(config, dataset, workdir=None, **arguments):
        workdir = workdir or tmp_path / f"run_{next(counter)}"
        trainer = Trainer(config, workdir, dataset=dataset, **arguments)
        trainer.metrics = trainer.train()
        return trainer

    return train
