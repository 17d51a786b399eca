"""Locks exclude other processes, end with their process, and follow no planted link."""

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from zoo.errors import RunError
from zoo.storage import locks

HOLD = """
import sys, time
from pathlib import Path
from zoo.storage import locks
held = locks.lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_held_folder_is_refused_until_its_process_is_killed(tmp_path, holder):
    assert locks.is_held(tmp_path)
    with pytest.raises(RunError, match=f"Another process works in {tmp_path}") as error:
        locks.lock_folder(tmp_path)
    assert f"(process {holder.pid})" in str(error.value)
    assert "\n" not in str(error.value)
    holder.kill()
    holder.wait()
    assert not locks.is_held(tmp_path)
    with locks.lock_folder(tmp_path):
        assert locks.is_held(tmp_path)
    assert not locks.is_held(tmp_path)


def test_asking_writes_nothing_and_refuses_nobody(tmp_path):
    assert not locks.is_held(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".lock").touch()
    asker = (tmp_path / ".lock").open()
    fcntl.flock(asker, fcntl.LOCK_SH)  # as `is_held` in another process
    assert not locks.is_held(tmp_path)
    threading.Timer(0.05, asker.close).start()
    locks.lock_folder(tmp_path).lock.release()


def test_what_is_planted_in_a_locks_place_is_refused_and_kept(tmp_path, monkeypatch):
    foreign, folder = tmp_path / "foreign", tmp_path / "folder"
    foreign.write_text("theirs")
    folder.mkdir()
    for make in (os.symlink, lambda _, path: os.mkfifo(path), lambda _, path: os.mkdir(path)):
        for name in (".lock", ".made.lock"):
            make(foreign, folder / name)
        with pytest.raises(RunError, match=r"folder/\.lock cannot be written: it is"):
            locks.lock_folder(folder)
        lock = locks.one_at_a_time(folder / "made")
        with pytest.raises(RunError, match=r"made\.lock cannot be written: it is"), lock:
            pass
        assert not locks.is_held(folder)
        for path in folder.iterdir():
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    # A link that appears between the check and the lock.
    (folder / ".lock").symlink_to(foreign)
    with monkeypatch.context() as patch:
        patch.setattr(locks, "open_in_place", lambda path: foreign.open())
        with pytest.raises(OSError):
            locks.lock_folder(folder)
    assert foreign.read_text() == "theirs"
    # The lock file of another program may have content.
    foreign.rename(folder / ".lock")
    locks.lock_folder(folder).lock.release()
    assert (folder / ".lock").read_text() == "theirs"


def test_a_lock_file_that_its_holder_deletes_is_taken_anew(tmp_path):
    first = locks.lock_folder(tmp_path)

    def end():
        (tmp_path / ".lock").unlink()
        first.lock.release()

    threading.Timer(0.05, end).start()
    with locks.lock_folder(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(RunError, match="Another process works in"):
            locks.lock_folder(tmp_path)


def test_one_at_a_time_waits_says_so_and_gives_up(tmp_path, monkeypatch, capsys):
    inside = []

    def work(number):
        with locks.one_at_a_time(tmp_path / "made"):
            inside.append(number)
            time.sleep(0.1)
            inside.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside[::2] == inside[1::2]
    assert sorted(inside[::2]) == [0, 1, 2]
    assert not capsys.readouterr().err

    monkeypatch.setattr(locks, "_SILENT_TIMEOUT", 0.05)
    monkeypatch.setattr(locks, "_TIMEOUT", 0.05)
    first, second = (locks.one_at_a_time(tmp_path / "made") for _ in range(2))
    words = f"still works on {tmp_path}/made .process {os.getpid()}"
    with first, pytest.raises(RunError, match=words), second:
        pass
    assert f"waiting for another process that works on {tmp_path}/made" in capsys.readouterr().err
