"""Updates are mathematically equal for any number of micro-batches and replicas."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from trainers.config.base import optimizer, schedule
from trainers.distributed.group import LocalGroup
from trainers.evaluation.means import Means
from trainers.optimization.optimizers import make_optimizer
from trainers.train.build import synchronize_normalization
from trainers.train.hooks.keras_callbacks import share_rates
from zoo import registry
from zoo.errors import UsageError

BOUND = 1e-6


def sgd():
    return optimizer("sgd", learning_rate=0.1, clip_norm=0.5)


def adamw():
    return optimizer("adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=1.0)


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": adamw,
    "lion": lambda: optimizer("lion", learning_rate=0.003, weight_decay=0.1),
    "adafactor": lambda: optimizer("adafactor", learning_rate=0.01),
    "muon": lambda: optimizer("muon", learning_rate=0.01, weight_decay=0.1),
}
# name -> (replicas, micro-batch size)
SPLITS = {"4 micro-batches": (1, 4), "2 replicas": (2, 0), "4 replicas": (4, 0), "2 x 2": (2, 4)}


def tokens(name, task="toy_token", replicas=1, micro=0, l2=0.0):
    config = toys.recipe(
        task=task,
        model_arguments={"l2": l2},
        strategy="mirrored" if replicas > 1 else "one_device",
        replicas=replicas if replicas > 1 else 0,
        micro_batch_size=micro,
        ema=0.9,
    )
    config.optimizer = OPTIMIZERS[name]()
    # The final rate is above 0 so that the last update, of a short batch, changes the weights.
    config.schedule = schedule("cosine", warmup_steps=3, final_fraction=0.1)
    return config, toys.token_data()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_splitting_a_batch_changes_nothing(name, split, trained_once, run):
    """Covers sparse embedding gradients, unequal token counts and short last batches."""
    whole = trained_once(*tokens(name))
    replicas, micro = SPLITS[split]
    parts = run(*tokens(name, replicas=replicas, micro=micro))
    assert toys.difference(whole.step.net, parts.step.net) <= BOUND
    with whole.step.averaged(), parts.step.averaged():
        assert toys.difference(whole.step.net, parts.step.net) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_every_optimizer_is_equal_when_split(name, trained_once, run):
    whole = trained_once(*tokens(name))
    parts = run(*tokens(name, replicas=2, micro=4))
    # Lion uses the sign of values that may be rounding errors around zero.
    assert toys.difference(whole.step.net, parts.step.net) <= (1e-3 if name == "lion" else 1e-5)


@pytest.mark.parametrize("split", ["4 micro-batches", "2 x 2"])
def test_two_terms_and_a_penalty_when_split(split, trained_once, run):
    whole = trained_once(*tokens("sgd", "toy_two_terms", l2=0.01))
    replicas, micro = SPLITS[split]
    parts = run(*tokens("sgd", "toy_two_terms", replicas, micro, l2=0.01))
    assert toys.difference(whole.step.net, parts.step.net) <= BOUND
    assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    assert whole.metrics["regularization"] > 0


def test_equals_plain_keras_on_a_full_batch(xla, run):
    """Compares with stock `fit` on one batch without masks."""
    data = toys.token_data(examples=16)
    data.splits["train"]["mask"][:] = True
    config = toys.recipe(steps=10)
    ours = run(config, data).step.net
    keras.utils.set_random_seed(0)
    stock = toys.token_model()
    stock.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    arrays = data.splits["train"]
    stock.fit(arrays["tokens"], arrays["targets"], batch_size=16, epochs=10, verbose=0)
    assert toys.difference(stock, ours) <= BOUND


@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_fit_runs_the_same_step(strategy, trained_once, run):
    """`fit` of a `TrainStep`, a Keras model, gives the same weights on the same batches."""
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step
    from zoo.data.pipeline import training_batches

    whole = trained_once(*tokens("sgd"))
    replicas = 2 if strategy == "mirrored" else 1
    config, data = tokens("sgd", replicas=replicas)
    step, task = build_step(config, make_strategy(strategy, config.trainer.replicas), 10)
    batches = training_batches(
        data.splits["train"], task.prepare, batch_size=16, replicas=1, seed=0,
        first_step=0, last_step=10,
    )  # fmt: skip
    history = step.fit(batches, epochs=1, shuffle=False, verbose=0).history
    with whole.step.averaged():  # `fit` ends with the averages in the model
        assert toys.difference(whole.step.net, step.net) <= BOUND
    assert np.isfinite(history["loss"][0])


def test_xla_computes_the_same(trained_once, run, xla):
    whole = trained_once(*tokens("sgd"))
    for replicas, micro in ((1, 0), (2, 4)):
        config, data = tokens("sgd", replicas=replicas, micro=micro)
        config.trainer.jit_compile = True
        compiled = run(config, data)
        assert compiled.step._compiled[0].get_concrete_function  # the step was compiled
        assert toys.difference(whole.step.net, compiled.step.net) <= 1e-5


def test_replicas_and_steps_draw_other_dropout_masks(run):
    """All replicas get the same rows, so equal masks would give equal losses."""
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step

    config = toys.recipe(model_arguments={"dropout": 0.5}, strategy="mirrored", replicas=2)
    strategy = make_strategy("mirrored", 2)
    step, _ = build_step(config, strategy, 10)
    data = {k: tf.constant(v[:4]) for k, v in toys.token_data().splits["train"].items()}
    data["weight"] = tf.ones(4)

    @tf.function(autograph=False)
    def losses(micro_batch, turn):
        def one(micro):
            seeds = step._seeds(turn, micro)
            out = step._pure_gradients(0, data, step.task.term_counts(data), seeds, {}, 1.0)
            return out[1]["loss"]

        return strategy.run(one, args=(micro_batch,))

    def draw(micro_batch, turn=0):
        values = strategy.experimental_local_results(losses(tf.constant(micro_batch), turn))
        return [float(v) for v in values]

    first, again, other = draw(0), draw(0), draw(1)
    assert first == again
    assert len({*first, *draw(0, turn=1)}) == 4  # other masks per model part
    step.count.assign_add(1)
    later = draw(0)
    assert len({*first, *other, *later}) == 6


def test_micro_batches_draw_other_masks_on_each_replica(run):
    """Gradient accumulation also draws other masks and does not change the seed states."""
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step

    config = toys.recipe(
        model_arguments={"dropout": 0.5}, strategy="mirrored", replicas=2, micro_batch_size=4
    )
    strategy = make_strategy("mirrored", 2)
    step, _ = build_step(config, strategy, 10)
    states = [v.numpy() for v in step.seed_states]
    data = {k: tf.constant(v[:8]) for k, v in toys.token_data().splits["train"].items()}
    data["weight"] = tf.ones(8)

    masks = tf.function(
        lambda: strategy.run(
            lambda: step._accumulate(0, data, step.task.term_counts(data), 2, 0.25)[1]["loss"]
        ),
        autograph=False,
    )()
    one, other = (float(v) for v in strategy.experimental_local_results(masks))
    assert one != other
    tf.function(lambda: strategy.run(step.update, args=(data,)), autograph=False)()
    for state, variable in zip(states, step.seed_states, strict=True):
        np.testing.assert_array_equal(state, variable.numpy())


def test_batch_normalization_is_synchronized(run):
    """Two replicas normalize over the whole batch; replica-local moments would differ by 1e-2."""

    def train(replicas, micro=0):
        config = toys.recipe(
            "toy_norm", "image_classification", global_batch_size=8, steps=6,
            strategy="mirrored" if replicas > 1 else "one_device",
            replicas=replicas if replicas > 1 else 0, micro_batch_size=micro,
        )  # fmt: skip
        return run(config, toys.image_data(examples=24))

    one, two = train(1), train(2)
    assert toys.difference(one.step.net, two.step.net) <= 1e-5
    # Micro-batches of 4 rows on one device equal micro-batches of 2 rows on each of two devices.
    one, two = train(1, micro=4), train(2, micro=2)
    moving = [run.step.net.get_layer("norm").moving_mean for run in (one, two)]
    assert np.abs(moving[0].numpy()).max() > 1e-3  # the statistics are updated
    values = two.strategy.experimental_local_results(moving[1].value)
    np.testing.assert_array_equal(values[0].numpy(), values[1].numpy())


def test_xla_with_synchronized_normalization_is_refused(run):
    config = toys.recipe(
        "toy_norm", "image_classification", strategy="mirrored", replicas=2, jit_compile=True
    )
    with pytest.raises(UsageError, match="XLA cannot compile batch normalization"):
        run(config, toys.image_data())


def test_what_layers_add_to_the_loss_is_in_it(devices):
    """An `add_loss` of 3 per call is part of the logs, and its gradient changes the weights."""
    from trainers.train.step import TrainStep

    class Adds(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            self.add_loss(3.0 * self.scale)
            return x

    tokens = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(11, 8)(tokens)
    model = keras.Model(tokens, keras.layers.Dense(11)(Adds(name="adds")(x)))
    arrays = toys.token_data().splits["train"]
    data = {k: tf.constant(v[:8]) for k, v in arrays.items()} | {"weight": tf.ones(8)}
    for micro in (0, 4):
        model.get_layer("adds").scale.assign(1.0)
        step = TrainStep(model, toys.TokenTask(), keras.optimizers.SGD(0.1), micro_batch_size=micro)
        tf.function(step.update, autograph=False)(data)
        assert step.means.logs(step.means.take())["regularization"] == pytest.approx(3.0)
        assert float(model.get_layer("adds").scale.numpy()) == pytest.approx(1.0 - 0.1 * 3.0)


def one_update(config, **changes):
    """Returns the trainable variables, by path, before and after one update."""
    from trainers.distributed.strategy import make_strategy
    from trainers.train.build import build_step

    step, _ = build_step(config, make_strategy("one_device"), 10)
    arrays = toys.token_data().splits["train"]
    data = {key: tf.constant(value[:16]) for key, value in arrays.items()}
    variables = step.net.trainable_variables
    for variable in variables:  # weight decay does not change zeros
        variable.assign(variable + 1)
    before = {v.path: v.numpy() for v in variables}
    tf.function(step.update, autograph=False)({**data, "weight": tf.ones(16), **changes})
    return before, {v.path: v.numpy() for v in variables}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "adafactor", "muon"])
def test_weight_decay_leaves_biases_and_norms_alone(name):
    """With row weights of 0 there is no gradient, so only weight decay changes variables."""
    config = toys.recipe()
    config.optimizer = optimizer(name, learning_rate=0.1, weight_decay=0.5)
    before, after = one_update(config, weight=tf.zeros(16))
    for path, value in before.items():
        share = 0.95 if path.endswith(("kernel", "embeddings")) else 1.0
        np.testing.assert_allclose(after[path], share * value, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_slow_variables_go_a_part_of_the_way(name):
    """Decay and gradient move the slow block by a tenth, the others as without slow variables."""
    config = toys.recipe()
    changes = {}
    for slow in ("", "^block_0/"):
        config.optimizer = optimizer(
            name, learning_rate=0.01, weight_decay=0.5, slow=slow, slow_rate=0.1
        )
        before, after = one_update(config)
        changes[slow] = {path: after[path] - before[path] for path in before}
    shares = {path: 0.1 if path.startswith("block_0/") else 1.0 for path in changes[""]}
    assert set(shares.values()) == {0.1, 1.0}
    for path, share in shares.items():
        # Weight decay precedes the update, which depends only on the gradient.
        np.testing.assert_allclose(
            changes["^block_0/"][path],
            share * changes[""][path],
            rtol=2e-3,
            atol=1e-6,
            err_msg=path,
        )


def test_slow_variables_are_slow_on_replicas_too(run):
    config = toys.recipe()
    config.optimizer = optimizer("adamw", weight_decay=0.1, slow="^block_0/")
    one = run(config, toys.token_data())
    config.trainer.update({"strategy": "mirrored", "replicas": 2})
    two = run(config, toys.token_data())
    assert toys.difference(one.step.net, two.step.net) < 1e-5


def test_slow_variables_must_be_there(run):
    config = toys.recipe()
    for pattern, message in (
        ("blok", "must match a trainable variable"),
        ("(", "must be a regular expression"),
    ):
        config.optimizer = optimizer("sgd", slow=pattern)
        with pytest.raises(UsageError, match=message):
            run(config, toys.token_data())


def test_clipping_is_by_the_global_norm():
    config = toys.recipe()
    changes = {}
    for clip_norm in (0.0, 1e-3):
        config.optimizer = optimizer("sgd", learning_rate=1.0, momentum=0.0, clip_norm=clip_norm)
        before, after = one_update(config)
        changes[clip_norm] = np.concatenate([(before[k] - after[k]).ravel() for k in before])
    assert np.linalg.norm(changes[1e-3]) == pytest.approx(1e-3, rel=1e-2)
    cosine = (
        changes[0.0] @ changes[1e-3] / np.linalg.norm(changes[0.0]) / np.linalg.norm(changes[1e-3])
    )
    assert cosine == pytest.approx(1.0, abs=1e-4)


def test_schedules_count_updates(run):
    """Four micro-batches are one update: after ten updates the schedule is at step 10."""
    config = toys.recipe(micro_batch_size=4)
    config.schedule = schedule("linear", warmup_steps=2)
    trainer = run(config, toys.token_data())
    assert int(trainer.step.optimizer.iterations.numpy()) == 10
    assert float(trainer.step.optimizer.learning_rate.numpy()) == pytest.approx(0.0, abs=1e-8)


def test_micro_batch_that_does_not_divide_is_refused(run):
    with pytest.raises(UsageError, match="micro_batch_size=5 for a per-replica batch of 16"):
        run(toys.recipe(micro_batch_size=5), toys.token_data())
    with pytest.raises(UsageError, match="global_batch_size=16 for 3 replicas"):
        run(toys.recipe(strategy="mirrored", replicas=3), toys.token_data())


def test_moving_statistics_are_reduced_in_the_order_of_the_variables(run, monkeypatch):
    """Sorting by `id` is wrong: ids differ per process, so workers would add different tensors."""
    from trainers.train import step

    reduced_names = []
    plain = tf.distribute.ReplicaContext.all_reduce

    def watched(self, operation, values, *more):
        names = [tensor.name for tensor in tf.nest.flatten(values)]
        if operation == tf.distribute.ReduceOp.MEAN and "replica_1" not in names[0]:
            reduced_names.append(names)
        return plain(self, operation, values, *more)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", watched)
    for sign in (1, -1):
        monkeypatch.setattr(step, "id", lambda x, sign=sign: sign * id(x), raising=False)
        config = toys.recipe(
            "toy_norm", "image_classification", steps=1, strategy="mirrored", replicas=2
        )
        run(config, toys.image_data())
    assert len(reduced_names) == 2
    assert len(set(reduced_names[0])) == 2
    assert reduced_names[0] == reduced_names[1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sgd", {"momentum": 1.5}, "optimizer.momentum must be in"),
        ("adam", {"beta_1": 1.0}, "optimizer.beta_1 must be in"),
        ("lion", {"beta_2": -0.1}, "optimizer.beta_2 must be in"),
        ("adamw", {"epsilon": 0.0}, "optimizer.epsilon must be positive"),
        ("adafactor", {"beta_2_decay": 0.8}, "optimizer.beta_2_decay must be negative"),
        ("adamw", {"weight_decay_exclude": "("}, "exclude must be a regular expression"),
        ("adam", {"learning_rate": -1.0}, "learning_rate must be at least 0 and finite"),
        ("adam", {"learning_rate": float("inf")}, "learning_rate must be at least 0 and finite"),
        ("adam", {"clip_norm": -1.0}, "clip_norm must be at least 0"),
    ],
)
def test_values_that_no_optimizer_has(name, changes, message):
    with pytest.raises(UsageError, match=message):
        make_optimizer(name, 0.1, **changes)


def test_a_penalty_is_no_perplexity():
    task = registry.build_task("clm")
    means = Means(task, penalty=True)
    sums = {**dict.fromkeys(means.metrics, (2.0, 1.0)), "regularization": (3.0, 1.0)}
    logs = means.logs(sums)
    assert logs["loss"] == 5.0
    assert logs["perplexity"] == pytest.approx(math.exp(2.0))


def test_frozen_normalization_spans_no_replicas():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4,)), norm])
    norm.trainable = False
    assert not synchronize_normalization(model)
    norm.trainable = True
    assert synchronize_normalization(model)


class TwoWorkers(LocalGroup):
    """Group as seen by a non-chief worker; the first learning rate of the chief is 0.125."""

    count = 2

    def share(self, value=None):
        return [0.125, *value[1:]]


def test_rates_of_the_chief_are_those_of_all():
    """Constant learning rates follow the chief's callbacks; schedules are equal on all workers."""
    own = keras.optimizers.SGD(0.5)
    plan = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.5, 10))
    share_rates([own, plan], TwoWorkers())
    assert float(own.learning_rate) == 0.125
    assert float(plan.learning_rate) == 0.5
