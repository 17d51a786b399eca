"""Several workers: results equal one process, and all workers stop if one exits."""

import time
from pathlib import Path

import pytest

from tests import toys, workers
from tests.commands import content
from tests.trainers.train import test_resume
from tests.workers import Workers
from trainers.run.workdir import read_metrics
from zoo.saved.model import open_model

pytestmark = pytest.mark.slow


def errors(stderr: str) -> list[str]:
    """Returns the zoo's lines of stderr, without TensorFlow's."""
    assert "Traceback" not in stderr
    return [line for line in stderr.splitlines() if line.startswith("zoo: error: ")]


def assert_near(one, other):
    """Checks weights to 1e-6 of the largest weight of each layer, as `toys.difference`."""
    models = [open_model(folder / "model.keras") for folder in (one, other)]
    assert toys.difference(*models) <= 1e-6
    assert test_resume.last_arrays(one)[0] == test_resume.last_arrays(other)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the work directory of two workers without interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with Workers(2, workdir) as both:
        for status, err in both.wait():
            assert status == 0, err
    return workdir


def test_two_workers_equal_one_process(whole, run, tmp_path):
    """Compares with one process of two replicas and equal dropout masks: only rounding differs."""
    alone = tmp_path / "alone"
    run(workers.recipe(replicas=2), toys.token_data(), workdir=alone)
    assert_near(whole, alone)
    one, other = map(read_metrics, (whole, alone))
    assert len(one) == len(other)
    for line, expected in zip(one, other, strict=True):
        assert line.keys() == expected.keys()
        for key in {"step", "loss", "accuracy", "val_loss", "val_accuracy"} & line.keys():
            assert line[key] == pytest.approx(expected[key], rel=1e-5), (line, expected)
    # Equal files: workers other than the chief write no files.
    assert {*content(whole)} == {*content(alone)}
    assert not Path(workers.absent(whole, 1)).exists()


def test_four_workers_equal_one_process(run, tmp_path):
    four, alone = tmp_path / "four", tmp_path / "alone"
    changes = "model.dropout=0", "trainer.steps=6"
    with Workers(4, four, *changes, tf_config=True) as all_four:
        for status, err in all_four.wait():
            assert status == 0, err
    config = workers.recipe(steps=6)
    config.model.dropout = 0.0
    run(config, toys.token_data(), workdir=alone)
    assert_near(four, alone)


def test_kills_a_sigterm_and_a_notice_then_the_same_bits(whole, tmp_path):
    workdir = tmp_path / "parts"
    interruptions = [(1, "KILL", 7, 4), (1, "TERM", 6, 6), (1, "NOTICE", 7, 7), (0, "KILL", 10, 8)]
    for victim, name, step, saved in interruptions:
        each = [[f"{name}={step}"] if index == victim else [] for index in range(2)]
        with Workers(2, workdir, "trainer.preemption_notice=gcp", each=each) as both:
            answers = both.wait()
            if name in ("TERM", "NOTICE"):
                assert [status for status, _ in answers] == [143, 143], answers
            else:
                assert answers[victim][0] == -9, answers
                status, err = answers[1 - victim]
                assert status == 1, err
                (line,) = errors(err)
                assert f"worker {victim} ({both.addresses[victim]}) was lost" in line
            if name == "NOTICE":
                lines = read_metrics(workdir)
                (line,) = [line for line in lines if line.get("event") == "preemption notice"]
                assert line["step"] == saved
                who = f"worker {victim} ({both.addresses[victim]})"
                assert line["detail"] == f"{who}: Google Cloud: preempted is TRUE"
        assert test_resume.last_arrays(workdir)[0] == saved
    with Workers(2, workdir) as both:
        for status, err in both.wait():
            assert status == 0, err
    test_resume.assert_same_end(whole, workdir)
    # The logs are equal except for events of interruptions.
    parts, expected = ([x for x in read_metrics(d) if "event" not in x] for d in (workdir, whole))
    assert len(parts) == len(expected)
    for line, other in zip(parts, expected, strict=True):
        for key in {"step", "loss", "accuracy", "val_loss", "val_accuracy"} & {*line, *other}:
            assert line[key] == pytest.approx(other[key], rel=1e-5), (line, other)


def test_a_silent_machine_ends_the_others_within_a_minute(tmp_path):
    """A stopped process keeps its connections, like a machine without network."""
    with Workers(2, tmp_path / "run", each=[[], ["STOP=6"]]) as both:
        chief, silent = both.processes
        while Path(f"/proc/{silent.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            time.sleep(0.01)
        start = time.monotonic()
        _, err = chief.communicate(timeout=120)
        assert time.monotonic() - start <= 60
        assert chief.returncode == 1
        (line,) = errors(err)
        assert f"worker 1 ({both.addresses[1]}) was lost" in line


def test_workers_that_differ_end_at_once(tmp_path):
    each = [[], ["optimizer.learning_rate=0.5"]]
    with Workers(2, tmp_path / "run", each=each) as both:
        for status, err in both.wait():
            assert status == 2
            (line,) = errors(err)
            assert "All workers must have the same recipe. Received: worker 1 (" in line
    assert not (tmp_path / "run").exists()
