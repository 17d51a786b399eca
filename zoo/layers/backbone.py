"""A pretrained base network inside another model."""

import keras


@keras.saving.register_keras_serializable("zoo")
class Backbone(keras.Model):
    """A network of keras.applications, in inference mode while any of its layers is frozen.

    In inference mode, batch normalization keeps its statistics, and dropout is off.
    """

    def call(self, inputs, training=None, mask=None):
        trainable = all(layer.trainable for layer in self.layers)
        return super().call(inputs, training=bool(training) and trainable)
