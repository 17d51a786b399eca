"""Custom layers and tasks are refused if padding rows change the results of real rows."""

import keras
import pytest
from keras import layers, ops

import zoo
from tests import toys
from trainers.train.padding import check_padding
from trainers.train.step import TrainStep
from zoo import registry
from zoo.errors import UsageError
from zoo.tasks.base import Forward
from zoo.tasks.image_classification import ImageClassification


class Centered(layers.Layer):
    def call(self, x):
        return x - ops.mean(x, 0)


class CenteredOfRealRows(layers.Layer):
    def call(self, x):
        weights = zoo.row_weights(x)
        if weights is None:
            return x - ops.mean(x, 0)
        total = ops.sum(weights[:, None] * x, 0)
        return x - total / ops.maximum(ops.sum(weights), 1.0)


class Penalized(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


class Counting(layers.Layer):
    """Stores the mean of its last inputs in a variable."""

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], trainable=False, name="mean")

    def call(self, x):
        self.mean.assign(ops.mean(x, 0))
        return x


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class WithoutWeights(ImageClassification):
    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        losses = ops.sparse_categorical_crossentropy(batch["label"], result.outputs)
        return Forward({"loss": ops.sum(losses)}, result.statistics, result.outputs)


def network(*inside, name="toy_padding"):
    image = keras.Input((6, 6, 1), name="image")
    x = layers.Flatten()(image)
    for one in inside:
        x = one(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="last")(x), name=name)


registry.register("toy_centered", lambda: network(Centered()), "image_classification")


def check(*inside, task=None):
    task = task or ImageClassification()
    step = TrainStep(network(*inside), task, keras.optimizers.SGD(0.1))
    check_padding(step, task, toys.image_data().splits["train"], 16)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (lambda: Centered(name="center"), "the loss 'loss'.*Received: Centered center"),
        (lambda: Penalized(), "the losses that layers add"),
        (lambda: Counting(name="counts"), "the variable counts/mean"),
        (lambda: layers.Softmax(axis=0), "the loss 'loss'.*Softmax"),
        (lambda: layers.UnitNormalization(axis=0), "UnitNormalization"),
        (lambda: layers.Lambda(lambda x: x - ops.mean(x, 0)), "Lambda"),
        (lambda: lambda x: x - ops.mean(x, axis=0), "the loss 'loss'.*Received: .*Mean"),
        (lambda: keras.Sequential([Doubled(), Centered()]), "Centered .*, Doubled "),
    ],
)
def test_what_mixes_real_rows_with_padding_is_refused(inside, message):
    with pytest.raises(UsageError, match=f"^Padding rows change .*{message}") as error:
        check(inside())
    assert "\n" not in str(error.value)


def test_a_task_that_counts_padding_is_refused():
    with pytest.raises(UsageError, match="change the loss 'loss'.*Received: WithoutWeights"):
        check(task=WithoutWeights())


def test_what_leaves_padding_out_is_taken():
    check(CenteredOfRealRows(), Doubled(), lambda x: 2 * x, layers.Lambda(lambda x: x))
    check(Doubled(), layers.BatchNormalization(), layers.Dropout(0.5))
    check(Doubled(), layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1)))


def test_the_trainer_checks_before_it_writes(run, tmp_path):
    with pytest.raises(UsageError, match="Padding rows change the loss"):
        run(toys.recipe("toy_centered", "image_classification"), toys.image_data(), tmp_path / "a")
    assert not (tmp_path / "a" / "config.json").exists()


def test_a_recurrent_layer_that_keeps_its_state_is_refused():
    image = keras.Input(batch_shape=(4, 6, 6, 1), name="image")
    x = layers.LSTM(2, stateful=True, name="lstm")(layers.Reshape((6, 6))(image))
    model = keras.Model(image, layers.Dense(3, activation="softmax")(x))
    with pytest.raises(UsageError, match="Set stateful=False. Received: layer 'lstm'"):
        TrainStep(model, ImageClassification(), keras.optimizers.SGD(0.1))


def test_a_data_set_has_no_weights_of_its_own():
    """The pipeline would replace an array named "weight" with its own row weights."""
    split = {**toys.image_data(4).splits["train"], "weight": toys.np.ones(4, "float32")}
    with pytest.raises(zoo.errors.RunError, match="no array may be named 'weight'"):
        zoo.data.Dataset("weighted", {"train": split}, (), "weighted")
