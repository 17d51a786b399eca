"""Refused commands print one line, return the right exit status and change no file."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from tests.commands import content, metrics
from trainers.run import checkpoint
from trainers.run.workdir import WorkDirectory, read_metrics
from zoo.errors import RunError, UsageError

# --- words and flags, checked without TensorFlow --------------------------------------------------

_WORKERS = "train cnn_digits --workdir=run --workers=a:1,b:2,c:3"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian", "there is no command 'trian'. Did you mean 'train'?"),
        ("list a b", "Usage: zoo list [PATTERN]"),
        ("list --recipes --colour", "Unknown command line flag 'colour'"),
        ("config", "Usage: zoo config RECIPE"),
        ("config cnn_digit", "Did you mean 'cnn_digits',"),
        ("config cnn_digits --config.trainer.step=1", "Did you mean 'trainer.steps'"),
        ("compare a", "Usage: zoo compare WORKDIR WORKDIR"),
        ("compare a b", "config.json"),
        ("list --task=images", "No task is named 'images'"),
        ("tpu_check cnn_digits:debug", "requires --topology, such as v5e:2x4"),
        (
            "train cnn_digits --workdir=run --trainer.steps=4",
            "To change a setting of the recipe, use --config.",
        ),
        ("train cnn_digits --workdir=run --import=./mine/it.py", "use --import=mine.it."),
        ("train --workdir=run", " cnn_digits, cnn_mnist,"),
        ("list --colour", "Unknown command line flag 'colour'"),
        ("list --config.trainer.steps=1", "Unknown command line flag 'config.trainer.steps'"),
        ("describe", "Usage: zoo describe NAME"),
        ("describe cnn_clasifier", "Did you mean 'cnn_classifier'?"),
        ("describe cnn_classifier --batch_size=0", "batch_size"),
        ("describe cnn_classifier --batch_size=many", "batch_size"),
        ("fetch mnsit", "There is no dataset 'mnsit'. Did you mean 'mnist'?"),
        ("train", "requires one recipe"),
        ("train a b --workdir=run", "Usage: zoo train RECIPE"),
        ("train cnn_digits --config=cnn_mnist --workdir=run", "requires one recipe"),
        ("train cnn_digits", "requires one work directory: --workdir=D."),
        ("train cnn_digits --workdir=run --model_dir=run", "requires one work directory"),
        ("train cnn_digit --workdir=run", "Did you mean 'cnn_digits'"),
        ("train cnn_digits:debgu --workdir=run", "Did you mean 'debug'?"),
        ("train cnn_digits --workdir=run --config.trainer.step=1", "Did you mean 'trainer.steps'"),
        ("train cnn_digits --workdir=run --config.trainer.steps", "An override requires a value"),
        ("train cnn_digits --workdir=run --config.trainer.steps=x", "of type int"),
        ("train cnn_digits --workdir=run --config.optimizer.name=adamv", "No optimizer is named"),
        ("train cnn_digits --workdir=run --config.schedule.name=cosin", "No schedule is named"),
        ("train cnn_digits --workdir=run --params_override=steps", "--params_override"),
        ("train cnn_digits --workdir=run --mode=evl", "mode"),
        ("train cnn_digits --workdir=run --import=no_such_module", "--import=no_such_module"),
        (
            "train cnn_digits --workdir=run --strategy=multi_worker",
            "Strategy multi_worker requires --workers",
        ),
        (f"{_WORKERS} --worker_index=0", "require --strategy=multi_worker"),
        (f"{_WORKERS} --worker_index=3 --strategy=multi_worker", "Received: 3 of 3"),
        (
            f"{_WORKERS} --strategy=multi_worker",
            "--workers and --worker_index must be set together",
        ),
        (f"{_WORKERS} --worker_index=0 --strategy=multi_worker", "for 3 replicas"),
        ("evaluate", "Usage: zoo evaluate WORKDIR"),
        ("evaluate run", "run is not a work directory: it has no config.json."),
        ("evaluate run --checkpoint=last", "checkpoint"),
        ("predict run", "Usage: zoo predict WORKDIR FILE"),
        ("predict run picture.png", "run is not a work directory"),
        ("report run", "ot a work directory"),
    ],
)
def test_wrong_words_are_one_line(words, line, zoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = zoo_command(*words.split())
    assert answer.status == 2
    assert line in answer.one_line()
    assert answer.out == ""
    assert content(tmp_path) == {}


def test_flags_of_one_command_do_not_reach_the_next(zoo_command):
    assert zoo_command("list", "--json").out.startswith("[")
    assert "\nbert_base " in zoo_command("list").out


# --- recipe and data that do not match ------------------------------------------------------------


def arrays(side=28, classes=10, examples=80, empty=False, image="image"):
    generator = np.random.default_rng(0)
    splits = {}
    for split in ("train", "test"):
        count = 0 if empty and split == "test" else examples
        images = generator.integers(0, 255, (count, side, side, 1)).astype("uint8")
        splits[f"{split}_{image}"] = images
        splits[f"{split}_label"] = np.arange(count) % classes
    return splits


@pytest.mark.parametrize(
    ("overrides", "status", "line"),
    [
        ("data.source=npz:small.npz", 2, "shape (20, 20, 1); set model.input_shape"),
        ("data.source=npz:many.npz", 2, "with labels 0 to 12; set model.num_classes"),
        ("data.source=npz:other.npz", 2, "requires the array 'image'"),
        ("data.source=npz:empty.npz", 1, "must not be empty"),
        ("data.source=npz:damaged.npz", 1, "damaged.npz cannot be read"),
        ("data.source=npz:missing.npz", 2, "missing.npz"),
        ("data.source=digts", 2, "Did you mean 'digits'"),
        ("data.manual_dir=missing", 2, "data.manual_dir must be an existing folder"),
        ("data.validation_size=4000", 2, "(4000). Received: 4000"),
        ("trainer.micro_batch_size=7", 2, "for a per-replica batch of 64"),
        ("trainer.strategy=mirored", 2, "Did you mean 'mirrored'"),
        ("trainer.replicas=2", 2, "Strategy one_device supports one replica"),
        ("trainer.precision=mixed_bflot16", 2, "Did you mean 'mixed_bfloat16'"),
        ("trainer.global_batch_size=4000", 2, "must not exceed the number of training examples"),
        ("init_from=nowhere", 2, "init_from must be a work directory, a .keras file"),
        ("trainer.callbacks=tensorbord", 2, "Did you mean 'tensorboard'?"),
        (
            "trainer.callbacks=5",
            2,
            "trainer.callbacks must contain values of type str. Received: 5",
        ),
        ("task.augment=1", 2, "augment must be of type tuple[str, ...]"),
        ("optimizer.weight_decay=-1", 2, "optimizer.weight_decay must be at least 0"),
        ("trainer.remat=conv", 2, "trainer.remat must match the name of a layer"),
        ("trainer.remat=(", 2, "trainer.remat must be a regular expression"),
        ("optimizer.weight_decay_exclude=(", 2, "exclude must be a regular expression"),
        ("schedule.warmup_steps=31", 2, "schedule.warmup_steps=31"),
        ("model.name=cnn_clasifier", 2, "Did you mean 'cnn_classifier'?"),
        ("model.filters=8,8", 2, "filters must be of type tuple[int, int, int]"),
        ("task.name=image_clasification", 2, "Did you mean 'image_classification'"),
        ("task.label_smoothing=1.0", 2, "task.label_smoothing must be in [0, 1)"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(
    overrides, status, line, zoo_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.savez("small.npz", **arrays(side=20))
    np.savez("many.npz", **arrays(classes=13))
    np.savez("other.npz", **arrays(image="picture"))
    np.savez("empty.npz", **arrays(empty=True))
    (tmp_path / "damaged.npz").write_text("no arrays")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "mine/.cache.7.tmp.txt").write_text("mine")
    before = content(tmp_path)
    override = f"--config.{overrides}"
    if "npz" in overrides:
        sizes = ["--config.model.input_shape=28,28,1", "--config.model.num_classes=10"]
        override = [override, "--config.data.validation_size=0", *sizes]
    for workdir in ("new/and/deep", "mine"):
        words = ["train", "cnn_digits:debug", f"--workdir={workdir}"]
        answer = zoo_command(*words, *([override] if isinstance(override, str) else override))
        assert answer.status == status
        assert line in answer.one_line()
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("workdir", "status", "line"),
    [
        ("notes.txt", 2, "A work directory must be a folder. Received: notes.txt"),
        ("notes.txt/run", 2, "A work directory must be a folder. Received: notes.txt/run"),
        ("/proc/run", 1, "Cannot write in /proc/run: "),
    ],
)
def test_a_place_that_takes_no_folder(workdir, status, line, zoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)
    answer = zoo_command("train", "cnn_digits:debug", f"--workdir={workdir}")
    assert answer.status == status
    assert line in answer.one_line()
    assert content(tmp_path) == before


def test_a_read_only_place(zoo_command, tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # root has write permission everywhere
        os.seteuid(65534)
    try:
        answer = zoo_command("train", "cnn_digits:debug", f"--workdir={tmp_path / 'run'}")
    finally:
        os.seteuid(user)
    assert answer.status == 1
    assert "ermission" in answer.one_line()
    assert str(tmp_path / "run") in answer.err
    assert content(tmp_path) == {}


# --- an old work directory ------------------------------------------------------------------------


@pytest.fixture
def old(trained, tmp_path):
    """Returns a copy of the trained work directory."""
    return shutil.copytree(trained[0], tmp_path / "old")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["cnn_digits:debug", "--config.optimizer.learning_rate=0.1"],
            "another recipe (optimizer.learning_rate: 0.004 -> 0.1). Use a new work directory",
        ),
        (
            ["cnn_digits:debug", "--config.trainer.seed=3", "--config.model.filters=8,8,8"],
            "(model.filters: [32, 64, 64] -> [8, 8, 8]; trainer.seed: 0 -> 3)",
        ),
        (["cnn_digits"], "trainer.epochs: 0 -> 20; trainer.steps: 30 -> 0"),
        (
            ["cnn_digits:debug", "--config.optimizer.name=sgd"],
            "optimizer.beta_1: 0.9 -> None",
        ),
    ],
)
def test_another_recipe_in_an_old_directory_is_refused(words, line, old, zoo_command):
    before = content(old)
    answer = zoo_command("train", *words, f"--workdir={old}")
    assert answer.status == 2
    assert line in answer.one_line()
    assert str(old) in answer.err
    assert content(old) == before


def test_an_absent_section_equals_its_defaults(old, zoo_command):
    """A run resumes with a section of defaults, but not with a section that changes values."""
    for change in ("prune.sparsity=0", "qat.on=False", "distill.teacher="):
        words = ("train", "cnn_digits:debug", f"--workdir={old}", f"--config.compress.{change}")
        answer = zoo_command(*words)
        assert answer.status == 0, answer.err
    words = (
        "train",
        "cnn_digits:debug",
        f"--workdir={old}",
        "--config.compress.prune.sparsity=0.5",
    )
    answer = zoo_command(*words)
    assert answer.status == 2
    assert "another recipe (compress.prune.sparsity: 0.0 -> 0.5)" in answer.one_line()


def test_a_configuration_that_lacks_a_key_is_damaged(old, zoo_command):
    saved = json.loads((old / "config.json").read_text())
    del saved["config"]["trainer"]["keep"]
    (old / "config.json").write_text(json.dumps(saved))
    answer = zoo_command("train", "cnn_digits:debug", f"--workdir={old}")
    assert answer.status == 1
    assert "config.json is damaged: The recipe must contain trainer.keep" in answer.one_line()


def test_what_only_changes_how_it_is_computed_may_change(old, zoo_command):
    words = ["--config.trainer.micro_batch_size=32", "--config.trainer.keep=5"]
    assert zoo_command("train", "cnn_digits:debug", *words, f"--workdir={old}").status == 0
    saved = json.loads((old / "config.json").read_text())["config"]["trainer"]
    assert (saved["micro_batch_size"], saved["keep"]) == (32, 5)


def test_other_data_in_an_old_directory_are_refused(tmp_path, zoo_command):
    file, run = tmp_path / "mine.npz", tmp_path / "run"
    np.savez(file, **arrays())
    changes = (
        f"data.source=npz:{file},data.validation_size=0,model.filters=(4,4,4),trainer.steps=1,"
        "schedule.warmup_steps=0"
    )
    words = ["train", "cnn_digits:debug", f"--workdir={run}", f"--params_override={changes}"]
    assert zoo_command(*words).status == 0
    before = content(run)

    np.savez(file, **{**arrays(), "test_label": np.zeros(80, int)})
    answer = zoo_command(*words)
    assert answer.status == 2
    assert f"{run} was created with other data than 'npz:{file}' contains now" in answer.one_line()
    assert content(run) == before
    answer = zoo_command("evaluate", run)
    assert answer.status == 0
    assert answer.err == f"zoo: 'npz:{file}' contains other data than in training.\n"
    before = content(run)

    np.savez(file, **arrays(side=20))
    answer = zoo_command("evaluate", run)
    assert answer.status == 2
    assert "(20, 20, 1)" in answer.one_line()
    file.unlink()
    assert f"There is no file {file}" in zoo_command("evaluate", run).one_line()
    assert content(run) == before


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_two_processes_in_one_directory_are_refused(command, old, zoo_command):
    before = content(old)
    holder = WorkDirectory(old).open()
    words = {"train": ["cnn_digits:debug", f"--workdir={old}"], "evaluate": [old]}[command]
    answer = zoo_command(command, *words)
    assert answer.status == 1
    assert f"Another process works in {old}" in answer.one_line()
    holder.close()
    assert content(old) == before
    WorkDirectory(old).open().close()


@pytest.mark.parametrize(
    ("text", "status", "line"),
    [
        ("", 1, "config.json cannot be read: it is not valid JSON (Expecting value"),
        ('{"format_version": 2, "config"', 1, "config.json cannot be read: it is not valid JSON ("),
        ("[]", 1, "config.json is damaged: missing key 'config'"),
        ('{"format_version": 2}', 1, "config.json is damaged: missing key 'config'"),
        ('{"format_version": 2, "config": {}}', 1, "config.json is damaged: missing key 'source'"),
        ('{"format_version": 99, "config": {}}', 2, "must have format_version 2. Received: 99"),
        ("\udcff", 1, "config.json cannot be read: it is not valid JSON ('utf-8' codec can't"),
    ],
    ids=["empty", "cut", "list", "no recipe", "empty recipe", "newer", "no text"],
)
def test_a_damaged_config_is_named(text, status, line, old, zoo_command):
    (old / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    before = content(old)
    picture = old / "picture.png"
    for words in (["train", "cnn_digits:debug", f"--workdir={old}"], ["evaluate", old],
                  ["predict", old, picture]):  # fmt: skip
        answer = zoo_command(*words)
        assert answer.status == status, words
        assert line in answer.one_line()
        assert str(old) in answer.err
    assert content(old) == before


def test_a_directory_that_lost_its_config_is_refused(old, zoo_command):
    (old / "config.json").unlink()
    (old / ".lock").unlink()
    before = content(old)
    answer = zoo_command("train", "cnn_digits:debug", f"--workdir={old}")
    assert answer.status == 2
    assert "contains checkpoints but no config.json" in answer.one_line()
    assert content(old) == before


@pytest.mark.parametrize("damage", ["cut", "missing", "text"])
def test_a_damaged_model_is_named(damage, old, zoo_command, tmp_path):
    from PIL import Image

    path = old / "model.keras"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"no model"}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    picture = tmp_path / "picture.png"
    Image.new("L", (28, 28)).save(picture)
    before = content(old)
    for words in (["evaluate", old], ["predict", old, picture]):
        answer = zoo_command(*words)
        if damage == "missing":
            assert answer.status == 2
            assert "contains no final model: training has not finished" in answer.one_line()
        else:
            assert answer.status == 1
            assert f"Cannot load {path}: " in answer.one_line()
    assert content(old) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--split=tset"], "has no split 'tset'. Did you mean 'test'?"),
        (["--split="], "no split ''"),
    ],
)
def test_evaluate_names_a_split_that_is_not_there(words, line, old, zoo_command):
    before = content(old)
    answer = zoo_command("evaluate", old, *words)
    assert answer.status == 2
    assert line in answer.one_line()
    assert content(old) == before


def test_metrics_with_a_torn_line_are_read(tmp_path):
    good = [b'{"step": 1}', b'{"step": 2}']
    for torn in (b'{"step": 3, "lo', b"\xff\xfe\x00", b"", b"7"):
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*good, torn]))
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on(
    trained, tmp_path, zoo_command, monkeypatch
):
    words = ["train", "cnn_digits:debug", f"--workdir={tmp_path / 'run'}"]
    words.append("--config.trainer.checkpoint_every=10")
    savez = np.savez

    def full(file, **arrays):
        if checkpoint.list_checkpoints(tmp_path / "run/checkpoints"):
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        savez(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        answer = zoo_command(*words)
    assert answer.status == 1
    where = tmp_path / "run/checkpoints/step_0000000020.npz"
    assert answer.one_line() == f"zoo: error: the disk is full: {where}"
    ((step, path),) = checkpoint.list_checkpoints(tmp_path / "run/checkpoints")
    assert step == checkpoint.read(path)[0]["step"] == 10
    assert not [name for name in content(tmp_path) if "tmp" in name]

    answer = zoo_command(*words)
    assert answer.status == 0
    assert metrics(answer.out.splitlines()[-2]) == pytest.approx(
        metrics(trained[1].out.splitlines()[-2]), rel=1e-4
    )


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO", "EFBIG"])
def test_a_disk_that_fails_is_named_with_the_file(code, tmp_path, monkeypatch):
    from trainers.cli.common import run
    from zoo.storage.disk import write_json

    def fail(_):
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(os, "fsync", fail)
    assert run(lambda _: write_json(tmp_path / "a.json", 2), ["zoo"]) == 1
    assert (tmp_path / "a.json").read_text() == "1\n"


@pytest.mark.parametrize(("error", "status"), [(UsageError, 2), (RunError, 1), (MemoryError, 1)])
def test_an_error_of_many_lines_is_one(error, status, capsys):
    from trainers.cli.common import run

    def fail(_):
        raise error("first\n   second")

    assert run(fail, ["zoo"]) == status
    assert capsys.readouterr().err.count("\n") == 1
