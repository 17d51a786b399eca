"""A pretrained base network inside another model."""

import keras


@keras.saving.register_keras_serializable("zoo")
class Backbone(keras.Model):
    """A network of keras.applications that trains as a whole or stays as it was learned.

    While any of its layers is frozen, all of it computes as in inference: normalisation uses, and
    keeps, the statistics that it came with, and nothing is dropped.
    """

    def call(self, inputs, training=None, mask=None):
        whole = all(layer.trainable for layer in self.layers)
        return super().call(inputs, training=bool(training) and whole)
