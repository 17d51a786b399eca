"""What the zoo promises of every model in the catalog; run in one process a family.

    python -m tests.contract FAMILY      prints {"model/promise": "" or the traceback} as JSON

A promise is a function of a catalog row; a new model is tested by its row being there.
"""

import functools
import json
import os
import sys
import tempfile
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EXAMPLES, BATCH = 40, 16  # the third batch of each epoch is short


def _recipe(row, **trainer):
    from tests import toys

    config = toys.recipe(
        row.name, row.task, model_arguments=dict(row.tiny),
        task_arguments=dict(row.task_arguments), steps=6, log_every=3, checkpoint_every=3,
        global_batch_size=BATCH, **trainer,
    )  # fmt: skip
    if row.task == "gan":  # two players who chase each other in large steps enlarge rounding
        config.optimizer.learning_rate = 2e-4
    return config


def _data(row):
    from zoo import registry
    from zoo.data import Dataset

    model = registry.build(row.name, **row.tiny)
    task = registry.build_task(row.task, **row.task_arguments)
    return Dataset("synthetic", {"train": task.synthetic(model, EXAMPLES, 0)}, (), row.name)


def _train(row, workdir=None, callbacks=(), change=None, **trainer):
    from trainers.train.trainer import Trainer

    config = _recipe(row, **trainer)
    if change:
        change(config)
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(config, workdir or f"{folder}/run", dataset=_data(row), callbacks=callbacks)
        run.logs = run.train()
    return run


@functools.lru_cache(1)
def _plain(name):
    """A run of a few updates with no setting changed, and the folder that holds its `run`."""
    from zoo.catalog import CATALOG

    folder = tempfile.TemporaryDirectory()
    row = next(row for row in CATALOG if row.name == name)
    return _train(row, f"{folder.name}/run"), folder


def _plain_net(row):
    return _plain(row.name)[0].step.net


def has_the_parameters_it_says(row):
    from zoo.description import build_abstract

    assert build_abstract(row.name).count_params() == row.parameters


def saves_and_loads(row):
    import keras
    import numpy as np

    from zoo import registry

    model = registry.build(row.name, **row.tiny)
    batch = _batch(row)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
    a, b = (_outputs(m, row, batch) for m in (model, again))
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_array_equal(x, y)


def lowers_the_loss(row):
    """Each player lowers its own, while the others stand still."""
    from trainers.config.base import optimizer
    from trainers.run.workdir import read_metrics
    from zoo import registry

    def adam(config):
        config.optimizer = optimizer("adamw", learning_rate=0.01)
        config.trainer.steps = 60

    task = registry.build_task(row.task, **row.task_arguments)
    players = task.players(registry.build(row.name, **row.tiny))
    for turn, player in enumerate(players):
        with tempfile.TemporaryDirectory() as folder:
            _train(row, f"{folder}/run", callbacks=[_only(turn)], change=adam)
            lines = read_metrics(f"{folder}/run")
        terms = player.terms if len(players) > 1 else {"loss": 1.0}
        losses = [sum(c * x[k] for k, c in terms.items()) for x in lines if "loss" in x]
        assert losses[-1] < 0.9 * losses[0], (player.name, losses)


