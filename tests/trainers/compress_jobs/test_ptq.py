"""Tests of `zoo compress ptq`: outputs within a tolerance, and metrics of the written file."""

import json
import shutil
import sys

import keras
import numpy as np
import pytest

import zoo
from tests import toys
from tests.litert_files import constants
from tests.zoo import test_quiet
from trainers.compress_jobs import ptq
from trainers.compress_jobs.loaded_run import LoadedRun
from trainers.compress_jobs.methods import FORMATS
from trainers.config.recipe import as_dict, of_workdir
from trainers.export import formats as export
from trainers.export import litert, litert_file
from trainers.run.workdir import read_config
from zoo import processes, registry
from zoo.data import Dataset
from zoo.errors import RunError, UsageError
from zoo.keras_internals import all_layers
from zoo.saved.model import open_model

TINY = ("gpt_nano", "llama_nano", "bert_tiny", "transformer_tiny", "lstm_generator")


def loaded_run(name, examples=24, path=None, **more):
    """Returns an untrained tiny model of the catalog with synthetic data of its task."""
    row = registry.entry(name)
    keras.utils.set_random_seed(0)  # the bounds of rounding errors are for these weights
    model = registry.build(name, **row.tiny)
    task = registry.build_task(row.task, **row.task_arguments, **more)
    arrays = task.synthetic(model, examples, 0)
    dataset = Dataset("synthetic", {"train": arrays, "test": arrays}, (), name)
    task.bind(model, dataset, row.tiny).check(model, dataset)
    return LoadedRun(path, {"config": {}}, dataset, task, model)


def file_of(run, folder, quantization="float32"):
    """Converts a run's model to LiteRT in this process; returns the path."""
    saved, path = folder / "saved", folder / f"{quantization}.tflite"
    export.write_saved_model(run.serving_model(), str(saved), run.examples(), batch=1)
    if quantization == "int8":
        np.savez(saved / "examples.npz", **run.representative(20, 0))
    per_tensor = litert.needs_single_scale(run.serving_model(), quantization)
    path.write_bytes(litert.convert(str(saved), quantization, per_tensor))
    return path


@pytest.fixture(scope="module")
def rounded(trained, tmp_path_factory):
    """Quantizes the digit classifier to full integers; returns the work directory."""
    from trainers.cli.main import main

    out = tmp_path_factory.mktemp("ptq") / "int8"
    words = ("--config.compress.ptq.format=litert_int8", "--config.compress.ptq.examples=50")
    assert main(["zoo", "compress", "ptq", str(trained[0]), f"--out={out}", *words]) == 0
    return out


def test_the_work_directory_of_a_file(trained, rounded):
    """The recipe adds the format; the metrics equal those of the file, computed by hand."""
    from ai_edge_litert.interpreter import Interpreter

    before, after = (read_config(folder)["config"] for folder in (trained[0], rounded))
    assert after.pop("compress") == {"ptq": {"format": "litert_int8", "examples": 50}}
    assert after == before

    serve = Interpreter(str(rounded / "model.tflite")).get_signature_runner()
    test = zoo.data.load("digits").splits["test"]
    predictions = [serve(image=image[None])["output_0"][0].argmax() for image in test["image"]]
    evaluation = json.loads((rounded / "evaluation" / "test.json").read_text())
    assert evaluation["examples"] == len(test["label"])
    accuracy = evaluation["metrics"]["accuracy"]
    assert accuracy == pytest.approx(np.mean(predictions == test["label"]), abs=1e-6)
    floats = json.loads((trained[0] / "evaluation" / "test.json").read_text())["metrics"]
    assert evaluation["metrics"]["loss"] != floats["loss"]
    assert accuracy == pytest.approx(floats["accuracy"], abs=0.02)


