"""A work directory is refused before training if one of its entries has a wrong file type."""

import os

import pytest

from trainers.run.layout import FILES, FOLDERS
from trainers.run.workdir import WorkDirectory
from zoo.errors import RunError

INSIDE = (
    "checkpoints/step_0000000001.npz", "best/model.keras", "best/metrics.json",
    "evaluation/test.json", "evaluation/test.npz", "samples/step_1.png",
)  # fmt: skip


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.parametrize("name", [*FILES, *INSIDE])
def test_what_lies_where_a_file_is_written(tmp_path, name, make):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with pytest.raises(RunError, match=f"{name} must be a file"):
        WorkDirectory(tmp_path).open()
    assert name == "config.json" or not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text(""), os.mkfifo, lambda path: path.symlink_to("nowhere")],
    ids=["file", "pipe", "dangling"],
)
@pytest.mark.parametrize("name", [*FOLDERS, "tensorboard/train", "tensorboard/validation"])
def test_what_lies_where_a_folder_is(tmp_path, name, make):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with pytest.raises(RunError, match=f"{name} must be a folder"):
        WorkDirectory(tmp_path).open()


def test_links_and_other_files_are_fine(tmp_path):
    (tmp_path / "disk" / "notes").mkdir(parents=True)
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(tmp_path / "disk")
    (workdir / "notes").mkdir()
    WorkDirectory(workdir).open().close()
