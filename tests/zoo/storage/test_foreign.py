"""Folders that are not work directories: every command names their kind and a command for them."""

import json

import pytest

from trainers.report import page as report
from trainers.run.workdir import read_config
from zoo.errors import UsageError
from zoo.storage.foreign import refuse_foreign
from zoo.storage.transformers_files import CONVERTED


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


def of_transformers(folder, kind="gpt2"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "architectures": ["A"]}))
    return folder


COMMANDS = (
    "generate {}", "evaluate {}", "predict {} a.png", "export {} --format=onnx --out=a.onnx",
    "compress prune {} --out=b", "report {}", "train cnn_digits:debug --workdir={}",
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_a_folder_of_transformers(words, folder, zoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_transformers(folder)
    answer = zoo_command(*words.format(folder).split())
    assert answer.status == 2
    message = answer.one_line()
    assert (
        f"{folder} is a folder of transformers (model_type 'gpt2'), not a work directory" in message
    )
    assert (
        f"zoo train RECIPE --workdir=W --config.init_from={folder} trains a model from it"
        in message
    )
    assert "zoo.models.convert.from_transformers opens it" in message
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_other_kinds(folder, tmp_path):
    of_transformers(folder, "t5")
    with pytest.raises(UsageError, match=f"only models of type {', '.join(CONVERTED)} are"):
        read_config(folder)
    (folder / "config.json").write_text(
        '{"module": "keras_hub.src.x", "class_name": "GPT2Backbone", "config": {}}'
    )
    with pytest.raises(UsageError, match=r"KerasHub preset \(GPT2Backbone\).*=keras_hub:/"):
        read_config(folder)
    (folder / "config.json").unlink()
    (folder / "prepared.json").write_text("{}")
    with pytest.raises(
        UsageError, match="is an output folder of `zoo prepare`.*data.source=prepared:/"
    ):
        read_config(folder)
    (folder / "prepared.json").rename(folder / "saved_model.pb")
    with pytest.raises(UsageError, match="is a SavedModel, not a work directory"):
        report.write_report(folder)
    file = tmp_path / "model.keras"
    file.touch()
    with pytest.raises(UsageError, match="is a .keras file, not a work directory"):
        read_config(file)
    with pytest.raises(UsageError, match="is a file, not a work directory: use a folder"):
        read_config(folder / "saved_model.pb")
    refuse_foreign(tmp_path)


def test_the_converted_families_are_all_named():
    from zoo.models.convert.published import FAMILIES

    assert set(CONVERTED) == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_config_of_another_program(words, folder, zoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.mkdir()
    (folder / "config.json").write_text('{"name": "my-app", "version": 1}')
    answer = zoo_command(*words.format(folder).split())
    assert answer.status == 2
    assert "config.json of another program (with keys 'name', 'version')" in answer.one_line()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("words", COMMANDS[:-1])
def test_what_lies_there_is_said(words, folder, zoo_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = f"{folder} is not a work directory: it has no config.json. "
    assert (
        f"{line}The path does not exist." in zoo_command(*words.format(folder).split()).one_line()
    )
    folder.mkdir()
    assert f"{line}It is an empty folder." in zoo_command(*words.format(folder).split()).one_line()
    for name in "abcdefg":
        (folder / name).touch()
    answer = zoo_command(*words.format(folder).split())
    assert f"{line}The folder contains a, b, c, d, e and 2 more." in answer.one_line()


def test_no_run_begins_in_a_saved_model(folder, zoo_command):
    folder.mkdir()
    (folder / "saved_model.pb").touch()
    answer = zoo_command("train", "cnn_digits:debug", f"--workdir={folder}")
    assert "is a SavedModel, not a work directory" in answer.one_line()
    assert [path.name for path in folder.iterdir()] == ["saved_model.pb"]
