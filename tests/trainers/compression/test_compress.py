"""`zoo compress`: from a trained work directory to a smaller one."""

import gzip
import json
import shutil

import numpy as np
import pytest

import zoo
from tests import commands
from trainers.compress_jobs import chain as chains
from trainers.compression.prune import sparsities
from trainers.config.recipe import as_dict, change, list_recipes, of_workdir, resolve
from zoo.layers.rounding import is_quantized

SHORT = ("--config.trainer.steps=30", "--config.compress.prune.frequency=2")


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_prune(trained, tmp_path, zoo_command):
    """Without a sparsity on the command line, the default of the help text applies."""
    assert "sparsity=0.8" in zoo_command("compress", "--help").out
    out = tmp_path / "small"
    words = ("compress", "prune", trained[0], f"--out={out}", *SHORT)
    answer = zoo_command(*words)
    assert answer.status == 0, answer.err
    model = zoo.load(out)
    for path, share in sparsities(model).items():
        assert share == pytest.approx(0.8, abs=0.01), path
    assert "init_from: 10 of 10 weights" in answer.err

    summary = json.loads((out / "compression.json").read_text())
    after = summary["after"]
    assert after["parameters"] == 93_322
    assert after["nonzeros"] == sum(np.count_nonzero(value) for value in model.get_weights())
    assert after["file"] == "litert"
    assert 4 * 93_322 < after["bytes"] < 4.1 * 93_322
    content = b"".join(value.tobytes() for value in model.get_weights())
    packed = len(gzip.compress(content, 9, mtime=0))
    assert after["gzip_bytes"] == pytest.approx(packed, rel=0.05)
    assert after["gzip_bytes"] < 0.4 * summary["before"]["gzip_bytes"]
    for side, folder in (("before", trained[0]), ("after", out)):
        test = json.loads((folder / "evaluation" / "test.json").read_text())["metrics"]
        assert summary[side]["test"] == test
    lines = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines()[-8:]}
    assert lines["nonzeros"][1] == f"{after['nonzeros']:,}"
    assert float(lines["accuracy"][1]) == pytest.approx(after["test"]["accuracy"], rel=1e-4)

    again = zoo_command(*words)
    assert again.status == 0
    assert "is already finished" in again.err


@pytest.mark.usefixtures("children_here")
@pytest.mark.slow
def test_a_chain_prunes_and_rounds(chain, trained, tmp_path, zoo_command):
    """The zeros of pruning remain after `qat`, in the model and in its file."""
    result = chain(
        "prune+qat", "compress.prune.frequency=2", "compress.prune.sparsity=0.75",
        "compress.qat.decay=0.9",
    )  # fmt: skip
    assert (is_quantized(result.first), is_quantized(result.last)) == (False, True)
    zeros = {v.path: v.numpy() == 0 for v in result.first.trainable_variables}
    for path, share in sparsities(result.last).items():
        assert share == pytest.approx(0.75, abs=0.01), path
        (kernel,) = (v.numpy() for v in result.last.trainable_variables if v.path == path)
        np.testing.assert_array_equal(kernel == 0, zeros[path])
    before, after, out = result.summary["before"], result.summary["after"], result.out
    assert after["parameters"] == 93_322
    assert after["bytes"] < 0.35 * before["bytes"]
    assert after["gzip_bytes"] < 0.15 * before["gzip_bytes"]
    assert after["test"]["accuracy"] > 0.5

    content = commands.content(out)
    answer = zoo_command(
        "compress", "low_rank+qat", trained[0], f"--out={out}", *SHORT,
        "--config.compress.low_rank.energy=0.9",
    )  # fmt: skip
    assert answer.status == 2
    assert "was created with another recipe" in answer.one_line()
    assert commands.content(out) == content, "no stage was begun"

    file = tmp_path / "small.tflite"
    assert zoo_command("export", out, "--format=litert", f"--out={file}").status == 0
    assert file.stat().st_size == after["bytes"]
    assert zoo_command("evaluate", out).status == 0


