"""The flags --loops and --halt of `zoo evaluate` and `zoo generate`."""

import json

import pytest

from trainers.cli.main import main


@pytest.fixture(scope="module")
def workdir(devices, tmp_path_factory):
    folder = tmp_path_factory.mktemp("looped") / "run"
    words = [
        "zoo", "train", "looped_chase:debug", f"--workdir={folder}", "--config.trainer.steps=2",
        "--config.schedule.warmup_steps=1", "--config.trainer.global_batch_size=4",
        "--config.model.loops=2", "--config.model.loop_range=1,2",
    ]  # fmt: skip
    assert main(words) == 0
    return folder


@pytest.mark.slow
def test_evaluation_runs_other_loops_and_halts(workdir, zoo_command):
    stored = (workdir / "evaluation" / "test.json").read_bytes()

    def metrics(*flags):
        answer = zoo_command("evaluate", workdir, "--json", *flags)
        assert answer.status == 0, answer.err
        return json.loads(answer.out)["metrics"]

    plain, two, three = metrics(), metrics("--loops=2"), metrics("--loops=3")
    assert plain["loss"] == two["loss"] != three["loss"]  # the run has two loops
    assert "saved_loops" not in plain
    halted = metrics("--halt=0.9")
    assert 0 < halted["saved_loops"] < 1
    assert halted["loss"] != plain["loss"]
    assert (workdir / "evaluation" / "test.json").read_bytes() == stored
    assert "depth 2" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_generation_runs_other_loops(workdir, zoo_command):
    flags = ("--prompt=abc", "--max_tokens=3", "--temperature=0", "--json")
    answer = zoo_command("generate", workdir, *flags, "--loops=1")
    assert answer.status == 0, answer.err
    assert len(json.loads(answer.out)) == 1


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--loops=0", "--loops must be positive. Received: 0"),
        ("--halt=0", "--halt must be in (0, 1). Received: 0"),
        ("--halt=2", "--halt must be in (0, 1). Received: 2"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_flags_out_of_bounds_are_refused(zoo_command, command, flag, words):
    answer = zoo_command(command, "run", flag)
    assert answer.status == 2
    assert words in answer.one_line()
