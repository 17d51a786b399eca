"""Promises that every model in the catalog must keep.

A promise is a function of a `TinyModel`. A new model is tested once the catalog has its row.
"""

import functools
import shutil

import keras
import numpy as np
import tensorflow as tf

import zoo
from tests import toys
from tests.trainers.train.test_resume import assert_same_end
from trainers.compression.prune import sparsities
from trainers.config.base import optimizer
from trainers.export.export import FORMATS
from trainers.export.formats import examples_of, write_checked
from trainers.run.checkpoint import list_checkpoints
from trainers.run.workdir import read_metrics
from trainers.train.trainer import Trainer
from zoo import registry
from zoo.catalog import CATALOG
from zoo.data import Dataset
from zoo.description import build_abstract
from zoo.layers.rounding import is_quantized
from zoo.models.adapter import Adapter

EXAMPLES, BATCH = 40, 16  # the third batch of each epoch is short
# Layers to recompute in models without stacks of blocks, as regular expressions of layer names.
OTHER_BLOCKS = {
    "cnn": "convolution_.*", "gan": "generator", "transfer": "hidden", "reformer": "reversible",
    "linear": "ngrams",
}  # fmt: skip
TURN = 60  # updates per model part


class TinyModel:
    """Tiny variant of a catalog row, with the training runs that several promises read.

    Args:
      row: `zoo.registry.Entry` of the model.
      folder: parent folder of the work directories.
    """

    def __init__(self, row, folder=None):
        self.row, self.folder = row, folder

    @functools.cached_property
    def task(self):
        """Returns the task of the row, bound to the model and the data."""
        task = registry.build_task(self.row.task, **self.row.task_arguments)
        task.bind(self.untrained, self.data, self.row.tiny).check(self.untrained, self.data)
        return task

    @functools.cached_property
    def untrained(self):
        return registry.build(self.row.name, **self.row.tiny)

    @functools.cached_property
    def data(self):
        task = registry.build_task(self.row.task, **self.row.task_arguments)
        splits = {"train": task.synthetic(self.untrained, EXAMPLES, 0)}
        return Dataset("synthetic", splits, (), self.row.name)

    @functools.cached_property
    def batch(self):
        """Returns a prepared batch of four examples."""
        batch = {key: tf.constant(value[:4]) for key, value in self.data.splits["train"].items()}
        batch["weight"] = tf.ones(4)
        return self.task.prepare(
            batch, lambda n: tf.random.stateless_uniform((4, n), (0, 0)), False
        )

    def outputs(self, model):
        """Returns the arrays that a model computes from `batch`."""
        return keras.tree.flatten(self.task.forward(model, self.batch, training=False).outputs)

    def recipe(self, **trainer):
        row = self.row
        config = toys.recipe(
            row.name, row.task, model_arguments=dict(row.tiny),
            task_arguments=dict(row.task_arguments),
            **{"steps": 6, "log_every": 3, "checkpoint_every": 3, **trainer},
            global_batch_size=BATCH,
        )  # fmt: skip
        # Large steps of two model parts, or of long sums over a grid, amplify rounding errors.
        if row.task == "gan":
            config.optimizer.learning_rate = 2e-4
        elif row.family == "axial":
            config.optimizer.learning_rate = 0.03
        return config

    def train(self, name, config, callbacks=()):
        """Trains in the folder `name`; returns the trainer."""
        run = Trainer(config, self.folder / name, dataset=self.data, callbacks=callbacks)
        run.logs = run.train()
        return run

    @functools.cached_property
    def plain(self):
        """Returns a run of six updates with the default settings."""
        return self.train("plain", self.recipe())

    @functools.cached_property
    def mixed(self):
        return self.train("mixed", self.recipe(precision="mixed_bfloat16"))

    @functools.cached_property
    def compressed(self):
        """Returns a run with 50% pruning of each kernel and 8-bit quantization-aware training."""
        config = self.recipe()
        config.compress.prune.update({"sparsity": 0.5, "frequency": 1, "end": 0.5})
        config.compress.qat.update({"on": True, "decay": 0.5})
        return self.train("compressed", config)

    def check_equal(self, name, bound=1e-6, **trainer):
        """Checks that other trainer settings give the same weights as the plain run."""
        other = self.train(name, self.recipe(**trainer))
        gap = toys.difference(self.plain.step.net, other.step.net)
        assert gap <= bound, gap

    def check_export(self, model, export_format):
        """Checks that an exported file gives the model's outputs in the runtime of its format."""
        examples = examples_of(self.task, self.data.splits["train"])
        path = self.folder / f"model{FORMATS[export_format][0]}"
        written = write_checked(model, self.task, examples, export_format, str(path))
        assert written["bytes"] > 1000, export_format