def test_chains_that_cannot_be(trained, tmp_path, zoo_command):
    for method, message in (
        ("qat+cluster", "use one of qat and cluster"),
        ("cluster+qat", "use one of qat and cluster"),
        ("ptq+prune", "ptq must be the last method of a chain"),
        ("prune+low_rank", "prune after low_rank"),
        ("low_rank+structured", "use structured before low_rank"),
        ("low_rank+ptq --config.compress.ptq.format=keras_int8", "use compress.ptq.format=litert"),
        ("prune --config.init_from=/tmp/other", "only the method distill supports init_from"),
        ("prune --config.trainer.strategy=multi_worker", "runs in one process"),
        ("prune --config.data.validation_size=7", "leave data.validation_size at"),
        ("qat --config.task.zoom=0.5", "leave task.zoom at"),
        (
            "prune --config.compress.prune.m_by_n=2,4 --config.compress.prune.sparsity=0.5",
            "remove compress.prune.sparsity",
        ),
    ):
        method, *more = method.split()
        answer = zoo_command("compress", method, trained[0], f"--out={tmp_path / 'out'}", *more)
        assert answer.status == 2, answer.err
        assert message in answer.one_line()
    assert not (tmp_path / "out").exists()


def plan(methods, start, out, overrides=()):
    """Returns the recipe of each stage."""
    return [x.config for x in chains.plan(chains.parse_chain(methods), start, out, overrides)]


def test_a_plan_prunes_again(trained, tmp_path):
    """Zeros of an earlier run are kept unless the overrides configure pruning again."""
    first, second = plan("prune+qat", trained[0], tmp_path)
    assert (first.compress.prune.sparsity, first.compress.prune.keep_zeros) == (0.8, False)
    assert (second.compress.prune.sparsity, second.compress.prune.keep_zeros) == (0.0, True)
    assert second.init_from == str(tmp_path / "stages" / "1-prune")
    chosen = [("compress.prune.m_by_n", "(2,4)")]
    again = plan("prune+qat+prune", trained[0], tmp_path, chosen)
    assert again[0].compress.prune.m_by_n == again[2].compress.prune.m_by_n == (2, 4)
    assert (again[2].compress.prune.sparsity, again[2].compress.prune.keep_zeros) == (0.0, False)
    assert again[2].compress.qat.on
    saved = tmp_path / "pruned"
    shutil.copytree(trained[0], saved)
    recipe = json.loads((saved / "config.json").read_text())
    recipe["config"] = as_dict(plan("prune", saved, tmp_path, chosen)[0])
    (saved / "config.json").write_text(json.dumps(recipe))
    (usual,) = plan("prune", saved, tmp_path)
    assert (usual.compress.prune.sparsity, usual.compress.prune.m_by_n) == (0.8, ())


def test_what_cannot_be_compressed_is_one_line(trained, tmp_path, zoo_command):
    run, out = trained[0], f"--out={tmp_path / 'out'}"
    pattern = "prune", run, out, "--config.compress.prune.pattern=kernal"
    cases = [
        (("prone", run, out), "No method is named 'prone'. Did you mean 'prune'?"),
        (("prune", run), "requires --out=D"),
        (("prune", run, f"--out={run}"), "another folder"),
        (("prune", tmp_path, out), "is not a work directory"),
        (
            ("prune", run, out, "--config.compress.prune.sparsity=1"),
            "compress.prune.sparsity must be in [0, 1)",
        ),
        (("prune", run, out, "--config.compress.prune.sparsity=0"), "prune has no effect"),
        (
            ("structured", run, out, "--config.compress.structured.sparsity=0"),
            "structured has no effect",
        ),
        (("prune", run, out, "--config.compress.sparsty=0.5"), "'compress.sparsty'"),
        ((*pattern, "--config.compress.prune.frequency=1"), "matches nothing"),
    ]
    for words, message in cases:
        answer = zoo_command("compress", *words)
        assert answer.status == 2, answer.err
        assert message in answer.one_line()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list_recipes())
def test_the_recipe_of_a_work_directory_is_the_recipe(name):
    config = resolve(name)
    saved = json.loads(json.dumps(as_dict(config)))
    assert as_dict(change(of_workdir(saved), [])) == as_dict(config)
