"""Exported files, by the command and in Python; tests/contract.py exports all models."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import zoo
from tests import commands, toys
from trainers.export import formats as export
from trainers.export.export import FORMATS, export_workdir
from trainers.export.formats import difference
from zoo import processes
from zoo.errors import RunError, UsageError
from zoo.models.float32 import in_float32


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Exports the digit classifier: export format -> (path, description)."""
    folder = tmp_path_factory.mktemp("exported")
    files = {}
    for export_format, (ending, _) in FORMATS.items():
        path = folder / f"digits{ending}"
        with commands.children_here():
            files[export_format] = path, export_workdir(str(trained[0]), export_format, str(path))
    return files


@pytest.fixture(scope="module")
def digits(trained):
    """Returns eight test digits as bytes, and the predictions of the trained model."""
    image = zoo.data.load("digits").splits["test"]["image"][:8]
    return image, zoo.load(trained[0]).predict(np.float32(image) / 255, verbose=0)


@pytest.mark.parametrize("export_format", FORMATS)
def test_the_file_is_described(exported, export_format):
    path, description = exported[export_format]
    assert json.loads(path.with_name(path.name + ".json").read_text()) == description
    assert description["format"] == export_format
    assert description["model"] == "cnn_classifier"
    assert description["labels"] == [str(i) for i in range(10)]
    rows = 1 if export_format == "litert" else None  # LiteRT files have batch size 1
    assert description["inputs"] == {"image": {"shape": [rows, 28, 28, 1], "dtype": "uint8"}}
    assert description["outputs"] == {"output_0": {"shape": [rows, 10], "dtype": "float32"}}
    assert description["bytes"] == export.size_of(path) > 370_000
    assert description["largest_difference"] < 1e-5
    assert description["examples"] == "digits, split 'test'"


def test_a_keras_file_is_loaded(exported, digits):
    image, expected = digits
    actual = zoo.load(exported["keras"][0]).predict(image, verbose=0)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    with pytest.raises(UsageError, match="There is no file nowhere.keras"):
        zoo.load("nowhere.keras")


READ = {
    "saved_model": """
        import tensorflow as tf
        serve = tf.saved_model.load(path).signatures["serving_default"]
        out = serve(image=tf.constant(image))["output_0"].numpy()
    """,
    "litert": """
        from ai_edge_litert.interpreter import Interpreter
        serve = Interpreter(path).get_signature_runner()
        out = np.concatenate([serve(image=image[i:i + 1])["output_0"] for i in range(len(image))])
    """,
    "onnx": """
        import onnxruntime
        session = onnxruntime.InferenceSession(path)
        out = session.run(None, {session.get_inputs()[0].name: image})[0]
    """,
    "keras": """
        import keras
        out = keras.saving.load_model(path).predict(image, verbose=0)
    """,
}


@pytest.mark.parametrize("export_format", FORMATS)
def test_the_file_runs_without_the_zoo(exported, digits, export_format, tmp_path):
    image, expected = digits
    np.save(tmp_path / "image.npy", image)
    body = "\n".join(line.strip() for line in READ[export_format].splitlines())
    code = (
        "import sys, numpy as np\npath = sys.argv[1]\nimage = np.load('image.npy')\n"
        f"{body}\nnp.save('out.npy', out)\n"
        "assert not {'zoo', 'trainers'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, exported[export_format][0]], cwd=tmp_path, check=True,
        capture_output=True,
    )  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_the_command(trained, tmp_path, zoo_command):
    path = tmp_path / "new" / "digits.keras"
    answer = zoo_command("export", trained[0], "--format=keras", f"--out={path}")
    assert answer.status == 0, answer.err
    size, compared = answer.out.splitlines()
    assert size == f"{path}: {path.stat().st_size:,} bytes"
    assert compared.startswith("largest difference: 0.0e+00")
    assert sorted(x.name for x in path.parent.iterdir()) == ["digits.keras", "digits.keras.json"]


def test_what_cannot_be_exported_is_one_line(trained, tmp_path, zoo_command, monkeypatch):
    run = trained[0]
    (tmp_path / "there.onnx").write_text("mine")
    cases = [
        ((run, f"--out={tmp_path}/a.onnx"), 2, "requires --format"),
        ((run, "--format=onnx"), 2, "requires --out"),
        ((run, "--format=onnx", f"--out={tmp_path}/a.tflite"), 2, "--out must end in .onnx"),
        ((run, "--format=onnx", f"--out={tmp_path}/there.onnx"), 2, "already exists"),
        ((tmp_path, "--format=onnx", f"--out={tmp_path}/a.onnx"), 2, "is not a work directory"),
        ((run, "--format=coreml", f"--out={tmp_path}/a"), 2, "coreml"),
    ]
    for words, status, message in cases:
        answer = zoo_command("export", *words)
        assert answer.status == status, answer.err
        assert message in answer.one_line()
    monkeypatch.setitem(FORMATS, "onnx", (".onnx", ("not_installed",)))
    answer = zoo_command("export", run, "--format=onnx", f"--out={tmp_path}/a.onnx")
    assert (
        "requires the package not_installed: pip install 'keras-zoo[export]'" in answer.one_line()
    )
    assert [x.name for x in tmp_path.iterdir()] == ["there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    model = toys.norm_model()
    task = toys.registry.build_task("image_classification")
    data = toys.image_data()
    task.check(model, data)
    examples = export.examples_of(task, data.splits["train"])
    read = export.READERS["keras"]

    def other(out, inputs):
        return [x + 0.01 for x in read(out, inputs)]

    monkeypatch.setitem(export.READERS, "keras", other)
    with pytest.raises(RunError, match="outputs of the exported model differ by 0.0"):
        export.write_checked(model, task, examples, "keras", str(tmp_path / "a.keras"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by signal 11"),
        ("raise SystemExit('no such operation')", "failed: no such operation"),
    ],
)
def test_a_conversion_that_dies_leaves_nothing(trained, tmp_path, monkeypatch, code, message):
    monkeypatch.setattr(processes, "arguments", lambda *_, **__: [sys.executable, "-c", code])
    with pytest.raises(RunError, match=message):
        export_workdir(str(trained[0]), "keras", str(tmp_path / "a.keras"))
    assert not list(tmp_path.iterdir())


def test_without_the_data_examples_are_made_up_and_said(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["data"]["source"] = "npz:/nowhere/digits.npz"
    (run / "config.json").write_text(json.dumps(saved))
    description = export_workdir(str(run), "keras", str(tmp_path / "a.keras"))
    assert description["examples"].startswith("synthetic, because the data are missing: ")
    assert description["largest_difference"] == 0


def test_half_precision_becomes_whole():
    from trainers.optimization.precision import precision

    with precision("mixed_bfloat16"):
        model = zoo.build("gpt_nano", **zoo.registry.entry("gpt_nano").tiny)
    same = in_float32(model)
    tokens = np.ones((1, 12), "int32")
    inputs = {"tokens": tokens, "segments": tokens}
    types = {str(layer.compute_dtype) for layer in same.layers if layer.weights}
    assert types == {"float32"}
    np.testing.assert_allclose(model(inputs), same(inputs), atol=0.05)
    assert np.abs(np.asarray(model(inputs)) - same(inputs)).max() > 0


def test_differences():
    one = [np.array([1.0, -4.0])]
    assert difference(one, [np.array([1.0, -4.004])]) == pytest.approx(1e-3)
    assert difference(one, [np.array([1.0, np.nan])]) == float("inf")
    assert difference(one, [np.array([[1.0, -4.0]])]) == float("inf")
