"""Tests of the main commands: train, evaluate, predict, load and resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps

import zoo
from tests import commands
from tests.commands import content, metrics, zoo_process
from trainers.cli.main import COMMANDS
from trainers.config.recipe import as_dict, resolve
from trainers.run import checkpoint
from trainers.train.callbacks import _callbacks
from zoo.data import load

# --- entry points: fast, and without TensorFlow ---------------------------------------------------

WITHOUT_TENSORFLOW = """
import sys
from trainers.cli.main import main
status = main()
loaded = {"tensorflow", "keras", "matplotlib", "jinja2", "PIL"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded else status)
"""


@pytest.mark.alone
@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "--json"], ["--help"], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)  # fmt: skip
def test_lists_and_helps_answer_at_once(words):
    seconds = []
    while len(seconds) < 10 and min(seconds, default=1) >= 0.5:  # other tests run at the same time
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TENSORFLOW, *words],
            cwd=commands.ROOT, capture_output=True, text=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout.startswith(("zoo ", min(zoo.list_models()), "[\n"))
    assert min(seconds) < 0.5


def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", commands.ZOO, "list"],
        cwd=commands.ROOT, stdout=writing, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_results_are_on_stdout_and_all_else_on_stderr(zoo_command, capsys):
    from trainers.cli.main import main

    capsys.readouterr()
    assert main(["zoo"]) == 2  # without a command, the usage text goes to stderr
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("zoo COMMAND")
    answer = zoo_command("fetch")
    assert all("Folder" not in line for line in answer.out.splitlines())
    assert answer.err.startswith("zoo: Folder: ")


# --- train ---------------------------------------------------------------------------------------


def test_train_leaves_a_whole_work_directory(trained):
    path, answer = trained
    assert answer.err.splitlines()[-1].startswith("finished at step 30")
    ours = ("hold-out at step 0: 500 training examples, stratified", "step ", "finished at step 30")
    assert all(line.startswith(ours) for line in answer.err.splitlines()), "not for users"
    result, report = answer.out.splitlines()
    assert result.startswith("test (final averaged weights, step 30): loss ")
    assert report == f"report: {path / 'report.html'}"
    assert {
        "config.json", "environment.json", "metrics.jsonl", "model.keras", "report.html",
        "best/model.keras", "best/metrics.json", "checkpoints/step_0000000030.npz",
        "evaluation/test.json", "evaluation/test.npz",
    } <= set(content(path))  # fmt: skip
    assert not [name for name in content(path) if "tmp" in name]

    saved = json.loads((path / "config.json").read_text())
    assert saved["format_version"] == 2
    assert saved["source"] == "cnn_digits:debug"
    assert saved["config"] == as_dict(resolve("cnn_digits:debug"))
    assert saved["class_names"] == list("0123456789")

    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [10, 20, 30]
    keys = {"step", "epoch", "loss", "accuracy", "learning_rate", "samples_per_second", "seconds"}
    assert all(keys <= set(line) for line in logged)
    assert lines[-1]["event"] == "finished"
    assert "<html" in (path / "report.html").read_text()


PLAIN_KERAS = """
import sys

class OursIsNotHere:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("zoo", "trainers", "configs", "tests"):
            raise ImportError(name)

