"""Weight clustering (Han et al. 2016, Deep Compression, arXiv:1510.00149) by TF-MOT's algorithm.

Each kernel has a small number of values, its centroids, which are trained. In a forward pass each
weight takes the value of the nearest centroid. The gradient of a centroid is the sum of the
gradients of its cluster's weights. These gradients also move the weights, which may move to another
cluster. Zeros of a kernel stay zeros. A clustered model is saved as an ordinary Keras file, which
compresses well because its kernels have few distinct values.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from trainers.compression.low_rank import refuse_tied_products
from trainers.compression.technique import Compressor, Technique
from trainers.config.compress import check_clusters
from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.rounding import kernels_of
from zoo.layers.tfmot import engines

_CENTROIDS = "centroids"  # a layer inside each clustered layer


class Cluster(Technique):
    """`compress.cluster`: limits every kernel to `number` distinct values."""

    def change_model(self, model, settings):
        if number := settings.cluster.number:
            refuse_tied_products(model)
            cluster(model, number)
        return model

    def compressor(self, step, settings, total_steps):
        return Centroids(step.net) if settings.cluster.number else None


def cluster(model: keras.Model, number: int) -> None:
    """Clusters the kernels of a built model; must be called inside the strategy's scope.

    Args:
      model: model to change in place; its layers get their centroids as weights.
      number: number of values per kernel, at least 2, including the 0 of pruned kernels.
    """
    check_clusters(number)
    selected_layers = [
        layer
        for layer in keras_internals.all_layers(model)
        if kernels_of(layer) and layer.trainable_variables
    ]
    if not selected_layers:
        raise UsageError(
            "compress.cluster supports trainable Dense, EinsumDense, convolution, recurrent and "
            f"embedding layers. The model {model.name!r} has no such layer."
        )
    for layer in selected_layers:
        layer.call = _ClusteredCall(layer, number)


class Centroids(Compressor):
    """Compressor that initializes centroids and writes their values into the kernels.

    Checkpoints contain the centroids, because the centroids are weights of the model.
    """

    def _kernels(self):
        for layer in keras_internals.all_layers(self.model):
            if isinstance(layer.call, _ClusteredCall):
                yield from ((layer.call, kernel, c) for kernel, c in layer.call.kernels)

    def begin(self) -> None:
        """Runs k-means++ (Arthur and Vassilvitskii 2007), on nonzero weights if there are any."""
        for call, kernel, centroids in self._kernels():
            values = _centroids(np.float32(kernel.numpy()), call.number)
            centroids.assign(np.resize(values, call.number))

    def restore(self) -> None:
        """Assigns to the kernels the clustered values of the forward pass."""
        for call, kernel, centroids in self._kernels():
            kernel.assign(call.cluster_kernel(kernel.value, centroids))


class _ClusteredCall:
    """Replacement of `layer.call` that calls the original with clustered kernels."""

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
        self.original_call = layer.call

    def cluster_kernel(self, kernel, centroids):
        """Returns the kernel with each weight replaced by the nearest centroid."""
        # TF-MOT's algorithm holds its centroids in a variable; a train step has only a tensor.
        algorithm = self._algorithm.__new__(self._algorithm)
        algorithm.cluster_centroids = tf.convert_to_tensor(centroids.value)
        algorithm.cluster_gradient_aggregation = engines().cluster_config.GradientAggregation.SUM
        value = tf.cast(kernel, tf.float32)
        # If the kernel has zeros, the centroid nearest to 0 is 0 and does not move.
        nearest = tf.argmin(tf.abs(algorithm.cluster_centroids), output_type=tf.int32)
        zero = tf.reduce_any(value == 0) & (tf.range(self.number) == nearest)
        algorithm.cluster_centroids = tf.where(zero, 0.0, algorithm.cluster_centroids)
        indices = algorithm.get_pulling_indices(tf.stop_gradient(value))
        clustered = algorithm.get_clustered_weight(indices, value)
        return tf.cast(tf.where(value == 0, value, clustered), kernel.dtype)

    def __call__(self, inputs, *args, **kwargs):
        values = [(kernel, self.cluster_kernel(kernel.value, c)) for kernel, c in self.kernels]
        return keras_internals.call_with_values(
            values, self.layer.variables, lambda: self.original_call(inputs, *args, **kwargs)
        )


def _centroids(values: np.ndarray, number: int) -> np.ndarray:
    """Returns at most `number` centroids of a kernel; 0 is one of them if the kernel has zeros."""
    tfmot = engines()
    method = tfmot.cluster_config.CentroidInitialization.KMEANS_PLUS_PLUS
    factory = tfmot.clustering_centroids.CentroidsInitializerFactory
    base = factory.get_centroid_initializer(method)

    class Initializer(base):
        def _calculate_centroids_for_interval(self, weight_interval, number_of_clusters):
            unique_values = np.unique(weight_interval)
            if len(unique_values) <= number_of_clusters:
                return tf.constant(unique_values)
            return super()._calculate_centroids_for_interval(weight_interval, number_of_clusters)

    sparse = bool((values == 0).any())
    initializer = Initializer(tf.constant(values), number, False, "channels_last", sparse)
    return initializer.get_cluster_centroids().numpy()
