"""Commands that answer questions about recipes and runs without training."""

import json

import pytest

import zoo
from tests.trainers.report.test_comparison import make_run
from trainers.config.recipe import as_dict, list_recipes, resolve


def test_config_marks_what_changed(zoo_command):
    lines = zoo_command(
        "config", "cnn_digits:debug", "--config.optimizer.learning_rate=0.1",
        "--config.compress.prune.sparsity=0.5",
    ).out.splitlines()  # fmt: skip
    assert "* optimizer.learning_rate = 0.1   (recipe: 0.004)" in lines
    assert "* compress.prune.sparsity = 0.5   (recipe: 0.0)" in lines
    assert "* trainer.steps = 30" in lines
    assert "  trainer.keep = 2" in lines
    assert not any("compress.qat" in line for line in lines)


def test_config_as_json_is_the_config_of_a_run(zoo_command):
    answer = zoo_command("config", "cnn_digits:debug", "--json", "--config.trainer.steps=7")
    config = resolve("cnn_digits:debug", [("trainer.steps", "7")])
    assert json.loads(answer.out) == as_dict(config)


def test_list_finds_parts_of_names_and_recipes(zoo_command):
    assert [line.split()[0] for line in zoo_command("list", "2seq").out.splitlines()] == []
    names = [line.split()[0] for line in zoo_command("list", "image").out.splitlines()]
    assert names == [name for name in zoo.list_models() if "image" in name] != []
    rows = json.loads(zoo_command("list", "--recipes", "--json").out)
    assert [row["name"] for row in rows] == list_recipes()
    assert all(row["model"] and row["task"] and row["purpose"] for row in rows)
    lines = zoo_command("list", "--recipes", "wiki", "--task=mlm").out.splitlines()
    assert any(line.startswith("encoder_wiki ") and "masked words" in line for line in lines)
    assert all("wiki" in line.split()[0] and " mlm " in line for line in lines)


def test_version(zoo_command):
    assert zoo_command("--version").out.startswith("keras-zoo 0.1.0, tensorflow 2.")


def test_compare_prints_what_differs(tmp_path, zoo_command):
    runs = [make_run(tmp_path / name, rate, 0.5) for name, rate in (("a", 0.1), ("b", 0.2))]
    answer = zoo_command("compare", *runs, f"--html={tmp_path / 'page.html'}")
    lines = answer.out.splitlines()
    assert lines[0].split() == ["a", "b"]
    assert ["optimizer.learning_rate", "0.1", "0.2"] in [line.split() for line in lines]
    assert lines[-1] == f"page: {tmp_path / 'page.html'}"
    assert (tmp_path / "page.html").exists()
    assert json.loads(zoo_command("compare", *runs, "--json").out)["runs"] == [str(r) for r in runs]


def test_a_dry_run_checks_and_writes_nothing(tmp_path, zoo_command):
    words = ["train", "cnn_digits:debug", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    answer = zoo_command(*words, "--config.trainer.micro_batch_size=16")
    plan = dict(line.split(maxsplit=1) for line in answer.out.splitlines())
    assert plan["model"] == "cnn_classifier, 93,322 parameters, 93,322 trainable"
    assert plan["data"] == "digits: 3,500 train, 1,000 test, 500 validation"
    assert plan["updates"] == "30, 0.5455 epochs of 55"
    assert plan["batch"] == "64 examples per update on 1 device, 16 per forward pass"
    assert plan["work"].endswith("run: a new run")
    assert list(tmp_path.iterdir()) == []
    half = zoo_command(*words, "--strategy=mirrored", "--config.trainer.replicas=2")
    assert "on 2 devices, 32 per forward pass" in half.out


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("model.num_classes", 3, "classes"),
        ("data.source", "npz:nothing.npz", "nothing.npz"),
        ("trainer.global_batch_size", 100_000, "must not exceed the number of training examples"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(tmp_path, zoo_command, key, value, line):
    answer = zoo_command(
        "train", "cnn_digits:debug", f"--workdir={tmp_path / 'run'}", "--dry_run",
        f"--config.{key}={value}",
    )  # fmt: skip
    assert answer.status in (1, 2)
    assert line in answer.one_line()
    assert list(tmp_path.iterdir()) == []
