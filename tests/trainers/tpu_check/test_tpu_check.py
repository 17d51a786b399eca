"""Tests of `zoo tpu_check`, without and with libtpu."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.trainers.tpu_check.test_tpu_lint import Step
from trainers.config.recipe import resolve
from trainers.tpu_check import check, compiler
from trainers.tpu_check.abstract import AbstractStep, Share, depth_of, share_of
from trainers.tpu_check.ahead_of_time import ProgramText, convert_for_tpu
from trainers.tpu_check.check import MAX_ROWS, Program, as_program, largest_rows
from trainers.tpu_check.chips import CHIPS, parse_topology, topology_names
from trainers.tpu_check.compiler import Compiler, required_memory
from trainers.tpu_check.lowering import lower
from zoo import registry
from zoo.data import pipeline
from zoo.errors import RunError, UsageError
from zoo.tasks.image_classification import ImageClassification

TOPOLOGY = "v5e:2x4"


def _installed() -> bool:
    try:
        compiler.check_installed()
    except UsageError:
        return False
    return True


needs_libtpu = pytest.mark.skipif(not _installed(), reason="needs keras-zoo[aot]: jax and libtpu")

# --- arguments ------------------------------------------------------------------------------------


def test_topologies():
    chip, cores = parse_topology(TOPOLOGY)
    assert (chip.name, cores) == ("v5e", 8)
    assert parse_topology("v5p:2x2x4")[1] == 16
    assert all(parse_topology(name)[0].usable < CHIPS[name[:3]].memory * 1.1 for name in _names())


def _names():
    names = topology_names()
    assert len(names) == len(set(names))
    return names


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v7x:2x2x1", "does not support TPU7x"),
        ("v5e:2x5", "No topology is named 'v5e:2x5'. Did you mean 'v5e:2x"),
        ("abacus", "Known: v5e:1x1, v5e:2x2"),
    ],
)
def test_other_topologies_are_refused(topology, message, zoo_command):
    answer = zoo_command("tpu_check", "cnn_digits:debug", f"--topology={topology}")
    assert answer.status == 2
    assert message in answer.one_line()


def test_the_topology_is_asked_for(zoo_command):
    answer = zoo_command("tpu_check", "cnn_digits:debug")
    assert answer.status == 2
    assert "--topology" in answer.one_line()


def test_missing_packages_are_named(monkeypatch, zoo_command):
    def lacking(package):
        raise compiler.PackageNotFoundError(package)

    monkeypatch.setattr(compiler, "version", lacking)
    answer = zoo_command("tpu_check", "cnn_digits:debug", f"--topology={TOPOLOGY}")
    assert answer.status == 2
    assert "pip install 'keras-zoo[aot]'" in answer.one_line()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.precision", "mixed_float16", "does not support float16"),
        ("trainer.jit_compile", "True", "tpu requires trainer.jit_compile=False"),
        ("trainer.deterministic", "True", "does not support trainer.deterministic"),
        ("trainer.replicas", "2", "Strategy one_device supports one replica"),
        ("compress.low_rank.budget", "0.5", "compress.low_rank chooses"),
        ("compress.structured.sparsity", "0.5", "compress.structured chooses"),
        ("compress.distill.teacher", "somewhere", "does not support compress.distill"),
    ],
)
def test_other_recipes_are_refused(key, value, message):
    with pytest.raises(UsageError, match=message):
        AbstractStep(resolve("cnn_digits:debug", [(key, value)]))


def test_share_of_a_core():
    config = resolve("cnn_digits:debug", [("trainer.global_batch_size", "64")])
    assert share_of(config, 8) == Share(8, 1)
    config = resolve(
        "cnn_digits:debug",
        [("trainer.global_batch_size", "64"), ("trainer.micro_batch_size", "2")],
    )
    assert share_of(config, 8) == Share(2, 4)
    with pytest.raises(UsageError, match="a multiple of the number of replicas"):
        share_of(config, 24)


@pytest.mark.parametrize(
    ("recipe", "changes", "depth"),
    [
        ("cnn_mnist", [], 0),
        ("lstm_shakespeare", [], 0),
        ("gpt_scaling:4", [], 4),
        ("gpt_shakespeare", [("model.num_layers", "9")], 9),
        ("longformer_wiki", [], 4),
        ("longformer_wiki", [("model.attention", "window:64,window:64:2")], 0),
        ("seq2seq_multi30k", [], 3),
        ("seq2seq_multi30k", [("model.num_encoder_layers", "9")], 0),
    ],
)
def test_depth(recipe, changes, depth):
    assert depth_of(resolve(recipe, changes)) == depth


# --- abstract steps -------------------------------------------------------------------------------


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux' /proc")
def test_billions_of_parameters_take_no_memory():
    model = registry.entry("llama3_8b").arguments
    sizes = [(f"model.{key}", str(value)) for key, value in model.items()]
    config = resolve(
        "llama_wiki",
        [
            ("model.name", "llama3_8b"), *sizes, ("model.depth", "0"),
            ("optimizer.name", "adamw"), ("trainer.ema", "0.9"),
        ],
    )  # fmt: skip
    before = _resident()
    one, two = AbstractStep(config, depth=1), AbstractStep(config, depth=2)
    # With three slots, each would take 20 GB or more. Some allocators touch 64 MB of each
    # large unwritten block: the largest total was 518 MB.
    assert _resident() - before < 2**30
    full = one.parameters + 31 * (two.parameters - one.parameters)
    assert full == registry.entry("llama3_8b").parameters
    slots, weights = len(two.step.optimizers[0].variables) - 1, len(two.step.net.weights)
    assert slots == 3 * weights  # all slots except the count


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Returns a folder of synthetic documents; prepared records are written next to it."""
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "cache"))
    generator, folder = np.random.default_rng(0), tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        letters = generator.choice(list("abcdefgh"), (40, 4))
        words = ["".join(word) for word in letters]
        lines = [" ".join(words[i : i + 8]).capitalize() + "." for i in range(0, 40, 8)]
        (folder / f"{number}.txt").write_text(" ".join(lines))
    return folder


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("gpt_pydoc:debug", [("data.packing", "stream")]),
        ("gpt_pydoc:debug", [("data.packing", "best_fit")]),
        ("bert_wiki:debug", []),
        ("bert_wiki:debug", [("task.name", "mlm"), ("model.next_sentence", "False")]),
    ],
)
def test_batches_have_the_shapes_of_real_ones(recipe, changes, corpus):
    changes = [
        ("data.source", f"text:{corpus}"), ("data.sequence_length", "24"),
        ("data.vocabulary_size", "300"), *changes,
    ]  # fmt: skip
    config = resolve(recipe, [c for c in changes if c[0] != "task.name"])
    if ("task.name", "mlm") in changes:
        with config.unlocked():
            config.task = {"name": "mlm", "mask_share": 0.15, "cross_documents": False}
    abstract = AbstractStep(config)
    data = registry.load_data(config.data.to_dict(), config.task.to_dict())
    batches = pipeline.training_batches(
        data.splits["train"], abstract.task.prepare, batch_size=4, replicas=1, seed=0,
        first_step=0, last_step=1,
    )  # fmt: skip
    assert dict(abstract.batch(Share(2, 2))) == dict(batches.element_spec)


