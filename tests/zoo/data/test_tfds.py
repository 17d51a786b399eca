"""TFDS datasets: prepared once, stored as records, and damage is detected."""

import gzip
import os
import shutil
import subprocess
import time
import types
from pathlib import Path

import numpy as np
import pytest

import zoo.data
from tests import commands
from zoo.data import fetch
from zoo.data.arrays import tfds
from zoo.errors import RunError

IMAGE = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
LABEL = np.arange(6, dtype=np.int64) % 3
SPLITS = {
    "train": {"image": IMAGE, "label": LABEL},
    "test": {"image": IMAGE[-2:], "label": LABEL[-2:]},
}


# --- records of TFDS datasets ------------------------------------------------------------------


def _keep(calls=None, names=("a", "b", "c"), splits=SPLITS):
    folder = tfds._records_folder("toy", "1.0")

    def produce():
        if calls is not None:
            calls.append(1)
        return splits, names

    tfds._create_records(folder, produce)
    return folder


def _kept(folder):
    return tfds._dataset("toy", tfds._open_if_complete(folder))


def test_names_of_examples_are_left_out_and_said(capsys):
    """Like `id` of cifar10, a string."""
    rows = {"image": np.zeros((3, 2, 2, 3), "uint8"), "label": np.arange(3),
            "id": np.array([b"a", b"b", b"c"], object)}  # fmt: skip
    builder = types.SimpleNamespace(
        name="toy", data_path="D", info=types.SimpleNamespace(
            splits={"train": types.SimpleNamespace(num_examples=6)}
        ),
        as_dataset=lambda **_: types.SimpleNamespace(as_numpy_iterator=lambda: iter([rows, rows])),
    )  # fmt: skip
    arrays = tfds._decode(types.SimpleNamespace(ReadConfig=lambda **_: None), builder, "train")
    assert {key: len(array) for key, array in arrays.items()} == {"image": 6, "label": 6}
    assert capsys.readouterr().err == "zoo: left out of toy: id\n"


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
    for split, arrays in SPLITS.items():
        for key, array in arrays.items():
            mapped = toy.splits[split][key]
            assert not mapped.flags.owndata
            assert not mapped.flags.writeable
            assert mapped.dtype == array.dtype
            np.testing.assert_array_equal(mapped, array)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".toy-1.0.lock", "toy-1.0"]


def test_the_fingerprint_of_kept_arrays_tells_other_classes_and_splits(cache, monkeypatch):
    first = _kept(_keep()).fingerprint
    monkeypatch.setenv("ZOO_CACHE_DIR", str(cache / "second"))
    assert _kept(_keep(names=("a", "c", "b"))).fingerprint != first
    monkeypatch.setenv("ZOO_CACHE_DIR", str(cache / "third"))
    renamed = {("dev" if split == "test" else split): rows for split, rows in SPLITS.items()}
    assert _kept(_keep(splits=renamed)).fingerprint != first


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
    assert tfds._open_if_complete(folder) is None
    calls = []
    _keep(calls)
    assert calls == [1]
    np.testing.assert_array_equal(_kept(folder).splits["test"]["image"], SPLITS["test"]["image"])


def test_processes_at_once_prepare_once(cache, tmp_path):
    code = """
import sys, time
import numpy as np
from zoo.data.arrays import tfds
def produce():
    open(sys.argv[1], "a").write("made ")
    time.sleep(0.5)
    return {"train": {"x": np.arange(1000)}}, ()
folder = tfds._records_folder("toy", "1.0")
tfds._create_records(folder, produce)
print(tfds._dataset("toy", tfds._open_if_complete(folder)).splits["train"]["x"].sum())
"""
    log = tmp_path / "made"
    processes = [commands.started(code, log) for _ in range(3)]
    assert [commands.output(process) for process in processes] == ["499500\n"] * 3
    assert log.read_text() == "made "


# --- TFDS ---------------------------------------------------------------------------------------


def test_missing_originals_are_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(RunError) as error:
        zoo.data.load("mnist")
    assert str(error.value) == (
        f"Preparing 'mnist' failed: {folder} does not contain train-images-idx3-ubyte.gz, "
        "train-labels-idx1-ubyte.gz. `zoo fetch mnist` downloads them."
    )
    with pytest.raises(RunError, match=f"'mnist' failed: {tmp_path} does not contain t10k-"):
        zoo.data.load("mnist", manual_dir=tmp_path)


def test_without_files_and_network_the_ways_out_are_named(cache, tmp_path, monkeypatch):
    downloads = []

    def offline(name, destination, log):
        downloads.append((name, destination))
        raise RunError("no network.")

    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(fetch, "fetch", offline)
    with pytest.raises(RunError) as error:
        tfds._original_folder("mnist", None)
    for word in (str(tmp_path), "no network.", "zoo fetch mnist", "ZOO_DATA_DIR", "manual_dir"):
        assert word in str(error.value)
    assert downloads == [("mnist", cache / "data")]


def test_a_version_that_tfds_lacks_is_one_line(cache):
    with pytest.raises(RunError, match="^Preparing 'mnist' failed: .*9.9.9"):
        tfds.load("mnist", "9.9.9")


def test_a_preparation_that_is_killed_is_told(cache, monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(RunError, match="was ended by signal 9"):
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
    """A cache in which two processes prepared mnist at once, and their output."""
    _originals_or_skip("mnist")
    folder = tmp_path_factory.mktemp("prepared")
    processes = [commands.started(LOAD, "mnist", ZOO_CACHE_DIR=str(folder)) for _ in range(2)]
    return folder, [commands.output(process) for process in processes]


def _idx(path, header):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def _assert_equals_the_originals(loaded, folder):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        label = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
        image = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(len(label), -1)
        arrays = loaded.splits[split]
        assert arrays["image"].shape == (len(label), 28, 28, 1)
        rows = [
            np.column_stack([images.reshape(len(label), -1), numbers]).astype(np.uint8)
            for images, numbers in ((image, label), (arrays["image"], arrays["label"]))
        ]
        # TFDS shuffles when it writes, so (pixels, label) are compared as sets.
        original, received = (sorted(row.tobytes() for row in table) for table in rows)
        assert original == received


@pytest.mark.slow
def test_mnist_is_prepared_by_tfds_and_opens_at_once_after(prepared, monkeypatch):
    folder, printed = prepared
    process = commands.started(LOAD, "mnist", ZOO_CACHE_DIR=str(folder))
    again = commands.output(process).split(maxsplit=2)
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
    # Only the records exist: the original files are not needed again.
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
    # Their files have the same names, and TFDS would reuse the unpacked files of the first.
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
    with pytest.raises(RunError) as error:
        zoo.data.load("mnist", manual_dir=folder)
    message = str(error.value)
    assert message.startswith("Preparing 'mnist' failed: NonMatchingChecksumError")
    assert "\n" not in message
    assert str(path) in message
