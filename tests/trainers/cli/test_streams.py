"""Standard streams that are closed, full, or pipes without a reader."""

import os
import subprocess
import sys

import pytest

from tests import commands


def shell(tmp_path, redirection: str, *words, code=commands.ZOO) -> tuple[int, str, str]:
    """Runs `zoo WORD ...`, or other code, behind a redirection; returns status, stdout, stderr."""
    (tmp_path / "start").write_text(code)
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "-", sys.executable, tmp_path / "start", *words],
        env={**os.environ, "PYTHONPATH": str(commands.ROOT), "PYTHONUNBUFFERED": ""},  # as usual
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirection", "statuses", "line"),
    [
        (">&-", {1}, "the standard output is closed"),
        (">/dev/full", {1}, "No space left on device"),
        ("2>&-", {0}, ""),
        ("2>/dev/full", {0}, ""),
        ("<&-", {0}, ""),
        (">&- 2>&-", {1}, ""),
        (">/dev/full 2>/dev/full", {1}, ""),
        # A short output is in the pipe before its reader exits.
        ("| head -c 1; exit ${PIPESTATUS[0]}", {0, 141}, ""),
    ],
)
def test_an_answer_that_cannot_be_written(redirection, statuses, line, tmp_path):
    status, out, err = shell(tmp_path, redirection, "--help")
    assert status in statuses
    assert bool(out) == (status in (0, 141))
    if line:
        assert err.startswith("zoo: error: ")
        assert line in err
        assert err.count("\n") == 1
    else:
        assert err == ""


@pytest.mark.parametrize("redirection", [">&- 2>&-", "2>/dev/full >/dev/full", "<&- 2>&-"])
def test_a_wrong_use_has_its_status_though_it_cannot_be_told(redirection, tmp_path):
    assert shell(tmp_path, redirection, "lsit") == (2, "", "")


LEAVES_A_FILE = """
import sys
from trainers.cli.common import writes_files, run

@writes_files
def command(argv):
    print("one", flush=True)
    print("two")
    print("three", file=sys.stderr, flush=True)
    open(argv[1], "w").write("done")

sys.exit(run(command))
"""


@pytest.mark.parametrize(
    "redirection",
    [">&- 2>&-", ">/dev/full 2>/dev/full", ">/dev/full", "| true; exit ${PIPESTATUS[0]}"],
)
def test_a_command_that_leaves_files_drops_what_cannot_be_written(redirection, tmp_path):
    status, out, err = shell(tmp_path, redirection, tmp_path / "file", code=LEAVES_A_FILE)
    assert (status, out) == (0, "")
    assert err in ("", "three\n")
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection", [">&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | head -c 1; exit ${PIPESTATUS[0]}"]
)
def test_training_goes_on(redirection, tmp_path, trained):
    run = tmp_path / "run"
    status, _, _ = shell(tmp_path, redirection, "train", "cnn_digits:debug", f"--workdir={run}")
    assert status == 0
    names = commands.content(run)
    assert names.keys() == commands.content(trained[0]).keys()
    assert names["model.keras"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert all(line.startswith("{") for line in lines), "nothing else was written into it"
    assert '"finished"' in lines[-1]


def test_names_that_are_no_text_can_be_printed(tmp_path):
    code = (
        "import sys\nfrom trainers.cli.common import run\n"
        "sys.exit(run(lambda argv: print('\\ud800 caf\\xe9')))\n"
    )
    (tmp_path / "say.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "say.py"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(commands.ROOT), "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "\\ud800 caf\\xe9\n")


def test_a_closed_standard_input_is_empty(tmp_path):
    code = (
        "import sys\nfrom trainers.cli.common import run\n"
        "sys.exit(run(lambda argv: print(repr(sys.stdin.read()))))\n"
    )
    (tmp_path / "say.py").write_text(code)
    done = subprocess.run(
        ["bash", "-c", '"$@" <&-', "-", sys.executable, tmp_path / "say.py"], capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "''\n")