def test_behind_a_frozen_base_the_step_is_that_of_the_head():
    """As in training, the base is not part of the step, because its features are cached."""
    sizes = []
    for views in (1, 0):
        config = resolve("vgg16_transfer:debug", [("task.feature_views", str(views))])
        abstract = AbstractStep(config)
        names = set(abstract.batch(Share(4, 1)))
        assert ("feature" in names, "image" in names) == (bool(views), not views)
        sizes.append(len(lower(abstract, Share(4, 1))))
    assert 3 * sizes[0] < sizes[1]


def test_a_task_that_makes_nothing_up_is_named(monkeypatch):
    monkeypatch.delattr(ImageClassification, "synthetic")
    with pytest.raises(UsageError, match="the task ImageClassification must define"):
        AbstractStep(resolve("cnn_digits:debug")).batch(Share(4, 1))


# --- arithmetic -----------------------------------------------------------------------------------


def test_what_the_compiler_says_of_memory():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.75G."
    )
    assert required_memory(message) == int(20.5 * 2**30)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (800.00G) exceeds available HBM (15.75G)."
    )
    assert required_memory(message) == 800 * 2**30
    assert required_memory("INTERNAL: hbm is a word here") is None


def test_what_is_updated_in_place_counts_once():
    answer = {
        "arguments": 100, "outputs": 90, "aliased": 80, "temporaries": 50, "code": 7,
        "flops": 1.0, "bytes": 2.0, "unknown_loops": 0, "seconds": 3.0,
    }  # fmt: skip
    program = as_program(answer)
    assert (program.peak, program.arguments) == (167, 110)


