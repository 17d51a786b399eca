"""Messages and progress: on stderr, once, by the level that -q and -v choose."""

import io
import logging
import subprocess
import sys

import pytest

from tests import commands
from trainers.cli import common
from trainers.cli.main import COMMANDS
from zoo import logs, progress


def test_a_python_user_reads_each_message_once():
    code = (
        "import logging, zoo, trainers; logging.basicConfig(level=logging.DEBUG)\n"
        "for name in ('zoo.a', 'trainers.b'):\n"
        "    for level in ('debug', 'info', 'warning'):\n"
        "        getattr(logging.getLogger(name), level)(f'{name} {level}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True
    )
    names = ("zoo.a", "trainers.b")
    lines = [f"zoo: {name} {level}" for name in names for level in ("info", "warning")]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (0, "", lines)


@pytest.mark.parametrize(
    ("flag", "levels"),
    [
        ("-q", ["warning", "error"]),
        ("--quiet", ["warning", "error"]),
        ("--noverbose", ["info", "warning", "error"]),
        ("-v", ["debug", "info", "warning", "error"]),
    ],
)
def test_flags_choose_the_level(flag, levels, capsys):
    def command(argv):
        common.Flags().parse(argv, "zoo test", at_most=0)
        for level in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger("zoo.test"), level)(level)

    assert common.run(command, ["zoo test", flag]) == 0
    assert capsys.readouterr().err == "".join(f"zoo: {level}\n" for level in levels)
    logging.getLogger("zoo.test").info("the next command has its own level")
    assert capsys.readouterr().err
    assert common.run(command, ["zoo test", "-q", "-v"]) == 2
    assert capsys.readouterr().err.startswith("zoo: error: -q and -v")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_flags(command, zoo_command):
    answer = zoo_command(command, "--help")
    assert "-q,--[no]quiet" in answer.out
    assert "-v,--[no]verbose" in answer.out


@pytest.mark.parametrize(("flag", "line"), [("-q", ""), ("-v", "zoo: Folder: ")])
def test_an_absl_script_has_the_flags(flag, line):
    done = subprocess.run(
        [sys.executable, "-m", "trainers.cli.fetch", flag], cwd=commands.ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert "mnist" in done.stdout
    assert done.stderr.startswith(line)
    assert bool(done.stderr) == bool(line)


def test_a_loop_logs_lines_outside_a_terminal(monkeypatch, capsys):
    loop = {"title": "reading", "unit": "files"}
    assert list(progress.progress(range(3), **loop)) == [0, 1, 2]
    assert capsys.readouterr() == ("", ""), "a short loop"
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    assert list(progress.progress(range(3), **loop)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(" [")[0] for line in lines[-2:]] == ["zoo: reading: 3/3"] * 2
    assert all(line.startswith("zoo: reading: ") for line in lines)
    assert "files/s" in lines[-1]
    logs.set_level(logging.WARNING)
    try:
        assert list(progress.progress(range(3), **loop)) == [0, 1, 2]
    finally:
        logs.set_level(logging.INFO)
    assert capsys.readouterr() == ("", "")


def test_a_bar_and_a_message_have_lines_of_their_own(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress(title="reading", unit="files", total=4) as bar:
        bar.delay = 0.0
        bar.update(2)
        bar.refresh()
        logging.getLogger("zoo.test").warning("a message")
    shown = terminal.getvalue()
    assert "50%|" in shown
    assert "\rzoo: a message\n\r" in shown
