"""Compares the pruning of TF-MOT (Keras 2) with the zoo's, for one CNN on the same batches."""

import numpy as np

STEPS, BATCH = 60, 16
PLAN = {"initial_sparsity": 0.1, "final_sparsity": 0.8, "begin_step": 5, "end_step": 55}


def training_data():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 10, STEPS * BATCH).astype("int32")
    image = generator.normal(size=(len(label), 12, 12, 1)).astype("float32")
    return image + label[:, None, None, None] / 5, label


def network(keras):
    return keras.Sequential(
        [
            keras.layers.InputLayer((12, 12, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def official(start):
    """Trains with TF-MOT; returns the masks before each forward pass, and the final weights."""
    import tf_keras

    from zoo.layers.tfmot import engines

    engines()
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

    model = network(tf_keras)
    model.set_weights(start)
    plan = tfmot.sparsity.keras.PolynomialDecay(**PLAN, frequency=10)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=plan)
    pruned.compile(
        tf_keras.optimizers.SGD(0.1), tf_keras.losses.SparseCategoricalCrossentropy()
    )  # fmt: skip
    masks = []

    class Record(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            wrappers = [
                x for x in pruned.layers if isinstance(x, pruning_wrapper.PruneLowMagnitude)
            ]
            masks.append([m.numpy() for x in wrappers for _, m, _ in x.pruning_vars])

    image, label = training_data()
    pruned.fit(
        image, label, batch_size=BATCH, epochs=1, shuffle=False, verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep(), Record()],
    )  # fmt: skip
    return masks, tfmot.sparsity.keras.strip_pruning(pruned).get_weights()


def ours(start):
    """Trains with the zoo; returns the masks after each update, and the final weights."""
    import keras
    import tensorflow as tf

    from trainers.compression.prune import Pruner
    from trainers.config.base import base
    from trainers.train.step import TrainStep
    from zoo.tasks.image_classification import ImageClassification

    model = network(keras)
    model.set_weights(start)
    step = TrainStep(model, ImageClassification(), keras.optimizers.SGD(0.1))
    settings = {
        "sparsity": PLAN["final_sparsity"], "initial_sparsity": PLAN["initial_sparsity"],
        "begin": PLAN["begin_step"] / STEPS, "end": PLAN["end_step"] / STEPS, "frequency": 10,
    }  # fmt: skip
    settings = base().compress.prune.to_dict() | settings
    del settings["keep_zeros"]
    pruner = Pruner(model, step.count, STEPS, settings)
    step.compressors = (pruner,)
    update = tf.function(step.update, autograph=False)
    masks = []
    image, label = training_data()
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        update({"image": image[rows], "label": label[rows], "weight": np.ones(BATCH, "float32")})
        masks.append([mask.numpy() for mask in pruner.masks])
    return masks, model.get_weights()


def compare() -> tuple[list[int], float]:
    """Trains with TF-MOT and with the zoo from the same initial weights.

    Returns:
      Number of differing mask elements at each step that both have, and the largest absolute
      difference of the final weights.
    """
    import keras

    keras.utils.set_random_seed(0)
    start = network(keras).get_weights()
    theirs, their_weights = official(start)
    our_masks, our_weights = ours(start)
    # TF-MOT sets masks at the beginning of a step, the zoo at the end of the previous step.
    differing = [
        sum(int((a != b).sum()) for a, b in zip(now, before, strict=True))
        for now, before in zip(theirs[1:], our_masks[:-1], strict=True)
    ]
    gap = max(np.abs(a - b).max() for a, b in zip(their_weights, our_weights, strict=True))
    return differing, float(gap)