def test_deep_models_are_a_line_through_two_depths(monkeypatch, capsys):
    sizes = {2: 30, 4: 40}

    class Fake:
        def __init__(self, config, depth=0):
            self.parameters = sizes[depth]

        def compile(self, size):
            return dict.fromkeys(("arguments", "flops", "bytes", "unknown_loops"), size) | {
                "outputs": 0, "aliased": 0, "temporaries": 0, "code": 0, "seconds": 5.0,
            }  # fmt: skip

    monkeypatch.setattr(check, "AbstractStep", Fake)
    monkeypatch.setattr(check, "lower", lambda step, share: step.parameters)
    steps = check.Steps({}, 10, Fake({}, 2))
    assert steps.parameters == 70
    assert steps.compile(Share(1, 1)) == Program(70, 70, 0, 0, 70, 70, 70, 10.0)
    assert capsys.readouterr() == (
        "",
        "zoo: building the train step of 2 blocks\n"
        "zoo: building the train step of 4 blocks\n"
        "zoo: tracing the train step of 2 blocks, 1 examples per core\n"
        "zoo: compiling the train step of 2 blocks, 1 examples per core for the TPU\n"
        "zoo: tracing the train step of 4 blocks, 1 examples per core\n"
        "zoo: compiling the train step of 4 blocks, 1 examples per core for the TPU\n",
    )


@pytest.mark.parametrize(
    ("rows", "peak_of", "most", "compiled"),
    [
        (8, lambda n: 100 + 10 * n, 88, 2),  # linear memory
        (
            8,
            lambda n: 100 + 10 * n + (60 if n > 40 else 0),
            80,
            3,
        ),  # nonlinear memory: one more compilation
        (2, lambda n: 100 + 300 * n, 3, 2),
        (64, lambda n: 100 + 200 * n, 4, 2),  # the recipe's batch does not fit
        (64, lambda n: 2000 + n, 0, 2),  # no batch fits
        (8, lambda n: 100 + 1e-9 * n, MAX_ROWS, 2),
    ],
)
def test_largest_batch(rows, peak_of, most, compiled):
    measured_rows = []

    def measured(n):
        measured_rows.append(n)
        return peak_of(n)

    largest, peak = largest_rows(measured, rows, peak_of(rows), 1000)
    assert largest == most
    assert peak == (peak_of(most) if most else 0)
    assert len(measured_rows) <= compiled
    assert largest in (rows, 0, *measured_rows)


LOOPS = """HloModule step

%inner (a: s32[]) -> s32[] {
  ROOT %d.1 = s32[] dot()
}

%inner.2 (a: s32[]) -> s32[] {
  ROOT %d.5 = s32[] dot()
}

%limit.1 (a: s32[]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %less.1 = pred[] compare(%a, %constant.1), metadata={op_name="call.2/net/lstm/while/Less"}
}

%body.1 (a: s32[]) -> s32[] {
  %d.2 = s32[] dot(), calls=%inner
}

%limit.2 (a: s32[]) -> pred[] {
  %constant.2 = s32[]{:T(128)} constant(5)
  ROOT %less.2 = pred[] compare(%a, %constant.2), metadata={op_name="while/Less"}
}

%body.2 (a: s32[]) -> s32[] {
  %while.1 = s32[] while(%x), condition=%limit.1, body=%body.1
  %d.3 = s32[] dot()
}

%limit.3 (a: s32[], b: s32[]) -> pred[] {
  ROOT %less.3 = pred[] compare(%a, %b), metadata={op_name="gradient_tape/net/lstm/while/Less"}
}

%limit.4 (a: s32[], b: s32[]) -> pred[] {
  ROOT %less.4 = pred[] compare(%a, %b), metadata={op_name="net/other/while/Less"}
}

ENTRY %main (a: s32[]) -> s32[] {
  %while.2 = s32[] while(%x), condition=%limit.2, body=%body.2
  %while.3 = s32[] while(%x), condition=%limit.3, body=%inner.2
  ROOT %d.4 = s32[] dot()
}
"""


def test_loops_count_as_often_as_they_run():
    text = ProgramText(LOOPS)
    assert text.entry == "main"
    assert text.program("body.1").count("dot(") == 2
    assert "ENTRY %body.1" in text.program("body.1")

    def once(program):
        return {"flops": program.count("dot(")}

    # Once outside; five times one inside and three times two in the loop of that. The loop of the
    # gradient runs three times, for its other one does.
    assert text.weighted(once, ("flops",)) == {"flops": 1 + 5 * (1 + 3 * 2) + 3}
    assert not text.unknown
    text = ProgramText(LOOPS.replace("condition=%limit.3", "condition=%limit.4"))
    assert text.weighted(once, ("flops",)) == {"flops": 1 + 5 * (1 + 3 * 2) + 1}
    assert text.unknown == {"limit.4"}