def test_the_compression_summary(trained, rounded):
    import gzip

    summary = json.loads((rounded / "compression.json").read_text())
    before, after = summary["before"], summary["after"]
    content = (rounded / "model.tflite").read_bytes()
    assert (summary["metric"], summary["mode"], summary["split"]) == ("accuracy", "max", "test")
    assert after["file"] == before["file"] == "litert"
    assert after["bytes"] == len(content) < before["bytes"] / 3
    assert after["gzip_bytes"] == len(gzip.compress(content, 9, mtime=0))
    assert after["parameters"] == before["parameters"] == 93_322
    for side, folder in (("before", trained[0]), ("after", rounded)):
        assert set(summary[side]["milliseconds"]) == {"1", "2"}
        assert min(summary[side]["milliseconds"].values()) > 0
        metrics = json.loads((folder / "evaluation" / "test.json").read_text())["metrics"]
        assert summary[side]["test"] == metrics
    page = (rounded / "compression.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 1
    assert f"{after['gzip_bytes']:,}" in page


@pytest.mark.usefixtures("children_here")
def test_what_can_be_done_with_a_file(rounded, tmp_path, zoo_command):
    """Evaluation works; commands that need a Keras model, and further compression, are refused."""
    run = tmp_path / "run"
    shutil.copytree(rounded, run)
    expected = json.loads((run / "evaluation" / "test.json").read_text())["metrics"]
    answer = zoo_command("evaluate", run, "--json")
    assert answer.status == 0, answer.err
    result = json.loads(answer.out)["metrics"]
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5)
    cases = [
        (("export", run, "--format=keras", f"--out={tmp_path}/a.keras"), "with --format=litert"),
        (
            ("export", run, "--format=onnx", f"--out={tmp_path}/a.onnx"),
            "a LiteRT file (litert_int8)",
        ),
        (("evaluate", run, "--checkpoint=best"), "contains no Keras model"),
        (("compress", "ptq", run, f"--out={tmp_path}/b"), "does not support models of ptq"),
    ]
    for words, message in cases:
        answer = zoo_command(*words)
        assert answer.status == 2
        assert message in answer.one_line()
    exported = tmp_path / "a.tflite"
    answer = zoo_command("export", run, "--format=litert", f"--out={exported}", "--json")
    assert answer.status == 0, answer.err
    assert exported.read_bytes() == (run / "model.tflite").read_bytes()
    result = json.loads(answer.out)
    assert result["inputs"] == {"image": {"shape": [1, 28, 28, 1], "dtype": "uint8"}}
    assert 0 < result["largest_difference"] < 0.2  # from the unrounded model
    (run / "model.tflite").write_bytes(b"not a file of LiteRT")
    answer = zoo_command("evaluate", run)
    assert answer.status == 1
    assert "Cannot open" in answer.one_line()


def test_what_cannot_be_rounded_is_one_line(trained, tmp_path, zoo_command):
    run, out = trained[0], f"--out={tmp_path / 'out'}"
    flag = "--config.compress.ptq.format="
    cases = [
        (
            ("ptq", run, out, f"{flag}litert_int4"),
            "named 'litert_int4'. Did you mean 'litert_int8'",
        ),
        (("ptq", run, out, f"{flag}keras_int9"), "Did you mean 'keras_int"),
        (("ptq", run, out, "--config.compress.ptq.examples=0"), "examples must be at least 1"),
        (
            ("ptq", run, out, "--config.trainer.steps=3"),
            "remove the override. Received: trainer.steps",
        ),
        (("ptq", run, out, "--config.compress.ptq.fromat=x"), "'compress.ptq.fromat'"),
        (("ptq+prune", run, out), "ptq must be the last method of a chain. Received: ptq+prune"),
        (("prune", run, out, f"{flag}litert_int8"), "use `zoo compress ptq WORKDIR`"),
        (("ptq", run, run, out), "Usage: zoo compress"),
        (("ptq", run, out, "--json"), "--json requires zoo compress compare"),
    ]
    for words, message in cases:
        answer = zoo_command("compress", *words)
        assert answer.status == 2, answer.err
        assert message in answer.one_line()
    assert not (tmp_path / "out").exists()


# The runtime writes to stderr once per process.
RUN = """
import sys
import numpy as np
from trainers.export.litert_file import LiteRTFile
LiteRTFile(sys.argv[1])({"image": np.zeros((1, 28, 28, 1), "uint8")})
"""


@pytest.mark.parametrize(
    ("quantization", "tolerance", "size"),
    [("float32", 1e-5, 1), ("float16", 2e-3, 0.6), ("dynamic", 0.03, 0.4), ("int8", 0.05, 0.4)],
)
def test_a_file_agrees_with_the_model(quantization, tolerance, size, tmp_path):
    run = loaded_run("cnn_classifier")
    keras.utils.set_random_seed(1)
    run.model = registry.build("cnn_classifier", filters=(16, 32, 32), hidden_dim=32)
    arrays = run.task.synthetic(run.model, 24, 0)
    run.dataset = Dataset("synthetic", {"train": arrays, "test": arrays}, (), "cnn")
    path = file_of(run, tmp_path, quantization)
    images = run.examples()
    expected = np.asarray(run.serving_model()(images["image"]))
    got = litert_file.LiteRTFile(path)(images)
    worst = export.difference([expected], got)
    assert worst <= tolerance
    assert (worst > 0) == (quantization != "float32") or worst < 1e-6
    assert path.stat().st_size < size * 4 * run.model.count_params() + 12_000
    if quantization == "dynamic":
        assert test_quiet.stderr_of(RUN, str(path)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("gpt_nano", {"chunk": 5}), ("lstm_generator", {}), ("bert_tiny", {}),
        ("transformer_tiny", {"beams": 0}), ("gan_mnist", {}),
    ],
)  # fmt: skip
def test_a_task_measures_a_file_as_it_measures_the_model(name, more, tmp_path):
    """The float32 file has the metrics of the Keras model; the rounded file has its own."""
    run = loaded_run(name, **more)
    expected, _ = run.evaluate()
    run.file = file_of(run, tmp_path)
    metrics, _ = run.evaluate()
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    run.file = file_of(run, tmp_path, "float16")
    other = run.evaluate()[0]
    assert max(abs(other[key] - value) for key, value in expected.items()) > 1e-7


