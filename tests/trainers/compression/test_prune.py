"""Pruning in the train step: the configured sparsity in every setting and after a resume."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import zoo
from tests import toys
from tests.commands import ROOT
from tests.trainers.train.test_resume import cut_at
from trainers.compression.prune import Pruner, prunable, sparsities
from trainers.config.base import base, optimizer
from zoo.errors import UsageError

SPARSE = {"sparsity": 0.75, "frequency": 2, "end": 0.8}
EVERY_CHECKPOINT = {"checkpoint_every": 1, "keep": 9}


def recipe(compress=None, model="toy_tokens", task="toy_token", arguments=None, **trainer):
    config = toys.recipe(model, task, model_arguments=arguments, **trainer)
    config.optimizer = optimizer("adam", learning_rate=0.01)
    config.compress.prune.update(SPARSE if compress is None else compress)
    return config


def pruning(changes):
    """Returns the settings of `Pruner`."""
    settings = base().compress.prune.to_dict() | changes
    del settings["keep_zeros"]
    return settings


def check(model, share=0.75):
    """Checks the share of zeros of each kernel to within one element; returns their number."""
    for variable, _ in prunable(model):
        size = int(np.prod(variable.shape))
        zeros = int((variable.numpy() == 0).sum())
        assert abs(zeros - share * size) <= 1, (variable.path, zeros / size)
    return len(prunable(model))


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"micro_batch_size": 4},
        {"ema": 0.9},
        {"precision": "mixed_bfloat16"},
        {"jit_compile": True},
        {"steps_per_execution": 5},
        {"strategy": "mirrored", "replicas": 2},
        {"remat": "block_.*"},
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain",
)
def test_every_kernel_gets_sparse(trainer, trained_once):
    done = trained_once(recipe(**trainer), toys.token_data())
    assert check(done.step.net) == 6  # embedding, four of the blocks, logits
    with done.step.averaged():
        check(done.step.net)
    if (
        "precision" not in trainer
    ):  # a toy block of mixed precision opens only in a model of mixed precision
        check(zoo.load(done.workdir.path))
    biases = [v for v in done.step.net.weights if v.path.endswith("bias")]
    assert all((v.numpy() != 0).any() for v in biases)


def test_the_sparsity_follows_the_schedule(run):
    """Sparsity follows Zhu and Gupta, equation 1, at each mask update and is constant between."""
    zero_shares = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            variable = self.model.net.get_layer("block_0").up.kernel
            zero_shares.append(float((variable.numpy() == 0).mean()))

    config = recipe({**SPARSE, "initial_sparsity": 0.25, "begin": 0.2, "end": 0.8, "frequency": 3})
    run(config, toys.token_data(), callbacks=[Watch()])
    first, last = 2, 8
    for step, share in enumerate(zero_shares, 2):  # the masks are chosen for the next update
        if step < first:
            expected = 0.0
        else:
            turn = min(step, last)
            turn -= (turn - first) % 3
            expected = 0.75 - 0.5 * (1 - (turn - first) / (last - first)) ** 3
        assert share == pytest.approx(expected, abs=1 / 256), step


def test_replicas_prune_as_one(trained_once):
    one = trained_once(recipe(), toys.token_data())
    two = trained_once(recipe(strategy="mirrored", replicas=2), toys.token_data())
    for a, b in zip(one.step.compressors[0].masks, two.step.compressors[0].masks, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert toys.difference(one.step.net, two.step.net) < 1e-4  # because Adam's steps are large


@pytest.mark.parametrize("compress", [SPARSE, {"m_by_n": (2, 4)}], ids=["schedule", "m_by_n"])
@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_run_has_the_same_masks(compress, stop, run, trained_once, tmp_path):
    config = recipe(compress, **EVERY_CHECKPOINT)
    whole = trained_once(config, toys.token_data())
    parts = cut_at(whole.workdir.path, tmp_path / "parts", stop)
    resumed = run(config, toys.token_data(), parts)
    assert toys.difference(whole.step.net, resumed.step.net) == 0
    masks = [one.step.compressors[0].masks for one in (whole, resumed)]
    for a, b in zip(*masks, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_two_of_four_inputs_are_zero(trained_once):
    config = recipe({"m_by_n": (2, 4)}, **EVERY_CHECKPOINT)
    done = trained_once(config, toys.token_data())
    for variable, inputs in prunable(done.step.net):
        size = np.prod([variable.shape[axis] for axis in inputs])
        flat = np.moveaxis(variable.numpy(), inputs, range(len(inputs))).reshape(size, -1)
        whole = flat[: len(flat) // 4 * 4]
        zeros = (whole.reshape(-1, 4, whole.shape[1]) == 0).sum(1)
        assert (zeros == 2).all(), variable.path


def test_blocks_are_zero_together(run):
    done = run(recipe({**SPARSE, "block": (2, 4)}), toys.token_data())
    for name in ("up", "down"):
        kernel = getattr(done.step.net.get_layer("block_1"), name).kernel.numpy()
        blocks = kernel.reshape(kernel.shape[0] // 2, 2, kernel.shape[1] // 4, 4)
        zeros = (blocks == 0).mean(axis=(1, 3))
        assert set(np.unique(zeros)) == {0.0, 1.0}
        assert zeros.mean() == pytest.approx(0.75, abs=0.04)


class Kernels(keras.Model):
    """Kernels that a block covers completely or along one axis."""

    def __init__(self):
        super().__init__()
        self.narrow = layers.Dense(1, name="narrow")
        self.low = layers.Conv1D(5, 1, name="low")
        self.back = layers.Conv1DTranspose(6, 3, name="back")
        self.narrow.build((None, 9))
        self.low.build((None, None, 3))
        self.back.build((None, None, 4))


@pytest.mark.parametrize("block", [(1, 16), (16, 1), (16, 16), (2, 3)])
def test_blocks_that_are_larger_than_a_kernel(block):
    model, step = Kernels(), keras.Variable(5, dtype="int64", trainable=False)
    before = {v.path: v.numpy().copy() for v in model.trainable_variables}
    changes = {
        "sparsity": 0.5, "schedule": "constant", "block": block, "end": 1.0, "frequency": 1,
    }  # fmt: skip
    pruner = Pruner(model, step, 10, pruning(changes))
    pruner.update()
    for variable, inputs in pruner.kernels:
        rest = [axis for axis in range(variable.ndim) if axis not in inputs]
        size = np.prod([variable.shape[axis] for axis in inputs])
        flat, was = (
            np.transpose(x, [*inputs, *rest]).reshape(size, -1)
            for x in (variable.numpy(), before[variable.path])
        )
        blocks = {
            (i, j): (slice(i, i + block[0]), slice(j, j + block[1]))
            for i in range(0, flat.shape[0], block[0])
            for j in range(0, flat.shape[1], block[1])
        }
        sizes = {key: np.abs(was[place]).mean() for key, place in blocks.items()}
        largest = sorted(sizes, key=sizes.get)[-max(1, round(len(blocks) * 0.5)) :]
        for key, place in blocks.items():
            assert (flat[place] != 0).all() == (key in largest), (variable.path, key)


def test_kinds_of_kernels():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 8, name="words")(tokens)
    x = layers.Conv1D(8, 3, name="convolution")(x)
    x = layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="heads")(x)
    x = layers.EinsumDense("abde,dec->abc", (None, 8), name="out")(x)
    x = layers.Conv1DTranspose(8, 2, name="back")(x)
    x = layers.LSTM(4, name="recurrent")(layers.LayerNormalization()(x))
    model = keras.Model(tokens, layers.Dense(3, name="last")(x))
    input_axes = {variable.path: inputs for variable, inputs in prunable(model)}
    assert input_axes == {
        "words/embeddings": (0,), "convolution/kernel": (0, 1), "heads/kernel": (0,),
        "out/kernel": (0, 1), "back/kernel": (0, 2), "recurrent/lstm_cell/kernel": (0,),
        "recurrent/lstm_cell/recurrent_kernel": (0,), "last/kernel": (0,),
    }  # fmt: skip
    model.get_layer("heads").trainable = False
    assert "heads/kernel" not in sparsities(model)


def test_only_what_the_pattern_matches(run):
    done = run(recipe({**SPARSE, "pattern": "^block_1/"}), toys.token_data())
    shares = sparsities(done.step.net)
    for path, share in shares.items():
        assert share == pytest.approx(0.75 if path.startswith("block_1/") else 0.0, abs=0.01)


def test_convolutions_get_sparse(run):
    config = recipe(model="toy_norm", task="image_classification")
    check(run(config, toys.image_data()).step.net)


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        ({"sparsity": 1.0}, r"compress.prune.sparsity must be in \[0, 1\)"),
        ({"sparsity": -0.1}, "compress.prune.sparsity must be in"),
        (
            {"sparsity": 0.5, "schedule": "linear"},
            "No schedule of compress.prune.schedule is named",
        ),
        (
            {"sparsity": 0.5, "begin": 0.8, "end": 0.2},
            "compress.prune.begin and compress.prune.end",
        ),
        ({"sparsity": 0.5, "frequency": 0}, "compress.prune.frequency must be at least 1"),
        (
            {"sparsity": 0.5},
            "frequency=100 .* Received: 5 of 10 updates .* set compress.prune.frequency=1,",
        ),
        ({"sparsity": 0.5, "frequency": 6}, "one whole period of compress.prune.frequency=6"),
        (
            {"sparsity": 0.5, "end": 0.2, "frequency": 1},
            "Received: 0 of 10 updates between them; train longer",
        ),
        ({"sparsity": 0.5, "frequency": 2, "pattern": "kernal"}, "pattern matches nothing"),
        ({"sparsity": 0.5, "frequency": 2, "pattern": "("}, "must be a regular expression"),
        ({"m_by_n": (4, 2)}, r"compress.prune.m_by_n must be \(\) or \(m, n\)"),
        ({"sparsity": 0.5, "block": (0, 4)}, "compress.prune.block"),
    ],
)
def test_refused_pruning_settings(compress, message, run, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(recipe(compress), toys.token_data(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_masks_are_those_of_tf_mot():
    """With the same images, masks and weights equal those of TF-MOT on tf_keras."""
    code = (
        "from tests.official_pruning import compare\n"
        "masks, weights = compare()\n"
        "print(len(masks), sum(masks), weights)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, differing, weights = done.stdout.split()[-3:]
    assert (steps, differing, weights) == ("59", "0", "0.0")


def test_tf_mot_leaves_keras_alone():
    from zoo.layers.tfmot import engines

    engines()
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.version().startswith("3.")