def has_the_parameters_it_says(tiny):
    assert build_abstract(tiny.row.name).count_params() == tiny.row.parameters


def saves_and_loads(tiny):
    model = keras.saving.load_model(tiny.plain.workdir / "model.keras", safe_mode=True)
    for x, y in zip(tiny.outputs(tiny.plain.step.net), tiny.outputs(model), strict=True):
        np.testing.assert_array_equal(x, y)


def lowers_the_loss(tiny):
    """Each model part lowers its own loss while the weights of the other parts are constant."""
    parts = tiny.task.model_parts(tiny.untrained)
    config = tiny.recipe(steps=TURN * len(parts), checkpoint_every=TURN)
    config.optimizer = optimizer("adamw", learning_rate=0.01)
    run = tiny.train("loss", config, [Turns()])
    lines = [line for line in read_metrics(run.workdir.path) if "loss" in line]
    for turn, part in enumerate(parts):
        terms = part.terms if len(parts) > 1 else {"loss": 1.0}
        losses = [
            sum(c * line[term] for term, c in terms.items())
            for line in lines
            if (line["step"] - 1) // TURN == turn
        ]
        assert losses[-1] < 0.9 * losses[0], (part.name, losses)


class Turns(keras.callbacks.Callback):
    """Lets one model part learn at a time, for `TURN` updates."""

    def on_train_batch_begin(self, batch, logs=None):
        turn = int(self.model.count.numpy()) // TURN
        for part, own in enumerate(self.model.optimizers):
            own.learning_rate = 0.01 if part == turn else 0.0


def trains_in_bfloat16(tiny):
    plain, mixed = tiny.plain, tiny.mixed
    assert toys.difference(plain.step.net, mixed.step.net) > 0  # mixed precision was in use
    assert abs(mixed.logs["loss"] - plain.logs["loss"]) <= 0.02 * plain.logs["loss"]


def micro_batches_and_recomputed_blocks_change_nothing(tiny):
    stacks = Adapter(tiny.untrained).stacks.values()
    blocks = "|".join(block.name for stack in stacks for block in stack)
    remat = blocks or OTHER_BLOCKS[tiny.row.family]
    tiny.check_equal("parts", micro_batch_size=4, remat=remat)


def two_replicas_equal_one(tiny):
    tiny.check_equal("replicas", strategy="mirrored", replicas=2)


def compiles_under_xla(tiny):
    tiny.check_equal("compiled", 1e-4, jit_compile=True)


def resumes_exactly(tiny):
    """A run interrupted after its first checkpoint ends like the uninterrupted run."""
    whole, parts = tiny.plain.workdir.path, tiny.folder / "resumed"
    shutil.copytree(whole, parts)
    _, (_, last) = list_checkpoints(parts / "checkpoints")
    last.unlink()
    tiny.train("resumed", tiny.recipe())
    assert "from step_0000000003.npz" in [line.get("detail") for line in read_metrics(parts)]
    assert_same_end(whole, parts)


def prunes(tiny):
    """Every trainable kernel has the requested sparsity, also in the saved file."""
    net = tiny.compressed.step.net
    saved = sparsities(zoo.load(tiny.compressed.workdir.path))
    assert saved == sparsities(net)
    sizes = {v.path: v.value.shape.num_elements() for v in net.weights}
    for path, share in saved.items():
        assert abs(share - 0.5) * sizes[path] <= 1, (path, share)


def learns_in_eight_bits(tiny):
    """A file of quantization-aware training loads with its ranges and exports to LiteRT.

    Keras alone loads the file as well, without quantization.
    """
    saved = zoo.load(tiny.compressed.workdir.path)
    assert is_quantized(saved)
    for a, b in zip(tiny.outputs(tiny.compressed.step.net), tiny.outputs(saved), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = keras.saving.load_model(tiny.compressed.workdir / "model.keras")
    assert not is_quantized(plain)
    assert sparsities(plain).keys() == sparsities(saved).keys()
    tiny.check_export(saved, "litert")


def exports(tiny):
    """The exported files of a model trained in bfloat16 give its outputs in their runtimes."""
    for export_format in FORMATS:
        tiny.check_export(tiny.mixed.step.net, export_format)


PROMISES = (
    has_the_parameters_it_says,
    saves_and_loads,
    lowers_the_loss,
    trains_in_bfloat16,
    micro_batches_and_recomputed_blocks_change_nothing,
    two_replicas_equal_one,
    resumes_exactly,
    compiles_under_xla,
    prunes,
    learns_in_eight_bits,
    exports,
)


def promises(row):
    """Returns the promises; a row that differs from another only in sizes has only its count."""
    return PROMISES if row.tiny else (has_the_parameters_it_says,)


def rows(family: str):
    """Returns the catalog's rows of a family."""
    return [row for row in CATALOG if row.family == family]
