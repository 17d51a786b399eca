"""Goodput counts only useful seconds, also after an interruption."""

import json

import pytest

from tests import toys
from tests.trainers.train import test_resume
from tests.trainers.train.test_resume import Interrupted, StopAt
from trainers.report.page import write_report
from trainers.run import goodput
from trainers.run.goodput import Goodput
from trainers.run.state import RunState


def test_the_first_update_of_a_process_does_not_count(monkeypatch):
    now = {"perf_counter": 0.0, "time": 100.0}
    clock = toys.Clock(lambda: now["perf_counter"], lambda: now["time"])
    monkeypatch.setattr(goodput, "time", clock)
    state = RunState(useful=5.0)  # seconds of an earlier process
    measure = Goodput(state, born=60.0)
    for block, seconds in (
        (measure.update, 9),
        (measure.update, 3),
        (measure.wait, 2),
        (measure.update, 1),
    ):
        with block():
            now["perf_counter"] += seconds
        now["perf_counter"] += 100  # validation and saving
    assert state.useful == 11.0
    assert measure.share() == 11 / 40


def test_what_is_done_again_does_not_count(run, tmp_path, monkeypatch):
    """The fake clock advances by a second per reading: an update or a wait takes one second."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(goodput, "time", toys.Clock(lambda: next(ticks)))
    data, workdir = toys.token_data(), tmp_path / "run"
    with pytest.raises(Interrupted):
        run(test_resume.recipe(), data, workdir=workdir, callbacks=[StopAt(7)])
    trainer = run(test_resume.recipe(), data, workdir=workdir)
    # Each process traces its first update. The first process: 4 updates up to the checkpoint, no
    # log line. The second process: 9 updates, log lines after 5, 8, 10 (epochs end at 5, 10), 13.
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = sum("loss" in line for line in lines)
    # Each check for a finite loss waits too: after update 4, then after 5, 8, 10, 12 and 13.
    assert trainer.state.useful == 3 + 8 + logged + 1 + 5
    started = [line for line in lines if line.get("event") == "started"]
    assert len(started) == 1


def test_goodput_counts_the_time_between_two_starts(run, tmp_path):
    data, workdir = toys.token_data(), tmp_path / "run"
    with pytest.raises(Interrupted):
        run(toys.recipe(checkpoint_every=2), data, workdir=workdir, callbacks=[StopAt(4)])
    path = workdir / "metrics.jsonl"
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    assert line["event"] == "started"
    line["time"] -= 3600  # the machine was unavailable for an hour
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    run(toys.recipe(checkpoint_every=2), data, workdir=workdir)
    shares = [
        line["goodput"] for line in map(json.loads, path.read_text().splitlines()) if "loss" in line
    ]
    assert all(0 <= share < 0.05 for share in shares)
    page = write_report(workdir).read_text()
    assert "goodput 0%" in page
