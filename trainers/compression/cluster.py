"""Weight clustering (Han et al. 2016, Deep Compression, arXiv:1510.00149) by TF-MOT's algorithm.

Every kernel has a few values, its centroids, which are trained: a forward pass takes for each
weight the nearest of them. Gradients of the weights of a cluster add up to its centroid's, and also
move the weights themselves, which may go over to another. Zeros of a kernel stay zeros. The file
of a clustered model is one of Keras as before, with kernels of few values: small when compressed.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from trainers.config.compress import check_clusters
from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.rounding import kernels_of
from zoo.layers.tfmot import engines

_CENTROIDS = "centroids"  # a layer inside each layer that is clustered


def cluster(model: keras.Model, number: int) -> None:
    """Makes a built model compute with kernels of few values; inside the strategy's scope.

    Args:
      model: changed in place; its layers get their centroids as weights.
      number: of values of a kernel, at least 2, the 0 of pruned ones among them.

    Raises:
      UsageError: for fewer, or where the model trains no kernel.
    """
    check_clusters(number)
    found = [
        layer
        for layer in keras_internals.all_layers(model)
        if kernels_of(layer) and layer.trainable_variables
    ]
    if not found:
        raise UsageError(
            "Clustering knows Dense, EinsumDense, convolutions, recurrent layers and embeddings. "
            f"The model {model.name!r} trains none."
        )
    for layer in found:
        layer.call = _Clustered(layer, number)


class SetClusters:
    """Keeps kernels and centroids of a clustered model in step.

    Args:
      model: that `cluster` changed.
    """

    variables = ()  # the centroids are weights of the model

    def __init__(self, model: keras.Model):
        self._model = model

    def _clustered(self):
        for layer in keras_internals.all_layers(self._model):
            if isinstance(layer.call, _Clustered):
                yield layer.call

    def begin(self) -> None:
        """Finds the centroids of the weights that a run starts from."""
        for clustered in self._clustered():
            clustered.find()

    def update(self) -> None:
        """Training does it all."""

    def restore(self) -> None:
        """Gives the kernels the values that they have in a forward pass."""
        for clustered in self._clustered():
            clustered.take()


class _Clustered:
    """What a layer's `call` becomes: the call it had, with kernels of few values."""

    def __init__(self, layer, number: int):
        tfmot = engines()
        name = f"{layer.path}_{_CENTROIDS}".replace("/", "_")
        owner = layers.Layer(name=name, dtype="float32")
        self.layer, self.number = layer, number
        self.kernels = []
        for part, kernel in kernels_of(layer):
            centroids = owner.add_weight(
                shape=(number,), initializer="zeros", autocast=False, name=part
            )
            self.kernels.append((kernel, centroids))
        owner.build(())
        keras_internals.add_layer(layer, _CENTROIDS, owner)
        self._algorithm = tfmot.clustering_algorithm.ClusteringAlgorithm
        self.plain = layer.call

    def find(self) -> None:
        """k-means++ (Arthur and Vassilvitskii 2007), of the weights that are not 0 if some are."""
        for kernel, centroids in self.kernels:
            found = _centroids(np.float32(kernel.numpy()), self.number)
            centroids.assign(np.resize(found, self.number))

    def take(self) -> None:
        """Puts the clusters' values into the kernels."""
        for kernel, centroids in self.kernels:
            kernel.assign(self._value(kernel.value, centroids))

    def _value(self, kernel, centroids):
        # The algorithm wants a variable where it only reads: inside a train step there is none.
        algorithm = self._algorithm.__new__(self._algorithm)
        algorithm.cluster_centroids = tf.convert_to_tensor(centroids.value)
        algorithm.cluster_gradient_aggregation = engines().cluster_config.GradientAggregation.SUM
        value = tf.cast(kernel, tf.float32)
        # Of a kernel with zeros the middle one is 0, and is not moved.
        first = tf.argmin(tf.abs(algorithm.cluster_centroids), output_type=tf.int32)
        zero = tf.reduce_any(value == 0) & (tf.range(self.number) == first)
        algorithm.cluster_centroids = tf.where(zero, 0.0, algorithm.cluster_centroids)
        places = algorithm.get_pulling_indices(tf.stop_gradient(value))
        clustered = algorithm.get_clustered_weight(places, value)
        return tf.cast(tf.where(value == 0, value, clustered), kernel.dtype)

    def __call__(self, inputs, *args, **kwargs):
        values = [(kernel, self._value(kernel.value, c)) for kernel, c in self.kernels]
        return keras_internals.call_with_values(
            values, self.layer.variables, lambda: self.plain(inputs, *args, **kwargs)
        )


def _centroids(values: np.ndarray, number: int) -> np.ndarray:
    """So many centroids, or all values where there are no more of them; 0 is one if it occurs."""
    tfmot = engines()
    method = tfmot.cluster_config.CentroidInitialization.KMEANS_PLUS_PLUS
    factory = tfmot.clustering_centroids.CentroidsInitializerFactory
    usual = factory.get_centroid_initializer(method)

    class Start(usual):
        def _calculate_centroids_for_interval(self, weight_interval, number_of_clusters):
            different = np.unique(weight_interval)
            if len(different) <= number_of_clusters:
                return tf.constant(different)
            return super()._calculate_centroids_for_interval(weight_interval, number_of_clusters)

    sparse = bool((values == 0).any())
    start = Start(tf.constant(values), number, False, "channels_last", sparse)
    return start.get_cluster_centroids().numpy()
