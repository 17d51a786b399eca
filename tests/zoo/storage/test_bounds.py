"""Decompression bombs and files with huge declared sizes: every reader refuses them."""

import gzip
import io
import json
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from zoo.data.arrays import npz
from zoo.data.arrays.images import Unreadable, decode
from zoo.data.text import tokenizers
from zoo.data.text.corpora import load_corpus
from zoo.errors import RunError
from zoo.models.convert import safetensors as convert_safetensors
from zoo.storage import bounds, disk, records
from zoo.storage.arrays import open_npz

BOMB = "stored bytes expand to .* at most 100 times"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Lowers the bounds, so that bombs of a few MB are refused."""
    monkeypatch.setattr(bounds, "FREE_BYTES", 1 << 20)


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(bounds, "available_memory", lambda: 2 << 20)


@pytest.mark.parametrize(
    "form", ["text:{}/a.txt.gz", "text:{}/a.jsonl.gz", "pairs:{}/a.tsv.gz", "text:{}"]
)
def test_text_that_expands(tmp_path, form):
    for name, line in (("txt", b" "), ("jsonl", b'{"text": "a"}\n'), ("tsv", b"a\tb\n")):
        (tmp_path / f"a.{name}.gz").write_bytes(gzip.compress(line * (2 << 20)))
    with pytest.raises(RunError, match=BOMB):
        load_corpus(form.format(tmp_path))


def test_text_of_usual_ratios_passes(tmp_path):
    text = "".join(
        f"{number} is a number, {number * number} is its square.\n" for number in range(60_000)
    )
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert "".join(load_corpus(f"text:{tmp_path}/a.txt.gz").splits["train"]()) in text


def test_a_document_has_to_fit_in_memory(tmp_path, little_memory):
    (tmp_path / "a.txt").write_text("a b\n" * (1 << 18))
    with pytest.raises(RunError, match="bytes of memory"):
        load_corpus(f"text:{tmp_path}/a.txt")


def test_a_line_has_a_longest_length(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.text.corpus_readers.MAX_LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "a" * 1000 + '"}\n')
    with pytest.raises(RunError, match="line 2 is longer than"):
        load_corpus(f"text:{tmp_path}/a.jsonl")


@pytest.mark.parametrize("read", [disk.read_json, tokenizers.load])
def test_json_has_to_fit_in_memory_as_objects(tmp_path, little_memory, read):
    (tmp_path / "tokenizer.json").write_text("[" + "[]," * 30_000 + "[]]")
    with pytest.raises(RunError, match="bytes of memory"):
        read(tmp_path / "tokenizer.json")


def _npy(shape, data: bytes) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + data


def _zip(path, members: dict[str, bytes], kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_arrays_that_expand(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", train_image=np.zeros((2 << 20, 4), np.uint8))
    with pytest.raises(RunError, match=BOMB):
        npz.load("a", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", train_image=np.zeros((8, 4, 4, 1), "u1"), train_label=np.arange(8))
    assert len(npz.load("a", tmp_path / "a.npz").splits["train"]["label"]) == 8


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_bound_is_refused(tmp_path, kind):
    path = _zip(tmp_path / "a.npz", {"train_image.npy": _npy((4,), b"1234")}, kind)
    with pytest.raises(RunError, match="neither stored nor deflated"):
        npz.load("a", path)


def test_an_array_that_declares_more_than_it_has(tmp_path):
    path = _zip(tmp_path / "a.npz", {"train_image.npy": _npy((10**12,), b"1234")})
    with pytest.raises(RunError, match="train_image"):
        npz.load("a", path)


def test_members_that_share_their_bytes(tmp_path):
    """Overlapping members expand a file far beyond the ratio of each member."""
    path = _zip(
        tmp_path / "a.npz", {f"a{i}.npy": _npy((50_000,), bytes(50_000)) for i in range(50)}
    )
    with zipfile.ZipFile(path) as archive, pytest.raises(RunError, match=BOMB):
        bounds.check_zip(path, archive, 1000)


def test_a_manifest_declares_no_more_shards_than_it_has(tmp_path):
    content = {
        "rows": 2 * 10**8,
        "arrays": {"a": {"dtype": "|u1", "row_shape": [], "rows_per_shard": 1, "sha256": []}},
        "metadata": {},
    }
    manifest = {"format": records.FORMAT, "fingerprint": disk.json_digest(content), **content}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="manifest.json is damaged"):
        records.open_records(tmp_path)


@pytest.mark.parametrize("value", [True, 1.0, -1, 0, 1e30, "8", None, [8]])
@pytest.mark.parametrize("key", ["rows", "rows_per_shard", "row_shape"])
def test_sizes_in_a_manifest_are_counts(tmp_path, key, value):
    with records.RecordWriter(tmp_path / "a", {"a": ((1,), "uint8")}) as writer:
        writer.append(a=np.zeros((1, 1), np.uint8))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    row = manifest if key == "rows" else manifest["arrays"]["a"]
    row[key] = [value] if key == "row_shape" else value
    content = {name: manifest[name] for name in ("rows", "arrays", "metadata")}
    manifest["fingerprint"] = disk.json_digest(content)
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="is damaged"):
        records.open_records(tmp_path / "a")


def test_archives_of_many_members(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **{f"x{i}": np.zeros(1) for i in range(8)})
    with open_npz(tmp_path / "a.npz") as arrays:
        assert len(arrays) == 8
    monkeypatch.setattr(bounds, "MAX_MEMBERS", 7)
    with pytest.raises(RunError, match="a.npz cannot be read: it has more than 7 members"):
        open_npz(tmp_path / "a.npz").__enter__()


def test_arrays_of_many_axes(tmp_path):
    """The product of large sizes would take hours."""
    shape = [1] * 500_000
    row = {"dtype": "<f4", "row_shape": shape, "rows_per_shard": 1, "sha256": ["0" * 64]}
    content = {"rows": 1, "arrays": {"a": row}, "metadata": {}}
    manifest = {"format": records.FORMAT, "fingerprint": disk.json_digest(content), **content}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="manifest.json is damaged"):
        records.open_records(tmp_path)
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    header = json.dumps(header).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(RunError, match="its tensor 'a' has too many axes"):
        convert_safetensors.open_folder(tmp_path)


def test_rows_of_parquet_that_share_a_value(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    from tests import pages
    from zoo.prep import files
    from zoo.prep.document import Tally
    from zoo.prep.reading import read, unpack

    monkeypatch.setattr(unpack, "FREE_BYTES", 1 << 20)
    text = pyarrow.DictionaryArray.from_arrays(np.zeros(5000, "i4"), ["word " * 2000])
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path, compression="zstd")
    tally, row_count = Tally(), 0
    for shard in files.make_shards(files.find_files([str(path)], {}), 1 << 40):
        for _ in read.documents(shard, pages.settings(), tally):
            row_count += 1
    assert dict(tally.unreadable) == {"files: bomb": 1}
    assert row_count <= 104  # 10 kB each


def test_an_image_has_to_fit_in_memory(tmp_path, little_memory):
    from PIL import Image

    Image.new("RGB", (1000, 1000)).save(tmp_path / "a.png")
    with pytest.raises(Unreadable, match="bytes of memory"):
        decode(tmp_path / "a.png", (8, 8, 3))


def test_the_memory_of_a_limited_process():
    code = (
        "from zoo.storage.bounds import available_memory, check_memory; print(available_memory());"
        "check_memory('a', 3 << 30)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )  # fmt: skip
    assert int(result.stdout) < 2 << 30
    assert "RunError: a cannot be read: it requires 3,221,225,472 bytes of memory" in result.stderr


def test_large_files_that_are_what_they_say_pass():
    bounds.check_expansion("model.keras", 30 << 30, 30 << 30)
    bounds.check_expansion("corpus.txt.gz", 100 << 30, 20 << 30)


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import keras

    path = tmp_path_factory.mktemp("saved") / "model.keras"
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Dense(2, name="d")(inputs)).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with_h5(saved, path, change, kind=zipfile.ZIP_STORED):
    import h5py

    content = io.BytesIO(saved["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        change(file)
    return _zip(path, {**saved, "model.weights.h5": content.getvalue()}, kind)


def _zeros(file):
    file.create_dataset("zeros", (4 << 20,), "u1", compression="gzip", data=np.zeros(4 << 20, "u1"))


def _declared(file):
    file.create_dataset("zeros", (1 << 40,), "f4", chunks=(1 << 20,))


def _links(file):
    import h5py

    file["other"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.parametrize(
    ("change", "words"), [(_zeros, BOMB), (_declared, BOMB), (_links, "its item 'other' is a link")]
)
def test_weights_that_expand(saved, tmp_path, change, words):
    from zoo.saved.model import open_model

    path = _with_h5(saved, tmp_path / "a.keras", change)
    with pytest.raises(RunError, match=words):
        open_model(path)


def test_groups_nested_in_groups(saved, tmp_path):
    """Looking up the names of 3,000 nested groups takes minutes."""
    from zoo.saved.model import open_model

    def nested(file):
        for _ in range(300):
            file = file.create_group("a")

    path = _with_h5(saved, tmp_path / "a.keras", nested)
    with pytest.raises(RunError, match="its groups are nested more than 200 deep"):
        open_model(path)


def test_a_keras_file_that_expands(saved, tmp_path):
    from zoo.saved.model import open_model

    path = _zip(tmp_path / "a.keras", {**saved, "assets/zeros": bytes(4 << 20)})
    with pytest.raises(RunError, match=BOMB):
        open_model(path)


def test_a_model_larger_than_its_weights(saved, tmp_path):
    from zoo.saved.model import open_model

    config = saved["config.json"].replace(b'"units": 2', b'"units": 20000000')
    assert config != saved["config.json"]
    path = _zip(tmp_path / "a.keras", {**saved, "config.json": config}, zipfile.ZIP_STORED)
    with pytest.raises(RunError, match="its model has .0,000,000 parameters or more"):
        open_model(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_whole_model_opens(saved, tmp_path, kind):
    from zoo.saved.model import open_model

    assert open_model(_zip(tmp_path / "a.keras", saved, kind)).count_params() == 8