sys.meta_path.insert(0, OursIsNotHere())
import keras, numpy
model = keras.saving.load_model(sys.argv[1], safe_mode=True)
print(type(model).__name__)
numpy.save("probabilities.npy", model.predict(numpy.load("pictures.npy"), verbose=0))
"""


def test_the_model_opens_with_plain_keras_in_another_process(trained, tmp_path):
    images = load("digits").splits["test"]["image"][:8].astype("float32") / 255
    np.save(tmp_path / "pictures.npy", images)
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_KERAS, trained[0] / "model.keras"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Functional"]
    expected = zoo.load(trained[0]).predict(images, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)


def test_the_same_command_again_changes_no_result(trained, tmp_path, zoo_command):
    path = shutil.copytree(trained[0], tmp_path / "again")
    answer = zoo_command("train", "cnn_digits:debug", f"--workdir={path}")
    assert answer.status == 0
    assert metrics(answer.out.splitlines()[-2]) == metrics(trained[1].out.splitlines()[-2])
    for name in ("config.json", "checkpoints/step_0000000030.npz", "best/model.keras"):
        assert content(path)[name] == content(trained[0])[name]


def test_sigterm_in_the_middle_is_143_and_goes_on_to_the_same_end(
    trained, tmp_path, zoo_command, monkeypatch
):
    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 9:  # one `tf.function` call runs ten updates
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(_callbacks, "terminate", lambda config, workdir: Terminate())
    words = ["train", "cnn_digits:debug", f"--model_dir={tmp_path / 'run'}"]
    answer = zoo_command(*words, "--config.trainer.callbacks=terminate")
    assert answer.status == 143
    assert answer.out == ""
    assert "saved at step 10" in answer.err.splitlines()[-1]
    checkpoints = checkpoint.list_checkpoints(tmp_path / "run/checkpoints")
    assert [step for step, _ in checkpoints] == [10]

    answer = zoo_command(*words)
    assert answer.status == 0
    assert metrics(answer.out.splitlines()[-2]) == pytest.approx(
        metrics(trained[1].out.splitlines()[-2]), rel=1e-4
    )


def test_model_garden_habits(tmp_path, zoo_command):
    words = [
        "train", "--config=cnn_digits:debug", f"--model_dir={tmp_path}/run",
        "--params_override=trainer.steps=2,model.filters=(4,4,4),schedule.warmup_steps=0",
        "--config.trainer.log_every=1", "--strategy=one_device",
    ]  # fmt: skip
    answer = zoo_command(*words, "--mode=train")
    assert answer.status == 0
    assert answer.out.startswith("validation (final averaged weights, step 2): loss ")
    assert not (tmp_path / "run/evaluation/test.json").exists(), "it leaves the test split unread"
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert config["model"]["filters"] == [4, 4, 4]
    assert config["trainer"]["steps"] == 2
    answer = zoo_command(*words, "--mode=eval")
    assert answer.status == 0
    assert set(metrics(answer.out)) == {"loss", "accuracy"}
    answer = zoo_command(*words, "--mode=eval", "--config.model.hidden_dim=8")
    assert answer.status == 2
    assert "model.hidden_dim: 64 -> 8" in answer.one_line()


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate_gives_what_train_gave(trained, tmp_path, zoo_command):
    path = shutil.copytree(trained[0], tmp_path / "copy")
    (path / "metrics.jsonl").unlink()  # as if only the model and its recipe were copied
    printed = metrics(trained[1].out.splitlines()[-2])
    answer = zoo_command("evaluate", path)
    assert answer.status == 0
    assert metrics(answer.out) == pytest.approx(printed, rel=1e-5)
    answer = zoo_command("evaluate", path, "--checkpoint=best", "--json")
    evaluation = json.loads(answer.out)
    assert (evaluation["split"], evaluation["checkpoint"]) == ("test", "best")
    saved = json.loads((path / "evaluation/test.json").read_text())
    assert saved["metrics"] == evaluation["metrics"]
    assert saved["examples"] == 1000


# --- predict -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(trained):
    """Returns `(images, expected labels, expected probabilities)` of a few test digits."""
    images = load("digits").splits["test"]["image"][::137]
    probabilities = zoo.load(trained[0]).predict(images.astype("float32") / 255, verbose=0)
    return images[..., 0], probabilities.argmax(-1), probabilities.max(-1)


def gray(digit):
    return Image.fromarray(digit)


def sixteen_bit(digit):
    return Image.fromarray(digit.astype(np.uint16) * 257)


def palette(digit):
    return gray(digit).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=256)


def clear_paper(digit):
    """Returns a digit in black ink on a transparent background."""
    ink = Image.new("RGBA", digit.shape, "black")
    ink.putalpha(gray(digit))
    return ink


@pytest.mark.parametrize(
    ("draw", "flags"),
    [
        (gray, []),
        (lambda d: gray(d).convert("RGB"), []),
        (lambda d: gray(d).convert("RGBA"), []),
        (lambda d: ImageOps.invert(gray(d)), ["--invert"]),
        (palette, []),
        (sixteen_bit, []),
        (clear_paper, ["--invert"]),
    ],
    ids=["grey", "rgb", "opaque", "dark on light", "palette", "16 bit", "clear paper"],
)
def test_predict_labels_pngs(trained, tmp_path, zoo_command, digits, draw, flags):
    images, labels, probabilities = digits
    files = [tmp_path / f"digit {i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        draw(image).save(file)
    answer = zoo_command("predict", trained[0], *files, "--json", *flags)
    assert answer.status == 0
    rows = json.loads(answer.out)
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert [row["label"] for row in rows] == [str(label) for label in labels]
    actual = [row["probability"] for row in rows]
    assert actual == pytest.approx(list(probabilities), abs=0.01)


def test_predict_turns_a_photo_as_its_camera_says(trained, tmp_path, zoo_command, digits):
    upright = gray(digits[0][5]).resize((224, 224))
    upright.save(tmp_path / "upright.jpg", quality=100)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated camera: viewers turn the image clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.jpg", quality=100, exif=exif)
    turned.save(tmp_path / "lying.jpg", quality=100)
    names = ["upright.jpg", "turned.jpg", "lying.jpg"]
    answer = zoo_command("predict", trained[0], *(tmp_path / name for name in names))
    rows = [line.split("\t") for line in answer.out.splitlines()]
    assert rows[0][1] == rows[1][1]
    assert float(rows[0][2]) == pytest.approx(float(rows[1][2]), abs=0.01)
    assert rows[2][1:] != rows[0][1:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("I am no picture"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:70]),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["text", "empty", "cut", "missing", "folder"],
)
def test_predict_names_the_file_that_is_no_picture(trained, tmp_path, zoo_command, digits, damage):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    for file in (good, bad):
        gray(digits[0][0]).save(file)
    damage(bad)
    answer = zoo_command("predict", trained[0], good, bad, good)
    assert answer.status == 1
    assert f"{bad} is not a readable image: " in answer.one_line()
    rows = [line.split("\t") for line in answer.out.splitlines()]
    assert [row[0] for row in rows] == [str(good), str(good)]
    assert rows[0][1] == str(digits[1][0])


def test_predict_of_unreadable_files_alone_loads_no_model(
    trained, tmp_path, zoo_command, monkeypatch
):
    def load_model(*arguments):
        raise AssertionError("no file can be read: the model is not needed")

    monkeypatch.setattr("zoo.registry.load", load_model)
    answer = zoo_command("predict", trained[0], tmp_path / "a.png", tmp_path / "b.png", "--json")
    assert answer.status == 1
    assert json.loads(answer.out) == []
    assert [line.split()[2] for line in answer.err.splitlines()] == [
        str(tmp_path / "a.png"), str(tmp_path / "b.png")
    ]  # fmt: skip


def test_flags_of_texts_are_refused_for_images(trained, zoo_command):
    answer = zoo_command("predict", trained[0], "a.png", "--columns=a")
    assert answer.status == 2
    assert "--columns is not supported for a model of images" in answer.one_line()


def test_load_takes_the_final_and_the_best(trained):
    final, best = zoo.load(trained[0]), zoo.load(trained[0], "best")
    assert final.count_params() == best.count_params() == 93_322
    assert not final.compiled
    with pytest.raises(zoo.registry.UsageError, match="'final' or 'best'. Received: 'last'"):
        zoo.load(trained[0], "last")


# --- exit status of a real process ----------------------------------------------------------------


def test_a_process_fails_with_one_line_and_leaves_nothing(tmp_path):
    words = ["train", "cnn_digits:debug", "--workdir=run", "--config.trainer.strategy=mirored"]
    answer = zoo_process(*words, cwd=tmp_path)
    assert answer.status == 2
    assert "Did you mean 'mirrored'" in answer.one_line()
    assert answer.out == ""
    assert content(tmp_path) == {}