def _only(turn):
    """A callback that lets one player learn."""
    import keras

    class Only(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            for other, own in enumerate(self.model.optimizers):
                if other != turn:
                    own.learning_rate = 0.0

    return Only()


def trains_in_bfloat16(row):
    from tests import toys

    plain, _ = _plain(row.name)
    mixed = _train(row, precision="mixed_bfloat16")
    assert toys.difference(plain.step.net, mixed.step.net) > 0  # it really was mixed
    assert abs(mixed.logs["loss"] - plain.logs["loss"]) <= 0.02 * plain.logs["loss"]


def micro_batches_equal_one_batch(row):
    from tests import toys

    gap = toys.difference(_plain_net(row), _train(row, micro_batch_size=4).step.net)
    assert gap <= 1e-6, gap


def two_replicas_equal_one(row):
    from tests import toys

    gap = toys.difference(_plain_net(row), _train(row, strategy="mirrored", replicas=2).step.net)
    assert gap <= 1e-6, gap


def resumes_exactly(row):
    from pathlib import Path

    from tests.trainers.train.test_resume import Interrupted, StopAt, assert_same_end

    _, whole = _plain(row.name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _train(row, f"{folder}/run", callbacks=[StopAt(5)])
            raise AssertionError("it was not interrupted")
        except Interrupted:
            pass
        _train(row, f"{folder}/run")
        assert_same_end(Path(whole.name) / "run", Path(folder) / "run")


def compiles_under_xla(row):
    from tests import toys

    gap = toys.difference(_plain_net(row), _train(row, jit_compile=True).step.net)
    assert gap <= 1e-4, gap


def recomputed_blocks_change_nothing(row):
    from tests import toys

    assert row.remat, "the row names no blocks"
    gap = toys.difference(_plain_net(row), _train(row, remat=row.remat).step.net)
    assert gap <= 1e-6, gap


def prunes(row):
    """Every kernel that learns has the share of zeros that was asked for, in the file as well."""
    import zoo
    from trainers.compression.prune import sparsities

    def half(config):
        config.compress.prune.update({"sparsity": 0.5, "frequency": 1, "end": 0.5})

    with tempfile.TemporaryDirectory() as folder:
        run = _train(row, f"{folder}/run", change=half)
        saved = sparsities(zoo.load(f"{folder}/run"))
    assert saved == sparsities(run.step.net)
    sizes = {v.path: v.value.shape.num_elements() for v in run.step.net.weights}
    for path, share in saved.items():
        assert abs(share - 0.5) * sizes[path] <= 1, (path, share)


def learns_in_eight_bits(row):
    """Layers that round as they train: the file opens with its ranges, and becomes one of LiteRT.

    Keras alone opens it as well, without the rounding.
    """
    import keras
    import numpy as np

    import zoo
    from trainers.compression.prune import sparsities
    from trainers.export.formats import examples_of, write_checked
    from zoo import registry
    from zoo.layers.rounding import is_quantized

    def rounded(config):
        config.compress.qat.on = True
        config.compress.qat.decay = 0.5

    with tempfile.TemporaryDirectory() as folder:
        run = _train(row, f"{folder}/run", change=rounded)
        saved = zoo.load(f"{folder}/run")
        batch = _batch(row)
        assert is_quantized(saved)
        for a, b in zip(
            *(keras.tree.flatten(_outputs(net, row, batch)) for net in (run.step.net, saved)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        plain = keras.saving.load_model(f"{folder}/run/model.keras")
        assert not is_quantized(plain)
        assert sparsities(plain).keys() == sparsities(saved).keys()
        task = registry.build_task(row.task, **row.task_arguments)
        data = _data(row)
        task.check(saved, data)
        examples = examples_of(task, data.splits["train"])
        found = write_checked(saved, task, examples, "litert", f"{folder}/model.tflite")
        assert found["bytes"] > 1000


def exports(row):
    """Learned in bfloat16 or not, its files compute in their runtimes what it computes."""
    from trainers.export.export import FORMATS
    from trainers.export.formats import examples_of, write_checked
    from trainers.optimization.precision import precision
    from zoo import registry

    with precision("mixed_bfloat16"):
        model = registry.build(row.name, **row.tiny)
    task = registry.build_task(row.task, **row.task_arguments)
    data = _data(row)
    task.check(model, data)
    examples = examples_of(task, data.splits["train"])
    for form, (ending, _) in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = write_checked(model, task, examples, form, f"{folder}/model{ending}")
        assert found["bytes"] > 1000, form


PROMISES = (
    has_the_parameters_it_says,
    saves_and_loads,
    lowers_the_loss,
    trains_in_bfloat16,
    micro_batches_equal_one_batch,
    two_replicas_equal_one,
    resumes_exactly,
    compiles_under_xla,
    recomputed_blocks_change_nothing,
    prunes,
    learns_in_eight_bits,
    exports,
)


def promises(row):
    """Rows that differ from another in their sizes alone have their count to keep."""
    return PROMISES if row.tiny else (has_the_parameters_it_says,)


def _batch(row):
    import tensorflow as tf

    from zoo import registry

    task = registry.build_task(row.task, **row.task_arguments)
    data = _data(row)
    task.check(registry.build(row.name, **row.tiny), data)
    batch = {key: tf.constant(value[:4]) for key, value in data.splits["train"].items()}
    batch["weight"] = tf.ones(4)
    return task.prepare(batch, lambda n: tf.random.stateless_uniform((4, n), (0, 0)), False)


def _outputs(model, row, batch):
    from zoo import registry

    task = registry.build_task(row.task, **row.task_arguments)
    return task.forward(model, batch, training=False).outputs


def rows(family: str):
    """Returns the catalog's rows of a family."""
    from zoo.catalog import CATALOG

    return [row for row in CATALOG if row.family == family]


def main(family: str) -> None:
    """Runs every promise of every row of a family."""
    from trainers.distributed.strategy import prepare_devices

    prepare_devices(2)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ZOO_CACHE_DIR"] = cache
        found = _promises_kept(family)
    print("\n" + json.dumps(found))


def _promises_kept(family: str) -> dict[str, str]:
    found = {}
    for row in rows(family):
        for promise in promises(row):
            try:
                promise(row)
                found[f"{row.name}/{promise.__name__}"] = ""
            except Exception:
                found[f"{row.name}/{promise.__name__}"] = traceback.format_exc()
    return found


if __name__ == "__main__":
    main(sys.argv[1])
