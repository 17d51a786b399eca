"""Checkpoints restore bit for bit or are refused: complete, damaged and mismatched files."""

import dataclasses
import errno
import os
from collections.abc import Sequence

import keras
import numpy as np
import pytest

from tests import toys
from trainers.run import checkpoint
from trainers.run.workdir import WorkDirectory
from zoo.errors import RunError, UsageError

COUNTERS = {"skipped_batches": 2, "best": 0.75, "seconds": 1.5}
DTYPES = ("float32", "bfloat16", "float16", "int64", "uint32", "uint16", "int8", "bool")


@dataclasses.dataclass
class Net:
    trainable_variables: Sequence
    non_trainable_weights: Sequence


@dataclasses.dataclass
class Owner:
    variables: Sequence = ()


@dataclasses.dataclass
class Step:
    """Attributes of a `TrainStep` that a checkpoint reads."""

    net: Net
    seed_states: Sequence
    optimizers: Sequence
    count: keras.Variable
    compressors: Sequence = ()
    lora: object = None
    task: Owner = dataclasses.field(default_factory=Owner)


def make_step(seed=0, width=3, dtypes=DTYPES, step=7):
    """Returns a `Step` with one variable of each dtype."""
    generator = np.random.default_rng(seed)
    variables = [
        keras.Variable(generator.normal(0, 3, (2, width)).astype("float32"), dtype=d, name=d)
        for d in dtypes
    ]
    half = len(variables) // 2
    return Step(
        Net(variables[:half], variables[half:]),
        [keras.Variable([seed, 1], dtype="uint32", name="seed_state")],
        [Owner([keras.Variable(seed, dtype="int64", name="count")])],
        keras.Variable(step, dtype="int64", name="step"),
    )


def bits(step):
    return [(v.dtype, v.numpy().tobytes()) for v in checkpoint.variables_of(step)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path):
    """Saves a checkpoint of `made(seed=1)`; returns its path."""
    return checkpoint.save(tmp_path / "checkpoints", make_step(seed=1), COUNTERS, keep=2)


def test_every_dtype_comes_back_bit_for_bit(saved):
    fresh, original = make_step(seed=2), make_step(seed=1)
    assert bits(fresh) != bits(original)
    assert checkpoint.restore(saved, fresh) == COUNTERS
    assert bits(fresh) == bits(original)
    header, arrays = checkpoint.read(saved)
    assert header["step"] == 7
    assert header["paths"][:2] == ["float32", "bfloat16"]
    assert len(arrays) == len(DTYPES) + 3


def test_a_train_step_comes_back_bit_for_bit(tmp_path):
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step

    def build(seed, **arguments):
        config = toys.recipe(
            model_arguments={"dropout": 0.1, **arguments}, seed=seed, ema=0.9,
            precision="mixed_float16",
        )  # fmt: skip
        return build_step(config, make_strategy("one_device"), 10)[0]

    one, other = build(0), build(1)
    for variable in one.optimizer.variables:
        variable.assign(keras.ops.ones_like(variable.value))
    path = checkpoint.save(tmp_path, one, {}, keep=1)
    assert bits(one) != bits(other)
    checkpoint.restore(path, other)
    assert bits(one) == bits(other)
    assert len(one.seed_states) == 2

    wider = build(1, width=10)
    before = bits(wider)
    with pytest.raises(UsageError, match=r"another model: embedding/embeddings is \(11, 8\)"):
        checkpoint.restore(path, wider)
    assert bits(wider) == before


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_few_are_kept(tmp_path, keep):
    for step in (1, 9, 10, 100):  # alphabetical order differs
        checkpoint.save(tmp_path, make_step(step=step), {}, keep=keep)
    steps = [step for step, _ in checkpoint.list_checkpoints(tmp_path)]
    assert steps == [1, 9, 10, 100][-keep:]
    assert len(names(tmp_path)) == len(steps)


def test_other_files_are_no_checkpoints_and_stay(tmp_path):
    for name in ("step_7.npz", "notes.txt", "step_0000000003.npz.bak", ".step_0000000003.npz.tmp"):
        (tmp_path / name).write_text("mine")
    checkpoint.save(tmp_path, make_step(), {}, keep=1)
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path)] == [7]
    assert {"step_7.npz", "notes.txt", "step_0000000003.npz.bak"} <= set(names(tmp_path))


# --- a kill, or a full disk, while writing --------------------------------------------------------


class Killed(BaseException):
    """Simulates a kill within one process: no code catches a `BaseException`."""


@pytest.mark.parametrize("place", ["os.replace", "os.fsync", "numpy.savez"])
def test_a_failure_while_writing_leaves_the_old_checkpoint_whole(saved, monkeypatch, place):
    before = saved.read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_, **__):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(OSError, match="No space left") as error:
            checkpoint.save(saved.parent, make_step(step=8), COUNTERS, keep=1)
    assert error.value.filename.endswith("step_0000000008.npz")
    assert names(saved.parent) == [saved.name]
    assert saved.read_bytes() == before
    checkpoint.restore(saved, make_step())


def test_what_a_kill_left_is_gone_at_the_next_start(saved, monkeypatch):
    def killed(*_):
        raise Killed

    workdir = saved.parent.parent
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # a kill removes no files
        with pytest.raises(Killed):
            checkpoint.save(saved.parent, make_step(step=8), COUNTERS, keep=1)
    assert len(names(saved.parent)) == 2
    half_written = {".zoo-0123456789abcdef.tmp"}
    for name in (*half_written, ".mine.tmp", ".bashrc", "notes.71.tmp"):
        (workdir / name).write_text("half")
    directory = WorkDirectory(workdir).open()
    directory.close()
    assert names(saved.parent) == [saved.name]
    assert not half_written & set(names(workdir))
    assert {".mine.tmp", ".bashrc", "notes.71.tmp"} <= set(names(workdir))
    checkpoint.restore(saved, make_step())