@pytest.mark.parametrize("quantization", ["float32", "float16", "dynamic"])
def test_a_tied_embedding_is_stored_once(quantization, tmp_path):
    run = loaded_run("gpt_nano")
    size = {"vocabulary_size": 500, "hidden_dim": 16, "num_layers": 1}
    run.model = registry.build("gpt_nano", **{**registry.entry("gpt_nano").tiny, **size})
    path = file_of(run, tmp_path, quantization)
    embeddings = [values for values, _ in constants(path, 500 * 16) if 500 in values.shape]
    assert [values.dtype for values in embeddings] == [
        {"float32": "float32", "float16": "float16", "dynamic": "int8"}[quantization]
    ]
    got = litert_file.LiteRTFile(path)(run.examples())
    assert export.difference(ptq._outputs(run.model, run), got) < 0.05


def test_clusters_stay_few_values_in_the_file(run, tmp_path, monkeypatch):
    """Each kernel of a trained run has at most as many integers as the recipe has clusters."""
    arguments = {**registry.entry("cnn_classifier").tiny, "filters": (12, 16, 16)}
    arguments["input_shape"] = (20, 20, 1)
    config = toys.recipe(
        "cnn_classifier", "image_classification", model_arguments=arguments, steps=3
    )
    config.compress.cluster.number = 8
    data = toys.image_data(side=20, test=8)
    run(config, data, tmp_path / "clustered")
    monkeypatch.setattr(registry, "load_data", lambda *arguments: data)

    def here(model, inputs, out, quantization, examples, per_tensor):
        folder = tmp_path / f"saved_{quantization}"
        litert.prepare(model, str(folder), inputs)
        if examples is not None:
            np.savez(folder / "examples.npz", **examples)
        out.write_bytes(litert.convert(str(folder), quantization, per_tensor))

    monkeypatch.setattr(ptq, "write", here)
    kernels = []
    for name in ("litert_dynamic", "litert_int8"):
        config.compress.ptq.update({"format": name, "examples": 8})
        ptq.quantize(config, tmp_path / "clustered", tmp_path / name)
        file = constants(tmp_path / name / "model.tflite", 100)
        kernels += [values for values, _ in file if values.dtype == "int8"]
    assert {x.ndim for x in kernels} == {2, 4}
    assert max(len(np.unique(x)) for x in kernels) <= 8


def test_a_file_in_which_nothing_would_be_rounded_is_refused(run, tmp_path, monkeypatch):
    """LiteRT's dynamic-range quantization skips small kernels."""
    data = toys.image_data(test=8)
    config = toys.recipe("toy_norm", "image_classification", steps=1)
    run(config, data, tmp_path / "small")
    monkeypatch.setattr(registry, "load_data", lambda *arguments: data)

    def here(model, inputs, out, quantization, examples, per_tensor):
        litert.prepare(model, str(tmp_path / "saved"), inputs)
        out.write_bytes(litert.convert(str(tmp_path / "saved"), quantization, per_tensor))

    monkeypatch.setattr(ptq, "write", here)
    config.compress.ptq.format = "litert_dynamic"
    with pytest.raises(UsageError, match="quantizes kernels of at least 1,024 values.*litert_int8"):
        ptq.quantize(config, tmp_path / "small", tmp_path / "out")
    assert not (tmp_path / "out" / "model.tflite").exists()


def test_clusters_are_not_rounded_by_a_scale_per_output(trained, tmp_path):
    from trainers.compress_jobs.chain import parse_chain, plan

    methods = parse_chain("cluster+ptq")
    for name in ("keras_int8", "keras_int4", "keras_gptq", "keras_awq"):
        with pytest.raises(UsageError, match="a scale per output, which splits clusters"):
            plan(methods, trained[0], tmp_path, [("compress.ptq.format", name)])
    assert plan(methods, trained[0], tmp_path, [("compress.ptq.format", "litert_int8")])


