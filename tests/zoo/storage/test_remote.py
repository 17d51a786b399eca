"""Remote work directories, on TensorFlow's file systems ram:// and file://."""

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import tensorflow as tf

import zoo
from tests import toys
from tests.trainers.train.test_resume import Interrupted, StopAt, assert_same_end, recipe
from trainers.config.recipe import as_dict, resolve
from trainers.run.workdir import WorkDirectory, read_metrics
from zoo.errors import RunError, UsageError
from zoo.storage import remote

CONFIG = json.dumps(
    {
        "format_version": 2, "source": "", "class_names": [], "data_fingerprint": "",
        "config": as_dict(resolve("cnn_digits:debug")),
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(cache, monkeypatch):
    """The cache of this machine."""
    monkeypatch.setattr(remote, "_mirrors", {})
    return cache


@pytest.fixture
def bucket(tmp_path):
    address = f"ram://{tmp_path.name}"
    yield address
    if tf.io.gfile.exists(address):
        tf.io.gfile.rmtree(address)


def files(address):
    """Returns the names of all files but `.writer`."""
    return {
        f"{folder}/{name}".removeprefix(address).lstrip("/")
        for folder, _, names in tf.io.gfile.walk(address)
        for name in names
        if name != ".writer"
    }


def another_machine(cache, monkeypatch):
    shutil.rmtree(cache)
    monkeypatch.setattr(remote, "_mirrors", {})


def test_a_run_is_resumed_on_another_machine(
    run, trained_once, bucket, cache, tmp_path, monkeypatch
):
    right = trained_once(recipe(), toys.token_data())
    with pytest.raises(Interrupted):
        run(recipe(), toys.token_data(), workdir=f"{bucket}/run", callbacks=[StopAt(6)])
    assert "checkpoints/step_0000000004.npz" in files(f"{bucket}/run")
    another_machine(cache, monkeypatch)
    trainer = run(recipe(), toys.token_data(), workdir=f"{bucket}/run")
    assert_same_end(right.workdir, trainer.workdir)
    assert files(f"{bucket}/run") == {
        path.relative_to(trainer.workdir.path).as_posix()
        for path in trainer.workdir.path.rglob("[!.]*")
        if path.is_file()
    }
    another_machine(cache, monkeypatch)
    model = zoo.load(f"{bucket}/run")
    for one, other in zip(model.weights, right.step.net.weights, strict=True):
        assert (one.numpy() == other.numpy()).all() or other.trainable  # averages are in the file


@contextlib.contextmanager
def on_another_machine(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_mirrors", {})
        patch.setenv("ZOO_CACHE_DIR", str(tmp_path / "other"))
        yield


class Meanwhile(StopAt):
    """Calls a function at update 6, once the checkpoint of update 4 has arrived."""

    def __init__(self, bucket, function):
        super().__init__(0)
        self.bucket, self.function, self.steps = bucket, function, []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(int(self.model.count.numpy()))
        if self.steps[-1] == 6:
            while "checkpoints/step_0000000004.npz" not in files(f"{self.bucket}/run"):
                time.sleep(0.01)
            self.function()


def test_a_run_whose_folder_another_takes_over_ends(
    run, trained_once, bucket, tmp_path, monkeypatch
):
    """A second machine starts at update 6 of the first, and resumes from checkpoint 4."""
    right = trained_once(recipe(), toys.token_data())
    second = []

    def start():
        with on_another_machine(monkeypatch, tmp_path):
            second.append(run(recipe(), toys.token_data(), workdir=f"{bucket}/run"))

    first = Meanwhile(bucket, start)

    def command():  # uploads once more at its end
        with remote.localized(["zoo", f"--workdir={bucket}/run"]) as words:
            workdir = words[1].removeprefix("--workdir=")
            run(recipe(), toys.token_data(), workdir=workdir, callbacks=[first])

    with pytest.raises(
        remote.TakenOver, match="Another run has started in ram://.*, so this run ends"
    ):
        command()
    assert first.steps[-1] == 12  # the checkpoint after the next one
    assert_same_end(right.workdir, second[0].workdir)
    second_path = second[0].workdir.path
    names = files(f"{bucket}/run")
    assert names == {
        path.relative_to(second_path).as_posix()
        for path in second_path.rglob("[!.]*")
        if path.is_file()
    }
    for name in names:  # the files of the second run, none of the first
        with tf.io.gfile.GFile(f"{bucket}/run/{name}", "rb") as file:
            assert file.read() == (second_path / name).read_bytes(), name


def test_a_start_that_is_refused_takes_nothing_over(
    run, trained_once, bucket, tmp_path, monkeypatch
):
    right = trained_once(recipe(), toys.token_data())

    def start():
        config = recipe()
        config.optimizer.learning_rate = 0.5
        with (
            on_another_machine(monkeypatch, tmp_path),
            pytest.raises(UsageError, match="created with another recipe"),
        ):
            run(config, toys.token_data(), workdir=f"{bucket}/run")

    first = Meanwhile(bucket, start)
    trainer = run(recipe(), toys.token_data(), workdir=f"{bucket}/run", callbacks=[first])
    assert_same_end(right.workdir, trainer.workdir)


def test_what_the_first_wrote_while_the_second_began_counts(
    run, trained_once, bucket, tmp_path, monkeypatch
):
    """A preempted machine saves once more while its replacement builds the model."""
    right = trained_once(recipe(), toys.token_data())
    usual, second = WorkDirectory.write_config, []

    def start_second():
        with on_another_machine(monkeypatch, tmp_path):
            second.append(WorkDirectory(f"{bucket}/run"))  # downloads the current state

    first = Meanwhile(bucket, start_second)
    with pytest.raises(Interrupted):
        run(recipe(), toys.token_data(), workdir=f"{bucket}/run", callbacks=[first, StopAt(9)])
    assert "checkpoints/step_0000000008.npz" in files(f"{bucket}/run")
    with on_another_machine(monkeypatch, tmp_path):
        remote._mirrors[second[0].path] = second[0]._mirror
        monkeypatch.setattr(second[0]._mirror, "pull", lambda: None)  # already done
        checkpoint_exists = []

        def write_config(self, *arguments):
            checkpoint_exists.append((self / "checkpoints/step_0000000008.npz").exists())
            usual(self, *arguments)
            checkpoint_exists.append((self / "checkpoints/step_0000000008.npz").exists())

        monkeypatch.setattr(WorkDirectory, "write_config", write_config)
        trainer = run(recipe(), toys.token_data(), workdir=f"{bucket}/run")
    assert checkpoint_exists == [False, True]
    resumed = [
        line for line in read_metrics(trainer.workdir.path) if line.get("event") == "resumed"
    ]
    assert [line["step"] for line in resumed] == [8]
    assert_same_end(right.workdir, trainer.workdir)


def test_checkpoints_arrive_while_it_trains(run, bucket):
    bucket_files = []

    class Look(StopAt):
        def on_train_batch_end(self, batch, logs=None):
            bucket_files.append(files(f"{bucket}/run"))

    run(recipe(keep=1), toys.token_data(), workdir=f"{bucket}/run", callbacks=[Look(0)])
    assert "config.json" in bucket_files[0]  # before the first update
    assert any("checkpoints/step_0000000004.npz" in names for names in bucket_files)
    checkpoints = {name for name in files(f"{bucket}/run") if "checkpoints" in name}
    assert checkpoints == {
        "checkpoints/step_0000000013.npz"
    }  # the others are deleted in the bucket, too


def test_what_another_machine_wrote_counts(bucket, cache):
    folder = WorkDirectory(f"{bucket}/run")
    folder.open()
    (folder / "config.json").write_text("mine")
    folder.close()
    tf.io.gfile.remove(f"{bucket}/run/config.json")  # ram:// appends to existing files
    with tf.io.gfile.GFile(f"{bucket}/run/config.json", "w") as file:
        file.write("another's")
    with tf.io.gfile.GFile(f"{bucket}/run/more.json", "w") as file:
        file.write("more")
    (folder / "stale.json").write_text("of a machine that is behind")
    again = WorkDirectory(f"{bucket}/run")
    assert again.path == folder.path
    assert cache in again.path.parents
    assert (again / "config.json").read_text() == "another's"
    assert (again / "more.json").exists()
    assert not (again / "stale.json").exists()


def test_what_a_kill_kept_from_being_copied_is_kept(bucket):
    folder = WorkDirectory(f"{bucket}/run").open()
    (folder / "config.json").write_text(CONFIG)
    folder.push()
    (folder / "metrics.jsonl").write_text("new")  # followed by a kill
    folder._lock.lock.release()
    again = WorkDirectory(f"{bucket}/run").open()
    assert (again / "metrics.jsonl").read_text() == "new"
    again.close()
    assert "metrics.jsonl" in files(f"{bucket}/run")


@pytest.mark.parametrize("purged", ["", "checkpoints/a.npz"])
def test_what_is_purged_from_the_cache_stays_in_the_bucket(bucket, monkeypatch, purged):
    """The whole copy, or one of its files, is deleted between two commands."""
    names = {"config.json", "checkpoints/a.npz", "checkpoints/b.npz"}
    folder = WorkDirectory(f"{bucket}/run").open()
    (folder / "checkpoints").mkdir()
    for name in names:
        (folder / name).write_text("{}")
    folder.close()
    monkeypatch.setattr(remote, "_mirrors", {})
    if purged:
        (folder / purged).unlink()
    else:
        shutil.rmtree(folder.path)
    with remote.localized(["zoo", f"{bucket}/run"]) as (_, path):
        assert path == str(folder.path)
        assert all((folder / name).exists() for name in names)
        (folder / "checkpoints/b.npz").unlink()  # by the command itself
    assert files(f"{bucket}/run") == names - {"checkpoints/b.npz"}


def test_half_a_copy_is_never_copied_back(bucket, monkeypatch):
    """A command is killed while it downloads, another one ends later."""
    folder = WorkDirectory(f"{bucket}/run").open()
    for name in ("a.json", "b.json"):
        (folder / name).write_text("old")
    folder.close()
    with remote.localized(["zoo", f"{bucket}/run"]):
        reader = remote.mirror_of(folder.path)
        for name in ("a.json", "b.json"):
            tf.io.gfile.remove(f"{bucket}/run/{name}")
            with tf.io.gfile.GFile(f"{bucket}/run/{name}", "w") as file:
                file.write("newer")
        copy, count = tf.io.gfile.copy, iter(range(9))

        def killed(*words, **more):
            if next(count):
                raise Interrupted
            copy(*words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(tf.io.gfile, "copy", killed)
            with pytest.raises(Interrupted):
                remote.Mirror(reader.remote, reader.path).pull()
    for name in ("a.json", "b.json"):
        with tf.io.gfile.GFile(f"{bucket}/run/{name}") as file:
            assert file.read() == "newer"
    assert (remote.local(f"{bucket}/run") / "b.json").read_text() == "newer"


def test_a_file_that_goes_while_it_is_copied(bucket, cache, monkeypatch):
    """Like the oldest checkpoint of a run on another machine."""
    folder = WorkDirectory(f"{bucket}/run").open()
    for name in ("a.json", "b.json"):
        (folder / name).write_text("{}")
    folder.close()
    another_machine(cache, monkeypatch)
    copy = tf.io.gfile.copy

    def copy_missing_file(source, *words, **more):
        if source.endswith("b.json"):
            tf.io.gfile.remove(source)
        copy(source, *words, **more)

    monkeypatch.setattr(tf.io.gfile, "copy", copy_missing_file)
    assert [path.name for path in remote.local(f"{bucket}/run").iterdir()] == ["a.json"]


def test_what_lies_beside_goes_with_it(tmp_path):
    """The description beside an exported folder, which is deleted with the folder."""
    bucket = f"file://{tmp_path}/bucket"  # ram:// lists sm.json inside sm, too
    with remote.localized(["zoo", f"--out={bucket}/sm"]) as (_, word):
        folder = Path(word.removeprefix("--out="))
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_text("model")
        Path(f"{folder}.json").write_text("{}")
    assert files(bucket) == {"sm/saved_model.pb", "sm.json"}
    for name in ("sm/saved_model.pb", "sm.json"):
        tf.io.gfile.remove(f"{bucket}/{name}")
    tf.io.gfile.rmtree(f"{bucket}/sm")
    with remote.localized(["zoo", f"--out={bucket}/sm"]):
        assert not folder.exists()
        assert not Path(f"{folder}.json").exists()
    assert not files(bucket)


def test_a_folder_in_which_this_machine_trains_is_left_alone(bucket):
    folder = WorkDirectory(f"{bucket}/run").open()
    (folder / "config.json").write_text(CONFIG)
    with tf.io.gfile.GFile(f"{bucket}/run/other.json", "w") as file:
        file.write("another's")
    assert (remote.local(f"{bucket}/run") / "config.json").exists()
    with pytest.raises(RunError, match="Another process works in"):
        WorkDirectory(f"{bucket}/run").open()
    folder.close()


def test_half_a_file_never_has_its_name(bucket, monkeypatch):
    folder = WorkDirectory(f"{bucket}/run").open()
    (folder / "config.json").write_text("{}")

    def killed(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "rename", killed)
        with pytest.raises(Interrupted):
            folder.push()
    (name,) = files(f"{bucket}/run")
    assert re.fullmatch(r"config\.json\.[0-9a-f]{32}\.tmp", name)
    folder.close()
    assert "config.json" in files(f"{bucket}/run")


def test_a_folder_that_others_write_in_is_neither_waited_for_nor_written_through(tmp_path, cache):
    shared, foreign = tmp_path / "shared", tmp_path / "foreign"
    shared.mkdir()
    foreign.write_text("theirs")
    for name in ("config.json.tmp", ".writer"):
        (shared / name).symlink_to(foreign)
    folder = WorkDirectory(f"file://{shared}").open()
    (folder / "config.json").write_text("{}")
    mirror = remote.mirror_of(folder.path)
    mirror.claim()
    (folder / "config.json").write_text("{}")
    folder.push()
    folder.close()
    assert foreign.read_text() == "theirs"
    assert (shared / "config.json").read_text() == "{}"
    os.mkfifo(shared / "tokenizer.json")
    with pytest.raises(RunError, match="it is a named pipe"):
        remote.local(f"file://{shared}")


def test_what_a_kill_left_on_a_bucket_is_removed_by_the_next_run(bucket):
    folder = WorkDirectory(f"{bucket}/run").open()
    for name in (f"a.{'0' * 32}.tmp", "mine.tmp"):
        with tf.io.gfile.GFile(f"{bucket}/run/{name}", "w") as file:
            file.write("half")
    remote.mirror_of(folder.path).claim()
    folder.close()
    assert files(f"{bucket}/run") >= {"mine.tmp"}
    assert f"a.{'0' * 32}.tmp" not in files(f"{bucket}/run")


def test_commands_take_addresses(zoo_command, trained, bucket, cache, monkeypatch):
    for path in trained[0].rglob("[!.]*"):
        if path.is_file():
            address = f"{bucket}/digits/{path.relative_to(trained[0])}"
            tf.io.gfile.makedirs(address.rpartition("/")[0])
            tf.io.gfile.copy(str(path), address)
    answer = zoo_command("evaluate", f"{bucket}/digits", "--split=train")
    assert answer.status == 0
    assert "accuracy" in answer.out
    assert "evaluation/train.json" in files(f"{bucket}/digits")
    answer = zoo_command(
        "export", f"{bucket}/digits", "--format=keras", f"--out={bucket}/out/m.keras"
    )
    assert answer.status == 0, answer.err
    assert files(f"{bucket}/out") == {"m.keras", "m.keras.json"}


def test_an_address_may_stand_twice(bucket):
    with remote.localized(["zoo", f"{bucket}/a", f"--out={bucket}/a"]) as words:
        assert words[2] == f"--out={words[1]}"
    assert not remote._mirrors


def test_no_permission_is_one_line_before_the_first_step(run, bucket, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise tf.errors.PermissionDeniedError(None, None, "Error 403: no storage.objects.create")

    monkeypatch.setattr(tf.io.gfile, "copy", denied)
    callback = StopAt(1)
    with pytest.raises(RunError, match=f"Cannot access {bucket}/run: Error 403: no storage"):
        run(recipe(), toys.token_data(), workdir=f"{bucket}/run", callbacks=[callback])


def test_a_failure_while_it_trains_is_said_and_tried_again(bucket, monkeypatch, capsys):
    folder = WorkDirectory(f"{bucket}/run").open()
    (folder / "config.json").write_text("{}")

    def down(*_, **__):
        raise tf.errors.UnavailableError(None, None, "no network")

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "copy", down)
        folder.push()
    assert f"zoo: Cannot access {bucket}/run: no network." in capsys.readouterr().err
    folder.push()
    assert files(f"{bucket}/run") == {"config.json"}
    (folder / "metrics.jsonl").write_text("{}")
    monkeypatch.setattr(tf.io.gfile, "copy", down)
    with pytest.raises(RunError, match="no network"):
        folder.close()


def test_an_error_is_not_hidden_by_another(bucket, monkeypatch, capsys):
    folder = WorkDirectory(f"{bucket}/run").open()
    (folder / "config.json").write_text("{}")

    def down(*_, **__):
        raise tf.errors.UnavailableError(None, None, "no network")

    monkeypatch.setattr(tf.io.gfile, "copy", down)

    def fail():
        try:
            raise RunError("the loss")
        finally:
            folder.close()

    with pytest.raises(RunError, match="the loss"):
        fail()
    assert "no network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nosuch://a/b", UsageError, "no file system for nosuch://"),
        ("ram://", UsageError, "must refer to a folder"),
        ("ram://a/../b", UsageError, "must refer to a folder"),
    ],
)
def test_addresses_that_are_none(name, error, message):
    with pytest.raises(error, match=message):
        remote.local(name)


@pytest.mark.parametrize("name", ["runs/a", "/tmp/a", "http://a/b", "grpc://a:1", "C:/x"])
def test_what_lies_here_is_left_as_it_is(name):
    assert not remote.is_remote(name)