# --- damaged and foreign files --------------------------------------------------------------------


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def value_of(data):
    """Returns the offset of the first array's values, 128 bytes after its .npy magic string."""
    return data.index(b"\x93NUMPY", data.index(b"00000.npy")) + 128


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"not a checkpoint at all",
        lambda data: flip(data, value_of(data)),
        lambda data: flip(data, value_of(data) - 20),
        lambda data: data.replace(b"paths", b"maths"),
        lambda data: data.replace(b"(2, 3)", b"(2, 1)", 1),
    ],
    ids=["empty", "half", "cut", "text", "value", "array head", "header", "shape"],
)
def test_a_damaged_checkpoint_is_named_and_changes_nothing(saved, damage):
    data = saved.read_bytes()
    assert damage(data) != data
    saved.write_bytes(damage(data))
    step = make_step(seed=2)
    before = bits(step)
    with pytest.raises(RunError, match=f"checkpoint .*{saved.name} is damaged: ."):
        checkpoint.restore(saved, step)
    assert bits(step) == before
    assert saved.exists()


def test_no_flipped_bit_goes_unnoticed(saved):
    """Every flipped bit is refused, or changes no value (a bit of a date or a file attribute)."""
    data, right = saved.read_bytes(), bits(make_step(seed=1))
    refused_count = 0
    for at in range(0, len(data), 11):
        saved.write_bytes(flip(data, at))
        step = make_step(seed=2)
        before = bits(step)
        try:
            assert checkpoint.restore(saved, step) == COUNTERS
        except RunError:
            refused_count += 1
            assert bits(step) == before, at
        else:
            assert bits(step) == right, at
    assert refused_count > len(data) / 22


def test_a_folder_or_a_missing_file_is_named(tmp_path):
    (tmp_path / "step_0000000001.npz").mkdir()
    for name in ("step_0000000001.npz", "step_0000000002.npz"):
        with pytest.raises(RunError, match=name):
            checkpoint.read(tmp_path / name)


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        ({"dtypes": DTYPES[:-1]}, "has 11 variables, this run has 10"),
        ({"width": 4}, r"float32 is \(2, 3\) float32, in this run \(2, 4\) float32"),
        (
            {"dtypes": ("float32", "float32", *DTYPES[2:])},
            "bfloat16 is .* uint16, in this run .* float32",
        ),
        ({"dtypes": ("bfloat16", *DTYPES[1:])}, "float32 is .* float32, in this run .* uint16"),
    ],
)
def test_another_models_checkpoint_is_refused_and_changes_nothing(saved, foreign, words):
    step = make_step(seed=2, **foreign)
    before = bits(step)
    with pytest.raises(UsageError, match=f"{saved.name} belongs to another model.*{words}"):
        checkpoint.restore(saved, step)
    assert bits(step) == before


SAME_SHAPES = ("block_0/kernel", "block_1/kernel", "dense/bias", "dense_1/bias")


def renamed(step, paths):
    """Sets the paths of the variables of `made`, which have equal shapes and dtypes."""
    for variable, path in zip(checkpoint.variables_of(step), paths, strict=False):
        variable._path = path
    return step


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (
            ("block_1/kernel", "block_0/kernel"),
            "variable 0 is 'block_0/kernel', in this run 'block_1/ke",
        ),
        (
            ("block_0/kernel", "block_1/scale"),
            "variable 1 is 'block_1/kernel', in this run 'block_1/sca",
        ),
        (
            (*SAME_SHAPES[:2], "dense_1/bias", "dense/bias"),
            "variable 2 is 'dense/bias', in this run 'den",
        ),
        (("block_1/kernel", "block_0/kernel", "dense_4/bias", "dense_5/bias"), "variable 0 is"),
        (
            (*SAME_SHAPES[:3], "dense_1_bias_momentum"),
            "variable 3 is 'dense_1/bias', in this run 'dense_",
        ),
    ],
)
def test_variables_of_one_shape_that_changed_places_are_refused(tmp_path, paths, words):
    four = {"dtypes": ["float32"] * 4}
    saved = checkpoint.save(tmp_path, renamed(make_step(seed=1, **four), SAME_SHAPES), {}, keep=1)
    step = renamed(make_step(seed=2, **four), paths)
    before = bits(step)
    with pytest.raises(UsageError, match=f"{saved.name} belongs to another model: {words}"):
        checkpoint.restore(saved, step)
    assert bits(step) == before


def test_automatic_numbers_of_another_process_are_no_difference(tmp_path):
    names = ("block_0/dense/kernel", "block_1/dense_1/kernel", "adam/block_0_dense_kernel_momentum")
    later = [
        name.replace("dense_1", "dense_8").replace("dense/", "dense_7/").replace("adam", "adam_3")
        .replace("dense_kernel", "dense_7_kernel")
        for name in names
    ]  # fmt: skip
    three = {"dtypes": ["float32"] * 3}
    saved = checkpoint.save(tmp_path, renamed(make_step(seed=1, **three), names), {}, keep=1)
    step = renamed(make_step(seed=2, **three), later)
    checkpoint.restore(saved, step)
    assert bits(step) == bits(make_step(seed=1, **three))


def test_a_checkpoint_holds_no_objects(tmp_path):
    """Pickled arrays are refused, because no file of a work directory may execute code."""
    path = tmp_path / "step_0000000001.npz"
    evil = np.array([Owner()], dtype=object)
    np.savez(path, header=evil, **{"00000": evil})
    with pytest.raises(RunError, match="damaged: pickled Python objects are not loaded"):
        checkpoint.read(path)