def test_ranges_come_from_the_training_data():
    run = loaded_run("cnn_classifier")
    train = {"image": np.zeros((30, 28, 28, 1), "uint8"), "label": np.zeros(30, "int32")}
    train["image"] += np.arange(30, dtype="uint8")[:, None, None, None]
    test = {"image": train["image"] + 100, "label": train["label"]}
    run.dataset = Dataset("d", {"train": train, "test": test}, (), "d")
    samples = run.representative(20, 0)["image"][:, 0, 0, 0]
    assert len(set(samples.tolist())) == 20
    assert samples.max() < 100
    assert run.representative(20, 0)["image"][:, 0, 0, 0].tolist() == samples.tolist()
    assert run.representative(20, 1)["image"][:, 0, 0, 0].tolist() != samples.tolist()
    assert len(run.representative(50, 0)["image"]) == 30
    assert run.examples()["image"].min() >= 100


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "ended by signal 11: LiteRT cannot",
        ),
        (
            "raise SystemExit('ConverterError: no such operation')",
            "failed: ConverterError: no such",
        ),
    ],
)
def test_a_conversion_that_dies_is_one_line(code, message, monkeypatch, tmp_path):
    run = loaded_run("cnn_classifier")
    monkeypatch.setattr(processes, "arguments", lambda *_, **__: [sys.executable, "-c", code])
    with pytest.raises(RunError, match=message):
        litert.write(run.serving_model(), run.examples(), tmp_path / "a.tflite", "int8")
    assert not list(tmp_path.iterdir())


# --- Keras ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "int8") for name in TINY), ("gpt_nano", "int4")]
)
def test_a_model_of_integers_is_the_same_from_its_file(name, mode, tmp_path):
    run = loaded_run(name)
    before = ptq._outputs(run.model, run)
    ptq._quantize_kernels(run.model, FORMATS[f"keras_{mode}"], run, 4, 0)
    again = ptq._save_and_reopen(run.model, tmp_path / "model.keras", run, FORMATS[f"keras_{mode}"])
    after = ptq._outputs(again, run)
    assert export.difference(ptq._outputs(run.model, run), after) == 0
    assert 0 < export.difference(before, after) < {"int8": 0.03, "int4": 0.3}[mode]
    kinds = {w.dtype for w in again.weights if w.path.endswith(("kernel", "embeddings"))}
    assert kinds <= {"int8", "float32"}
    modes = [getattr(x, "quantization_mode", None) for x in all_layers(again)]
    kinds = (keras.layers.Dense, keras.layers.Embedding)  # all of these, at any depth
    assert modes.count(mode) == sum(isinstance(layer, kinds) for layer in all_layers(again))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "kernels"),
    [("gpt_nano", "gptq", 4), ("bert_tiny", "awq", 4), ("longformer_nano", "gptq", 10)],
)
def test_blocks_are_rounded_by_what_they_are_given(name, mode, kernels, tmp_path):
    """The forms of attention of the Longformer's two blocks differ."""
    run = loaded_run(name)
    row = registry.entry(name)
    if name != "longformer_nano":
        run.model = registry.build(name, **{**row.tiny, "num_layers": 1})
    before = ptq._outputs(run.model, run)
    ptq._quantize_kernels(run.model, FORMATS[f"keras_{mode}"], run, 4, 0)
    again = ptq._save_and_reopen(run.model, tmp_path / "model.keras", run, FORMATS[f"keras_{mode}"])
    assert 0 < export.difference(before, ptq._outputs(again, run)) < 0.3
    modes = [getattr(layer, "quantization_mode", None) for layer in all_layers(again)]
    # Attention and feed-forward have two kernels each; global tokens have one more.
    assert modes.count(mode) == kernels
    for layer in all_layers(run.model):  # as stock Keras 3.15.1 saves it
        vars(layer).pop("_get_kernel_with_merged_lora", None)
    with pytest.raises(RunError, match=f"keras_{mode}: the (saved )?model"):
        ptq._save_and_reopen(run.model, tmp_path / "b.keras", run, FORMATS[f"keras_{mode}"])