def test_random_numbers_are_those_of_a_tpu():
    text = (
        '%1:2 = "stablehlo.rng_bit_generator"(%0) <{rng_algorithm = #stablehlo<rng_algorithm '
        "PHILOX>}> : (tensor<3xui64>) -> (tensor<3xui64>, tensor<7xui32>)\n"
        '%2 = "stablehlo.negate"(%1#1) : (tensor<7xui32>) -> tensor<7xui32>\n'
        '%3:2 = "other"(%2) : (tensor<7xui32>) -> (i32, i32)\n'
        '%4 = "mhlo.copy"(%3#0) : (i32) -> i32\n'
    )
    output = convert_for_tpu(text)
    assert "PHILOX" not in output
    assert "mhlo.copy" not in output
    assert '"stablehlo.negate"(%bits1)' in output
    assert '"stablehlo.reshape"(%3#0)' in output


# --- with libtpu ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tpu():
    with Compiler(TOPOLOGY) as process:
        yield process


@needs_libtpu
def test_a_step_compiles(tpu):
    config = resolve("cnn_digits:debug")
    abstract = AbstractStep(config)
    program = as_program(tpu.compile(lower(abstract, Share(8, 1))))
    from zoo.description import forward_flops

    # Forward and backward pass; the first layer needs no gradient of its input.
    expected = 3 * 8 * forward_flops(abstract.step.net)
    assert 0.6 * expected < program.flops < 1.2 * expected
    weights = 4 * abstract.parameters
    assert program.arguments > 4 * weights  # with two slots and the averaged weights
    assert program.arguments < 8 * weights  # small arrays are padded to a tile
    assert program.bytes > program.arguments
    # A loop of four micro-batches has four times the FLOPs.
    looped = as_program(tpu.compile(lower(abstract, Share(8, 4))))
    assert 3.8 * program.flops < looped.flops < 4.2 * program.flops
    assert looped.temporaries < 2 * program.temporaries


@needs_libtpu
def test_dropout_and_what_does_not_fit(tpu):
    def function(x):
        seeds = tf.random.experimental.stateless_fold_in(tf.constant([1, 2]), 3)
        bits = tf.random.stateless_uniform(x.shape, seeds)
        return tf.reduce_sum(tf.where(bits < 0.1, 0.0, x) @ tf.ones((512, 512)))

    answer = tpu.compile(lower(Step(function, (64, 512)), Share(64, 1)))
    assert answer["flops"] >= 2 * 64 * 512 * 512

    def large(x):
        y = tf.tile(x[:, None, None], (1, 70_000, 70_000))
        return tf.linalg.trace(tf.cumsum(y, axis=1) @ y)

    assert tpu.compile(lower(Step(large, (2,)), Share(2, 1)))["used"] > 16 * 2**30


@needs_libtpu
def test_a_program_that_is_none_is_refused(tpu):
    with pytest.raises(RunError, match="The TPU compiler rejects the step: "):
        tpu.compile(b"nothing")


@needs_libtpu
def test_gradients_of_loops_are_counted(tpu):
    config = resolve("lstm_pydoc:debug", [("data.sequence_length", "24")])
    abstract = AbstractStep(config)
    program = as_program(tpu.compile(lower(abstract, Share(8, 1))))
    assert not program.unknown_loops
    # Per token: the two products of the cell and the projection onto the vocabulary.
    net = abstract.step.net
    products = sum(np.prod(v.shape) for v in net.weights if "kernel" in v.path)
    assert 0.9 < program.flops / (3 * 2 * products * 8 * 24) < 1.3


@needs_libtpu
@pytest.mark.slow
def test_the_command(zoo_command, monkeypatch):
    monkeypatch.setattr(check, "MAX_ROWS", 16)  # large programs compile slowly
    answer = zoo_command(
        "tpu_check", "cnn_digits:debug", "--topology=v6e:1x1", "--json",
        "--config.trainer.global_batch_size=8", "--config.model.filters=(4,4,4)",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert "zoo: searching for the largest batch that fits" in answer.err.splitlines()
    result = json.loads(answer.out)
    assert (result["cores"], result["rows"]) == (1, 8)
    assert result["fits"]
    assert result["largest_rows"] == 16
    assert result["program"]["peak"] < result["largest_peak"] <= result["usable"]
    flops, bytes_accessed = result["program"]["flops"], result["program"]["bytes"]
    chip = CHIPS["v6e"]
    assert result["roofline"] == pytest.approx(
        max(flops / chip.flops, bytes_accessed / chip.bandwidth)
    )
