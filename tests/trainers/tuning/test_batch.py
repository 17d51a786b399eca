"""The search for a micro-batch."""

import json

import pytest

from trainers.config.recipe import resolve
from trainers.tuning import batch
from zoo import processes
from zoo.errors import RunError, UsageError


def answers(monkeypatch, results):
    """Replaces the measurements in child processes, of 15 s each, by known results."""
    measured = []

    def call(description, function, config, seconds, **options):
        config = json.loads(config)
        rows = config["trainer"]["global_batch_size"]
        assert (function, config["trainer"]["micro_batch_size"]) == (
            "trainers.tuning.batch:measure", 0
        )  # fmt: skip
        measured.append(rows)
        if isinstance(results[rows], Exception):
            raise results[rows]
        return results[rows]

    monkeypatch.setattr(processes, "call", call)
    return measured


MIB = 2**20


@pytest.mark.parametrize(
    ("results", "limit", "largest", "fastest", "measured"),
    [
        # 4 is within 2 % of 8, and smaller.
        ({1: (10, 100), 2: (19, 110), 4: (30.0, 130), 8: (30.4, 170)}, 900, 8, 4, [1, 2, 4, 8]),
        # The next size would take 250 MiB.
        ({1: (10, 100), 2: (19, 150)}, 200, 2, 2, [1, 2]),
        ({1: (10, 100), 2: (19, 300)}, 200, 1, 1, [1, 2]),
        ({1: (10, 300)}, 200, 0, 0, [1]),
        ({1: (9, 10), 2: RunError("It was ended by signal 9.")}, 200, 1, 1, [1, 2]),
        ({1: (9, 10), 2: RunError("ResourceExhaustedError: OOM")}, 200, 1, 1, [1, 2]),
    ],
)
def test_the_largest_and_the_fastest(
    monkeypatch, results, limit, largest, fastest, measured
):  # fmt: skip
    results = {
        rows: value if isinstance(value, Exception) else [value[0], value[1] * MIB]
        for rows, value in results.items()
    }
    seen = answers(monkeypatch, results)
    found = batch.find_batch(resolve("cnn_digits:debug"), highest=8, limit=limit * MIB)
    assert (found.largest, found.fastest, seen) == (largest, fastest, measured)
    assert found.device == "CPU"


def test_other_failures_are_not_hidden(monkeypatch):
    answers(monkeypatch, {1: RunError("The measurement of 1 examples failed: no data.")})
    with pytest.raises(RunError, match="no data"):
        batch.find_batch(resolve("cnn_digits:debug"), highest=8)


def test_several_devices_are_refused():
    with pytest.raises(UsageError, match="trainer.strategy must be one_device"):
        batch.find_batch(resolve("cnn_digits:debug", [("trainer.strategy", "mirrored")]))


@pytest.mark.slow
def test_a_size_is_measured_in_a_child():
    config = resolve("cnn_digits:debug")
    found = batch.find_batch(config, highest=2, seconds=0.2, limit=20 * 2**30)
    assert [size.rows for size in found.sizes] == [1, 2]
    for size in found.sizes:
        assert size.samples_per_second > 1
        assert 100 * MIB < size.bytes < 4000 * MIB