def test_a_saved_model_that_computes_something_else_is_refused(monkeypatch, tmp_path):
    run = loaded_run("gpt_nano")
    ptq._quantize_kernels(run.model, FORMATS["keras_int8"], run, 4, 0)

    def other(path):
        model = open_model(path)
        model.get_layer("final_norm").beta.assign_add(np.full(16, 0.01, "float32"))
        return model

    monkeypatch.setattr(ptq, "open_model", other)
    with pytest.raises(RunError, match="keras_int8: the saved model computes other outputs"):
        ptq._save_and_reopen(run.model, tmp_path / "model.keras", run, FORMATS["keras_int8"])


def test_what_keras_cannot_round_is_said():
    run = loaded_run("cnn_classifier")
    run.model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(
        UsageError, match="has no such layer: use compress.ptq.format=litert_dynamic"
    ):
        ptq._quantize_kernels(run.model, FORMATS["keras_int8"], run, 4, 0)
    with pytest.raises(UsageError, match="keras_gptq supports models of"):
        ptq._quantize_kernels(run.model, FORMATS["keras_gptq"], run, 4, 0)


def test_a_chunked_loss_of_integers_is_that_of_all_logits():
    """The chunked loss must not use the stored integers of the last kernel as its values."""
    import tensorflow as tf

    run = loaded_run("gpt_nano")
    ptq._quantize_kernels(run.model, FORMATS["keras_int8"], run, 4, 0)
    batch = {k: tf.constant(v[:4]) for k, v in run.dataset.splits["test"].items()}
    batch = run.task.prepare({**batch, "weight": tf.ones(4)}, None, False)
    losses = []
    for chunk in (0, 5):
        run.task.chunk = chunk
        losses.append(float(run.task.forward(run.model, batch, False).sums["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_a_chain_keeps_what_came_before(trained, tmp_path, zoo_command):
    """After pruning and rounding, zeros are still zeros, and gzip compresses them."""
    out = tmp_path / "small"
    short = ("--config.trainer.steps=30", "--config.compress.prune.frequency=2")
    words = ("compress", "prune+ptq", trained[0], f"--out={out}", *short)
    answer = zoo_command(*words, "--config.compress.ptq.format=keras_int8")
    assert answer.status == 0, answer.err
    stage = read_config(out / "stages" / "1-prune")["config"]
    config = read_config(out)["config"]
    assert stage["trainer"]["steps"] == 30
    assert config["compress"].pop("ptq")["format"] == "keras_int8"
    assert config == stage
    summary = json.loads((out / "compression.json").read_text())
    assert summary["after"]["file"] == "keras"
    assert summary["after"]["nonzeros"] < 0.25 * summary["before"]["nonzeros"]
    kernel = zoo.load(out).get_layer("hidden").kernel.numpy()
    assert kernel.dtype == "int8"
    assert (kernel == 0).mean() > 0.75
    exported = tmp_path / "a.keras"
    answer = zoo_command("export", out, "--format=keras", f"--out={exported}")
    assert answer.status == 0, answer.err
    assert exported.read_bytes() == (out / "model.keras").read_bytes()
    again = zoo_command(*words, "--config.compress.ptq.format=keras_int8")
    assert "small is already finished" in again.err
    other = tmp_path / "other"
    shutil.copytree(out / "stages" / "1-prune", other)
    answer = zoo_command(
        "compress", "ptq", other, f"--out={out}", "--config.compress.ptq.format=keras_int8"
    )
    assert answer.status == 2
    assert "1-prune. Received:" in answer.one_line()


def test_plans_do_not_share_a_recipe(trained, tmp_path):
    from trainers.compress_jobs.chain import parse_chain, plan

    overrides = [("compress.prune.sparsity", "0.5")]
    stages = plan(parse_chain("prune+ptq"), trained[0], tmp_path / "out", overrides)
    assert [stage.start for stage in stages] == [trained[0], stages[0].workdir]
    assert stages[1].workdir == tmp_path / "out"
    plans = [stage.config for stage in stages]
    assert [list(p.compress) for p in plans] == [["prune"], ["prune", "ptq"]]
    assert plans[1].compress.ptq.format == "litert_dynamic"
    assert plans[1].compress.prune.sparsity == 0.5
    assert as_dict(plans[1])["init_from"] == str(trained[0])
    assert as_dict(of_workdir(as_dict(plans[1]))) == as_dict(plans[1])


def test_what_was_held_out_stands_in_for_a_test_split():
    run = loaded_run("cnn_classifier")
    arrays = run.dataset.splits["train"]
    run.dataset = Dataset("d", {"train": arrays, "validation": arrays}, (), "d")
    assert run.split == "validation"
    run.dataset = Dataset("d", {"train": arrays}, (), "d")
    assert run.split == ""
    assert run.metrics() == {}
