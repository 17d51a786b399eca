"""Opening files: only regular files are read, and no write goes through a planted link."""

import ast
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from zoo.data.text import tokenizers
from zoo.errors import RunError
from zoo.storage import disk


@pytest.fixture
def foreign(tmp_path):
    """A file outside of the written folder."""
    path = tmp_path / "foreign"
    path.write_text("theirs")
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_no_write_goes_through_a_link_with_a_guessable_name(folder, foreign):
    for name in ("report.html", "tokenizer.json", "value.json"):
        (folder / f".{name}.{os.getpid()}.tmp").symlink_to(foreign)
    with disk.atomic(folder / "report.html", "w") as file:
        file.write("ours")
    tokenizers.train("byte", ["text"], 300, "none").save(folder / "tokenizer.json")
    disk.write_json(folder / "value.json", 1)
    assert foreign.read_text() == "theirs"
    assert (folder / "report.html").read_text() == "ours"


def test_a_temporary_name_that_is_taken_is_not_written(folder, foreign, monkeypatch):
    monkeypatch.setattr(disk.secrets, "token_hex", lambda _: "0123456789abcdef")
    (folder / ".zoo-0123456789abcdef.tmp").symlink_to(foreign)
    with pytest.raises(FileExistsError), disk.atomic(folder / "report.html") as file:
        file.write(b"ours")
    with pytest.raises(FileExistsError), disk.atomic_path(folder / "model.keras") as path:
        path.write_text("ours")
    assert foreign.read_text() == "theirs"


def test_a_link_that_is_replaced_leaves_its_target(folder, foreign):
    (folder / "config.json").symlink_to(foreign)
    disk.write_json(folder / "config.json", {})
    assert foreign.read_text() == "theirs"
    assert not (folder / "config.json").is_symlink()


@pytest.mark.parametrize(
    "make",
    [os.symlink, lambda _, path: os.mkfifo(path), lambda _, path: os.mkdir(path)],
    ids=["link", "pipe", "folder"],
)
def test_a_lock_or_log_is_a_file(folder, foreign, make):
    make(foreign, folder / ".lock")
    with pytest.raises(RunError, match=r"\.lock cannot be written: it is"):
        disk.open_in_place(folder / ".lock")
    assert foreign.read_text() == "theirs"


def test_files_are_made_under_the_umask(folder):
    before = os.umask(0o027)
    try:
        disk.write_json(folder / "a.json", 1)
        with disk.atomic_path(folder / "b") as path:
            path.write_text("b")
    finally:
        os.umask(before)
    for name in ("a.json", "b"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640


def test_a_failed_write_leaves_what_was_there(folder):
    disk.write_json(folder / "a.json", 1)

    def fail():
        with disk.atomic_path(folder / "a.json") as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(folder) == ["a.json"]
    assert disk.read_json(folder / "a.json") == 1


def test_what_a_kill_left_is_removed(folder):
    (folder / ".zoo-0123456789abcdef.tmp").mkdir()
    (folder / ".zoo-0123456789abcdef.tmp" / "model.keras").write_text("half")
    (folder / ".zoo-fedcba9876543210.tmp").write_text("half")
    (folder / ".zoo-mine.tmp").write_text("not ours")
    disk.remove_temporary(folder)
    assert os.listdir(folder) == [".zoo-mine.tmp"]


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (os.mkdir, "a folder"),
        (_socket, "a socket"),
        (lambda path: os.symlink("/dev/zero", path), "a device"),
        (lambda path: os.symlink("nowhere", path), "No such file"),
    ],
    ids=["pipe", "folder", "socket", "device", "dangling"],
)
def test_only_regular_files_are_read(folder, monkeypatch, make, kind):
    monkeypatch.chdir(folder)  # a socket's name is short
    make("x")
    for read in (disk.open_file, disk.read_bytes, disk.read_json, disk.file_digest):
        with pytest.raises(RunError, match=f"x cannot be read: .*{kind}"):
            read("x")


def test_a_file_that_becomes_a_pipe_while_it_is_opened_does_not_hang(folder, monkeypatch):
    path = folder / "x"
    os.mkfifo(path)
    monkeypatch.setattr(disk.os, "stat", lambda *_, **__: os.stat_result((stat.S_IFREG, *[0] * 9)))
    replaced = []

    def read():
        with pytest.raises(RunError, match="named pipe"):
            disk.open_file(path)
        replaced.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert replaced


def test_a_link_to_a_file_is_read(folder, foreign):
    (folder / "data").symlink_to(foreign)
    assert disk.read_bytes(folder / "data") == b"theirs"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "contains no JSON object"),
        ("null", "contains no JSON object"),
        ("{}", "missing key 'step'"),
        ('{"step": true}', "'step' is True"),
        ('{"step": 1.5}', "'step' is 1.5"),
        ('{"step": "1"}', "'step' is '1'"),
    ],
)
def test_an_object_of_json_holds_what_is_asked_of_it(folder, content, words):
    path = folder / "a.json"
    path.write_text(content)
    with pytest.raises(RunError, match=f"a.json is damaged: (it )?{words}"):
        disk.read_object(path, step=int)
    path.write_text('{"step": 1, "on": true}')
    assert disk.read_object(path, step=int, on=bool) == {"step": 1, "on": True}


# Modules that open files without `zoo.storage.disk`, with the reason.
OPEN_BY_HAND = {
    "zoo/storage/disk.py": "the helpers themselves",
    "zoo/storage/bounds.py": "the system's files of control groups",
    "zoo/storage/records.py": "shards in a new folder that only this user may enter",
    "zoo/prep/pipeline.py": "its own source code",
    "trainers/cli/generate.py": "--prompts, which may be a pipe",
    "trainers/distributed/cluster.py": "its own source code, and the user's modules",
    "trainers/optimization/precision.py": "the system's file about the processor",
    "trainers/run/workdir.py": "the system's file about the processor",
    "trainers/tpu_check/ahead_of_time.py": "files in a temporary folder",
    "trainers/tpu_check/compiler.py": "files in a temporary folder",
}
_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "touch"}
_FUNCTIONS = {"tempfile.mkstemp", "tempfile.NamedTemporaryFile", "os.open", "io.open", "gzip.open"}


def _opens(source: str):
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        null = "devnull" in ast.unparse(node)
        if isinstance(node.func, ast.Attribute):
            own = name.startswith("disk.")  # our functions of the same name
            if (node.func.attr in _METHODS and not own) or (name in _FUNCTIONS and not null):
                yield name
        elif name == "open" and not null:
            yield name


def test_files_are_opened_in_one_place():
    root = Path(disk.__file__).parents[2]
    files = [path for part in ("zoo", "trainers") for path in sorted((root / part).rglob("*.py"))]
    openers = {str(path.relative_to(root)) for path in files if list(_opens(path.read_text()))}
    assert openers - OPEN_BY_HAND.keys() == set(), "use zoo.storage.disk"
