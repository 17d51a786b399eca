"""Sweeps: values, pruning, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.commands import ROOT, ZOO
from tests.html_pages import Page
from trainers.run.workdir import read_metrics
from trainers.tuning.page import write_sweep_page
from trainers.tuning.search import parse
from trainers.tuning.sweep import Sweep
from zoo.errors import RunError, UsageError
from zoo.storage.disk import write_json
from zoo.storage.locks import is_held

pytest.importorskip("optuna")

RECIPE = "cnn_digits:debug"
RATE = [("optimizer.learning_rate", "log:1e-4:1e-1")]


def make(folder, pairs=(*RATE, ("task.label_smoothing", "choice:0.0,0.1")), **options):
    return Sweep(folder, RECIPE, [("trainer.steps", "20")], parse(pairs), **options)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Returns a sweep whose runs write results without training."""
    results = [
        {"value": 0.5}, {"value": 0.75}, {"value": None, "reason": "diverged"},
        {"value": 0.25, "pruned": True}, {"value": 0.625},
    ]  # fmt: skip
    sweep = make(tmp_path / "study", sampler="random")

    def child(words):
        _, _, number, workdir, _, _ = words
        result = {"pruned": False, "reason": "", **results[int(number)]}
        (tmp_path / workdir).mkdir(parents=True)
        write_json(tmp_path / workdir / "trial.json", result)
        return 0

    monkeypatch.setattr("trainers.tuning.sweep._child", child)
    return sweep


def test_the_best_complete_trial_wins(study, tmp_path):
    assert study.run(5)
    outcomes = study.outcomes()
    assert [trial.state for trial in outcomes] == [
        "complete", "complete", "diverged", "pruned", "complete"
    ]  # fmt: skip
    assert study.best().number == 1
    assert study.best().value == 0.75
    for trial in outcomes:
        assert 1e-4 <= float(trial.overrides["optimizer.learning_rate"]) <= 1e-1
        assert trial.overrides["task.label_smoothing"] in ("0.0", "0.1")
    assert study.run(5)  # nothing is left to do
    assert len(study.outcomes()) == 5
    write_sweep_page(study, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.headings == ["Best trial", "Parallel coordinates", "Trials"]
    rows = page.table("trial", "state", "val_accuracy")
    assert [row[:3] for row in rows[:3]] == [
        ["1", "complete", "0.75"], ["4", "complete", "0.625"], ["0", "complete", "0.5"]
    ]  # fmt: skip


def test_a_trial_without_a_value_ends_the_sweep(study, monkeypatch):
    def child(words):
        os.makedirs(words[3])
        write_json(f"{words[3]}/trial.json", {"value": None, "pruned": False, "reason": ""})
        return 0

    monkeypatch.setattr("trainers.tuning.sweep._child", child)
    with pytest.raises(RunError, match="requires a validation split"):
        study.run(1)
    with pytest.raises(RunError, match="No trial of .* is complete"):
        study.best()


def test_a_failed_process_ends_the_sweep_and_the_next_one_goes_on(study, monkeypatch):
    child = sys.modules["trainers.tuning.sweep"]._child
    monkeypatch.setattr("trainers.tuning.sweep._child", lambda words: 1)
    with pytest.raises(RunError, match="Trial 0 .* failed with exit status 1"):
        study.run(2)
    monkeypatch.setattr("trainers.tuning.sweep._child", child)
    assert study.run(2)
    assert [trial.state for trial in study.outcomes()] == ["failed", "complete"]


def test_a_stopped_trial_comes_first(study, monkeypatch):
    child = sys.modules["trainers.tuning.sweep"]._child
    monkeypatch.setattr("trainers.tuning.sweep._child", lambda words: 143)
    assert not study.run(2)
    before = study.outcomes()[0].overrides
    assert study.outcomes()[0].state == "running"
    monkeypatch.setattr("trainers.tuning.sweep._child", child)
    assert study.run(2)
    assert [trial.state for trial in study.outcomes()] == ["complete", "complete"]
    assert study.outcomes()[0].overrides == before


def test_a_grid_holds_every_pair_of_values(tmp_path, monkeypatch):
    pairs = [("task.label_smoothing", "choice:0.0,0.1"), ("model.hidden_dim", "int:3:5")]
    sweep = make(tmp_path, pairs, sampler="grid")

    def child(words):
        os.makedirs(words[3])
        write_json(f"{words[3]}/trial.json", {"value": 0.5, "pruned": False, "reason": ""})
        return 0

    monkeypatch.setattr("trainers.tuning.sweep._child", child)
    assert sweep.run(50)
    values = [tuple(trial.overrides.values()) for trial in sweep.outcomes()]
    assert sorted(values) == [(a, b) for a in ("0.0", "0.1") for b in "345"]


def test_another_question_is_refused(tmp_path):
    make(tmp_path)
    make(tmp_path)
    with pytest.raises(UsageError, match="a study with another recipe"):
        Sweep(tmp_path, RECIPE, [("trainer.steps", "21")], parse(RATE))
    with pytest.raises(UsageError, match="a study with another search"):
        make(tmp_path, RATE)
    with pytest.raises(UsageError, match="a study with another pruner"):
        make(tmp_path, pruner="none")


@pytest.mark.parametrize(
    ("recipe", "pairs", "overrides", "message"),
    [
        (RECIPE, [("optimizer.rate", "log:1e-4:1")], [], "no key 'optimizer.rate'"),
        (RECIPE, [("task.label_smoothing", "float:0:1")], [], r"must be in \[0, 1\)"),
        (RECIPE, [("trainer.steps", "float:1.5:2.5")], [], "must be of type int"),
        (RECIPE, RATE, [("optimizer.learning_rate", "1")], "searched or set, not both"),
        ("gan_mnist", RATE, [], "requires a task with a validation metric"),
    ],
)
def test_wrong_spaces_are_refused(tmp_path, recipe, pairs, overrides, message):
    with pytest.raises(UsageError, match=message):
        Sweep(tmp_path / "study", recipe, overrides, parse(pairs))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_end(tmp_path):
    words = [
        "tune", RECIPE, "sweep", f"--workdir={tmp_path / 'study'}", "--trials=2", "--pruner=none",
        "--search.optimizer.learning_rate=log:1e-3:1e-2", "--config.trainer.steps=60",
        "--config.trainer.checkpoint_every=10", f"--best={tmp_path / 'best.py'}",
    ]  # fmt: skip
    command = [sys.executable, "-c", ZOO, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = tmp_path / "study" / "trials" / "0000"
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as sweep:
        deadline = time.monotonic() + 200
        while not list(first.glob("checkpoints/step_*.npz")):
            assert sweep.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    while is_held(first):  # the run ends with the sweep
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (first / "model.keras").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "trial 0 continues" in done.stderr
    assert "best of 2 trials" in done.stdout
    events = [row.get("event") for row in read_metrics(first)]
    assert events.count("started") == 1
    assert "resumed" in events
    rate = json.loads((first / "config.json").read_text())["config"]["optimizer"]["learning_rate"]
    done = subprocess.run(
        [sys.executable, "-c", ZOO, "train", RECIPE, f"--workdir={tmp_path / 'plain'}",
         "--config.trainer.steps=60", "--config.trainer.checkpoint_every=10", "--mode=train",
         f"--config.optimizer.learning_rate={rate!r}"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pair = [keras.saving.load_model(path / "model.keras") for path in (first, tmp_path / "plain")]
    for one, other in zip(*(model.weights for model in pair), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "study" / "report.html").exists()
    assert "optimizer.learning_rate" in (tmp_path / "best.py").read_text()
