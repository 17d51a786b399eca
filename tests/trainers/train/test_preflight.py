"""Errors that can be detected without a model are reported before TensorFlow is loaded."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT
from trainers.config.recipe import as_dict, resolve
from trainers.train import preflight
from zoo.storage.disk import write_json

# Runs many commands in one process; each must fail, and none may load TensorFlow.
REFUSED = """
import contextlib, io, json, sys
from trainers.cli.main import main
answers = []
for words in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        status = main(["zoo", *words])
    loaded = sorted({"tensorflow", "keras"} & set(sys.modules))
    answers.append([status, error.getvalue(), loaded])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder with images, arrays, text and the work directory of a started run."""
    place = tmp_path_factory.mktemp("preflight")
    for name in ("ants", "bees", "cats"):
        for i in range(4):
            file = place / "images" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10), (40 * i, 0, 0)).save(file)
    arrays = {
        f"{split}_{key}": value
        for split in ("train", "test")
        for key, value in {
            "image": np.zeros((8, 14, 14, 1), "uint8"), "label": np.arange(8) % 4,
        }.items()
    }  # fmt: skip
    np.savez(place / "small.npz", **arrays)
    rare = {f"train_{key}": arrays[f"train_{key}"] for key in ("image", "label")}
    np.savez(place / "rare.npz", **{**rare, "train_label": np.array([0, 1, 1, 1, 2, 2, 3, 3])})
    one = {"validation_image": rare["train_image"][:2], "validation_label": np.array([1, 1])}
    np.savez(place / "one_class.npz", **rare, **one)
    (place / "book.txt").write_text("A line of text that is long enough.\n" * 200)
    (place / "bert").mkdir()
    (place / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (place / "file").write_text("")
    run = place / "run"
    run.mkdir()
    config = as_dict(resolve("cnn_digits:debug"))
    write_json(
        run / "config.json",
        {
            "format_version": 2, "source": "cnn_digits:debug", "config": config,
            "class_names": [], "data_fingerprint": "", "tokenizer": None, "facts": {},
        },
    )  # fmt: skip
    return place


CNN, FINE = "train cnn_digits:debug --workdir=new", "train vgg16_transfer:debug --workdir=new"
PRUNED = f"{CNN} --config.trainer.epochs=1 --config.compress.prune.sparsity=0.5"
SMALL = f"{CNN} --config.model.input_shape=14,14,1 --config.model.num_classes=4"
SMALL += " --config.data.validation_size=0 --config.trainer.global_batch_size=4"
CASES = [
    # recipe against the work directory
    ("train cnn_digits:debug --workdir=run --config.optimizer.learning_rate=0.5", "learning_rate"),
    ("train cnn_digits:debug --mode=eval --workdir=run --config.model.hidden_dim=3", "hidden_dim"),
    ("train cnn_digits:debug --workdir=file", "A work directory must be a folder"),
    # sizes of the data against the model
    (
        f"{CNN} --config.data.source=npz:small.npz --config.model.input_shape=28,28,1",
        "set model.input_shape",
    ),
    (
        f"{CNN} --config.data.source=npz:small.npz --config.model.input_shape=14,14,1 "
        "--config.model.num_classes=3",
        "set model.num_classes",
    ),
    (
        f"{FINE} --config.data.source=folder:images --config.data.image_size=32,32 "
        "--config.model.input_shape=28,28,1",
        "set model.input_shape=32,32,3 or data.image_size=28,28,1",
    ),
    (
        f"{FINE} --config.data.source=folder:images --config.data.image_size=28,28,1 "
        "--config.model.num_classes=10",
        "set model.num_classes=3",
    ),
    (
        f"{FINE} --config.data.source=tfds:cifar10:3.0.2 --config.data.image_size=32,32 "
        "--config.model.input_shape=28,28,1",
        "28,28,1",
    ),
    (f"{CNN} --config.trainer.global_batch_size=5000", "3500"),
    (
        "train gpt_shakespeare:debug --workdir=new --config.data.source=text:book.txt "
        "--config.model.sequence_length=32",
        "must not exceed the model's 32 positions",
    ),
    (
        "train gpt_shakespeare:debug --workdir=new --config.data.source=text:book.txt "
        "--config.model.vocabulary_size=7",
        "set model.vocabulary_size=0",
    ),
    # missing data and paths
    (f"{CNN} --config.data.source=npz:nothing.npz", "There is no file"),
    (f"{CNN} --config.data.source=digit", "Did you mean 'digits'"),
    (f"{CNN} --config.init_from=nothing", "The path does not exist"),
    (f"{CNN} --config.init_from=book.txt", "It is a file"),
    (f"{CNN} --config.init_from=images", "The folder contains ants, bees, cats"),
    (f"{CNN} --config.init_from=run", "contains no final model"),
    (f"{CNN} --config.init_from=bert", "model_type must be one of gpt2, gemma3_text, llama"),
    (f"{CNN} --config.data.source=npz:", "data.source=npz:PATH requires a path"),
    (f"{CNN} --config.data.source=npz:images", "The folder contains ants, bees, cats"),
    (f"{CNN} --config.data.source=small.npz", "Did you mean 'npz:small.npz'"),
    (f"{CNN} --config.data.source=images", "Did you mean 'folder:images'"),
    (f"{CNN} --config.model.num_classes=3", "set model.num_classes"),
    ("train gpt_pydoc:debug --workdir=new --config.data.source=text:images", "contains ants, bees"),
    ("train seq2seq_multi30k:debug --workdir=new --config.data.source=pairs:images", "ants, bees"),
    (f"{FINE} --config.model.weights=nothing.weights.h5", "a path that exists"),
    (f"{CNN} --config.compress.distill.teacher=nothing", "nothing"),
    # names
    (f"{CNN} --config.trainer.precision=float23", "Did you mean 'float32'"),
    (f"{CNN} --config.trainer.callbacks=tensorbord", "Did you mean 'tensorboard'"),
    (f"{CNN} --config.trainer.remat=(", "trainer.remat must be a regular expression"),
    (
        f"{CNN} --config.compress.prune.pattern=(",
        "compress.prune.pattern must be a regular expression",
    ),
    (f"{CNN} --config.model.name=cnn_clasifier", "Did you mean 'cnn_classifier'"),
    # numbers
    (f"{CNN} --config.task.label_smoothing=2", "task.label_smoothing must be in [0, 1)"),
    ("train dcgan_mnist:debug --workdir=new --config.task.samples=1", "task.samples"),
    ("train seq2seq_multi30k:debug --workdir=new --config.task.beams=-1", "beams"),
    (f"{CNN} --config.trainer.micro_batch_size=7", "micro"),
    (f"{CNN} --config.trainer.replicas=2", "one_device supports one replica"),
    # ranges of the optimizer
    (f"{CNN} --config.optimizer.beta_1=1.5", "optimizer.beta_1 must be in [0, 1)"),
    (f"{CNN} --config.optimizer.epsilon=0", "optimizer.epsilon must be positive"),
    (f"{CNN} --config.optimizer.slow_rate=0", "optimizer.slow_rate must be positive"),
    (
        f"{CNN} --config.optimizer.weight_decay_exclude=(",
        "optimizer.weight_decay_exclude must be a regular expression",
    ),
    (f"{CNN} --config.schedule.warmup_steps=5000", "Warm-up and decay must not be longer"),
    # ranges of compression
    (f"{CNN} --config.compress.prune.sparsity=1.5", "compress.prune.sparsity must be in [0, 1)"),
    (f"{PRUNED} --config.compress.prune.schedule=cubic", "polynomial, constant"),
    (f"{PRUNED} --config.compress.prune.begin=0.8", "fractions of the run"),
    (f"{PRUNED} --config.compress.prune.end=0.1", "compress.prune.frequency=100"),
    (
        f"{PRUNED} --config.compress.prune.initial_sparsity=0.7",
        "not above compress.prune.sparsity",
    ),
    (f"{CNN} --config.compress.prune.m_by_n=4,2", "compress.prune.m_by_n must be () or (m, n)"),
    (
        f"{CNN} --config.compress.prune.block=0,1",
        "compress.prune.block must be a height and a width",
    ),
    (f"{CNN} --config.compress.cluster.number=1", "compress.cluster.number must be at least 2"),
    (f"{CNN} --config.compress.qat.decay=1", "compress.qat.decay must be in (0, 1)"),
    (f"{CNN} --config.compress.low_rank.energy=1.2", "compress.low_rank.energy must be in [0, 1)"),
    (
        f"{CNN} --config.compress.low_rank.ranks=hidden",
        "compress.low_rank.ranks must contain PATH=RANK",
    ),
    (f"{CNN} --config.compress.low_rank.budget=0.5", "set init_from, or compress.low_rank.ranks"),
    (
        f"{CNN} --config.compress.structured.sparsity=1",
        "compress.structured.sparsity must be in [0, 1)",
    ),
    (
        f"{CNN} --config.compress.structured.sparsity=0.5",
        "chooses sizes by weights and requires init_from",
    ),
    (
        f"{CNN} --config.compress.structured.widths=hidden=0",
        "must contain PATH=UNITS with at least one",
    ),
    (f"{CNN} --config.compress.distill.alpha=2", "compress.distill.alpha must be in [0, 1]"),
    (f"{CNN} --config.compress.distill.temperature=0", "temperature must be positive"),
    (f"{CNN} --config.compress.ptq.format=litert_int8", "does not support compress.ptq"),
    # augmentations
    (f"{CNN} --config.task.augment=cutuot", "Did you mean 'cutout'"),
    (f"{CNN} --config.task.augment=crop:2", "must be from 0.05 to 1.0"),
    (f"{CNN} --config.task.augment=randaugment", "three channels"),
    (f"{CNN} --config.task.augment=mixup --config.task.label_smoothing=0.1", "softens the labels"),
    # validation splits
    (f"{CNN} --config.data.validation_size=4000", "(4000). Received: 4000"),
    (f"{CNN} --config.data.validation_size=5", "examples, with 10 classes"),
    (f"{CNN} --config.data.validation_size=3995", "examples, with 10 classes"),
    (
        f"{CNN} --config.data.validation_size=3900 --config.trainer.global_batch_size=128",
        "number of training examples (100)",
    ),
    (
        f"{SMALL} --config.data.source=npz:rare.npz --config.data.validation_size=4",
        "one example of class '0'",
    ),
    (
        f"{SMALL} --config.data.source=npz:one_class.npz",
        "only class '1' of",
    ),
    (
        f"{SMALL} --config.data.source=npz:one_class.npz --config.data.validation_size=4",
        "data.validation_size must be 0",
    ),
    # other commands
    ("bench cnn_digits:debug --config.task.label_smoothing=2", "label_smoothing"),
    ("bench gpt_shakespeare:debug --config.data.source=text:nothing.txt", "nothing.txt"),
    ("bench cnn_digits:debug --config.compress.structured.sparsity=0.5", "structured"),
    (
        "tpu_check cnn_digits:debug --topology=v5e:1x1 --config.trainer.jit_compile=1",
        "tpu requires trainer.jit_compile=False",
    ),
    ("tpu_check cnn_digits:debug --topology=v5e:2x2 --config.trainer.global_batch_size=6", "4"),
    ("tpu_check cnn_digits:debug --topology=v5e:2x2 --config.trainer.precision=f", "precision"),
]


def test_refusals_load_no_tensorflow(place):
    inherited = {k: v for k, v in os.environ.items() if k != "ZOO_DATA_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, json.dumps([words.split() for words, _ in CASES])],
        cwd=place, capture_output=True, text=True, timeout=300,
        env=inherited | {"PYTHONPATH": str(ROOT), "ZOO_CACHE_DIR": str(place / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for (words, message), (status, error, loaded) in zip(CASES, answers, strict=True):
        assert status in (1, 2), (words, error)
        assert message in error, words
        lines = error.splitlines()
        assert lines[-1].startswith("zoo: error: "), words
        assert not loaded, words
    assert not (place / "new").exists()


def test_images_are_not_decoded_before_a_wrong_size_is_refused(place, monkeypatch):
    monkeypatch.setattr("zoo.data.arrays.images.decode", None)
    sizes = [
        ("data.source", f"folder:{place / 'images'}"), ("data.image_size", "28,28,1"),
        ("model.num_classes", "10"),
    ]  # fmt: skip
    with pytest.raises(preflight.UsageError, match="set model.num_classes=3"):
        preflight.load_data(resolve("vgg16_transfer:debug", sizes))


def test_what_fits_passes(place, tmp_path):
    """A recipe may continue in its folder; sizes that the run computed are no change."""
    run = shutil.copytree(place / "run", tmp_path / "run")
    config = resolve("cnn_digits:debug", [("trainer.log_every", "3")])
    preflight.check_config(config)
    preflight.check_workdir(config, run)
    saved = json.loads((run / "config.json").read_text())
    thinner = resolve("cnn_digits:debug", [("compress.structured.sparsity", "0.5")])
    saved["config"] = as_dict(thinner)
    saved["config"]["compress"]["structured"]["widths"] = ["hidden=32"]
    write_json(run / "config.json", saved)
    preflight.check_workdir(thinner, run)
    assert preflight.load_data(config).name == "digits"
    assert sorted(p.name for p in run.iterdir() if p.name != ".lock") == ["config.json"]


def test_a_classifier_generates_nothing(place, zoo_command, monkeypatch):
    (place / "run" / "model.keras").write_bytes(b"not looked at")
    monkeypatch.setattr("zoo.saved.model.load_model", None)
    answer = zoo_command("generate", place / "run")
    assert "contains a model of the task 'image_classification'" in answer.one_line()


@pytest.mark.parametrize(
    ("recipe", "flag", "message"),
    [
        ("gpt_pydoc:debug", "--count=3", "--count is not supported"),
        ("dcgan_mnist:debug", "--prompt=a", "--prompt is not supported"),
        ("dcgan_mnist:debug", "--count=0", "--count must be from 1"),
        ("dcgan_mnist:debug", "--out=a.jpg", "--out must be a .png file"),
        ("axial_mnist:debug", "--prompt=a", "--prompt is not supported"),
        ("seq2seq_multi30k:debug", "--beams=2", "Received: neither"),
        ("seq2seq_multi30k:debug", "--seed=2", "--seed is not supported"),
        ("bert_wiki:debug", "--max_tokens=2", "--max_tokens is not supported"),
    ],
)
def test_flags_that_do_not_fit_a_task(
    recipe, flag, message, place, tmp_path, zoo_command, monkeypatch
):
    monkeypatch.setattr("zoo.start.start_tensorflow", None)
    saved = json.loads((place / "run" / "config.json").read_text())
    write_json(tmp_path / "config.json", saved | {"config": as_dict(resolve(recipe))})
    (tmp_path / "model.keras").write_bytes(b"not looked at")
    assert message in zoo_command("generate", tmp_path, flag).one_line()


def test_options_of_generate_need_no_tensorflow():
    code = (
        "import sys\n"
        "from zoo.generation.generate_options import Options, UsageError\n"
        "try:\n    Options(10, temperature=-1.0)\n"
        "except UsageError as error:\n    assert 'temperature must be from 0 to' in str(error)\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
