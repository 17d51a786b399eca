"""The registered sets of labeled texts: their splits, and checks of their files."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import zoo.data
from zoo.data import datasets, fetch
from zoo.data.text.labeled import catalog, originals
from zoo.data.text.labeled.catalog import list_sets, source_of
from zoo.data.text.labeled.examples import read_examples
from zoo.errors import RunError, UsageError
from zoo.storage.disk import file_digest

# Classes, and the number of examples of each class per split.
COUNTS = {
    "sst2": (
        ("negative", "positive"),
        {"train": (29_780, 37_569), "test": (428, 444)},
    ),
    "trec": (
        ("abbreviation", "description", "entity", "human", "location", "number"),
        {"train": (86, 1162, 1250, 1223, 835, 896), "test": (9, 138, 94, 65, 81, 113)},
    ),
    "rte": (
        ("entailment", "not_entailment"),
        {"train": (1249, 1241), "test": (146, 131)},
    ),
    "sick": (
        ("contradiction", "entailment", "neutral"),
        {"train": (665, 1299, 2536), "validation": (74, 144, 282), "test": (720, 1414, 2793)},
    ),
    "farstail": (
        ("contradiction", "entailment", "neutral"),
        {
            "train": (2389, 2429, 2448),
            "validation": (499, 515, 523),
            "test": (510, 519, 535),
            "test_hard_hypothesis": (278, 229, 192),
            "test_hard_overlap": (341, 226, 114),
        },
    ),
}
FIRST_TEXTS = {
    "sst2": ("hide new secretions from the parental units ",),
    "trec": ("How did serfdom develop in and then leave Russia ?",),
    "rte": (
        "No Weapons of Mass Destruction Found in Iraq Yet.",
        "Weapons of Mass Destruction Found in Iraq.",
    ),
    "sick": (
        "A group of kids is playing in a yard and an old man is standing in the background",
        "A group of boys in a yard is playing and a man is standing in the background",
    ),
}


def folder_or_skip(name):
    folder = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / name
    if not folder.is_dir():
        pytest.skip(f"ZOO_DATA_DIR holds no {name}: set it and run `zoo fetch {name}`")
    return folder


def read(name, columns=(), output="class", manual_dir=None):
    return read_examples(source_of(name, manual_dir), columns, output)


def test_every_set_is_tested():
    assert list_sets() == tuple(sorted((*COUNTS, "imdb")))


@pytest.mark.parametrize("name", COUNTS)
def test_splits_and_classes(name):
    folder_or_skip(name)
    examples = read(name)
    assert examples.class_names == COUNTS[name][0]
    counts = {k: tuple(np.bincount(v).tolist()) for k, v in examples.labels.items()}
    assert counts == COUNTS[name][1]
    assert {k: sum(1 for _ in v()) for k, v in examples.splits.items()} == {
        k: sum(v) for k, v in counts.items()
    }
    first = next(examples.splits["train"]())
    assert first == FIRST_TEXTS.get(name, first)
    assert examples.is_pair == (len(first) == 2)


def test_trec_is_latin_1():
    folder_or_skip("trec")
    assert any("sister\u00f0city" in text for (text,) in read("trec").splits["train"]())


def test_sick_has_numbers_too():
    folder_or_skip("sick")
    columns = ("sentence_A", "sentence_B", "relatedness_score")
    examples = read("sick", columns, "number")
    target = examples.labels["train"]
    assert (len(target), float(target.min()), float(target.max())) == (4500, 1.0, 5.0)
    assert target[0] == 4.5
    assert examples.class_names == ()
    assert examples.fingerprint != read("sick").fingerprint


def test_farstail_unquotes_its_cells():
    folder_or_skip("farstail")
    texts = [text for pair in read("farstail").splits["train"]() for text in pair]
    assert not any('""' in text for text in texts)
    assert any('"' in text for text in texts)


def test_imdb():
    folder = folder_or_skip("imdb")
    is_subset = not (folder / "aclImdb_v1.tar.gz").is_file()
    examples = read("imdb")
    expected = {"train": (3000, 3000), "test": (1500, 1500)} if is_subset else {
        "train": (12_500, 12_500), "test": (12_500, 12_500)}  # fmt: skip
    assert {k: tuple(np.bincount(v).tolist()) for k, v in examples.labels.items()} == expected
    assert examples.class_names == ("negative", "positive")
    assert not any("<br" in text for (text,) in examples.splits["test"]())


def test_imdb_reads_reviews_only(tmp_path, monkeypatch):
    members = {
        "aclImdb/train/pos/10_9.txt": "good<br /><br />film",
        "aclImdb/train/pos/9_10.txt": "fine",
        "aclImdb/train/neg/0_1.txt": "bad",
        "aclImdb/train/unsup/1_0.txt": "unlabeled",
        "aclImdb/README": "about",
        "../aclImdb/train/pos/11_9.txt": "outside",
        "aclImdb/test/pos/0_8.txt": "nice",
        "aclImdb/test/neg/0_2.txt": "dull",
    }
    path = tmp_path / "aclImdb_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    files = (fetch.FetchFile("", path.name, path.stat().st_size, file_digest(path)),)
    monkeypatch.setattr(catalog, "original_files", lambda name: files)
    before = sorted(os.listdir(tmp_path))
    examples = read("imdb", manual_dir=tmp_path)
    assert list(examples.texts("train")) == ["bad", "fine", "good\n\nfilm"]
    assert list(examples.texts("test")) == ["dull", "nice"]
    assert examples.labels["train"].tolist() == [0, 1, 1]
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "file_name"),
    [("trec", "TREC_10.label"), ("sst2", "train.tsv.gz"), ("rte", "validation.parquet")],
)
def test_changed_files_are_refused(tmp_path, name, file_name):
    shutil.copytree(folder_or_skip(name), tmp_path / name)
    path = tmp_path / name / file_name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    words = f"{file_name}.* (is not the registered file|cannot be read).*zoo fetch {name}"
    with pytest.raises(RunError, match=words):
        read(name, manual_dir=tmp_path / name)
    path.unlink()
    with pytest.raises(RunError, match=f"does not contain .*`zoo fetch {name}` downloads"):
        read(name, manual_dir=tmp_path / name)


def test_missing_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    for name in list_sets():
        with pytest.raises(RunError, match=f"no folder {tmp_path}/{name}: run `zoo fetch {name}`"):
            source_of(name, None)


def test_fetch_knows_the_files():
    for name in list_sets():
        files = datasets.dataset_entry(name).original_files()
        assert files == originals.original_files(name)
        assert all(len(file.sha256) == 64 and file.url.startswith("http") for file in files)
        folder = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / name
        if folder.is_dir() and name != "imdb":
            assert all(fetch.is_valid(folder / file.file_name, file) for file in files)


def test_sets_are_no_datasets_of_arrays():
    with pytest.raises(UsageError, match="task.name=text_classification"):
        zoo.data.load("sst2")
