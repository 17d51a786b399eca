"""Python processes do not import foreign modules of the current folder."""

import os
import subprocess
import sys

import pytest

from tests import commands
from trainers.cli import main
from zoo import processes
from zoo.prep.engine import LocalEngine

MARKER_CODE = (
    "import os\nopen({marker!r}, 'a').write(__name__ + ' in ' + str(os.getpid()) + '\\n')\n"
)
# Modules that the zoo and Python import late or in child processes.
SHADOWS = ("json", "subprocess", "multiprocessing", "socket", "importlib_resources", "numpy", "jax")
OURS = ("zoo", "trainers", "configs")


@pytest.fixture
def folder(tmp_path):
    """A folder of modules that write a file when executed; `mine.py` does not."""
    place, marker = tmp_path / "folder", tmp_path / "executed"
    for name in (*SHADOWS, *OURS):
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text(MARKER_CODE.format(marker=str(marker)))
    (place / "mine.py").write_text(
        "import json, multiprocessing, sys, zoo.errors, trainers\n"
        "def count(text):\n    return float(len(text))\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "zoo").write_text(commands.ZOO)
    return place


def executed(folder) -> str:
    """Returns the executed modules of the folder."""
    marker = folder.parent / "executed"
    return marker.read_text() if marker.exists() else ""


def script(folder, code: str, name="script.py", **environment) -> subprocess.CompletedProcess:
    """Runs a script of another folder, like the command `zoo`, in the folder."""
    (folder.parent / name).write_text(code)
    return python(folder, str(folder.parent / name), **environment)


def python(folder, *words, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT), **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def test_a_module_of_import_is_searched_last(folder):
    done = python(folder, str(folder.parent / "bin" / "zoo"), "list", "gpt_nano", "--import=mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gpt_nano")
    assert executed(folder) == ""


def test_a_module_of_import_that_another_one_hides_is_refused(folder):
    words = str(folder.parent / "bin" / "zoo"), "list", "--import=json"
    done = python(folder, *words)
    assert done.returncode == 2
    assert "--import=json must not have the name of an installed module" in done.stderr
    assert "lib" in done.stderr
    assert executed(folder) == ""


@pytest.mark.parametrize("command", ["list", "main"])
def test_the_current_folder_is_dropped_where_python_puts_it_first(folder, command):
    """`python -m` imports our packages only by the current folder if it holds some."""
    for name in OURS:
        (folder / name / "__init__.py").unlink()
        (folder / name).rmdir()
    words = ["-m", f"trainers.cli.{command}", *(["list"] if command == "main" else []), "--json"]
    done = python(folder, *words)
    assert done.returncode == 0, done.stderr
    assert executed(folder) == ""


def test_a_current_folder_in_pythonpath_is_searched_last(folder):
    """For modules that are imported after the start of a command, like numpy."""
    for name in {*SHADOWS, *OURS} - {"numpy"}:
        (folder / name / "__init__.py").unlink()
        (folder / name).rmdir()
    (folder / "mine.py").write_text("import numpy\n")
    words = str(folder.parent / "bin" / "zoo"), "list", "gpt_nano", "--import=mine"
    done = python(folder, *words, PYTHONPATH=os.pathsep.join([str(commands.ROOT), "."]))
    assert done.returncode == 0, done.stderr
    assert executed(folder) == ""


@pytest.mark.parametrize("entry", ["", ".", "here"])
def test_a_child_does_not_search_the_current_folder(folder, entry):
    """Also if PYTHONPATH contains it, as in `PYTHONPATH=:/more`."""
    path = os.pathsep.join([str(commands.ROOT), str(folder) if entry == "here" else entry])
    code = (
        "import os, sys\n"
        "sys.path[:] = [p for p in sys.path[1:] if os.path.realpath(p) != os.getcwd()]\n"
        "from zoo import processes\n"
        "names = processes.call('It', 'trainers.config.recipe:list_recipes', extra={'MORE': '1'})\n"
        "sys.exit('cnn_digits' not in names)\n"
    )
    done = script(folder, code, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert executed(folder) == ""


def test_the_command_line_of_a_child_is_safe_in_any_environment(folder):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        processes.arguments("trainers.config.recipe:list_recipes"), cwd=folder, capture_output=True,
        text=True, timeout=300, env={**environment, "PYTHONPATH": str(commands.ROOT)},
    )  # fmt: skip
    assert "cnn_digits" in done.stderr
    assert executed(folder) == ""


def test_workers_of_prepare_do_not_search_the_current_folder(folder):
    """Nor do multiprocessing's fork server and resource tracker."""
    code = (
        "if __name__ == '__main__':\n"
        "    import os, sys\n"
        "    from zoo.prep.engine import LocalEngine\n"
        "    with LocalEngine(2, ['mine']) as engine:\n"
        "        sys.path.append(os.getcwd())\n"
        "        assert len(list(engine.run(len, [{}, {}]))) == 2\n"
    )
    done = script(folder, code)
    assert done.returncode == 0, done.stderr
    assert executed(folder) == ""


def test_the_scorer_of_the_user_is_searched_last(folder):
    code = (
        "from zoo.prep.cleaning.filters import scorer\n"
        "assert scorer('mine:count', '')('four') == 4\n"
        "import json, multiprocessing, importlib_resources\n"
    )
    done = script(folder, code)
    assert done.returncode == 0, done.stderr
    assert executed(folder) == ""


@pytest.mark.slow
def test_commands_that_start_children_beside_foreign_modules(folder, trained):
    zoo = str(folder.parent / "bin" / "zoo")
    out = str(folder.parent / "model.tflite")
    words = ["export", str(trained[0]), "--format=litert", f"--out={out}", "--import=mine"]
    done = python(folder, zoo, *words)
    assert done.returncode == 0, done.stderr
    done = python(
        folder, zoo, "tpu_check", "cnn_digits:debug", "--topology=v5e:2x2", "--import=mine"
    )
    assert done.returncode == 0, done.stderr
    assert executed(folder) == ""


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_text("text.usetex: 1")])
def test_matplotlib_reads_no_settings_of_the_current_folder(folder, make):
    make(folder / "matplotlibrc")
    code = (
        "import os\nhere = os.getcwd()\n"
        "from trainers.report import figures\n"
        "assert not figures._matplotlib().rcParams['text.usetex']\n"
        "assert os.getcwd() == here\n"
    )
    done = script(folder, code)
    assert done.returncode == 0, done.stderr


def test_an_interrupt_while_a_verb_is_loaded_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.importlib, "import_module", interrupted)
    assert main.main(["zoo", "train"]) == 130
    assert capsys.readouterr().err == "zoo: error: interrupted\n"


def test_the_environment_is_given_back(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    with LocalEngine(2):
        assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.environ["PYTHONPATH"].endswith("/somewhere")
    assert dict(os.environ) == before


def test_children_are_started_in_one_place():
    """No other source file starts a Python or changes where modules are searched."""
    starters = {
        str(path.relative_to(commands.ROOT))
        for package in ("zoo", "trainers", "configs")
        for path in (commands.ROOT / package).rglob("*.py")
        if any(word in path.read_text() for word in ("sys.executable", "sys.path"))
    }
    assert starters == {"zoo/processes.py", "trainers/cli/__init__.py"}
