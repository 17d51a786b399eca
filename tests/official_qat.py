"""Compares the quantization-aware training of TF-MOT (Keras 2) with the zoo's."""

import numpy as np

from tests.official_pruning import BATCH, network, training_data

EPOCHS = 2  # of 60 updates each; more than 80 updates in total


def official(start):
    """Trains with TF-MOT; returns the loss of each update, the weights and the predictions."""
    import tf_keras

    from zoo.layers.tfmot import engines

    engines()
    import tensorflow_model_optimization as tfmot

    model = network(tf_keras)
    model.set_weights(start)
    rounded = tfmot.quantization.keras.quantize_model(model)
    rounded.compile(tf_keras.optimizers.SGD(0.1), tf_keras.losses.SparseCategoricalCrossentropy())
    losses = []

    class Record(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])
            rounded.reset_metrics()

    image, label = training_data()
    rounded.fit(
        image, label, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0,
        callbacks=[Record()],
    )  # fmt: skip
    return losses, [w.numpy() for w in rounded.trainable_weights], rounded.predict(image, verbose=0)


def ours(start):
    """Trains with the zoo; returns the same as `official`."""
    import keras
    import tensorflow as tf

    from trainers.train.step import TrainStep
    from zoo.layers.rounding import quantize
    from zoo.tasks.image_classification import ImageClassification

    model = network(keras)
    model.set_weights(start)
    quantize(model, decay=0.999)
    for variable in model.non_trainable_weights:
        if variable.path.endswith("_updates"):
            variable.assign(1e9)  # TF-MOT has no bias correction of the average
    step = TrainStep(model, ImageClassification(), keras.optimizers.SGD(0.1))
    update = tf.function(step.update, autograph=False)
    losses = []
    image, label = training_data()
    for _ in range(EPOCHS):
        for i in range(0, len(image), BATCH):
            rows = slice(i, i + BATCH)
            batch = {"image": image[rows], "label": label[rows]}
            update({**batch, "weight": np.ones(BATCH, "float32")})
            losses.append(step.means.logs(step.means.take())["loss"])
    trained = [v.numpy() for v in model.trainable_variables]
    return losses, trained, model(image, training=False).numpy()


def compare() -> dict[str, float]:
    """Returns the largest differences of TF-MOT and the zoo, and TF-MOT's decrease of the loss."""
    import keras

    keras.utils.set_random_seed(0)
    start = network(keras).get_weights()
    theirs, ours_ = official(start), ours(start)
    gaps = [np.abs(np.subtract(a, b)).max() for a, b in zip(theirs[1], ours_[1], strict=True)]
    return {
        "loss": float(np.abs(np.subtract(theirs[0], ours_[0])).max()),
        "weights": float(max(gaps)),
        "predictions": float(np.abs(theirs[2] - ours_[2]).max()),
        "learned": float(theirs[0][0] - theirs[0][-1]),
    }


if __name__ == "__main__":
    print(compare())
