"""Custom models, tasks, datasets and callbacks of a module outside the package."""

import json

import pytest

from tests.commands import content, metrics, zoo_process
from trainers.train import callbacks
from zoo import registry
from zoo.data import datasets

MODULE = '''
import keras
import numpy as np
from keras import ops

import zoo
from trainers.train.callbacks import register_callback
from zoo.data import Dataset, register_dataset
from zoo.tasks.base import Forward, Task


@keras.saving.register_keras_serializable("mine")
class Shift(keras.layers.Layer):
    """Adds a trained number a feature."""

    def build(self, shape):
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x):
        return x + self.shift


def build(units=4, name="my_line"):
    x = keras.Input((3,), name="points")
    hidden = keras.layers.Dense(units, name="hidden")(Shift(name="shift")(x))
    return keras.Model(x, keras.layers.Dense(1, name="value")(hidden), name=name)


class Regression(Task):
    """Squared error of points that lie on a plane."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def term_counts(self, batch):
        return {"loss": ops.sum(batch["weight"])}

    def forward(self, model, batch, training):
        error = model(batch["points"], training=training)[:, 0] - batch["value"]
        return Forward({"loss": self.scale * ops.sum(ops.square(error) * batch["weight"])}, {})


def load(manual_dir):
    points = np.random.default_rng(0).normal(0, 1, (300, 3)).astype("float32")
    values = points @ np.array([1, -2, 0.5], "float32") + 1
    rows = {"train": slice(0, 200), "test": slice(200, 300)}
    splits = {k: {"points": points[v], "value": values[v]} for k, v in rows.items()}
    return Dataset("my_points", splits, (), "first")


class Witness(keras.callbacks.Callback):
    """Writes down what lies in the work directory before the first step."""

    def __init__(self, workdir):
        super().__init__()
        self.workdir = workdir

    def on_train_begin(self, logs=None):
        found = sorted(path.name for path in self.workdir.path.iterdir())
        (self.workdir / "seen.txt").write_text(" ".join(found))


zoo.register("my_line", build, "my_regression", parameters=24, paper="none")
zoo.register_task("my_regression", Regression)
register_dataset("my_points", load)
register_callback("witness", lambda config, workdir: Witness(workdir))
'''

RECIPE = '''
"""My own recipe."""

from trainers.config.base import base, optimizer


def get_config(arg=""):
    config = base()
    config.model = {"name": "my_line", "units": 4}
    config.task = {"name": "my_regression", "scale": 0.5}
    config.data.source = "my_points"
    config.data.validation_size = 50
    config.optimizer = optimizer("adam", learning_rate=0.05)
    config.trainer.epochs = 20
    config.trainer.global_batch_size = 32
    config.trainer.callbacks = ("witness",)
    return config
'''


@pytest.fixture
def restore_registries(monkeypatch):
    """Removes the names that a test registers, after the test."""
    for place, name in (
        (registry, "_models"), (registry, "_tasks"),
        (datasets, "_DATASETS"), (callbacks, "_callbacks"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, dict(getattr(place, name)))


@pytest.fixture(scope="module")
def user_run(tmp_path_factory):
    """Returns a folder with a trained work directory `run`, and the result of `zoo train`."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_zoo.py").write_text(MODULE)
    (folder / "my_recipe.py").write_text(RECIPE)
    answer = zoo_process(
        "train", "./my_recipe.py", "--import=my_zoo", "--workdir=run",
        "--config.trainer.epochs=25", cwd=folder,
    )  # fmt: skip
    assert answer.status == 0, answer.err
    return folder, answer


def test_it_trains_through_the_command(user_run):
    folder, answer = user_run
    assert metrics(answer.out.splitlines()[-2])["loss"] < 0.1
    assert {"model.keras", "best/model.keras", "report.html"} <= set(content(folder / "run"))
    config = json.loads((folder / "run/config.json").read_text())
    assert config["source"] == "./my_recipe.py"
    assert config["config"]["trainer"]["epochs"] == 25


def test_the_recipe_is_written_before_the_first_step(user_run):
    files = (user_run[0] / "run/seen.txt").read_text().split()
    assert {"config.json", "environment.json", "metrics.jsonl"} <= set(files)
    assert not {"checkpoints", "model.keras"} & set(files)


def test_its_model_is_listed_evaluated_and_loaded(
    user_run, restore_registries, zoo_command, monkeypatch
):
    folder, answer = user_run
    monkeypatch.chdir(folder)
    before = content(folder / "run")
    without_import = zoo_command("evaluate", "run")
    assert without_import.status == 2
    assert "There is no dataset 'my_points'" in without_import.one_line()
    assert content(folder / "run") == before

    evaluated = zoo_command("evaluate", "run", "--import=my_zoo")
    assert evaluated.status == 0
    assert metrics(evaluated.out) == pytest.approx(metrics(answer.out.splitlines()[-2]), rel=1e-5)
    assert zoo_command("list", "my_*").out.startswith("my_line")
    assert "24 (24 trainable)" in zoo_command("describe", "my_line").out
    assert registry.load("run").count_params() == 24

    prediction = zoo_command("predict", "run", "picture.png")
    assert prediction.status == 2
    assert "Received: run, a model of the task 'my_regression'" in prediction.one_line()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import zoo; zoo.register('cnn_classifier', print, 'x')", "registered only once"),
    ],
)
def test_a_module_that_does_not_run_is_named(
    text, line, restore_registries, zoo_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_module.py").write_text(text)
    answer = zoo_command("list", "--import=broken_module")
    assert answer.status == 2
    assert line in answer.one_line()
    assert answer.out == ""
