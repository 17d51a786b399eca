"""Batches that other processes prepare are those that one process prepares, bit for bit."""

import os
import signal
import time

import numpy as np
import pytest

from tests import prepares, test_augment, test_resume, toys
from tests.test_resume import Interrupted, StopAt
from trainers.input_workers import InputWorkers, _Files, _mapped
from trainers.recipe import change
from trainers.workdir import read_metrics
from zoo.data import pipeline
from zoo.data.records import RecordWriter, open_records
from zoo.data.windows import Windows
from zoo.errors import RunError, UsageError
from zoo.tasks.image_classification import ImageClassification


@pytest.fixture(scope="module")
def pool():
    with InputWorkers(2) as workers:
        yield workers
    # Nobody killed them: they end because the connection did, as it does when the trainer ends.
    assert [worker._process.poll() for worker in workers._workers] == [0, 0]


def read(batches):
    return [{key: value.numpy() for key, value in batch.items()} for batch in batches]


def compare(pool, arrays, prepare, **where):
    where = {
        "batch_size": 16, "replicas": 1, "seed": 3, "first_step": 0, "last_step": 12, **where
    }  # fmt: skip
    expected = pipeline.training_batches(arrays, prepare, **where)
    found = pool.batches(arrays, prepare, **where)
    assert found.element_spec == expected.element_spec
    found, expected = read(found), read(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"first_step": 7},
        {"replicas": 2},
        {"replicas": 4, "shares": range(1, 4), "first_step": 3},
    ],
)
def test_order_is_that_of_one_process(pool, where):
    """Five batches an epoch, the last of them short."""
    arrays = {"number": np.arange(70), "big": np.arange(70 * 2**13).reshape(70, -1)}
    compare(pool, arrays, prepares.plain, **where)


def test_no_batch_overtakes_another(pool):
    compare(pool, {"number": np.arange(1000)}, prepares.late, batch_size=1, last_step=60)


def test_pictures_change_as_in_one_process(pool):
    task = ImageClassification(
        rotation=30.0, shift=2.0, zoom=0.2, shear=5.0, augment=test_augment.ALL
    )
    compare(pool, test_augment.colourful(), task.prepare, batch_size=8, replicas=2, last_step=3)


def test_text_is_read_by_python_in_the_workers(pool, tmp_path):
    """Windows that are cut elsewhere in each epoch, and records in several files."""
    stream = np.arange(1000, dtype="uint16")
    with RecordWriter(tmp_path / "records", {"row": ((300,), "uint16")}, shard_bytes=2**14) as to:
        to.append(row=np.arange(70 * 300, dtype="uint16").reshape(70, 300))
    records = open_records(tmp_path / "records").arrays["row"]
    assert len(records._shards) > 1
    arrays = {"number": Windows(stream, 7)}
    compare(pool, arrays, prepares.plain, first_step=2, last_step=20)
    compare(pool, {"number": records}, prepares.plain)


def test_arrays_go_by_the_file_they_lie_in(tmp_path):
    np.arange(10**6).tofile(tmp_path / "numbers")
    mapped = np.memmap(tmp_path / "numbers", np.int64, "r", offset=80, shape=(999_990 // 2, 2))
    copied = np.memmap(tmp_path / "numbers", np.int64, "c", shape=(10**6,))
    copied[0] = 7  # in this process alone
    memory = np.arange(10**6) * 2
    (tmp_path / "folder").mkdir()
    files = _Files(str(tmp_path / "folder"))
    for array, where in (
        (mapped, "numbers"),
        (mapped.view(np.ndarray)[1000:400_000], "numbers"),
        (mapped[:, 1], "folder/0"),
        (copied, "folder/1"),
        (memory[::2], "folder/2"),
        ((memory % 7).astype("float16"), "folder/3"),
    ):
        place = files.place(array)
        assert str(place[0]) == str(tmp_path / where)
        found = _mapped(*place)
        assert (found.dtype, type(found)) == (array.dtype, np.ndarray)
        np.testing.assert_array_equal(found, array)
        assert files.place(array)[0] == place[0]  # written once


# --- when something goes wrong ------------------------------------------------------------------


def test_what_cannot_be_sent_is_refused():
    arrays, where = {"number": np.arange(9)}, {"batch_size": 3, "replicas": 1}
    with (
        InputWorkers(1) as workers,
        pytest.raises(UsageError, match="trainer.input_workers .* must be able to pickle"),
    ):
        workers.batches(arrays, lambda *_: _[0], seed=0, first_step=0, last_step=1, **where)
    assert not workers._workers


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (prepares.fails, "^Input worker 0 failed: .*ZeroDivisionError: by zero"),
        (prepares.dies, r"^Input worker 0 \(process \d+\) ended with status 3$"),
    ],
)
def test_a_worker_that_does_not_start_is_one_line(prepare, line):
    where = {"batch_size": 3, "replicas": 1, "seed": 0, "first_step": 0, "last_step": 1}
    with InputWorkers(1) as workers, pytest.raises(RunError, match=line) as caught:
        workers.batches({"number": np.arange(9)}, prepare, **where)
    assert "\n" not in str(caught.value)
    assert workers._workers[0]._process.poll() is not None


def test_a_worker_that_is_killed_is_named():
    lines = []
    where = {"batch_size": 3, "replicas": 1, "seed": 0, "first_step": 0, "last_step": 10**9}
    with InputWorkers(1, lines.append) as workers:
        iterator = iter(workers.batches({"number": np.arange(9)}, prepares.plain, **where))
        next(iterator)
        pid = workers._workers[0]._process.pid
        os.kill(pid, signal.SIGTERM)  # to all processes of a job: the trainer's matter
        time.sleep(0.1)
        assert not lines
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines == [f"Input worker 0 (process {pid}) was killed by signal 9"]


def test_a_negative_number_is_refused():
    with pytest.raises(UsageError, match="trainer.input_workers is at least 0. Received: -1"):
        change(toys.recipe(), [("trainer.input_workers", "-1")])


# --- whole runs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_with_the_same_bits(run, tmp_path):
    """Two replicas; interrupted, and gone on with by another number of workers."""

    def recipe(**trainer):
        return toys.recipe(
            model_arguments={"dropout": 0.3}, strategy="mirrored", replicas=2, checkpoint_every=4,
            log_every=1, **trainer,
        )  # fmt: skip

    data, parts = toys.token_data(), tmp_path / "parts"
    run(recipe(), data, workdir=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe(input_workers=2), data, workdir=parts, callbacks=[StopAt(7)])
    run(recipe(input_workers=1), data, workdir=parts)
    test_resume.assert_same_end(tmp_path / "whole", parts)
    losses = [
        {line["step"]: line["loss"] for line in read_metrics(folder) if "loss" in line}
        for folder in (tmp_path / "whole", parts)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10
