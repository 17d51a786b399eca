"""Checkpoints are written during training and equal synchronous checkpoints."""

import errno
import os
import threading
import time

import pytest

from tests import toys
from tests.trainers.train.test_resume import Interrupted, StopAt, recipe
from trainers.run import checkpoint, saver
from trainers.train.build import build_step
from trainers.train.trainer import Trainer


@pytest.fixture
def step(one):
    return build_step(recipe(precision="mixed_float16"), one, 10)[0]


def test_the_file_is_that_of_a_synchronous_save(step, tmp_path):
    right = checkpoint.save(tmp_path / "right", step, {"seconds": 1.5}, keep=1)
    own = saver.Saver(tmp_path / "own", step, 1, lambda: None)
    own.save({"seconds": 1.5})
    own.close()
    (path,) = (tmp_path / "own").iterdir()
    assert path.name == right.name
    assert checkpoint.read(path)[0] == checkpoint.read(right)[0]
    for one, other in zip(checkpoint.read(path)[1], checkpoint.read(right)[1], strict=True):
        assert one.tobytes() == other.tobytes()
        assert one.dtype == other.dtype


class StoreBlocker:
    """Blocks the writing thread before it writes, until `goes_on` is set."""

    def __init__(self, monkeypatch):
        self.begun, self.goes_on = threading.Event(), threading.Event()
        store = checkpoint.store

        def blocked_store(*arguments):
            self.begun.set()
            assert self.goes_on.wait(60)
            return store(*arguments)

        monkeypatch.setattr(checkpoint, "store", blocked_store)


def test_what_changes_after_the_copy_is_not_in_the_file(step, tmp_path, monkeypatch):
    blocker = StoreBlocker(monkeypatch)
    before = checkpoint.Snapshot(step, {}).arrays
    own = saver.Saver(tmp_path, step, 3, lambda: None)
    own.save({"best": 1})
    assert blocker.begun.wait(60)
    for variable in checkpoint.variables_of(step):
        variable.assign(variable + 1 if variable.dtype != "bool" else ~variable)
    assert not list(tmp_path.iterdir())  # `save` returned before the file was written
    blocker.goes_on.set()
    own.wait()
    (path,) = tmp_path.iterdir()
    assert all(
        one.tobytes() == other.tobytes()
        for one, other in zip(checkpoint.read(path)[1], before, strict=True)
    )
    own.save({})  # reuses the memory of the first checkpoint, which is complete
    own.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_whoever_ends_the_process_can_wait_for_the_file(step, tmp_path, monkeypatch):
    blocker = StoreBlocker(monkeypatch)
    own = saver.Saver(tmp_path, step, 3, lambda: None)
    own.save({"best": 1})
    own.wait_at_most(0.1)
    assert not [x for x in tmp_path.iterdir() if x.suffix == ".npz"]
    blocker.goes_on.set()
    own.wait_at_most(60)
    assert [x for x in tmp_path.iterdir() if x.suffix == ".npz"]
    own.close()
    own.wait_at_most(60)  # returns at once: no checkpoint is pending


def test_a_second_save_waits_for_the_first(step, tmp_path, monkeypatch):
    blocker = StoreBlocker(monkeypatch)
    own = saver.Saver(tmp_path, step, 3, lambda: None)
    own.save({"best": 1})
    other = threading.Thread(target=own.save, args=({"best": 2},))
    other.start()
    other.join(0.3)
    assert other.is_alive()  # a copy would overwrite the arrays being written
    blocker.goes_on.set()
    other.join(60)
    own.close()
    (path,) = tmp_path.iterdir()
    assert checkpoint.read(path)[0]["counters"] == {"best": 2}


@pytest.mark.parametrize("last", [False, True], ids=["at the next save", "at the end"])
def test_a_full_disk_ends_the_run(run, tmp_path, monkeypatch, last):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "step_0000000004.npz")

    monkeypatch.setattr(checkpoint, "store", full)
    every = 100 if last else 4
    with pytest.raises(OSError, match="No space left"):
        run(recipe(checkpoint_every=every, steps=9), toys.token_data(), workdir=tmp_path / "run")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_a_run_that_fails_leaves_the_checkpoint_before_whole(run, tmp_path, monkeypatch):
    """The process ends after the checkpoint is complete."""
    blocker = StoreBlocker(monkeypatch)

    def go_on_late():
        blocker.begun.wait(60)
        time.sleep(1)
        blocker.goes_on.set()

    threading.Thread(target=go_on_late).start()
    with pytest.raises(Interrupted):  # while the checkpoint is written
        run(recipe(), toys.token_data(), workdir=tmp_path / "run", callbacks=[StopAt(5)])
    ((number, path),) = checkpoint.list_checkpoints(tmp_path / "run/checkpoints")
    assert number == 4
    checkpoint.read(path)


def test_the_last_checkpoint_is_whole_before_a_run_finishes(run, tmp_path, monkeypatch):
    """From `_finish` on, SIGTERM ends the process at once."""
    usual, finish, step_lists = checkpoint.store, Trainer._finish, []

    def slow(*arguments):
        time.sleep(0.3)
        return usual(*arguments)

    def finishing(self):
        step_lists.append(
            [step for step, _ in checkpoint.list_checkpoints(self.workdir / "checkpoints")]
        )
        return finish(self)

    monkeypatch.setattr(checkpoint, "store", slow)
    monkeypatch.setattr(Trainer, "_finish", finishing)
    run(toys.recipe(steps=3, keep=1), toys.token_data(), workdir=tmp_path / "run")
    assert step_lists == [[3]]
